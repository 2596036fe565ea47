"""
Activation checkpointing: layers keep nothing but their inputs, and compute the rest again in the backward pass.

transformers' own is for models in training mode, and torch's keeps what a function puts aside in its context by itself, as
the adapters' products and the packed attention do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..models.access import checkpointable_layers


@contextmanager
def checkpointed_layers(model: nn.Module, anchor: torch.Tensor) -> Iterator[None]:
    """
    Let the layers of a model compute their activations again in the backward pass, inside the block.

    Args:
        model (`PreTrainedModel`):
            The model; its parameters are frozen.
        anchor (`torch.Tensor`):
            A tensor that requires a gradient, so that autograd comes to layers whose input does not.

    Raises:
        ValueError: The model has no layers that transformers would checkpoint.
    """
    if not (layers := checkpointable_layers(model)):
        raise ValueError(f"{type(model).__name__} has no layers for gradient_checkpointing=True; train it without.")
    for layer in layers:
        layer.forward = partial(_forward, layer.forward, anchor)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(forward: Callable, anchor: torch.Tensor, hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
    others = tree_leaves((args, kwargs))
    if not torch.is_grad_enabled() or any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in others):
        # There is no backward pass, or one that goes to more than the hidden states.
        return forward(hidden, *args, **kwargs)
    rest: list[tuple] = []

    def run(states: torch.Tensor) -> torch.Tensor:
        outputs = forward(states, *args, **kwargs)
        if isinstance(outputs, torch.Tensor):
            return outputs
        rest[:] = [tuple(outputs[1:])]
        return outputs[0]

    output = _Checkpoint.apply(hidden, anchor, run)
    return (output, *rest[0]) if rest else output


class _Checkpoint(torch.autograd.Function):
    """`run(hidden)`, of which nothing but `hidden` is kept. The gradients of the adapters are written by their products."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, anchor: torch.Tensor, run: Callable) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.run = run
        return run(hidden)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (hidden,) = ctx.saved_tensors
        hidden = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad():
            output = ctx.run(hidden)
        if output.requires_grad:  # not where nothing in the layer is adapted and nothing before it
            output.backward(grad)
        return hidden.grad, None, None
