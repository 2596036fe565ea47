"""
Blocks of a packed batch: which adapters share one, and how their sequences lie in it.

Where the sequences of an adapter begin with the same tokens, as the prompts of one passage do, these stand in the block once,
before the rest of each sequence: nothing that a token computes depends on what comes after it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise, zip_longest
from typing import NamedTuple

from .update import TrainingSequence


# Grouped products take fewer than 1024 groups.
_MOST_ADAPTERS = 1000

Batch = Sequence[TrainingSequence]  # what one adapter trains on in one step


@dataclass(frozen=True)
class Block:
    """
    Adapters that are next to each other in a packed batch, each with sequences of the same padded lengths.

    Parameters:
        first (`int`):
            Number of its first adapter.
        num_adapters (`int`):
            Adapters in it.
        lengths (`tuple[int, ...]`):
            Padded length of each sequence of an adapter, in tokens, without the prefix, the longest first. An adapter that
            has fewer sequences is filled up with padding.
        start (`int`):
            Position of its first token in the batch.
        prefix (`int`, *optional*, defaults to `0`):
            Tokens with which all sequences of an adapter begin. They stand before the first of them, once for each adapter.
    """

    first: int
    num_adapters: int
    lengths: tuple[int, ...]
    start: int
    prefix: int = 0

    @property
    def adapters(self) -> slice:
        return slice(self.first, self.first + self.num_adapters)

    @property
    def adapter_tokens(self) -> int:
        """Tokens of each of its adapters, padding included."""
        return self.prefix + sum(self.lengths)

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.num_adapters * self.adapter_tokens)


class PartCosts(NamedTuple):
    """
    What a block costs, in tokens besides its own, that attends in several parts. Infinite where it cannot.

    Parameters:
        prefix (`float`, *optional*, defaults to `math.inf`):
            That its sequences share a prefix.
        length (`float`, *optional*, defaults to `math.inf`):
            Each length of sequences after the first.
    """

    prefix: float = math.inf
    length: float = math.inf


ONE_PART = PartCosts()


class Extent(NamedTuple):
    """
    What some adapters need in a common block.

    Parameters:
        num_adapters (`int`):
            Adapters.
        lengths (`tuple[int, ...]`):
            Tokens of the longest sequences that an adapter has, of the second longest, and so on.
        prefix (`int`):
            Tokens with which all sequences of an adapter begin, in each of the adapters.
    """

    num_adapters: int
    lengths: tuple[int, ...]
    prefix: int

    @classmethod
    def of(cls, *batches: Batch) -> "Extent":
        """Of the adapters that train on these."""
        return reduce(
            cls.together_with,
            (
                cls(
                    1,
                    tuple(sorted((len(sequence.input_ids) for sequence in batch), reverse=True)),
                    common_prefix(batch),
                )
                for batch in batches
            ),
        )

    def together_with(self, other: "Extent") -> "Extent":
        return Extent(
            self.num_adapters + other.num_adapters,
            tuple(map(max, zip_longest(self.lengths, other.lengths, fillvalue=0))),
            min(self.prefix, other.prefix),
        )

    def shared_prefix(self, costs: PartCosts) -> int:
        """The tokens of the prefix that is computed once: all where that saves more tokens than it costs, else none."""
        saved = self.num_adapters * (len(self.lengths) - 1) * self.prefix
        return self.prefix if saved > costs.prefix else 0

    def padded_lengths(self, costs: PartCosts) -> tuple[int, ...]:
        """The lengths of a block's sequences after the shared prefix: as many lengths as save what they cost."""
        prefix = self.shared_prefix(costs)
        lengths = tuple(length - prefix for length in self.lengths)
        return _levelled(lengths, costs.length / self.num_adapters)

    def adapter_tokens(self, costs: PartCosts) -> int:
        """Tokens of one adapter, padding included and a shared prefix counted once."""
        return self.shared_prefix(costs) + sum(self.padded_lengths(costs))

    def cost(self, costs: PartCosts) -> float:
        """The tokens of all adapters, and what the parts cost."""
        cost = self.num_adapters * self.adapter_tokens(costs)
        if self.shared_prefix(costs):
            cost += costs.prefix
        # Not by a product, which is no number where there are none that cost infinitely much.
        return cost + sum(costs.length for one, other in pairwise(self.padded_lengths(costs)) if one != other)


