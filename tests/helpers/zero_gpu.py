"""CUDA as the package `spaces` emulates it on ZeroGPU before the first call: in one thread alone, on the CPU's memory."""

import threading
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _OnHost(TorchFunctionMode):
    """Lets functions that are given CUDA as their device work on the CPU; counts them in `redirected`."""

    def __init__(self):
        self.redirected = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = "cpu"
            self.redirected.append((function.__name__, threading.current_thread()))
        return function(*args, **kwargs)


@contextmanager
def emulated_cuda(monkeypatch):
    """
    Inside the block torch says that there is one CUDA device, and this thread can use it. In other threads torch reaches for
    the real one, as it does there, and fails.
    """
    mode = _OnHost()
    with monkeypatch.context() as patch:
        patch.setenv("SPACES_ZERO_GPU", "true")
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        with mode:
            yield mode
