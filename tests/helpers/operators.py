"""The operators that torch runs in a block."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """
    Notes what is run inside the `with` block, in the backward pass too.

    Attributes:
        called (`list[OpOverload]`):
            The operators in their order.
    """

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func)
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        """Without `aten` and the overload."""
        return [func.overloadpacket.__name__ for func in self.called]