def common_prefix(batch: Batch) -> int:
    """How many tokens all sequences begin with. It leaves each of them one token at least."""
    all_ids = [sequence.input_ids for sequence in batch]
    least, greatest = min(all_ids), max(all_ids)  # what these two begin with, those between them do
    if least == greatest:
        return len(least) - 1
    pairs = zip(least[:-1], greatest, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(least) - 1)


@lru_cache(maxsize=4096)
def _levelled(lengths: tuple[int, ...], cost: float) -> tuple[int, ...]:
    """
    Pad sequences to few lengths, with the least sum of the lengths and of the cost of each length after the first.

    >>> _levelled((90, 12, 11, 10), 5)
    (90, 12, 12, 12)
    """
    if lengths[0] == lengths[-1] or cost == math.inf:
        return lengths[:1] * len(lengths)
    best = [(0.0, 0)]  # least cost of the first n sequences, start of the last of their lengths
    for end in range(1, len(lengths) + 1):
        best.append(
            min((best[start][0] + (end - start) * lengths[start] + cost * (start > 0), start) for start in range(end))
        )
    levelled, end = (), len(lengths)
    while end:
        start = best[end][1]
        levelled = (lengths[start],) * (end - start) + levelled
        end = start
    return levelled


def cut_into_blocks(batches: Mapping[int, Batch], block_cost: int, costs: PartCosts = ONE_PART) -> list[list[int]]:
    """
    Cut the adapters of one step into blocks, so that a passage does not pad every short line to its length.

    Adapters in order of their longest sequence are cut into blocks; the cuts minimize padded tokens plus the costs of the
    blocks (dynamic program).

    Args:
        batches (`Mapping[int, Sequence[TrainingSequence]]`):
            What each adapter trains on in this step.
        block_cost (`int`):
            What one more block costs besides its tokens, in tokens.
        costs ([`PartCosts`], *optional*):
            What the parts of a block cost. By default a block has one.

    Returns:
        `list[list[int]]`: the adapters of each block, the longest sequences first.
    """
    extents = {adapter: Extent.of(batch) for adapter, batch in batches.items()}
    order = sorted(batches, key=lambda adapter: (-extents[adapter].lengths[0], adapter))
    best: list[tuple[float, int]] = [(0, 0)]  # least cost of the first n adapters, start of their last block
    for end in range(1, len(order) + 1):
        extent, candidates = extents[order[end - 1]], []
        for start in range(end - 1, -1, -1):
            if start < end - 1:
                extent = extent.together_with(extents[order[start]])
            candidates.append((best[start][0] + extent.cost(costs) + block_cost, start))
        best.append(min(candidates))
    blocks, end = [], len(order)
    while end:
        start = best[end][1]
        blocks.append(order[start:end])
        end = start
    return blocks[::-1]


def padded_sizes(
    batches: Mapping[int, Batch], blocks: Sequence[Sequence[int]], costs: PartCosts = ONE_PART
) -> list[int]:
    """For each block the tokens of one of its adapters, padding included and a shared prefix counted once."""
    return [Extent.of(*(batches[adapter] for adapter in block)).adapter_tokens(costs) for block in blocks]


def share_out(
    batches: Mapping[int, Batch],
    blocks: Sequence[Sequence[int]],
    most_tokens: int,
    costs: PartCosts = ONE_PART,
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
        costs ([`PartCosts`], *optional*):
            As for [`cut_into_blocks`].

    Returns:
        `list[list[list[int]]]`: for each pass the adapters of its blocks.
    """
    least = -(-most_tokens // _MOST_ADAPTERS)
    sizes = [max(size, least) for size in padded_sizes(batches, blocks, costs)]
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
