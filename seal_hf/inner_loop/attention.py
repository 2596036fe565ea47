"""
Causal attention over a packed batch.

torch's attention kernel for CPUs is made for long sequences; for the short ones that self-edits consist of, plain batched
matrix products are several times faster, above all in the backward pass. On CUDA one call of variable-length flash
attention does the whole batch; that path follows torch's documentation and was not run on a GPU.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .packing import Block


PACKED_ATTENTION = "seal_hf_packed"  # its name among transformers' attention functions
# From this length on the matrix of scores costs more than torch's kernel.
_LONG = 512


class UnsupportedAttention(Exception):
    """The model's attention has a part that packed attention does not follow."""


class PackedAttention:
    """
    Attention within each sequence of a packed batch, to be handed to the model's forward pass as `packed_attention`.

    Parameters:
        blocks (`tuple[Block, ...]`):
            The blocks of the batch.

    Attributes:
        windows (`set[int | None]`):
            The sliding windows of the layers that have called it.
    """

    def __init__(self, blocks: tuple[Block, ...]):
        self.blocks = blocks
        self.windows: set[int | None] = set()
        self._biases: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Queries `(1, H, N, D)`, keys and values `(1, H_kv, N, D)`; returns `(1, N, H, D)`."""
        self.windows.add(window)
        if _has_varlen_attention(query):
            return _varlen_attention(query, key, value, self.blocks, scale, window)
        groups = query.shape[1] // key.shape[1]
        biases = [
            None if block.length >= _LONG else self._bias(block.length, groups, window, query) for block in self.blocks
        ]
        return _BlockAttention.apply(query, key, value, self.blocks, biases, scale, window)

    def _bias(self, length: int, groups: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """What is added to the scores, `(groups * L, L)`: 0 for the tokens that are seen, minus infinity for others."""
        key = (length, groups, window)
        if key not in self._biases:
            seen = _seen(length, window, like.device)
            bias = torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)
            self._biases[key] = bias.repeat(groups, 1)
        return self._biases[key]


def _seen(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _has_varlen_attention(query: torch.Tensor) -> bool:
    """Flash attention is for half precision, heads of at most 256 features, GPUs from Ampere on, and newer torch."""
    return (
        query.is_cuda
        and importlib.util.find_spec("torch.nn.attention.varlen") is not None
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


class _BlockAttention(torch.autograd.Function):
    """Attention block by block. Each gradient is written into one tensor, with no copy of the whole per block."""

    @staticmethod
    def forward(
        ctx,
        query: torch.Tensor,  # (1, H, N, D)
        key: torch.Tensor,  # (1, H_kv, N, D)
        value: torch.Tensor,  # (1, H_kv, N, D)
        blocks: tuple[Block, ...],
        biases: Sequence[torch.Tensor | None],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        (_, num_heads, num_tokens, dim), num_kv = query.shape, key.shape[1]
        output = query.new_empty(1, num_tokens, num_heads, dim).transpose(1, 2)
        ctx.blocks, ctx.scale, ctx.num_kv, ctx.kept = blocks, scale, num_kv, []
        for block, bias in zip(blocks, biases, strict=True):
            parts = [_by_sequence(states, block, num_kv) for states in (query, key, value)]
            if bias is None:
                attended, kept = _long_attention(*parts, scale, window)
            else:
                attended, kept = _short_attention(*parts, bias, scale)
            _by_sequence(output, block, num_kv).copy_(attended)
            ctx.kept.append(kept)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (_, num_tokens, num_heads, dim), num_kv = grad.shape, ctx.num_kv
        grads = [grad.new_empty(1, num_tokens, heads, dim).transpose(1, 2) for heads in (num_heads, num_kv, num_kv)]
        grad = grad.transpose(1, 2)
        for block, kept in zip(ctx.blocks, ctx.kept, strict=True):
            grad_block = _by_sequence(grad, block, num_kv)
            targets = [_by_sequence(states, block, num_kv) for states in grads]
            if block.length >= _LONG:
                attended, inputs = kept
                found = torch.autograd.grad(attended, inputs, grad_block)
            else:
                found = _short_attention_backward(grad_block, *kept, ctx.scale)
            for target, gradient in zip(targets, found, strict=True):
                target.copy_(gradient)
        return *grads, None, None, None, None


def _by_sequence(states: torch.Tensor, block: Block, num_kv: int) -> torch.Tensor:
    """A block's part of `(1, H, N, D)` as a view `(S, H_kv, H / H_kv, L, D)`: heads that share keys are together."""
    _, num_heads, _, dim = states.shape
    _, of_head, of_token, of_feature = states.stride()
    groups = num_heads // num_kv
    return states.as_strided(
        (block.num_adapters * block.num_sequences, num_kv, groups, block.length, dim),
        (block.length * of_token, groups * of_head, of_head, of_token, of_feature),
        states.storage_offset() + block.start * of_token,
    )


