"""
Rotary position embeddings in few operations.

transformers turns queries and keys by operations whose derivatives autograd puts together from slices of zeros: 30 in a
layer, both passes together. Written out they are 12.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType

import torch
from torch import nn


_NAME = "apply_rotary_pos_emb"  # what the files of transformers' models call theirs
_lock = threading.Lock()
_users: Counter[ModuleType] = Counter()
_originals: dict[ModuleType, Callable] = {}


class _Rotary(torch.autograd.Function):
    """Su et al. (2021), by halves, as transformers' Llama does it: `x * cos + cat(-x_2, x_1) * sin` for queries and keys."""

    @staticmethod
    def forward(
        ctx,
        query: torch.Tensor,  # (B, H, T, D)
        key: torch.Tensor,  # (B, H_kv, T, D)
        cos: torch.Tensor,  # (B, 1, T, D)
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        halves = sin.chunk(2, -1)
        return _turned(query, cos, *halves), _turned(key, cos, *halves)

    @staticmethod
    def backward(ctx, grad_query: torch.Tensor, grad_key: torch.Tensor):
        cos, sin = ctx.saved_tensors
        halves = sin.chunk(2, -1)[::-1]
        return _turned(grad_query, cos, *halves, sign=-1), _turned(grad_key, cos, *halves, sign=-1), None, None


def _turned(
    states: torch.Tensor, cos: torch.Tensor, low_sin: torch.Tensor, high_sin: torch.Tensor, sign: int = 1
) -> torch.Tensor:
    turned = states * cos
    (low, high), (turned_low, turned_high) = states.chunk(2, -1), turned.chunk(2, -1)
    turned_low.addcmul_(high, low_sin, value=-sign)
    turned_high.addcmul_(low, high_sin, value=sign)
    return turned


@contextmanager
def written_out_rotary(model: nn.Module) -> Iterator[None]:
    """
    Let the attention of a model use the written-out form inside the block, where it has the usual one.

    The function is that of a file of transformers, so that other models of the kind use it in that time, too; it computes
    the same.
    """
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    changed = [
        file for file in files if hasattr(file, _NAME) and _is_usual(_originals.get(file, getattr(file, _NAME)))
    ]
    with _lock:
        for file in changed:
            if not _users[file]:
                _originals[file] = getattr(file, _NAME)
                setattr(file, _NAME, partial(_apply, _originals[file]))
            _users[file] += 1
    try:
        yield
    finally:
        with _lock:
            for file in changed:
                _users[file] -= 1
                if not _users[file]:
                    setattr(file, _NAME, _originals.pop(file))


def _apply(original: Callable, *states: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    # Where the angles are fewer than the dimensions, a part of these is turned; some models turn queries alone.
    if (
        options
        or len(states) != 4
        or len({one.dtype for one in states}) > 1
        or states[0].shape[-1] != states[2].shape[-1]
    ):
        return original(*states, **options)
    q, k, cos, sin = states
    return _Rotary.apply(q, k, cos[:, None], sin[:, None])


@cache
def _is_usual(original: Callable) -> bool:
    """Whether it gives the same on random input; some models turn neighbours, or a part of the dimensions."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    query, key, cos, sin = draw(2, 3, 4, 8), draw(2, 1, 4, 8), draw(2, 4, 8), draw(2, 4, 8)
    try:
        expected = original(query, key, cos, sin)
    except (TypeError, ValueError, IndexError, RuntimeError):  # it takes other arguments
        return False
    found = _apply(original, query, key, cos, sin)
    return len(expected) == 2 and all(
        one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )
