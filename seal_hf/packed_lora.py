"""
Trainable LoRA adapters on a packed row: every token meets the matrices of its own adapter.

Two products do all of it, each behind one function: [`_by_adapter`] multiplies each token with its adapter's matrix, and
[`_sum_by_adapter`] adds up outer products over each adapter's tokens. On the CPU they are batched products block by block;
on CUDA grouped products over the whole row, which follow torch's documentation and were not run on a GPU.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import nn

from .lora_layout import LoraLayout
from .packing import Block


class LoraLeaves:
    """
    The weights of some adapters in the dtype of the activations, and their gradients: a row for each.

    The gradients of all modules are views into one matrix, so that clipping and the optimizer touch one tensor for an
    adapter instead of one per module.

    Parameters:
        layout (`LoraLayout`):
            Where the matrices lie in a row.
        num_adapters (`int`):
            K.
        dtype, device:
            Of the activations.

    Attributes:
        weights, grad (`torch.Tensor` of shape `(K, num_parameters)`):
            The weights, and their gradients after a backward pass.
    """

    def __init__(self, layout: LoraLayout, num_adapters: int, dtype: torch.dtype, device: torch.device):
        self.layout = layout
        self.weights = torch.empty(num_adapters, layout.num_parameters, dtype=dtype, device=device)
        self.grad = torch.empty_like(self.weights)

    def stacks(self, rows: slice) -> "dict[str, TrainedLora]":
        """The matrices of some rows by module, with gradients that are not yet written."""
        grads = self.layout.views(self.grad[rows])
        return {
            name: TrainedLora(lora_a.requires_grad_(), lora_b, *grads[name])
            for name, (lora_a, lora_b) in self.layout.views(self.weights[rows]).items()
        }


class TrainedLora:
    """The matrices of one module, `(K, r, in)` and `(K, out, r)`, and where their gradients go."""

    def __init__(self, lora_a: torch.Tensor, lora_b: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor):
        self.lora_a, self.lora_b, self.grad_a, self.grad_b = lora_a, lora_b, grad_a, grad_b
        self.has_grad = False

    def zero_if_unused(self) -> None:
        """Of a module that the forward pass did not use."""
        if not self.has_grad:
            self.grad_a.zero_()
            self.grad_b.zero_()


class _PackedLora(torch.autograd.Function):
    """`base + scaling * (hidden @ A^T) @ B^T`, with the A and B of each token's adapter."""

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,  # (N, in)
        lora_a: torch.Tensor,  # (K, r, in)
        base: torch.Tensor,  # (N, out)
        lora: TrainedLora,
        blocks: tuple[Block, ...],
        scaling: float,
    ) -> torch.Tensor:
        low_rank = _by_adapter(hidden, lora_a.mT, blocks)  # (N, r)
        ctx.save_for_backward(hidden, low_rank)
        ctx.lora, ctx.blocks, ctx.scaling = lora, blocks, scaling
        return _by_adapter(low_rank, lora.lora_b.mT, blocks, scaling, base)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (hidden, low_rank), lora, blocks, scaling = ctx.saved_tensors, ctx.lora, ctx.blocks, ctx.scaling
        grad = grad.contiguous()
        grad_low_rank = _by_adapter(grad, lora.lora_b, blocks)
        _sum_by_adapter(grad, low_rank, blocks, scaling, lora.grad_b, add=lora.has_grad)
        _sum_by_adapter(grad_low_rank, hidden, blocks, scaling, lora.grad_a, add=lora.has_grad)
        lora.has_grad = True
        grad_hidden = _by_adapter(grad_low_rank, lora.lora_a, blocks, scaling) if ctx.needs_input_grad[0] else None
        return grad_hidden, None, grad if ctx.needs_input_grad[2] else None, None, None, None


