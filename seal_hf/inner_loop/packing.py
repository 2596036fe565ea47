"""
One step of a bank as one packed batch: the sequences of all adapters laid end to end, with little or no padding.

Layers that treat every token alike (embeddings, norms, linear layers) see it as it is. The two that do not, LoRA and
attention, work on [`Block`]s: neighbouring adapters whose sequences are padded to common lengths, so that each is a view of
the batch and one batched product.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from ..models import transfers
from .blocks import ONE_PART, Batch, Block, Extent, PartCosts


class PackedBatch:
    """
    The sequences of some adapters, laid end to end. All of it goes to the device in one transfer.

    Parameters:
        batches (`Sequence[Sequence[Sequence[TrainingSequence]]]`):
            For each block its adapters' sequences. Adapters are counted through in this order.
        device (`torch.device`):
            Where the tensors are made.
        costs ([`PartCosts`], *optional*):
            As for [`cut_into_blocks`].

    Attributes:
        blocks (`tuple[Block, ...]`):
            Its blocks.
        num_adapters, num_tokens (`int`):
            K and N, the adapters and the tokens of all blocks, padding included and a shared prefix counted once.
        input_ids, position_ids (`torch.Tensor` of shape `(N,)`):
            Token ids, 0 where there is padding, and positions within the own sequence.
        positions (`torch.Tensor` of shape `(M,)`):
            The positions in the batch from which a label is predicted; one of a shared prefix for each of its sequences.
        labels (`torch.Tensor` of shape `(M,)`):
            The tokens to predict.
        owners (`torch.Tensor` of shape `(M,)`):
            The adapter of each label.
        shares (`torch.Tensor` of shape `(M,)`):
            Weight of each label in its adapter's loss, which is the mean over its labels.
        adapter_ends (`torch.Tensor` of shape `(K,)`, int32):
            Where the tokens of each adapter end, padding included.
        sequence_ends (`torch.Tensor` of shape `(S + 1,)`, int32):
            Where each sequence ends, padding included, after a 0. A shared prefix counts as one.
    """

    def __init__(self, batches: Sequence[Sequence[Batch]], device: torch.device, costs: PartCosts = ONE_PART):
        blocks, placed, counts, num_tokens = [], [], [], 0
        for block_batches in batches:
            extent = Extent.of(*block_batches)
            prefix, lengths = extent.shared_prefix(costs), extent.padded_lengths(costs)
            block = Block(len(counts), len(block_batches), lengths, num_tokens, prefix)
            blocks.append(block)
            for batch in block_batches:
                starts = accumulate(lengths[: len(batch) - 1], initial=0)  # of each sequence, from the first one's
                longest_first = sorted(batch, key=lambda sequence: -len(sequence.input_ids))
                placed += [
                    (sequence, prefix, num_tokens, own) for sequence, own in zip(longest_first, starts, strict=True)
                ]
                counts.append(sum(len(sequence.input_ids) - sequence.first_label for sequence in batch))
                num_tokens += block.adapter_tokens
        input_ids, positions, labels = np.zeros(num_tokens, dtype=np.int64), [], []
        for sequence, prefix, start, others in placed:
            places = np.arange(start, start + len(sequence.input_ids))
            places[prefix:] += others  # the tokens of sequences between the prefix and this one
            input_ids[places] = sequence.input_ids
            # The token at t is predicted at t - 1.
            positions.append(places[sequence.first_label - 1 : -1])
            labels.append(sequence.input_ids[sequence.first_label :])
        tokens = np.repeat([block.adapter_tokens for block in blocks], [block.num_adapters for block in blocks])
        parts = [
            input_ids,
            np.concatenate([_position_ids(block) for block in blocks]),
            np.concatenate(positions),
            np.concatenate(labels),
            np.repeat(np.arange(len(counts)), counts),
            counts,
            tokens.cumsum(),
            np.concatenate([[0], *map(_lengths, blocks)]).cumsum(),
        ]
        self.blocks, self.num_adapters, self.num_tokens = tuple(blocks), len(counts), num_tokens
        on_device = transfers.to_device(np.concatenate(parts), device).split([len(part) for part in parts])
        self.input_ids, self.position_ids, self.positions, self.labels, self.owners, label_counts = on_device[:6]
        self.shares = (1.0 / label_counts)[self.owners]
        self.adapter_ends, self.sequence_ends = (ends.int() for ends in on_device[6:])


def _position_ids(block: Block) -> np.ndarray:
    rests = [np.arange(block.prefix, block.prefix + length) for length in block.lengths]
    return np.tile(np.concatenate([np.arange(block.prefix), *rests]), block.num_adapters)


def _lengths(block: Block) -> list[int]:
    """Of its sequences, padding included; a shared prefix counts as one before them."""
    return [*[block.prefix] * (block.prefix > 0), *block.lengths] * block.num_adapters
