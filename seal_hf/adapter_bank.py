"""
Many LoRA adapters on one frozen model, used side by side in one batch.

PEFT refuses a different adapter per row while training, and evaluates such a batch in a Python loop over adapters. Here
the `A` and `B` matrices of all adapters are stacked, and a batch whose rows belong to K adapters costs two batched matrix
products per adapted module. The base model's modules are not replaced: forward hooks add the LoRA part while a bank is
attached, and only then.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig
from torch import nn

from .adapters import Adapter
from .lora_layout import LoraLayout, linear_modules, lora_layout


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


@dataclass(frozen=True, eq=False)
class LoraStack:
    """
    The stacked matrices of one module, in the dtype of the activations.

    Parameters:
        lora_a (`torch.Tensor` of shape `(K, r, in_features)`):
            The down projections. Requires gradients where the stack is trained.
        lora_b (`torch.Tensor` of shape `(K, out_features, r)`):
            The up projections.
        grad_a, grad_b (`torch.Tensor`, *optional*):
            Where the backward pass adds the gradients, of the same shapes.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    grad_a: torch.Tensor | None = None
    grad_b: torch.Tensor | None = None


class _StackedLora(torch.autograd.Function):
    """
    `base + scaling * (hidden @ A^T) @ B^T` for K adapters at once.

    The gradients of `A` and `B` are added straight into the stack's buffers, which are views into one matrix over all
    modules: clipping and the optimizer then touch one tensor instead of one per module.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,  # (K, T, in)
        lora_a: torch.Tensor,  # (K, r, in)
        lora_b: torch.Tensor,  # (K, out, r)
        base: torch.Tensor | None,  # (K, T, out)
        stack: LoraStack,
        scaling: float,
    ) -> torch.Tensor:
        low_rank = torch.bmm(hidden, lora_a.mT).mul_(scaling)  # (K, T, r)
        ctx.save_for_backward(hidden, low_rank, lora_a, lora_b)
        ctx.stack, ctx.scaling = stack, scaling
        return torch.bmm(low_rank, lora_b.mT) if base is None else torch.baddbmm(base, low_rank, lora_b.mT)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        hidden, low_rank, lora_a, lora_b = ctx.saved_tensors
        ctx.stack.grad_b.baddbmm_(grad.mT, low_rank)
        grad_low_rank = torch.bmm(grad, lora_b).mul_(ctx.scaling)
        ctx.stack.grad_a.baddbmm_(grad_low_rank.mT, hidden)
        grad_hidden = torch.bmm(grad_low_rank, lora_a) if ctx.needs_input_grad[0] else None
        return grad_hidden, None, None, grad if ctx.needs_input_grad[3] else None, None, None


def _add_lora(
    stack: LoraStack,
    rows: AdapterRows,
    scaling: float,
    module: nn.Module,
    args: tuple[torch.Tensor],
    output: torch.Tensor,  # (R, L, out)
) -> torch.Tensor:
    hidden = args[0]
    if hidden.dim() != 3 or hidden.shape[0] != rows.num_rows:
        raise ValueError(
            f"An adapted module got an input of shape {tuple(hidden.shape)}, but adapters are attached for a batch of "
            f"{rows.num_rows} rows; call the model with exactly these rows."
        )
    (_, length, in_features), num_adapters = hidden.shape, rows.num_adapters
    matrices = (stack.lora_a, stack.lora_b)
    hidden = hidden.to(stack.lora_a.dtype)
    if rows.in_order:
        base = output.reshape(num_adapters, -1, output.shape[2])
        grouped = hidden.reshape(num_adapters, -1, in_features)
        return _StackedLora.apply(grouped, *matrices, base, stack, scaling).view_as(output)
    grouped = hidden[rows.grid].reshape(num_adapters, -1, in_features)  # (K, G * L, in)
    update = _StackedLora.apply(grouped, *matrices, None, stack, scaling)
    update = update.view(-1, length, output.shape[2])[rows.place]  # (R, L, out)
    return output + (update if rows.adapted is None else torch.where(rows.adapted, update, 0.0))


@contextmanager
def attached(model: nn.Module, stacks: Mapping[str, LoraStack], rows: AdapterRows, scaling: float) -> Iterator[None]:
    """
    Add stacked LoRA adapters to a model's forward passes inside the `with` block, and remove them however it ends.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The frozen model.
        stacks (`Mapping[str, LoraStack]`):
            The matrices of each adapted module, by its name in the base model.
        rows (`AdapterRows`):
            Which adapter each row uses.
        scaling (`float`):
            LoRA's scaling.
    """
    modules = linear_modules(model)
    handles = []
    try:
        if rows.num_adapters:
            for name, stack in stacks.items():
                hook = partial(_add_lora, stack, rows, scaling)
                handles.append(modules[name].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def activation_dtype(model: nn.Module) -> torch.dtype:
    """The floating dtype of a model's activations, also when its linear layers are quantized."""
    return model.get_input_embeddings().weight.dtype


def keep_trainable(model: nn.Module) -> None:
    """
    Keep bitsandbytes from packing 4-bit weights for CPU inference, to be called before a model's first forward pass.

    On processors with AVX512-BF16, bitsandbytes 0.50 packs a 4-bit layer in its first forward pass without gradients. The
    packed form has coarser block scales and no backward pass, and its own way back mixes up the scales.
    """
    for module in _four_bit_modules(model):
        module.support_avx512bf16_for_cpu = False


def is_packed_for_inference(model: nn.Module) -> bool:
    """Whether bitsandbytes has packed 4-bit weights for CPU inference (see [`keep_trainable`])."""
    return any(
        getattr(module.weight.quant_state, "packing_format_for_cpu", False) for module in _four_bit_modules(model)
    )


def _four_bit_modules(model: nn.Module) -> list[nn.Module]:
    return [
        module for module in model.modules() if isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")
    ]


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

    def __len__(self) -> int:
        return self.weights.shape[0]

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
        places = {adapter: place for place, adapter in enumerate(used)}
        arranged = AdapterRows([places.get(adapter) for adapter in rows], self.weights.device)
        selected = self.weights[used].to(activation_dtype(self.model))
        stacks = {name: LoraStack(*matrices) for name, matrices in self.layout.views(selected).items()}
        with attached(self.model, stacks, arranged, self.layout.scaling):
            yield
