"""
A GPU without a GPU: the CUDA branches of the code run with shapes alone, and what they ask of the device is counted.

Tensors are on torch's meta device, which computes shapes and no values, and say that they are on "cuda:0". Autograd, the
grouped products and the fused optimizer work on them as on a GPU. Where the host asks for values, it is given some.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


HOPPER, AMPERE = (9, 0), (8, 0)
_CUDA, _META = torch.device("cuda:0"), torch.device("meta")
# Operations that launch nothing, although torch does not mark them as views.
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_reshape_alias"}
_READS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__}


class FakeGpu:
    """
    Counts of what a GPU was asked for.

    Attributes:
        launches (`Counter[str]`):
            Operations on its tensors that are neither views nor allocations, by name.
        waits (`Counter[str]`):
            What made the host wait for it: values that were read, and copies from memory that is not pinned.
        transfers (`int`):
            Copies to it for which the host did not wait.
        values (`Callable`):
            Given a shape, what the host reads from a tensor of it; ones unless set.
    """

    def __init__(self):
        self.values: Callable[[tuple[int, ...]], torch.Tensor] = torch.ones
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.transfers = 0


@contextmanager
def fake_gpu(capability: tuple[int, int] = HOPPER, free_memory: int = 64 * 2**30) -> Iterator[FakeGpu]:
    """
    A GPU of some compute capability with some bytes of free memory inside the `with` block; what is moved to the meta device
    is on it.
    """
    gpu = FakeGpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
        patch.setattr("torch.cuda.mem_get_info", lambda device=None: (free_memory, free_memory))
        patch.setattr("torch.cuda.memory_reserved", lambda device=None: 0)
        patch.setattr("torch.cuda.memory_allocated", lambda device=None: 0)
        patch.setattr("torch.Generator", _HostGenerator)
        with _Launches(gpu), _Device(gpu):
            yield gpu


class _HostGenerator(torch.Generator):
    """One for a GPU is not needed: nothing is drawn."""

    def __new__(cls, device: object = None):
        return super().__new__(cls)


class _Launches(TorchDispatchMode):
    """Counts what reaches the kernels, in the backward pass and the optimizer too."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_gpu = any(tensor.is_meta for tensor in given)
        if on_gpu and any(tensor.dim() for tensor in given if not tensor.is_meta):
            raise RuntimeError(f"{name} is given tensors of the host and of the device.")
        result = func(*args, **(kwargs or {}))
        made = not given and any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(result))
        if (on_gpu or made) and not func.is_view and name not in _ALLOCATIONS:
            self.gpu.launches[name] += 1
        return result


class _Device(TorchFunctionMode):
    """Lets tensors say that they are on the GPU, plays the transfers and counts them."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func.__name__ == "__get__" and tensor.is_meta and func.__self__ is torch.Tensor.device:
            return _CUDA
        if func.__name__ == "__get__" and func.__self__ is torch.Tensor.is_cuda:
            return tensor.is_meta
        if func is torch.Tensor.pin_memory:
            pinned = tensor.clone()
            pinned.in_pinned_memory = True
            return pinned
        if tensor is not None and tensor.is_meta and (func in _READS or func is torch.equal):
            self.gpu.waits[func.__name__] += 1
            return True if func is torch.equal else self.gpu.values(tensor.shape).to(tensor.dtype).tolist()
        if func is torch._fused_rms_norm and tensor.is_meta:
            return _FusedRMSNorm.apply(tensor, self.gpu.launches), None
        to_gpu = func is not torch.device and any(map(_is_gpu, (*args, *kwargs.values())))
        if to_gpu and tensor is not None and not tensor.is_meta:
            if getattr(tensor, "in_pinned_memory", False) and kwargs.get("non_blocking"):
                self.gpu.transfers += 1
            else:
                self.gpu.waits[func.__name__] += 1
        if to_gpu and func.__name__ in ("tensor", "as_tensor"):
            self.gpu.waits[func.__name__] += 1
        if to_gpu:
            args = tuple(_META if _is_gpu(value) else value for value in args)
            kwargs = {
                name: _META if _is_gpu(value) else value for name, value in kwargs.items() if name != "generator"
            }
        return func(*args, **kwargs)


class _FusedRMSNorm(torch.autograd.Function):
    """The norm's kernels, which torch has for a GPU alone: elsewhere it calls other operations in their place."""

    @staticmethod
    def forward(ctx, hidden, launches):
        ctx.launches = launches
        launches["_fused_rms_norm"] += 1
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx, grad):
        ctx.launches["_fused_rms_norm_backward"] += 1
        return torch.empty_like(grad), None


def _is_gpu(value: object) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (isinstance(value, str) and value == "cuda")
