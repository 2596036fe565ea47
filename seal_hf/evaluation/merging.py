"""Adapters that were trained apart as one: their average, or a merge that settles their conflicts or thins them out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, ties

from ..adapters.adapter import Adapter
from ..adapters.stacking import stacked_ranks


# The share of values that TIES keeps, as its paper does.
TIES_DENSITY = 0.2
# The share of values that DARE keeps. Its paper drops up to 99 % of a difference of weights; here each of its two factors is
# thinned out, so that half of both leaves a quarter of the products that it is a sum of.
DARE_DENSITY = 0.5


def averaged(adapters: Sequence[Adapter]) -> Adapter:
    """
    The adapter that adds the mean of what several add: the average of finetuned weights (Wortsman et al. 2022,
    https://arxiv.org/abs/2203.05482), of which only the low-rank parts differ.

    It is exact, without a decomposition: the ranks stand next to each other, each with a share of 1/n, so that the rank is the sum
    of theirs.

    Args:
        adapters (`Sequence[Adapter]`):
            Adapters of one base model, at least one.
    """
    parts = [(one.layout, one.weights, 1 / len(adapters)) for one in map(Adapter.on_base, adapters)]
    layout, weights = stacked_ranks(parts)
    return Adapter(layout, weights, adapters[0].base_model_id)


def ties_merged(adapters: Sequence[Adapter], density: float = TIES_DENSITY) -> Adapter:
    """
    Merge adapters by TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708) as PEFT's `add_weighted_adapter` does it with all
    weights 1: of every matrix `A` and `B` the largest values are kept, a sign is elected for every place, and the values of that
    sign are averaged. One adapter alone stays as it is.

    The paper merges differences of weights. This merges `A` and `B` each by itself, which is not the same for their product; the
    rank stays that of one adapter.

    Args:
        adapters (`Sequence[Adapter]`):
            Adapters of one base model and one layout, at least one.
        density (`float`, *optional*, defaults to `0.2`):
            The share of values that is kept of each matrix; above 0 and below 1.

    Raises:
        ValueError: The adapters have several layouts.
    """
    return _merged("TIES", ties, adapters, density)


def dare_linear_merged(adapters: Sequence[Adapter], seed: int, density: float = DARE_DENSITY) -> Adapter:
    """
    Merge adapters by DARE and averaging (Yu et al. 2024, https://arxiv.org/abs/2311.03099) as PEFT's `add_weighted_adapter` does
    it with `"dare_linear"` and all weights 1/n: of every matrix `A` and `B` values are dropped at random, the others are divided
    by the density, and the matrices are added. One adapter alone stays as it is.

    The paper thins out differences of weights. This thins out `A` and `B` each by itself, as [`ties_merged`] does, and what is
    added has a product of the `B` of each adapter with the `A` of every other.

    Args:
        adapters (`Sequence[Adapter]`):
            Adapters of one base model and one layout, at least one.
        seed (`int`):
            Seed of the draw.
        density (`float`, *optional*, defaults to `0.5`):
            The share of values that is kept of each matrix; above 0 and below 1.

    Raises:
        ValueError: The adapters have several layouts.
    """
    return _merged("DARE", dare_linear, adapters, density, 1 / len(adapters), seed)


def dare_ties_merged(adapters: Sequence[Adapter], seed: int, density: float = DARE_DENSITY) -> Adapter:
    """
    Merge adapters by DARE and TIES as PEFT's `add_weighted_adapter` does it with `"dare_ties"` and all weights 1: as
    [`ties_merged`], but the values that are kept are drawn, and divided by the density (see [`dare_linear_merged`]).

    Args:
        adapters, seed, density:
            As for [`dare_linear_merged`].

    Raises:
        ValueError: The adapters have several layouts.
    """
    return _merged("DARE", dare_ties, adapters, density, 1.0, seed)


def _merged(
    method: str,
    merge: Callable[[list[torch.Tensor], torch.Tensor, float], torch.Tensor],
    adapters: Sequence[Adapter],
    density: float,
    weight: float = 1.0,
    seed: int = 0,
) -> Adapter:
    """One adapter of several of one layout, their matrices `A` and `B` each merged by one of PEFT's functions."""
    plain = [one.on_base() for one in adapters]
    layouts = {one.layout for one in plain}
    if len(layouts) > 1:
        raise ValueError(
            f"{method} merges adapters of one layout, these have {len(layouts)}; train them with equal modules, rank and alpha."
        )
    if len(plain) == 1:
        return plain[0]
    (layout,) = layouts
    # Weight and scaling go into the matrices, half of both into each.
    factors = torch.full((len(plain),), (weight * layout.scaling) ** 0.5)
    merged_layout = replace(layout, lora_alpha=layout.r, use_rslora=False)
    weights = torch.empty(layout.num_parameters)
    own = [layout.views(one.weights) for one in plain]
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(seed)
        for name, targets in merged_layout.views(weights).items():
            for letter, target in enumerate(targets):
                target.copy_(merge([views[name][letter] for views in own], factors, density))
    return Adapter(merged_layout, weights, adapters[0].base_model_id)
