"""What a model, its adapters and the two kinds of training take of each GPU's memory, by counting."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from seal_hf.adapters.layout import lora_layout
from seal_hf.models.access import activation_dtype
from seal_hf.models.architecture import linear_modules
from seal_hf.models.memory import activation_bytes_per_token
from seal_hf.rollout.bank_schedule import bank_bytes


# Qwen2.5-7B and Llama-3.1-70B, by their config.json on the Hub.
CONFIGS: dict[str, PreTrainedConfig] = {
    "7B": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    ),
    "70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
}
REPLICA, FSDP2, ZERO3 = PLACEMENTS = ("replica", "FSDP2", "ZeRO-3")
# Bytes of a weight in NF4 with double quantization: 4 bits, a scale in 8 bits for each 64, and one in fp32 for 256 of these.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's defaults of stage3_max_live_parameters and stage3_prefetch_bucket_size.
ZERO3_LIVE = 1_000_000_000 + 50_000_000
# Weights, gradients and AdamW's two moments in fp32.
TRAINED_BYTES = 4 * 4


@dataclass(frozen=True)
class Memory:
    """
    Bytes on one GPU.

    Parameters:
        weights (`float`):
            Of the frozen base, as they are kept.
        gathered (`float`):
            Of the frozen base, whole for as long as they are used, where it is sharded.
        policy (`float`):
            Of the policy adapter with its gradients and its optimizer.
        bank (`float`):
            Of the inner adapters with their optimizers, and the activations of a pass.
        activations (`float`):
            Of the outer SFT, with the logits.
    """

    weights: float
    gathered: float
    policy: float
    bank: float = 0.0
    activations: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(self))


@cache
def meta_model(name: str) -> nn.Module:
    """One of the models in bf16, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.bfloat16)


def scoring_memory(
    model: nn.Module,
    inner: LoraConfig,
    outer: LoraConfig,
    num_adapters: int,
    longest_step: int,
    num_gpus: int = 1,
    four_bit: bool = False,
) -> Memory:
    """
    What the training of a bank takes, each GPU a bank of its own, on a replica of the base or with `shard_base`.

    Args:
        model (`PreTrainedModel`):
            The base model; it may be on the device `meta`.
        inner, outer (`LoraConfig`):
            The inner adapters and the policy.
        num_adapters (`int`):
            Adapters in the bank.
        longest_step (`int`):
            Most tokens that one of them has in a step.
        num_gpus (`int`, *optional*, defaults to `1`):
            GPUs that share the base.
        four_bit (`bool`, *optional*, defaults to `False`):
            Whether the linear layers of a replica are in NF4.
    """
    held, gathered = (_weight_bytes(model, four_bit), 0.0) if num_gpus == 1 else sharded_bytes(model, num_gpus)
    # In fp32, and once more in the dtype of the activations while banks are trained.
    policy = lora_layout(model, outer).num_parameters * (4 + activation_dtype(model).itemsize)
    bank = bank_bytes(model, lora_layout(model, inner), num_adapters, longest_step)
    return Memory(held, gathered, policy, bank=bank)


def sft_memory(
    model: nn.Module,
    outer: LoraConfig,
    num_tokens: int,
    placement: str = REPLICA,
    num_gpus: int = 1,
    four_bit: bool = False,
) -> Memory:
    """
    What the outer SFT takes with gradient checkpointing, TRL's default. The policy's states are sharded like the base.

    Args:
        model, outer:
            As for [`scoring_memory`].
        num_tokens (`int`):
            Tokens of a batch on one GPU.
        placement (`str`, *optional*, defaults to `"replica"`):
            Where the frozen base is: one of `PLACEMENTS`.
        num_gpus (`int`, *optional*, defaults to `1`):
            GPUs that share it, where it is sharded.
        four_bit (`bool`, *optional*, defaults to `False`):
            Whether its linear layers are in NF4.
    """
    held, gathered = base_bytes(model, placement, num_gpus, four_bit)
    policy = lora_layout(model, outer).num_parameters * TRAINED_BYTES
    # The inputs of the layers are kept. The logits are gone before the first layer is computed again: in fp32 their
    # log-softmax, its gradient and theirs.
    config = model.config.get_text_config()
    inputs = config.num_hidden_layers * config.hidden_size * activation_dtype(model).itemsize
    layer = activation_bytes_per_token(model, checkpointed=True) - inputs
    logits = 3 * 4 * model.get_output_embeddings().weight.shape[0]
    activations = num_tokens * (inputs + max(layer, logits))
    return Memory(held, gathered, policy / _shards(placement, num_gpus), activations=activations)


