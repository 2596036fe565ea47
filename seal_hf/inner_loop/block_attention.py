"""
Causal attention over a packed batch, block by block.

torch's attention kernel for CPUs is made for long sequences; for the short ones that self-edits consist of, plain batched
matrix products are several times faster, above all in the backward pass.

Where the sequences of an adapter share a prefix, its tokens attend by themselves. The tokens after it see the prefix, whose
keys and values are put before those of each sequence, and their own sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..models.attention_kernels import without_cudnn
from .blocks import Block


# From this length on the matrix of scores costs more than torch's kernel.
_LONG = 512


class _Part(NamedTuple):
    """
    Tokens of a block that attend in one go.

    Parameters:
        block ([`Block`]):
            Its block.
        start (`int`):
            Position of the first adapter's first sequence in the batch.
        num_sequences, length (`int`):
            Sequences of each adapter, and the tokens of each sequence.
        prefix (`int`):
            Tokens at the start of an adapter that its sequences see too.
    """

    block: Block
    start: int
    num_sequences: int
    length: int
    prefix: int

    @property
    def of_prefix(self) -> "_Part":
        return _Part(self.block, self.block.start, 1, self.prefix, 0)

    def of(self, states: torch.Tensor, num_kv: int) -> torch.Tensor:
        """Its view of `(1, H, N, D)`, `(k, n, H_kv, H / H_kv, L, D)`: heads that share keys are together."""
        _, num_heads, _, dim = states.shape
        _, of_head, of_token, of_feature = states.stride()
        groups = num_heads // num_kv
        return states.as_strided(
            (self.block.num_adapters, self.num_sequences, num_kv, groups, self.length, dim),
            (
                self.block.adapter_tokens * of_token,
                self.length * of_token,
                groups * of_head,
                of_head,
                of_token,
                of_feature,
            ),
            states.storage_offset() + self.start * of_token,
        )

    def seen_of(self, states: torch.Tensor, num_kv: int) -> torch.Tensor:
        """The keys or values that its sequences see, `(k, n, H_kv, 1, P + L, D)`."""
        own = self.of(states, num_kv)
        if not self.prefix:
            return own
        before = self.of_prefix.of(states, num_kv).expand(-1, self.num_sequences, -1, -1, -1, -1)
        return torch.cat([before, own], dim=-2)


class BlockAttention:
    """
    Attention within each sequence of some blocks.

    Parameters:
        blocks (`tuple[Block, ...]`):
            The blocks of a packed batch.
    """

    def __init__(self, blocks: Sequence[Block]):
        self._parts = [part for block in blocks for part in _parts(block)]
        self._biases: dict[tuple[int, int, int, int | None], torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Queries `(1, H, N, D)`, keys and values `(1, H_kv, N, D)`; returns `(1, N, H, D)`."""
        groups = query.shape[1] // key.shape[1]
        biases = [
            None if part.prefix + part.length >= _LONG else self._bias(part, groups, window, query)
            for part in self._parts
        ]
        return _BlockAttention.apply(query, key, value, self._parts, biases, scale, window)

    def _bias(self, part: _Part, groups: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """What is added to the scores, `(G * L, P + L)`: 0 for the tokens that are seen, minus infinity for others."""
        key = (part.length, part.prefix, groups, window)
        if key not in self._biases:
            seen = _seen(part.length, part.prefix, window, like.device)
            bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)
            self._biases[key] = bias.repeat(groups, 1)
        return self._biases[key]


def _parts(block: Block) -> Iterator[_Part]:
    """A shared prefix, and after it the sequences, those of one length together."""
    start = block.start
    if block.prefix:
        yield _Part(block, start, 1, block.prefix, 0)
        start += block.prefix
    for length, same in groupby(block.lengths):
        part = _Part(block, start, len(list(same)), length, block.prefix)
        yield part
        start += part.num_sequences * length


