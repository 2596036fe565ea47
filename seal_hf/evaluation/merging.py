"""Adapters that were trained apart as one: their average, or a merge that settles their conflicts."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from peft.utils.merge_utils import ties

from ..adapters.adapter import Adapter
from ..adapters.stacking import stacked_ranks


# The share of values that TIES keeps, as its paper does.
TIES_DENSITY = 0.2


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
    plain = [one.on_base() for one in adapters]
    layouts = {one.layout for one in plain}
    if len(layouts) > 1:
        raise ValueError(
            f"TIES merges adapters of one layout, these have {len(layouts)}; train them with equal modules, rank and alpha."
        )
    if len(plain) == 1:
        return plain[0]
    (layout,) = layouts
    # The scaling goes into the matrices, half of it into each.
    factors = torch.full((len(plain),), layout.scaling**0.5)
    merged_layout = replace(layout, lora_alpha=layout.r, use_rslora=False)
    weights = torch.empty(layout.num_parameters)
    own = [layout.views(one.weights) for one in plain]
    for name, targets in merged_layout.views(weights).items():
        for letter, target in enumerate(targets):
            target.copy_(ties([views[name][letter] for views in own], factors, density))
    return Adapter(merged_layout, weights, adapters[0].base_model_id)
