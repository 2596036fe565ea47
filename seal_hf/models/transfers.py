"""
Transfers between the host and the device that a model is on.

They all pass through here, so that each is one copy, and a test can count how often the host waits for the device.
"""

from collections.abc import Sequence

import torch


def to_device(values: Sequence, device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """
    A tensor of these numbers on a device. The host does not wait for a CUDA device: the copy is from pinned memory.

    Args:
        values (`Sequence`):
            Numbers, or equally long sequences of them.
        device (`torch.device`):
            Where to.
        dtype (`torch.dtype`, *optional*, defaults to `torch.int64`):
            Their type.
    """
    on_host = torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return on_host
    if device.type == "cuda":
        on_host = on_host.pin_memory()
    return on_host.to(device, non_blocking=True)


def to_host(values: torch.Tensor) -> list:
    """The numbers of a tensor, for which the host waits until the device has computed them."""
    return values.tolist()


def brought_to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """
    Tensors on the CPU, for which the host waits once, whatever their number: in fp32 where they come from a device, and
    themselves where they are on the CPU.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    flat = [tensor.detach().flatten().to(tensors[0].device, torch.float32) for tensor in tensors]
    parts = torch.cat(flat).cpu().split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
