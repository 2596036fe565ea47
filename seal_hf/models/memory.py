"""The memory that a device has free, and what a model's activations take of it."""

import ctypes
import gc
import os
import sys

import psutil
import torch
from torch import nn

from .access import activation_dtype, layer_size, unwrap


# From this length on attention on the CPU keeps keys and values for all heads, and what it gives, in place of its weights.
_LONG = 512


def free_memory(device: torch.device) -> int:
    """The memory that this process may still take on a device, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself is free for it to use again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def release_memory(device: torch.device) -> None:
    """Give back what nobody refers to any more, such as the tensors of a step that failed."""
    gc.collect()  # errors and the frames they came through refer to each other
    return_freed(device)


def return_freed(device: torch.device) -> None:
    """Give back to the device what was freed here and is kept for later, such as after the banks of a round."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # glibc keeps blocks between others in use, by gigabytes after an inner loop


def activation_bytes_per_token(model: nn.Module, checkpointed: bool = False, length: int | None = None) -> int:
    """
    The activations of a forward and backward pass of adapters on all linear layers, without those of the loss.

    Counted for gated transformers such as Llama and Qwen2, whose layers keep for the backward pass: the inputs of both norms,
    of all projections and of the gate's product, the gate's output before and after its activation, and queries, keys and
    values. Besides there are the gradients of one layer at a time. Where only queries and values are adapted it is less,
    by up to a quarter.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        checkpointed (`bool`, *optional*, defaults to `False`):
            Whether the layers keep nothing but their inputs and compute the rest again, one layer at a time.
        length (`int`, *optional*):
            Length of the longest sequence, with which grows what attention keeps, on a CPU and in fp32.

    Returns:
        `int`: bytes per token.
    """
    config, dtype = unwrap(model).config.get_text_config(), activation_dtype(model)
    hidden, num_heads = config.hidden_size, layer_size(config, "num_attention_heads") or 1
    intermediate = layer_size(config, "intermediate_size") or 4 * hidden
    head_size = layer_size(config, "head_dim") or hidden // num_heads
    queries, keys = (size * head_size for size in (num_heads, layer_size(config, "num_key_value_heads") or num_heads))
    kept = 4 * hidden + 2 * queries + 2 * keys + 4 * intermediate
    momentary = 2 * hidden + 3 * intermediate
    is_on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    if length is not None and (is_on_cpu or dtype.itemsize > 2):
        weights = num_heads * length if length < _LONG else 3 * queries
        kept, momentary = kept + weights, momentary + weights + weights // 2
    layers = config.num_hidden_layers * (hidden if checkpointed else kept)
    return (layers + checkpointed * kept + momentary) * dtype.itemsize
