"""
Many LoRA adapters on one frozen model, used side by side in one batch.

PEFT refuses a different adapter per row while training, and evaluates such a batch in a Python loop over adapters. Here
the `A` and `B` matrices of all adapters are stacked, and a batch whose rows belong to K adapters costs two batched matrix
products per adapted module. The base model's modules are not replaced: forward hooks add the LoRA part while a bank is
attached, and only then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from peft import LoraConfig
from torch import nn

from ..models.access import activation_dtype, keep_trainable
from ..models.architecture import hooked, see_all_tokens
from ..models.transfers import to_device
from .adapter import Adapter
from .layout import LoraLayout, LoraStacks, lora_layout
from .stacking import stacked_ranks


class AdapterRows:
    """
    Which adapter of a stack each row of a batch uses, arranged for batched products.

    Rows are gathered into a `(K, G)` grid, one line per adapter and G = the most rows that one of them has; shorter lines
    repeat a row, whose surplus result is not read. A batch that already has this order needs no gathering.

    Parameters:
        adapters (`Sequence[int | None]`):
            For each row of the batch a place in the stack, or `None` for the model without an inner adapter. Every place
            of the stack has at least one row.
        device (`torch.device`):
            Where the batch lies.
    """

    def __init__(self, adapters: Sequence[int | None], device: torch.device):
        lines: dict[int, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                lines.setdefault(adapter, []).append(row)
        self.num_rows, self.num_adapters = len(adapters), len(lines)
        self.num_tokens: int | None = None  # of each row in the pass that is running
        self.is_one = len(set(adapters)) == 1
        width = max((len(rows) for rows in lines.values()), default=0)
        ordered = [lines[adapter] for adapter in sorted(lines)]
        grid = [rows + rows[:1] * (width - len(rows)) for rows in ordered]
        self.in_order = [row for line in grid for row in line] == list(range(self.num_rows))
        if not self.in_order:
            place = {row: line * width + i for line, rows in enumerate(ordered) for i, row in enumerate(rows)}
            places = [place.get(row, 0) for row in range(self.num_rows)]
            adapted = [row in place for row in range(self.num_rows)]
            numbers = to_device([row for line in grid for row in line] + places + adapted, device)
            grid, self.place, adapted = numbers.split([len(lines) * width, self.num_rows, self.num_rows])
            self.grid = grid.view(len(lines), width)  # (K, G)
            self.adapted = None if len(place) == self.num_rows else adapted.bool()[:, None, None]  # (R, 1, 1)

    def read_length(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        """A forward hook of the input embedding, which gives `(R, L, d)`."""
        self.num_tokens = output.shape[1] if output.dim() == 3 else None


class UnknownRows(ValueError):
    """A module got an input that does not tell which row of the batch each token belongs to."""


def _add_lora(
    matrices: tuple[torch.Tensor, torch.Tensor],  # (K, r, in) and (K, out, r)
    rows: AdapterRows,
    scaling: float,
    module: nn.Module,
    args: tuple[torch.Tensor],
    output: torch.Tensor,  # (R, L, out)
) -> torch.Tensor:
    hidden, (lora_a, lora_b) = args[0], matrices
    if hidden.dim() != 3 or hidden.shape[0] != rows.num_rows:
        # One adapter's tokens may be in any order; those of several rows are told apart where all are there.
        if not rows.is_one and hidden.shape[:-1] != (rows.num_rows * (rows.num_tokens or 0),):
            raise UnknownRows(
                f"An adapted {type(module).__name__} got an input of shape {tuple(hidden.shape)}, but adapters are attached "
                f"for a batch of {rows.num_rows} rows; call the model with exactly these rows."
            )
        shape = (1, -1) if rows.is_one else (rows.num_rows, rows.num_tokens)
        hidden = hidden.reshape(*shape, hidden.shape[-1])
        by_row = output.reshape(*shape, output.shape[-1])
        if rows.is_one:
            return _added(hidden, by_row, lora_a, lora_b, scaling).view_as(output)
        return _add_lora(matrices, rows, scaling, module, (hidden,), by_row).view_as(output)
    length = hidden.shape[1]
    if rows.in_order:
        hidden = hidden.reshape(rows.num_adapters, -1, hidden.shape[2])
        base = output.reshape(rows.num_adapters, -1, output.shape[2])
        return _added(hidden, base, lora_a, lora_b, scaling).view_as(output)
    hidden = hidden.to(lora_a.dtype)
    grouped = hidden[rows.grid].reshape(rows.num_adapters, -1, hidden.shape[2])  # (K, G * L, in)
    update = torch.bmm(torch.bmm(grouped, lora_a.mT).mul_(scaling), lora_b.mT)
    update = update.view(-1, length, output.shape[2])[rows.place]  # (R, L, out)
    return output + (update if rows.adapted is None else torch.where(rows.adapted, update, 0.0))


def _added(
    hidden: torch.Tensor,  # (K, T, in)
    base: torch.Tensor,  # (K, T, out)
    lora_a: torch.Tensor,  # (K, r, in)
    lora_b: torch.Tensor,  # (K, out, r)
    scaling: float,
) -> torch.Tensor:
    low_rank = torch.bmm(hidden.to(lora_a.dtype), lora_a.mT)
    return torch.baddbmm(base, low_rank, lora_b.mT, alpha=scaling)


class StackedAdapters:
    """
    Adapters in the form in which a model reads them: those of each module next to each other, in the dtype of the
    activations.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The model, with or without a policy adapter. It is never changed.
        layout (`LoraLayout`):
            The adapted modules, rank and scaling that all adapters share.
        weights (`Sequence[torch.Tensor]`, each of shape `(num_parameters,)`):
            The adapters' weights, on any device.
    """

    def __init__(self, model: nn.Module, layout: LoraLayout, weights: Sequence[torch.Tensor]):
        self.model, self.layout, self.scaling, self.num_adapters = model, layout, layout.scaling, len(weights)
        self.device = model.get_input_embeddings().weight.device
        self._stacks = LoraStacks.of(layout, weights, activation_dtype(model), self.device)

    @classmethod
    def of(cls, model: nn.Module, adapters: Sequence[Adapter]) -> "StackedAdapters":
        """
        Stack trained adapters.

        Raises:
            ValueError: The adapters differ in modules, rank or scaling.
        """
        layouts = {adapter.layout for adapter in adapters}
        if len(layouts) != 1:
            raise ValueError(
                f"Adapters that are used together have one layout, these {len(adapters)} have {len(layouts)}; use those of "
                "equal modules, rank and alpha together."
            )
        return cls(model, layouts.pop(), [adapter.device_weights for adapter in adapters])

    def fits_batches(self, adapters: Sequence[int | None]) -> bool:
        """Whether rows with these adapters can be one batch: not where modules see a choice of tokens of unlike rows."""
        return len(set(adapters)) < 2 or see_all_tokens([module.name for module in self.layout.modules])

    @contextmanager
    def attach(self, adapters: Sequence[int | None]) -> Iterator[None]:
        """
        Let row `i` of every batch use adapter `adapters[i]` (`None`: no inner adapter) inside the `with` block.

        In a batch of unlike adapters a module may raise [`UnknownRows`].

        Raises:
            IndexError: An adapter that is not among these.
        """
        used = sorted({adapter for adapter in adapters if adapter is not None})
        if used and not 0 <= used[0] <= used[-1] < self.num_adapters:
            raise IndexError(f"Rows ask for adapters {used[0]} to {used[-1]}, but there are {self.num_adapters}.")
        order = {adapter: place for place, adapter in enumerate(used)}
        rows = AdapterRows([order.get(adapter) for adapter in adapters], self.device)
        if used and used[-1] - used[0] < len(used):  # neighbours, of which no copy is needed
            chosen = slice(used[0], used[-1] + 1)
        else:
            chosen = to_device(used, self.device)
        hooks = {
            name: partial(_add_lora, matrices, rows, self.scaling)
            for name, matrices in self._stacks.matrices(chosen).items()
        }
        if not used:
            yield
            return
        # What a module is given may have lost the rows, such as (R * L, d).
        handle = self.model.get_input_embeddings().register_forward_hook(rows.read_length)
        try:
            with hooked(self.model, hooks):
                yield
        finally:
            handle.remove()


class AdapterBank:
    """
    K LoRA adapters stacked on the linear layers of one frozen model.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The model, with or without a policy adapter. It is never changed.
        layout (`LoraLayout`):
            The adapted modules, rank and scaling that all adapters share.
        weights (`torch.Tensor` of shape `(K, num_parameters)`, fp32):
            The adapters' weights; kept on the model's device.

    Raises:
        ValueError: `weights` is not of that shape, or holds no adapter.
    """

    def __init__(self, model: nn.Module, layout: LoraLayout, weights: torch.Tensor):
        if weights.dim() != 2 or weights.shape[0] < 1 or weights.shape[1] != layout.num_parameters:
            raise ValueError(
                f"An adapter bank needs weights of shape (adapters, {layout.num_parameters}) with at least one adapter; "
                f"these have {tuple(weights.shape)}."
            )
        keep_trainable(model)
        self.model = model
        self.layout = layout
        self.weights = weights.to(model.get_input_embeddings().weight.device, torch.float32)

    @classmethod
    def initialize(
        cls,
        model: nn.Module,
        peft_config: LoraConfig,
        seeds: Sequence[int],
        parents: Sequence[Adapter] | None = None,
    ) -> "AdapterBank":
        """
        Fresh adapters, one per seed, initialized as PEFT does (`A` Kaiming-uniform, `B` zero).

        Args:
            model, peft_config:
                The model, and the shape of the adapters.
            seeds (`Sequence[int]`):
                One for each adapter.
            parents (`Sequence[Adapter]`, *optional*):
                For each an adapter whose ranks stand before the fresh ones (see [`stacked_ranks`]).

        Raises:
            ValueError: No seeds, or parents of different shapes.
        """
        layout = lora_layout(model, peft_config)
        if not seeds:
            raise ValueError("An adapter bank needs at least one seed; got none.")
        if parents is not None:
            return cls._on_parents(model, layout, seeds, parents)
        device = model.get_input_embeddings().weight.device
        weights = torch.empty(len(seeds), layout.num_parameters, device=device)
        for seed in set(seeds):  # drawn once and spread on the device: a vector takes a large model 0.2 s
            drawn = layout.initial_weights(seed).to(device)
            for own, other in zip(weights, seeds, strict=True):
                if other == seed:
                    own.copy_(drawn)
        return cls(model, layout, weights)

    @classmethod
    def _on_parents(
        cls, model: nn.Module, layout: LoraLayout, seeds: Sequence[int], parents: Sequence[Adapter]
    ) -> "AdapterBank":
        if len({parent.layout for parent in parents}) > 1:
            raise ValueError(
                "Adapters that are trained together stand on parents of one layout; train those with parents of other modules, "
                "ranks or alpha apart."
            )
        stacked = [
            stacked_ranks([(parent.layout, parent.weights, 1.0), (layout, layout.initial_weights(seed), 1.0)])
            for seed, parent in zip(seeds, parents, strict=True)
        ]
        return cls(model, stacked[0][0], torch.stack([weights for _, weights in stacked]))

    def __len__(self) -> int:
        return self.weights.shape[0]

    @contextmanager
    def attach(self, adapters: Sequence[int | None]) -> Iterator[None]:
        """Let row `i` of every batch use adapter `adapters[i]`, as [`StackedAdapters.attach`] does for a part of a bank."""
        with StackedAdapters(self.model, self.layout, self.weights).attach(adapters):
            yield
