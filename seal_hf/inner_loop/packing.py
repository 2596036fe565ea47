"""
One step of a bank as one packed batch: the sequences of all adapters laid end to end, with little or no padding.

Layers that treat every token alike (embeddings, norms, linear layers) see it as it is. The two that do not, LoRA and
attention, work on [`Block`]s: neighbouring adapters whose sequences are padded to a common length, so that each is a view of
the batch and one batched product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..models import transfers
from .update import TrainingSequence


# Grouped products take fewer than 1024 groups.
_MOST_ADAPTERS = 1000

Batch = Sequence[TrainingSequence]  # what one adapter trains on in one step


@dataclass(frozen=True)
class Block:
    """
    Adapters that are next to each other in a packed batch, each with equally many sequences of equal padded length.

    Parameters:
        first (`int`):
            Number of its first adapter.
        num_adapters (`int`):
            Adapters in it.
        num_sequences (`int`):
            Sequences of each adapter; one that has fewer is filled up with padding.
        length (`int`):
            Padded length of each sequence, in tokens.
        start (`int`):
            Position of its first token in the batch.
    """

    first: int
    num_adapters: int
    num_sequences: int
    length: int
    start: int

    @property
    def adapters(self) -> slice:
        return slice(self.first, self.first + self.num_adapters)

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.num_adapters * self.num_sequences * self.length)


def cut_into_blocks(batches: Mapping[int, Batch], block_cost: int) -> list[list[int]]:
    """
    Cut the adapters of one step into blocks, so that a passage does not pad every short line to its length.

    Adapters in order of their longest sequence are cut into blocks; the cuts minimize padded tokens plus `block_cost` per
    block (dynamic program).

    Args:
        batches (`Mapping[int, Sequence[TrainingSequence]]`):
            What each adapter trains on in this step.
        block_cost (`int`):
            What one more block costs besides its tokens, in tokens.

    Returns:
        `list[list[int]]`: the adapters of each block, the longest sequences first.
    """
    lengths = {adapter: max(len(sequence.input_ids) for sequence in batch) for adapter, batch in batches.items()}
    order = sorted(batches, key=lambda adapter: (-lengths[adapter], adapter))
    best = [(0, 0)]  # least cost of the first n adapters, start of their last block
    for end in range(1, len(order) + 1):
        num_sequences, candidates = 0, []
        for start in range(end - 1, -1, -1):
            num_sequences = max(num_sequences, len(batches[order[start]]))
            tokens = (end - start) * num_sequences * lengths[order[start]]
            candidates.append((best[start][0] + tokens + block_cost, start))
        best.append(min(candidates))
    blocks, end = [], len(order)
    while end:
        start = best[end][1]
        blocks.append(order[start:end])
        end = start
    return blocks[::-1]


def padded_sizes(batches: Mapping[int, Batch], blocks: Sequence[Sequence[int]]) -> list[int]:
    """For each block the tokens of one of its adapters, padding included."""
    return [
        max(len(batches[adapter]) for adapter in block)
        * max(len(sequence.input_ids) for adapter in block for sequence in batches[adapter])
        for block in blocks
    ]


def share_out(
    batches: Mapping[int, Batch], blocks: Sequence[Sequence[int]], most_tokens: int
) -> list[list[list[int]]]:
    """
    Share blocks out to as few passes as hold about `most_tokens` tokens each, of about equal size.

    A block that goes over the end of a pass is split between adapters; an adapter is never split.

    Args:
        batches (`Mapping[int, Sequence[TrainingSequence]]`):
            What each adapter trains on.
        blocks (`Sequence[Sequence[int]]`):
            The adapters of each block.
        most_tokens (`int`):
            Tokens of one pass, padding included; by up to half an adapter more, or one whole one that is larger. An
            adapter counts for a thousandth of them at least, so that a pass does not get too many.

    Returns:
        `list[list[list[int]]]`: for each pass the adapters of its blocks.
    """
    least = -(-most_tokens // _MOST_ADAPTERS)
    sizes = [max(size, least) for size in padded_sizes(batches, blocks)]
    total = sum(size * len(block) for size, block in zip(sizes, blocks, strict=True))
    num_passes = -(-total // most_tokens)
    passes: list[list[list[int]]] = [[] for _ in range(num_passes)]
    num_tokens = 0
    for size, block in zip(sizes, blocks, strict=True):
        parts: dict[int, list[int]] = {}
        for adapter in block:
            # an adapter belongs where its middle token falls
            middle = num_tokens + size / 2
            parts.setdefault(int(middle * num_passes / total), []).append(adapter)
            num_tokens += size
        for number, part in parts.items():
            passes[number].append(part)
    return [blocks for blocks in passes if blocks]


class PackedBatch:
    """
    The sequences of some adapters, laid end to end. All of it goes to the device in one transfer.

    Parameters:
        batches (`Sequence[Sequence[Sequence[TrainingSequence]]]`):
            For each block its adapters' sequences. Adapters are counted through in this order.
        device (`torch.device`):
            Where the tensors are made.

    Attributes:
        blocks (`tuple[Block, ...]`):
            Its blocks.
        num_adapters, num_tokens (`int`):
            K and N, the adapters and the tokens of all blocks, padding included.
        input_ids, position_ids (`torch.Tensor` of shape `(N,)`):
            Token ids, 0 where there is padding, and positions within the own sequence.
        positions (`torch.Tensor` of shape `(M,)`):
            The positions in the batch from which a label is predicted.
        labels (`torch.Tensor` of shape `(M,)`):
            The tokens to predict.
        owners (`torch.Tensor` of shape `(M,)`):
            The adapter of each label.
        shares (`torch.Tensor` of shape `(M,)`):
            Weight of each label in its adapter's loss, which is the mean over its labels.
        adapter_ends (`torch.Tensor` of shape `(K,)`, int32):
            Where the tokens of each adapter end, padding included.
        sequence_ends (`torch.Tensor` of shape `(S + 1,)`, int32):
            Where each sequence ends, padding included, after a 0.
    """

    def __init__(self, batches: Sequence[Sequence[Batch]], device: torch.device):
        blocks, placed, counts, num_tokens = [], [], [], 0
        for block_batches in batches:
            num_sequences = max(len(batch) for batch in block_batches)
            length = max(len(sequence.input_ids) for batch in block_batches for sequence in batch)
            blocks.append(Block(len(counts), len(block_batches), num_sequences, length, num_tokens))
            for batch in block_batches:
                placed += [(sequence, num_tokens + length * place) for place, sequence in enumerate(batch)]
                counts.append(sum(len(sequence.input_ids) - sequence.first_label for sequence in batch))
                num_tokens += num_sequences * length
        input_ids = np.zeros(num_tokens, dtype=np.int64)
        for sequence, start in placed:
            input_ids[start : start + len(sequence.input_ids)] = sequence.input_ids
        # The token at t is predicted at t - 1.
        positions = np.concatenate(
            [
                np.arange(start + sequence.first_label - 1, start + len(sequence.input_ids) - 1)
                for sequence, start in placed
            ]
        )
        lengths = np.array([block.length for block in blocks])
        numbers = np.array([block.num_adapters * block.num_sequences for block in blocks])  # of sequences
        sequence_ends = np.concatenate([[0], np.repeat(lengths, numbers).cumsum()])
        tokens = np.repeat(
            [block.num_sequences * block.length for block in blocks], [block.num_adapters for block in blocks]
        )
        parts = [
            input_ids,
            np.concatenate([np.tile(np.arange(block.length), n) for block, n in zip(blocks, numbers, strict=True)]),
            positions,
            input_ids[positions + 1],
            np.repeat(np.arange(len(counts)), counts),
            counts,
            tokens.cumsum(),
            sequence_ends,
        ]
        self.blocks, self.num_adapters, self.num_tokens = tuple(blocks), len(counts), num_tokens
        on_device = transfers.to_device(np.concatenate(parts), device).split([len(part) for part in parts])
        self.input_ids, self.position_ids, self.positions, self.labels, self.owners, label_counts = on_device[:6]
        self.shares = (1.0 / label_counts)[self.owners]
        self.adapter_ends, self.sequence_ends = (ends.int() for ends in on_device[6:])
