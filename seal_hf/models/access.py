"""Settings of a model that hold for the duration of a `with` block, and are as they were behind it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; behind the block each module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attention_set(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Another of transformers' attention functions, by its name."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = own


@contextmanager
def head_input_changed(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """
    Another input of the output embedding, whatever the architecture does around it.

    Parameters:
        model (`PreTrainedModel`):
            The causal LM.
        change (`Callable[[torch.Tensor], torch.Tensor]`):
            Given the hidden states of shape `(R, L, d)`, returns those that logits are worked out for, `(..., d)`.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: (change(args[0]),))
    try:
        yield
    finally:
        handle.remove()