def _seen(length: int, prefix: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which tokens of prefix and sequence each token of the sequence sees, `(L, P + L)`."""
    positions = torch.arange(prefix + length, device=device)
    distance = positions[prefix:, None] - positions
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


# The gradients of query, key and value from that of the output.
_Backward = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class _BlockAttention(torch.autograd.Function):
    """Attention part by part. Each gradient is written into one tensor, with no copy of the whole per part."""

    @staticmethod
    def forward(
        ctx,
        query: torch.Tensor,  # (1, H, N, D)
        key: torch.Tensor,  # (1, H_kv, N, D)
        value: torch.Tensor,  # (1, H_kv, N, D)
        parts: Sequence[_Part],
        biases: Sequence[torch.Tensor | None],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        (_, num_heads, num_tokens, dim), num_kv = query.shape, key.shape[1]
        output = query.new_empty(1, num_tokens, num_heads, dim).transpose(1, 2)
        ctx.parts, ctx.num_kv, ctx.backwards = parts, num_kv, []
        for part, bias in zip(parts, biases, strict=True):
            own = (part.of(query, num_kv), part.seen_of(key, num_kv), part.seen_of(value, num_kv))
            if bias is None:
                attended, backward = _long_attention(*own, part.prefix, scale, window)
            else:
                attended, backward = _short_attention(*own, bias, scale)
            part.of(output, num_kv).copy_(attended)
            ctx.backwards.append(backward)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (_, num_tokens, num_heads, dim), num_kv = grad.shape, ctx.num_kv
        grads = [grad.new_empty(1, num_tokens, heads, dim).transpose(1, 2) for heads in (num_heads, num_kv, num_kv)]
        grad = grad.transpose(1, 2)
        for part, backward in zip(ctx.parts, ctx.backwards, strict=True):
            of_query, *of_seen = backward(part.of(grad, num_kv))
            part.of(grads[0], num_kv).copy_(of_query)
            for states, gradient in zip(grads[1:], of_seen, strict=True):
                part.of(states, num_kv).copy_(gradient[..., part.prefix :, :])
                if part.prefix:  # which has the gradients of the parts before already
                    before = gradient[..., : part.prefix, :].sum(1, keepdim=True)
                    part.of_prefix.of(states, num_kv).add_(before)
        return *grads, None, None, None, None


def _short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, _Backward]:
    """Queries `(k, n, H_kv, G, L, D)`, keys and values `(k, n, H_kv, 1, P + L, D)`: the output, and its backward pass."""
    dim = query.shape[-1]
    queries = torch.mul(query, scale, out=torch.empty(query.shape, dtype=query.dtype, device=query.device))
    queries = queries.view(-1, bias.shape[0], dim)  # (k * n * H_kv, G * L, D)
    keys, values = (states.reshape(-1, bias.shape[1], dim) for states in (key, value))
    weights = torch.baddbmm(bias, queries, keys.mT).softmax(-1)  # (k * n * H_kv, G * L, P + L)
    output = torch.bmm(weights, values).view(query.shape)
    return output, partial(_short_attention_backward, queries, keys, values, weights, scale, key.shape)


def _short_attention_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
    shape: torch.Size,  # of keys and values as they were given
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_output = grad.reshape(queries.shape)
    grad_weights = torch.bmm(grad_output, values.mT)
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    return (
        torch.bmm(grad_scores, keys).mul_(scale).view(grad.shape),
        torch.bmm(grad_scores.mT, queries).view(shape),
        torch.bmm(weights.mT, grad_output).view(shape),
    )


def _long_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix: int, scale: float, window: int | None
) -> tuple[torch.Tensor, _Backward]:
    """As [`_short_attention`] by torch's kernel; what is kept are its output and inputs, with their graph."""
    length = query.shape[-2]
    inputs = [states.detach().requires_grad_() for states in (query, key, value)]
    with torch.enable_grad():
        # (k * n, H, L, D), keys and values (k * n, H, P + L, D)
        heads = [states.expand(*query.shape[:4], -1, -1).flatten(2, 3).flatten(0, 1) for states in inputs]
        plain = prefix == 0 and (window is None or window >= length)
        mask = None if plain else _seen(length, prefix, window, query.device)
        with without_cudnn():
            attended = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=plain, scale=scale)
        attended = attended.view(query.shape)
    return attended.detach(), partial(torch.autograd.grad, attended, inputs)
