"""
The matrices of many adapters as batched products read them: for each module those of all adapters next to each other.

In rows of whole adapters, as the optimizer wants them, the matrices of one module lie far apart, and a batched product
first copies each of them: on a CPU that takes as long as the product.
"""

import torch

from .layout import LoraLayout


class LoraStacks:
    """
    The matrices of K adapters, stacked by module.

    Parameters:
        layout (`LoraLayout`):
            The adapted modules.
        num_adapters (`int`):
            K.
        dtype, device:
            Of the matrices, which are not initialized.
    """

    def __init__(self, layout: LoraLayout, num_adapters: int, dtype: torch.dtype, device: torch.device):
        self.layout, self.dtype, self.device = layout, dtype, device
        self._take(num_adapters)

    def _take(self, num_adapters: int) -> None:
        self.num_adapters = num_adapters
        self._runs = [
            torch.empty(len(run.names), num_adapters, *run.shape, dtype=self.dtype, device=self.device)
            for run in self.layout.runs
        ]

    def make_room(self, num_adapters: int) -> None:
        """Take more memory, not initialized, where there is too little for so many adapters."""
        if num_adapters > self.num_adapters:
            self._runs.clear()  # given back first
            self._take(num_adapters)

    @classmethod
    def of(cls, layout: LoraLayout, weights: torch.Tensor, dtype: torch.dtype) -> "LoraStacks":
        """The adapters whose weight vectors are the rows of `weights`, of shape `(K, num_parameters)`."""
        stacks = cls(layout, len(weights), dtype, weights.device)
        for run, pieces in zip(stacks._runs, layout.pieces(weights), strict=True):
            run.copy_(pieces.transpose(0, 1))
        return stacks

    def pieces(self, adapter: int) -> list[torch.Tensor]:
        """Views of one adapter's matrices, in the parts and shapes of [`LoraLayout.pieces`]."""
        return [run[:, adapter] for run in self._runs]

    def matrices(
        self, adapters: slice | torch.Tensor = slice(None), *, transposed: bool = False
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """
        The matrices of some adapters.

        Parameters:
            adapters (`slice` or `torch.Tensor` of shape `(k,)`, *optional*):
                Which ones; all unless given. Those of a slice are views.
            transposed (`bool`, *optional*, defaults to `False`):
                Whether the last two dimensions are swapped.

        Returns:
            `dict[str, tuple[torch.Tensor, torch.Tensor]]`: for each module name `A` of shape `(k, r, in_features)` and `B`
            of shape `(k, out_features, r)`.
        """
        chosen = [run[:, adapters] for run in self._runs]
        return self.layout.by_module([(run.mT if transposed else run).unbind() for run in chosen])
