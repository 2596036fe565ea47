"""The memory that a device has free, and what a model's activations take of it."""

import gc
import os

import psutil
import torch
from torch import nn

from .access import activation_dtype, unwrap


# Values that a layer keeps of a token for the backward pass, in multiples of the hidden and of the intermediate size.
_KEPT_HIDDEN, _KEPT_INTERMEDIATE = 8, 4


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
    if device.type == "cuda":
        torch.cuda.empty_cache()


def activation_bytes_per_token(model: nn.Module, checkpointed: bool = False) -> int:
    """
    Activations that a token keeps for the backward pass, without those of the loss, in bytes.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        checkpointed (`bool`, *optional*, defaults to `False`):
            Whether the layers keep nothing but their inputs and compute the rest again, one layer at a time.
    """
    config = unwrap(model).config.get_text_config()
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_layer = _KEPT_HIDDEN * config.hidden_size + _KEPT_INTERMEDIATE * intermediate
    if checkpointed:
        values = config.num_hidden_layers * config.hidden_size + per_layer
    else:
        values = config.num_hidden_layers * per_layer
    return values * activation_dtype(model).itemsize
