"""Sums of adapters as one adapter: their ranks next to each other."""

from collections.abc import Sequence

import torch

from .layout import LoraLayout


def stacked_ranks(parts: Sequence[tuple[LoraLayout, torch.Tensor, float]]) -> tuple[LoraLayout, torch.Tensor]:
    """
    The adapter that adds what several add.

    The sum of two low-rank products is one product of the stacked matrices, so this is exact, and nothing is merged into
    (possibly quantized) base weights. A module that only some of them adapt gets zeros for the others' ranks, which keeps one
    rank for all modules.

    Args:
        parts (`Sequence[tuple[LoraLayout, torch.Tensor, float]]`):
            For each adapter its layout, its weights, fp32 of shape `(num_parameters,)` on the CPU, and the factor by which it
            counts; -1 takes away what it adds.

    Returns:
        `tuple[LoraLayout, torch.Tensor]`: layout and weights, fp32 of shape `(num_parameters,)` on the CPU.
    """
    layouts = [layout for layout, *_ in parts]
    modules = {module.name: module for layout in layouts for module in layout.modules}
    r = sum(layout.r for layout in layouts)
    # One common scaling stays in lora_alpha; different ones move into B.
    shared = len({layout.scaling for layout in layouts}) == 1
    stacked_layout = LoraLayout(
        modules=tuple(modules.values()),
        r=r,
        lora_alpha=layouts[0].scaling * r if shared else r,
        target_modules=tuple(sorted({name for layout in layouts for name in layout.target_modules})),
    )
    weights = torch.zeros(stacked_layout.num_parameters)
    stacked, offset = stacked_layout.views(weights), 0
    for layout, own, factor in parts:
        end, scale = offset + layout.r, factor if shared else factor * layout.scaling
        for name, (lora_a, lora_b) in layout.views(own).items():
            stacked[name][0][offset:end] = lora_a
            stacked[name][1][:, offset:end] = lora_b * scale
        offset = end
    return stacked_layout, weights
