"""
Trainable LoRA adapters on a packed batch: every token meets the matrices of its own adapter.

On the CPU these are batched products block by block; on a GPU that has a kernel for it grouped products over the whole
batch. Module and adapters are one node of autograd's graph where the module is a plain linear layer: a small step takes as
long as the host takes to go through the graph.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.layout import LoraLayout, LoraStacks
from .blocks import Block
from .packing import PackedBatch


class LoraParameters:
    """
    The weights of one step's adapters in the dtype of the activations, and their gradients.

    Parameters:
        layout (`LoraLayout`):
            The adapted modules.
        dtype, device:
            Dtype and device of the activations.
        num_adapters (`int`):
            How many there is room for.

    Attributes:
        weights, grads (`LoraStacks`):
            The weights, and their gradients after a backward pass.
    """

    def __init__(self, layout: LoraLayout, dtype: torch.dtype, device: torch.device, num_adapters: int):
        self.weights = LoraStacks(layout, num_adapters, dtype, device)
        self.grads = LoraStacks(layout, num_adapters, dtype, device)
        # For autograd the adapters' products depend on it, so that it calls their backward pass.
        self.anchor = torch.zeros((), dtype=dtype, device=device, requires_grad=True)
        self._matrices: dict[tuple[int, int], list[dict[str, tuple[torch.Tensor, torch.Tensor]]]] = {}

    def by_module(self, first: int, num_adapters: int, blocks: tuple[Block, ...] = ()) -> "dict[str, TrainedLora]":
        """
        Some neighbouring adapters by module; no gradients are written yet.

        Args:
            first, num_adapters (`int`):
                Place of the first one, and how many there are.
            blocks (`tuple[Block, ...]`, *optional*):
                The blocks of their batch, for products by block.
        """
        weights, grads = self._of(first, num_adapters)
        parts = [
            (
                self.weights.matrices(own),
                self.weights.matrices(own, transposed=True),
                self.grads.matrices(own),
            )
            for own in (slice(first + block.adapters.start, first + block.adapters.stop) for block in blocks)
        ]
        return {
            name: TrainedLora(
                *weights[name], *grads[name], [BlockLora(*(part[name] for part in own)) for own in parts], self.anchor
            )
            for name in weights
        }

    def _of(self, first: int, num_adapters: int) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Weights and gradients by module. Those of the latest passes are kept: most steps have the same ones."""
        key = (first, num_adapters)
        if key not in self._matrices:
            if len(self._matrices) == 16:
                self._matrices.clear()
            own = slice(first, first + num_adapters)
            self._matrices[key] = [self.weights.matrices(own), self.grads.matrices(own)]
        return self._matrices[key]


class BlockLora(NamedTuple):
    """The matrices `A` and `B` of a block's adapters, `(k, r, in)` and `(k, out, r)`: as they are, transposed, gradients."""

    weights: tuple[torch.Tensor, torch.Tensor]
    transposed: tuple[torch.Tensor, torch.Tensor]
    grads: tuple[torch.Tensor, torch.Tensor]


