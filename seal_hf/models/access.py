"""
What is asked of any causal LM, with or without a policy adapter: its modules, dtype and context, and settings of it that
hold inside a `with` block and are as before after it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a `PeftModel` (with the policy's LoRA layers in place), or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def policy_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The LoRA matrices that a `PeftModel` carries; none of another model."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name, parameter in module.named_parameters()
        if "lora_" in name
    ]


def carries_policy(model: nn.Module) -> bool:
    """Whether a policy adapter takes part in what a model computes."""
    return isinstance(model, PeftModel) and not any(
        module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer)
    )


@contextmanager
def without_policy(model: nn.Module) -> Iterator[None]:
    """The base model alone inside the block, whatever policy adapter it carries."""
    if not isinstance(model, PeftModel):
        yield
        return
    # PEFT makes an adapter trainable that it switches on again.
    trainable = [(parameter, parameter.requires_grad) for parameter in policy_parameters(model)]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, is_trainable in trainable:
            parameter.requires_grad_(is_trainable)


def checkpointable_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers would checkpoint: those of a decoder, each with its attention and its MLP."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def activation_dtype(model: nn.Module) -> torch.dtype:
    """The floating dtype of a model's activations, also when its linear layers are quantized."""
    return model.get_input_embeddings().weight.dtype


def context_length(model: nn.Module) -> int | None:
    """Most tokens that the model attends to; `None` where its config does not say."""
    length = getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)
    return length if length is not None and length > 0 else None  # XLNet's is -1


def layer_size(config: PreTrainedConfig, name: str) -> int | None:
    """
    A size that a config states for its layers, such as `"head_dim"`: the greatest where they differ; `None` where it states
    none.
    """
    if not getattr(config, "is_heterogeneous", False):
        return getattr(config, name, None)
    return max(filter(None, (getattr(layer, name, None) for layer in config.per_layer_config)), default=None)


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; after the block each module is in its own mode again."""
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

    Args:
        model (`PreTrainedModel`):
            The causal LM.
        change (`Callable[[torch.Tensor], torch.Tensor]`):
            Given the hidden states of shape `(R, L, d)`, returns those that logits are computed for, `(..., d)`.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: (change(args[0]),))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def policy_in_activation_dtype(model: nn.Module) -> Iterator[None]:
    """
    Hold the policy's matrices in the dtype of the activations inside the block.

    The SFT trains them in fp32. PEFT would cast the activations up to them in every layer, which more than doubles the
    cost of the policy where it is only read.
    """
    dtype, parameters = activation_dtype(model), policy_parameters(model)
    originals = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original