def _by_adapter(
    tokens: torch.Tensor,
    matrices: torch.Tensor,
    blocks: tuple[Block, ...],
    scaling: float = 1.0,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """`base + scaling * tokens @ matrix`, tokens `(N, m)` and for each adapter a matrix `(K, m, n)`."""
    if _has_grouped_products(tokens, matrices.shape):
        product = F.grouped_mm(tokens, matrices, offs=_ends(blocks, tokens.device))
        if base is None:
            return product if scaling == 1.0 else product.mul_(scaling)
        return torch.add(base, product, alpha=scaling)
    result = tokens.new_empty(tokens.shape[0], matrices.shape[2])
    for block in blocks:
        into = _of_block(result, block)
        added = into if base is None else _of_block(base, block)
        own, theirs = _of_block(tokens, block), matrices[block.adapters]
        torch.baddbmm(added, own, theirs, beta=base is not None, alpha=scaling, out=into)
    return result


def _sum_by_adapter(
    left: torch.Tensor,
    right: torch.Tensor,
    blocks: tuple[Block, ...],
    scaling: float,
    into: torch.Tensor,
    *,
    add: bool,
) -> None:
    """Set `into` `(K, m, n)`, or add to it, `scaling * left^T @ right` over each adapter's tokens, `(N, m)` and `(N, n)`."""
    if _has_grouped_products(left, into.shape):
        sums = F.grouped_mm(left.mT, right, offs=_ends(blocks, left.device)).mul_(scaling)
        into.add_(sums) if add else into.copy_(sums)
        return
    for block in blocks:
        lefts, rights = _of_block(left, block), _of_block(right, block)
        into[block.adapters].baddbmm_(lefts.mT, rights, beta=add, alpha=scaling)


def _has_grouped_products(tokens: torch.Tensor, shape: torch.Size) -> bool:
    """Grouped products are for bf16 and rows of a multiple of 16 bytes, and not in older versions of torch."""
    aligned = shape[1] % 8 == 0 and shape[2] % 8 == 0
    return tokens.is_cuda and tokens.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm")


def _of_block(rows: torch.Tensor, block: Block) -> torch.Tensor:
    """The part of contiguous rows `(N, m)` that is a block's, `(K, T, m)`: one view, since a step takes thousands."""
    num_tokens, size = block.num_rows * block.length, rows.shape[1]
    offset = rows.storage_offset() + block.start * size
    return rows.as_strided((block.num_adapters, num_tokens, size), (num_tokens * size, size, 1), offset)


@lru_cache(maxsize=8)  # one transfer to the device for all modules of a pass
def _ends(blocks: tuple[Block, ...], device: torch.device) -> torch.Tensor:
    """Where each adapter's tokens end, `(K,)`."""
    counts = [block.num_rows * block.length for block in blocks for _ in range(block.num_adapters)]
    return torch.tensor(counts, device=device).cumsum(0, dtype=torch.int32)


def _add_lora(
    lora: TrainedLora,
    blocks: tuple[Block, ...],
    scaling: float,
    module: nn.Module,
    args: tuple[torch.Tensor],
    output: torch.Tensor,  # (..., out)
) -> torch.Tensor:
    hidden, num_tokens = args[0], sum(block.tokens.stop - block.tokens.start for block in blocks)
    if hidden.numel() != num_tokens * hidden.shape[-1]:
        raise ValueError(
            f"An adapted module got an input of shape {tuple(hidden.shape)}, but the bank trains on {num_tokens} tokens; "
            "leave modules that see a choice of tokens, such as routed experts, out of target_modules."
        )
    hidden = hidden.to(lora.lora_a.dtype).reshape(num_tokens, -1).contiguous()
    base = output.reshape(num_tokens, -1).contiguous()
    return _PackedLora.apply(hidden, lora.lora_a, base, lora, blocks, scaling).view(output.shape)


def lora_hooks(loras: Mapping[str, TrainedLora], blocks: tuple[Block, ...], scaling: float) -> dict[str, Callable]:
    """
    What [`hooked`] needs to add trainable adapters to forward passes over a packed row.

    Parameters:
        loras (`Mapping[str, TrainedLora]`):
            The matrices of each adapted module (see [`LoraLeaves.stacks`]).
        blocks (`tuple[Block, ...]`):
            The blocks of the row.
        scaling (`float`):
            LoRA's scaling.
    """
    return {name: partial(_add_lora, lora, blocks, scaling) for name, lora in loras.items()}
