"""
Causal attention over a packed batch.

torch's attention kernel for CPUs is made for long sequences; for the short ones that self-edits consist of, plain batched
matrix products are several times faster, above all in the backward pass. On CUDA one call of flash attention over sequences
of any lengths does the whole batch, where torch has it for the model.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.attention_kernels import without_cudnn
from ..models.transfers import to_device
from .packing import Block


logger = logging.getLogger(__name__)

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
        sequence_ends (`torch.Tensor` of shape `(S + 1,)`, int32):
            Where its sequences end, after a 0.

    Attributes:
        windows (`set[int | None]`):
            The sliding windows of the layers that have called it.
        by_block (`bool`):
            Whether one of them attended block by block.
    """

    def __init__(self, blocks: tuple[Block, ...], sequence_ends: torch.Tensor):
        self.blocks = blocks
        self.sequence_ends, self.longest = sequence_ends, max(block.length for block in blocks)
        self.windows: set[int | None] = set()
        self.by_block = False
        self._biases: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Queries `(1, H, N, D)`, keys and values `(1, H_kv, N, D)`; returns `(1, N, H, D)`."""
        self.windows.add(window)
        if _takes_flash(query, key, value, window):
            return _flash_attention(query, key, value, self.sequence_ends, self.longest, scale, window)
        self.by_block = True
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
        with without_cudnn():
            attended = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=mask is None, scale=scale)
        attended = attended.view(query.shape)
    return attended.detach(), (attended, inputs)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """
    As [`PackedAttention`] by one call of flash attention.

    The operator is what torch's own attention over sequences of any lengths calls. That function is there from torch 2.10
    on and takes other arguments in every version; the operator's are the same from 2.8 on, and torch differentiates it.
    """
    attended, *_ = torch.ops.aten._flash_attention_forward.default(
        *(states.squeeze(0).transpose(0, 1) for states in (query, key, value)),  # (N, H, D), no copies
        ends,
        ends,
        longest,
        longest,
        0.0,  # dropout
        True,  # causal
        False,  # no weights returned
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )
    return attended.unsqueeze(0)


def _takes_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> bool:
    """Whether flash attention takes these, by what it demands of them, and if so, whether this machine has it."""
    dim = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and dim % 8 == 0
        and dim <= 256
        and all(states.stride(-1) == 1 for states in (query, key, value))
        and _has_flash(query.device, query.dtype, query.shape[1], key.shape[1], dim, window is not None)
    )


@lru_cache
def _has_flash(
    device: torch.device, dtype: torch.dtype, num_heads: int, num_kv: int, dim: int, windowed: bool
) -> bool:
    """
    Whether this build of torch has flash attention for such heads on this device, found out by a small pass.

    It needs an Ampere GPU or a newer one; the builds for Windows lack it, and some GPUs lack the backward pass for large
    heads.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ends, longest = to_device([0, 12, 32], device, torch.int32), 20
    try:
        with torch.enable_grad():
            states = [
                torch.zeros(1, heads, 32, dim, dtype=dtype, device=device, requires_grad=True)
                for heads in (num_heads, num_kv, num_kv)
            ]
            _flash_attention(*states, ends, longest, 1.0, 4 if windowed else None).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, there is another way
        logger.warning(
            "Flash attention cannot be used, so attention is computed block by block, which is slower: %s",
            str(error).partition("\n")[0],
        )
        return False
    return True


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