def _short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Queries `(S, H_kv, G, L, D)`, keys and values `(S, H_kv, 1, L, D)`: the output, and what its backward needs."""
    length, dim = query.shape[-2:]
    queries = torch.mul(query, scale, out=torch.empty(query.shape, dtype=query.dtype, device=query.device))
    queries = queries.view(-1, bias.shape[0], dim)  # (S * H_kv, G * L, D)
    keys, values = key.reshape(-1, length, dim), value.reshape(-1, length, dim)
    weights = torch.baddbmm(bias, queries, keys.mT).softmax(-1)  # (S * H_kv, G * L, L)
    return torch.bmm(weights, values).view(query.shape), (queries, keys, values, weights)


def _short_attention_backward(
    grad: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value."""
    shape = (*grad.shape[:2], 1, *grad.shape[3:])
    grad_output = grad.reshape(queries.shape)
    grad_weights = torch.bmm(grad_output, values.mT)
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    return (
        torch.bmm(grad_scores, keys).mul_(scale).view(grad.shape),
        torch.bmm(grad_scores.mT, queries).view(shape),
        torch.bmm(weights.mT, grad_output).view(shape),
    )


def _long_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]]]:
    """As [`_short_attention`] by torch's kernel; what is kept are its output and inputs, with their graph."""
    num_sequences, num_kv, groups, length, dim = query.shape
    inputs = [states.detach().requires_grad_() for states in (query, key, value)]
    with torch.enable_grad():
        heads = [states.expand(query.shape).reshape(num_sequences, num_kv * groups, length, dim) for states in inputs]
        mask = None if window is None or window >= length else _seen(length, window, query.device)
        attended = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=mask is None, scale=scale)
        attended = attended.view(query.shape)
    return attended.detach(), (attended, inputs)


def _varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: tuple[Block, ...],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """As [`PackedAttention`] by one call of flash attention over sequences of any lengths."""
    from torch.nn.attention.varlen import varlen_attn  # not in older versions of torch

    ends, longest = _sequence_ends(blocks, query.device), max(block.length for block in blocks)
    attended = varlen_attn(
        *(states[0].transpose(0, 1).contiguous() for states in (query, key, value)),
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[None]


@lru_cache(maxsize=8)  # one transfer to the device for all layers of a pass
def _sequence_ends(blocks: tuple[Block, ...], device: torch.device) -> torch.Tensor:
    """Where each sequence ends, after a 0: `(S + 1,)`."""
    lengths = [block.length for block in blocks for _ in range(block.num_adapters * block.num_sequences)]
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


def _packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_attention: PackedAttention | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface."""
    if packed_attention is None:
        raise UnsupportedAttention(f"{type(module).__name__} is not given the options of the forward pass.")
    ignored = {name for name in ("softcap", "s_aux", "head_mask") if options.get(name) is not None}
    if ignored or attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttention(f"{type(module).__name__} uses {sorted(ignored) or 'a mask or no causal order'}.")
    if value.shape[-1] != query.shape[-1]:
        raise UnsupportedAttention(f"{type(module).__name__} has values of another size than its queries.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, scale, sliding_window), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, _packed_attention_forward)
