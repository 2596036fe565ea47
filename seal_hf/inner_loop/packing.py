"""
One step of a bank as one packed batch: the sequences of all adapters laid end to end, with little or no padding.

Layers that treat every token alike (embeddings, norms, linear layers) see it as it is. The two that do not, LoRA and
attention, work on [`Block`]s: neighbouring adapters whose sequences are padded to a common length, so that each is a view of
the batch and one batched product.

Where the sequences of an adapter begin with the same tokens, as the prompts of one passage do, these stand in the batch once,
before the rest of each sequence: nothing that a token computes depends on what comes after it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

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
            Padded length of each sequence, in tokens, without the prefix.
        start (`int`):
            Position of its first token in the batch.
        prefix (`int`, *optional*, defaults to `0`):
            Tokens with which all sequences of an adapter begin. They stand before the first of them, once for each adapter.
    """

    first: int
    num_adapters: int
    num_sequences: int
    length: int
    start: int
    prefix: int = 0

    @property
    def adapters(self) -> slice:
        return slice(self.first, self.first + self.num_adapters)

    @property
    def adapter_tokens(self) -> int:
        """Tokens of each of its adapters, padding included."""
        return self.prefix + self.num_sequences * self.length

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.num_adapters * self.adapter_tokens)


class _Extent(NamedTuple):
    """
    What some adapters need in a common block.

    Parameters:
        num_adapters (`int`):
            Adapters.
        num_sequences, length (`int`):
            Most sequences of an adapter, and the longest one's tokens.
        prefix (`int`):
            Tokens with which all sequences of an adapter begin, in each of the adapters.
    """

    num_adapters: int
    num_sequences: int
    length: int
    prefix: int

    @classmethod
    def of(cls, batch: Batch) -> "_Extent":
        return cls(1, len(batch), max(len(sequence.input_ids) for sequence in batch), common_prefix(batch))

    def together_with(self, other: "_Extent") -> "_Extent":
        return _Extent(
            self.num_adapters + other.num_adapters,
            max(self.num_sequences, other.num_sequences),
            max(self.length, other.length),
            min(self.prefix, other.prefix),
        )

    def shared(self, prefix_cost: float) -> int:
        """The tokens of the prefix that is computed once: all where that saves more tokens than it costs, else none."""
        saved = self.num_adapters * (self.num_sequences - 1) * self.prefix
        return self.prefix if saved > prefix_cost else 0

    def adapter_tokens(self, prefix_cost: float) -> int:
        """Tokens of one adapter, padding included."""
        return self.num_sequences * self.length - (self.num_sequences - 1) * self.shared(prefix_cost)


def common_prefix(batch: Batch) -> int:
    """How many tokens all sequences begin with. It leaves each of them one token at least."""
    all_ids = [sequence.input_ids for sequence in batch]
    least, greatest = min(all_ids), max(all_ids)  # what these two begin with, those between them do
    pairs = zip(least[:-1], greatest, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(least) - 1)


def cut_into_blocks(batches: Mapping[int, Batch], block_cost: int, prefix_cost: float = math.inf) -> list[list[int]]:
    """
    Cut the adapters of one step into blocks, so that a passage does not pad every short line to its length.

    Adapters in order of their longest sequence are cut into blocks; the cuts minimize padded tokens plus the costs of the
    blocks (dynamic program).

    Args:
        batches (`Mapping[int, Sequence[TrainingSequence]]`):
            What each adapter trains on in this step.
        block_cost (`int`):
            What one more block costs besides its tokens, in tokens.
        prefix_cost (`float`, *optional*, defaults to `math.inf`):
            What it costs a block besides that its sequences share a prefix, in tokens; infinite where they cannot.

    Returns:
        `list[list[int]]`: the adapters of each block, the longest sequences first.
    """
    extents = {adapter: _Extent.of(batch) for adapter, batch in batches.items()}
    order = sorted(batches, key=lambda adapter: (-extents[adapter].length, adapter))
    best = [(0, 0)]  # least cost of the first n adapters, start of their last block
    for end in range(1, len(order) + 1):
        extent, candidates = None, []
        for start in range(end - 1, -1, -1):
            own = extents[order[start]]
            extent = own if extent is None else own.together_with(extent)
            cost = extent.num_adapters * extent.adapter_tokens(prefix_cost) + block_cost
            if extent.shared(prefix_cost):
                cost += prefix_cost
            candidates.append((best[start][0] + cost, start))
        best.append(min(candidates))
    blocks, end = [], len(order)
    while end:
        start = best[end][1]
        blocks.append(order[start:end])
        end = start
    return blocks[::-1]


def _extent(batches: Sequence[Batch]) -> _Extent:
    return reduce(_Extent.together_with, map(_Extent.of, batches))


def padded_sizes(
    batches: Mapping[int, Batch], blocks: Sequence[Sequence[int]], prefix_cost: float = math.inf
) -> list[int]:
    """For each block the tokens of one of its adapters, padding included and a shared prefix counted once."""
    return [_extent([batches[adapter] for adapter in block]).adapter_tokens(prefix_cost) for block in blocks]


def share_out(
    batches: Mapping[int, Batch],
    blocks: Sequence[Sequence[int]],
    most_tokens: int,
    prefix_cost: float = math.inf,
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
        prefix_cost (`float`, *optional*, defaults to `math.inf`):
            As for [`cut_into_blocks`].

    Returns:
        `list[list[list[int]]]`: for each pass the adapters of its blocks.
    """
    least = -(-most_tokens // _MOST_ADAPTERS)
    sizes = [max(size, least) for size in padded_sizes(batches, blocks, prefix_cost)]
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
        prefix_cost (`float`, *optional*, defaults to `math.inf`):
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

    def __init__(self, batches: Sequence[Sequence[Batch]], device: torch.device, prefix_cost: float = math.inf):
        blocks, placed, counts, num_tokens = [], [], [], 0
        for block_batches in batches:
            extent = _extent(block_batches)
            prefix = extent.shared(prefix_cost)
            length = extent.length - prefix
            block = Block(len(counts), len(block_batches), extent.num_sequences, length, num_tokens, prefix)
            blocks.append(block)
            for batch in block_batches:
                placed += [(sequence, prefix, num_tokens, length * place) for place, sequence in enumerate(batch)]
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
    positions = np.arange(block.prefix + block.length)
    prefix, rest = positions[: block.prefix], positions[block.prefix :]
    return np.tile(np.concatenate([prefix, *[rest] * block.num_sequences]), block.num_adapters)


def _lengths(block: Block) -> list[int]:
    """Of its sequences, padding included; a shared prefix counts as one before them."""
    own = [block.prefix] * (block.prefix > 0) + [block.length] * block.num_sequences
    return own * block.num_adapters
