"""torch's flash attention operator for the CPU: dense attention under a mask, with the gradients written out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flash_attention_on_the_cpu() -> Iterator[list[dict]]:
    """
    Register the operator and its backward pass for CPU tensors inside the block.

    The block gets the arguments of all calls of either, by their names in torch's schema.
    """
    calls: list[dict] = []
    names = ("_flash_attention_forward", "_flash_attention_backward")
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, kernel in zip(names, (_forward, _backward), strict=True):
            library.impl(name, _noting(getattr(torch.ops.aten, name).default, kernel, calls), "CPU")
        yield calls


def _noting(operator, kernel, calls):
    def call(*args, **options):
        positional = [argument.name for argument in operator._schema.arguments if not argument.kwarg_only]
        given = {"operator": operator, **dict(zip(positional, args, strict=True)), **options}
        assert not given["return_debug_mask" if kernel is _forward else "dropout_p"]
        calls.append(given)
        return kernel(given)

    return call


def _forward(given):
    query, (weights, normalizer), values = given["query"], _weights(given), _repeated(given["value"], given)
    output = torch.einsum("hij,jhd->ihd", weights, values.double()).to(query.dtype)
    unused = torch.empty(0)
    return output, normalizer.float(), unused, unused.clone(), unused.clone()


def _backward(given):
    weights, normalizer = _weights(given)
    torch.testing.assert_close(given["logsumexp"], normalizer.float())
    query, key, value = (given[name].double() for name in ("query", "key", "value"))
    grad = given["grad_out"].double()
    keys, values = _repeated(key, given), _repeated(value, given)
    grad_weights = torch.einsum("ihd,jhd->hij", grad, values)
    # of softmax, by the output that the kernel is given
    mean = torch.einsum("ihd,ihd->hi", grad, given["out"].double())[..., None]
    grad_scores = weights * (grad_weights - mean) * given["scale"]
    found = (
        torch.einsum("hij,jhd->ihd", grad_scores, keys),
        torch.einsum("hij,ihd->jhd", grad_scores, query).unflatten(1, (key.shape[1], -1)).sum(2),
        torch.einsum("hij,ihd->jhd", weights, grad).unflatten(1, (key.shape[1], -1)).sum(2),
    )
    return tuple(part.to(given["query"].dtype) for part in found)


def _weights(given) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights `(H, N, N)` and the logarithms `(H, N)` of the sums of exponentials."""
    ends, query = given["cum_seq_q"], given["query"]
    assert ends.dtype == torch.int32 and torch.equal(ends, given["cum_seq_k"]) and ends[0] == 0
    lengths = ends.diff()
    assert ends[-1] == len(query) == len(given["key"]) and given["max_q"] == given["max_k"] == lengths.max()
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    seen = owners[:, None] == owners
    left, right = (given.get(f"window_size_{side}") for side in ("left", "right"))
    if given["is_causal"]:
        right = 0
    if left is not None and left >= 0:
        seen &= distance <= left
    if right is not None and right >= 0:
        seen &= -distance <= right
    scores = torch.einsum("ihd,jhd->hij", query.double(), _repeated(given["key"], given).double()) * given["scale"]
    scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def _repeated(states: torch.Tensor, given) -> torch.Tensor:
    return states.repeat_interleave(given["query"].shape[1] // states.shape[1], dim=1)