@dataclass
class TrainedLora:
    """
    The adapters of one module in one pass.

    Parameters:
        lora_a, lora_b (`torch.Tensor` of shapes `(K, r, in)` and `(K, out, r)`):
            Their matrices.
        grad_a, grad_b (`torch.Tensor` of the same shapes):
            Where the gradients go.
        blocks (`list[BlockLora]`):
            The same by block; empty where grouped products take all of them at once.
        anchor (`torch.Tensor`):
            See [`LoraParameters`].
        has_grad (`bool`):
            Whether there are gradients, to which those of a further use are added.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    blocks: list[BlockLora]
    anchor: torch.Tensor
    has_grad: bool = False

    def zero_if_unused(self) -> None:
        """Set the gradients to zero where the forward pass did not use the module."""
        if not self.has_grad:
            self.grad_a.zero_()
            self.grad_b.zero_()


class _PackedLora(torch.autograd.Function):
    """
    `base + scaling * (hidden @ A^T) @ B^T`, with the A and B of each token's adapter, block by block.

    The base is `hidden @ weight^T + bias`, or is given where there is no weight.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,  # (N, in)
        anchor: torch.Tensor,
        base: torch.Tensor | None,  # (N, out)
        weight: torch.Tensor | None,  # (out, in)
        bias: torch.Tensor | None,  # (out,)
        lora: TrainedLora,
        blocks: tuple[Block, ...],
        scaling: float,
    ) -> torch.Tensor:
        result = _base(hidden, base, weight, bias)
        ctx.kept = []
        for block, own in zip(blocks, lora.blocks, strict=True):
            a_transposed, b_transposed = own.transposed
            own_hidden = _of_block(hidden, block)
            low_rank = torch.bmm(own_hidden, a_transposed)  # (k, T, r)
            _of_block(result, block).baddbmm_(low_rank, b_transposed, alpha=scaling)
            ctx.kept.append((own_hidden, low_rank))
        ctx.shape, ctx.weight, ctx.lora, ctx.blocks, ctx.scaling = hidden.shape, weight, lora, blocks, scaling
        return result

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        lora, scaling = ctx.lora, ctx.scaling
        grad, grad_hidden, has_base = grad.contiguous(), None, ctx.weight is not None
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.mm(grad, ctx.weight) if has_base else grad.new_empty(ctx.shape)
        for block, own, (own_hidden, low_rank) in zip(ctx.blocks, lora.blocks, ctx.kept, strict=True):
            (lora_a, lora_b), (grad_a, grad_b) = own.weights, own.grads
            own_grad = _of_block(grad, block)
            grad_low_rank = torch.bmm(own_grad, lora_b)  # (k, T, r)
            grad_b.baddbmm_(own_grad.mT, low_rank, beta=lora.has_grad, alpha=scaling)
            grad_a.baddbmm_(grad_low_rank.mT, own_hidden, beta=lora.has_grad, alpha=scaling)
            if grad_hidden is not None:
                _of_block(grad_hidden, block).baddbmm_(grad_low_rank, lora_a, beta=has_base, alpha=scaling)
        lora.has_grad = True
        return grad_hidden, None, grad if ctx.needs_input_grad[2] else None, *[None] * 5


class _GroupedLora(torch.autograd.Function):
    """As [`_PackedLora`] by grouped products over the whole batch."""

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,
        anchor: torch.Tensor,
        base: torch.Tensor | None,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        lora: TrainedLora,
        ends: torch.Tensor,  # (K,)
        scaling: float,
    ) -> torch.Tensor:
        low_rank = F.grouped_mm(hidden, lora.lora_a.mT, offs=ends)  # (N, r)
        ctx.save_for_backward(hidden, low_rank, ends)
        ctx.weight, ctx.lora, ctx.scaling = weight, lora, scaling
        result = _base(hidden, base, weight, bias)
        return result.add_(F.grouped_mm(low_rank, lora.lora_b.mT, offs=ends), alpha=scaling)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (hidden, low_rank, ends), lora, scaling = ctx.saved_tensors, ctx.lora, ctx.scaling
        grad, grad_hidden = grad.contiguous(), None
        grad_low_rank = F.grouped_mm(grad, lora.lora_b, offs=ends).mul_(scaling)
        for into, left, right in (
            (lora.grad_b, grad, low_rank.mul(scaling)),
            (lora.grad_a, grad_low_rank, hidden),
        ):
            sums = F.grouped_mm(left.mT, right, offs=ends)
            into.add_(sums) if lora.has_grad else into.copy_(sums)
        lora.has_grad = True
        if ctx.needs_input_grad[0]:
            grad_hidden = F.grouped_mm(grad_low_rank, lora.lora_a, offs=ends)
            if ctx.weight is not None:
                grad_hidden.addmm_(grad, ctx.weight)
        return grad_hidden, None, grad if ctx.needs_input_grad[2] else None, *[None] * 5


def _base(
    hidden: torch.Tensor, base: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """What the adapters' part is added to, in place: a module's own output is needed by no module that computes a product."""
    return base.detach() if weight is None else F.linear(hidden, weight, bias)


def has_grouped_products(layout: LoraLayout, dtype: torch.dtype, device: torch.device) -> bool:
    """
    Whether grouped products are fast for such adapters.

    Their kernel is for bf16, sizes of a multiple of 16 bytes, and NVIDIA GPUs of compute capability 9.x and 10.x, and not
    built for Windows. Elsewhere torch waits for the device at each call and multiplies one group after the other; older
    versions of torch have none.
    """
    sizes = {layout.r, *(size for module in layout.modules for size in (module.in_features, module.out_features))}
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and all(size % 8 == 0 for size in sizes)
        and hasattr(F, "grouped_mm")
        and torch.version.hip is None
        and sys.platform != "win32"
        and torch.cuda.get_device_capability(device)[0] in (9, 10)
    )


