"""What is brought from the device to the host at once is what was there."""

import torch
from torch.overrides import TorchFunctionMode

from seal_hf.models.transfers import brought_to_host


class OnAnotherDevice(TorchFunctionMode):
    """Lets tensors say that they are not on the CPU, and counts the copies to it."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "__get__" and function.__self__ is torch.Tensor.device:
            return torch.device("cuda:0")
        if function is torch.Tensor.to:
            args = [value for value in args if not isinstance(value, torch.device)]
        self.copies += function is torch.Tensor.cpu
        return function(*args, **(kwargs or {}))


def test_tensors_come_together_and_in_fp32():
    shapes, dtypes = [(3, 4), (2,), (), (1, 0, 2), (5, 2, 2)], [torch.float32, torch.bfloat16] * 3
    tensors = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
    tensors[0] = tensors[0].T
    with OnAnotherDevice() as device:
        found = brought_to_host(tensors)
    assert device.copies == 1
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other.float())


def test_tensors_of_the_host_are_themselves():
    tensors = [torch.randn(2), torch.ones(3, dtype=torch.bfloat16)]
    assert all(one is other for one, other in zip(brought_to_host(tensors), tensors, strict=True))