def sharded_bytes(model: nn.Module, num_gpus: int) -> tuple[float, float]:
    """
    What a GPU keeps of the frozen base with `shard_base`, and what it has of it whole for a time, in bytes.

    It keeps a share of the matrices, and all vectors. It has one layer or embedding whole, and once more while it is gathered.
    """
    units = [_matrix_bytes(unit) for unit in _units(model)]
    return _weight_bytes(model, False) - sum(units) * (1 - 1 / num_gpus), 2.0 * max(units)


def gathered_per_pass(model: nn.Module, num_gpus: int) -> tuple[float, float]:
    """
    The bytes that a GPU receives from the others with `shard_base`, in a forward pass and in one with a backward pass.

    The embeddings are not used in the backward pass; where they are tied, they are gathered at both ends of a pass.
    """
    layers = sum(map(_matrix_bytes, model.get_decoder().layers))
    embeddings = _matrix_bytes(model.get_input_embeddings()) + _matrix_bytes(model.get_output_embeddings())
    received = 1 - 1 / num_gpus
    return (layers + embeddings) * received, (2 * layers + embeddings) * received


def _units(model: nn.Module) -> list[nn.Module]:
    """What `shard_base` gathers together."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return [*model.get_decoder().layers, inputs, *([] if outputs.weight is inputs.weight else [outputs])]


def _matrix_bytes(part: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in part.parameters() if parameter.dim() > 1)


def base_bytes(model: nn.Module, placement: str, num_gpus: int, four_bit: bool) -> tuple[float, float]:
    """
    What a GPU keeps of the frozen base in the outer SFT, and what it has of it whole for a time, in bytes.

    FSDP2 has a layer whole and the next, and the root with both embeddings. ZeRO-3 has as many parameters as its defaults
    let live.
    """
    layers = model.get_decoder().layers
    whole = _weight_bytes(model, four_bit)
    if placement == REPLICA:
        return whole, 0.0
    in_layers = sum(_weight_bytes(layer, four_bit) for layer in layers)
    if placement == FSDP2:
        gathered = 2 * max(_weight_bytes(layer, four_bit) for layer in layers) + whole - in_layers
    elif placement == ZERO3:
        gathered = min(whole, ZERO3_LIVE * activation_dtype(model).itemsize)
    else:
        raise ValueError(f"placement={placement!r} must be one of {', '.join(PLACEMENTS)}.")
    return whole / num_gpus, gathered


def _weight_bytes(part: nn.Module, four_bit: bool) -> float:
    """Bytes of the weights of a model, or of one of its layers."""
    parameters = {id(parameter): parameter for parameter in part.parameters()}.values()
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    if not four_bit:
        return num_bytes
    quantized = [module.weight for module in _linear(part)]
    return num_bytes - sum(weight.numel() * (weight.element_size() - NF4_BYTES) for weight in quantized)


def _linear(part: nn.Module) -> Sequence[nn.Module]:
    """What is quantized: the linear layers but the output embedding."""
    if hasattr(part, "get_output_embeddings"):
        return list(linear_modules(part).values())
    return [module for module in part.modules() if isinstance(module, nn.Linear)]


def _shards(placement: str, num_gpus: int) -> int:
    return 1 if placement == REPLICA else num_gpus