def _of_block(states: torch.Tensor, block: Block) -> torch.Tensor:
    """The part of contiguous states `(N, m)` that is a block's, `(k, T, m)`: one view, since a step takes thousands."""
    num_tokens, size = block.adapter_tokens, states.shape[1]
    offset = states.storage_offset() + block.start * size
    return states.as_strided((block.num_adapters, num_tokens, size), (num_tokens * size, size, 1), offset)


@contextmanager
def lora_added(
    modules: Mapping[str, nn.Module], loras: Mapping[str, TrainedLora], packed: PackedBatch, scaling: float
) -> Iterator[None]:
    """
    Let linear modules add trainable adapters to what they compute, in forward passes over a packed batch inside the block.

    Args:
        modules (`Mapping[str, nn.Module]`):
            The modules by name.
        loras (`Mapping[str, TrainedLora]`):
            The adapters of each adapted module (see [`LoraParameters.by_module`]).
        packed (`PackedBatch`):
            The batch.
        scaling (`float`):
            LoRA's scaling.
    """
    with ExitStack() as stack:
        for name, lora in loras.items():
            module = modules[name]
            if _is_plain(module, lora.lora_a.dtype):
                module.forward = partial(_linear, module, lora, packed, scaling)
                stack.callback(delattr, module, "forward")
            else:
                stack.callback(module.register_forward_hook(partial(_add, lora, packed, scaling)).remove)
        yield


def _is_plain(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module is a frozen product with its weight and no more: not quantized, wrapped by PEFT, or moved about."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == dtype
        and not module.weight.requires_grad
    )


def _linear(
    module: nn.Linear, lora: TrainedLora, packed: PackedBatch, scaling: float, hidden: torch.Tensor
) -> torch.Tensor:
    result = _apply(lora, packed, scaling, hidden, None, module.weight, module.bias)
    return result.view(*hidden.shape[:-1], -1)


def _add(
    lora: TrainedLora,
    packed: PackedBatch,
    scaling: float,
    module: nn.Module,
    args: tuple[torch.Tensor],
    output: torch.Tensor,  # (..., out)
) -> torch.Tensor:
    base = output.reshape(-1, output.shape[-1]).contiguous()
    return _apply(lora, packed, scaling, args[0], base, None, None).view(output.shape)


class ChoiceOfTokens(Exception):
    """A module got other tokens than those of the batch, so that it is not known whose each of them is."""


def _are_all_tokens(hidden: torch.Tensor, packed: PackedBatch) -> bool:
    """Whether an input is all tokens of the batch in their order: `(N, d)`, or `(1, N, d)` or `(R, L, d)` as the model's."""
    if hidden.dim() not in (2, 3) or hidden.shape[:-1].numel() != packed.num_tokens:
        return False
    return hidden.dim() == 2 or hidden.shape[1] in (packed.num_tokens, packed.blocks[0].lengths[0])


def _apply(
    lora: TrainedLora, packed: PackedBatch, scaling: float, hidden: torch.Tensor, *base: torch.Tensor | None
) -> torch.Tensor:
    blocks = packed.blocks
    if not _are_all_tokens(hidden, packed):
        if packed.num_adapters > 1:
            raise ChoiceOfTokens(f"An adapted module got an input of shape {tuple(hidden.shape)}")
        # All are of the one adapter, whichever they are.
        blocks = (Block(0, 1, (hidden.shape[:-1].numel(),), 0),)
    hidden = hidden.to(lora.lora_a.dtype).reshape(-1, hidden.shape[-1]).contiguous()
    if lora.blocks:
        return _PackedLora.apply(hidden, lora.anchor, *base, lora, blocks, scaling)
    return _GroupedLora.apply(hidden, lora.anchor, *base, lora, packed.adapter_ends, scaling)
