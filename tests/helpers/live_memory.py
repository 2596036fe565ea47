"""How many bytes tensors hold at a time, on any device, counted as torch makes and drops them."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """
    Bytes of the tensors that operations inside the `with` block have made.

    Attributes:
        now, peak (`int`):
            Those that are alive, and the most that were at one time.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for given in tree_leaves((args, kwargs)):  # of before the block, they do not count
            if isinstance(given, torch.Tensor):
                self._note(given.untyped_storage(), 0)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._note(made.untyped_storage(), made.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += num_bytes
            weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes
