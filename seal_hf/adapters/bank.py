"""
Many LoRA adapters on one frozen model, used side by side in one batch.

PEFT refuses a different adapter per row while training, and evaluates such a batch in a Python loop over adapters. Here
the `A` and `B` matrices of all adapters are stacked, and a batch whose rows belong to K adapters costs two batched matrix
products per adapted module. The base model's modules are not replaced: forward hooks add the LoRA part while a bank is
attached, and only then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial

import torch
from peft import LoraConfig
from torch import nn

from ..models.access import activation_dtype, hooked, keep_trainable
from .adapter import Adapter
from .layout import LoraLayout, LoraStacks, lora_layout


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
        width = max((len(rows) for rows in lines.values()), default=0)
        ordered = [lines[adapter] for adapter in sorted(lines)]
        grid = [rows + rows[:1] * (width - len(rows)) for rows in ordered]
        self.in_order = [row for line in grid for row in line] == list(range(self.num_rows))
        if not self.in_order:
            self.grid = torch.tensor(grid, dtype=torch.long, device=device)  # (K, G)
            place = {row: line * width + i for line, rows in enumerate(ordered) for i, row in enumerate(rows)}
            self.place = torch.tensor([place.get(row, 0) for row in range(self.num_rows)], device=device)  # (R,)
            adapted = torch.tensor([row in place for row in range(self.num_rows)], device=device)
            self.adapted = None if len(place) == self.num_rows else adapted[:, None, None]  # (R, 1, 1)


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
        raise ValueError(
            f"An adapted module got an input of shape {tuple(hidden.shape)}, but adapters are attached for a batch of "
            f"{rows.num_rows} rows; call the model with exactly these rows."
        )
    length = hidden.shape[1]
    hidden = hidden.to(lora_a.dtype)
    if rows.in_order:
        low_rank = torch.bmm(hidden.reshape(rows.num_adapters, -1, hidden.shape[2]), lora_a.mT)
        base = output.reshape(rows.num_adapters, -1, output.shape[2])
        return torch.baddbmm(base, low_rank, lora_b.mT, alpha=scaling).view_as(output)
    grouped = hidden[rows.grid].reshape(rows.num_adapters, -1, hidden.shape[2])  # (K, G * L, in)
    update = torch.bmm(torch.bmm(grouped, lora_a.mT).mul_(scaling), lora_b.mT)
    update = update.view(-1, length, output.shape[2])[rows.place]  # (R, L, out)
    return output + (update if rows.adapted is None else torch.where(rows.adapted, update, 0.0))


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
        self._stacks: LoraStacks | None = None

    @classmethod
    def initialize(cls, model: nn.Module, peft_config: LoraConfig, seeds: Sequence[int]) -> "AdapterBank":
        """Fresh adapters, one per seed, initialized as PEFT does (`A` Kaiming-uniform, `B` zero)."""
        layout = lora_layout(model, peft_config)
        if not seeds:
            raise ValueError("An adapter bank needs at least one seed; got none.")
        return cls(model, layout, torch.stack([layout.initial_weights(seed) for seed in seeds]))

    @classmethod
    def from_adapters(cls, model: nn.Module, adapters: Sequence[Adapter]) -> "AdapterBank":
        """
        Stack trained adapters.

        Raises:
            ValueError: The adapters differ in modules, rank or scaling.
        """
        layouts = {adapter.layout for adapter in adapters}
        if len(layouts) != 1:
            raise ValueError(
                f"One bank holds adapters of one layout, these {len(adapters)} have {len(layouts)}; use those of equal "
                "modules, rank and alpha together."
            )
        return cls(model, layouts.pop(), torch.stack([adapter.weights for adapter in adapters]))

    @classmethod
    def for_rows(
        cls, model: nn.Module, adapters: Sequence[Adapter | None], *, policy: Adapter | None, base_model_id: str
    ) -> tuple["AdapterBank", list[int | None]]:
        """
        Stack the adapters of a batch's rows, each once, in the form that the model takes.

        Parameters:
            model (`PreTrainedModel` or `PeftModel`):
                The model.
            adapters (`Sequence[Adapter | None]`):
                For each row its adapter, at least one of them not `None`.
            policy ([`Adapter`], *optional*):
                The policy adapter that the model carries; where there is none, adapters that were trained on top of one
                include it.
            base_model_id (`str`):
                Identity of the base model.

        Returns:
            `tuple[AdapterBank, list[int | None]]`: the bank, and for each row the place in it.

        Raises:
            ValueError: An adapter of another base model or policy, or adapters that differ in modules, rank or scaling.
        """
        distinct = {id(adapter): adapter for adapter in adapters if adapter is not None}
        for adapter in distinct.values():
            if adapter.base_model_id != base_model_id:
                raise ValueError(
                    f"This adapter adapts {adapter.base_model_id}, but the loaded base model is {base_model_id}; load "
                    f"{adapter.base_model_id} to use it."
                )
            if policy is not None and (
                adapter.policy is None or not torch.equal(adapter.policy.weights, policy.weights)
            ):
                trained_on = "the plain base model" if adapter.policy is None else "another policy adapter"
                raise ValueError(
                    f"This adapter was trained on {trained_on}, but this model carries a policy adapter; use it with "
                    f"SelfAdaptingLM.from_pretrained({base_model_id!r})."
                )
        stacked = [adapter if policy is not None else adapter.on_base() for adapter in distinct.values()]
        places = {key: place for place, key in enumerate(distinct)}
        rows = [None if adapter is None else places[id(adapter)] for adapter in adapters]
        return cls.from_adapters(model, stacked), rows

    def __len__(self) -> int:
        return self.weights.shape[0]

    def for_inference(self) -> "AdapterBank":
        """The same adapters as batched products read them, so that to attach them again and again copies nothing."""
        bank = copy(self)
        bank._stacks = LoraStacks.of(self.layout, self.weights, activation_dtype(self.model))
        return bank

    @contextmanager
    def attach(self, rows: Sequence[int | None]) -> Iterator[None]:
        """
        Let row `i` of every batch use adapter `rows[i]` (`None`: no inner adapter) inside the `with` block.

        Raises:
            IndexError: A row names an adapter that is not in the bank.
        """
        used = sorted({adapter for adapter in rows if adapter is not None})
        if used and not 0 <= used[0] <= used[-1] < len(self):
            raise IndexError(f"The rows ask for adapters {used[0]} to {used[-1]}, but the bank holds {len(self)}.")
        order = {adapter: place for place, adapter in enumerate(used)}
        arranged = AdapterRows([order.get(adapter) for adapter in rows], self.weights.device)
        if self._stacks is None:
            chosen = self.weights[used]
            stacks, places = LoraStacks.of(self.layout, chosen, activation_dtype(self.model)), slice(None)
        elif used and used[-1] - used[0] < len(used):  # neighbours, of which no copy is needed
            stacks, places = self._stacks, slice(used[0], used[-1] + 1)
        else:
            stacks, places = self._stacks, torch.tensor(used, dtype=torch.long, device=self.weights.device)
        hooks = {
            name: partial(_add_lora, matrices, arranged, self.layout.scaling)
            for name, matrices in stacks.matrices(places).items()
        }
        with hooked(self.model, hooks if used else {}):
            yield
