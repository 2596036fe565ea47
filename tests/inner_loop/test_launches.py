"""What a step asks of a GPU, counted on one that is not there."""

import pytest
import torch

from helpers.fake_gpu import fake_gpu


def test_what_a_gpu_is_asked_for_is_counted():
    with fake_gpu() as gpu:
        states = torch.zeros(3, 4, device="cuda")
        assert states.is_cuda and states.device == torch.device("cuda:0")
        assert not torch.zeros(3).is_cuda
        weight = torch.empty(5, 4, device=states.device, requires_grad=True)
        (states @ weight.mT).view(-1).sum().backward()
        # The two products are forward and backward; there are views and an allocation besides.
        assert gpu.launches == {"zeros": 1, "mm": 2, "sum": 1, "ones_like": 1}
        assert not gpu.waits and not gpu.transfers
        assert weight.grad.is_cuda

        host = torch.arange(4)
        assert host.pin_memory().to("cuda", non_blocking=True).is_cuda and gpu.transfers == 1 and not gpu.waits
        host.to(states.device)
        torch.tensor([1], device="cuda")
        assert states[0].tolist() == [1.0] * 4 and states.sum().item() == 1
        gpu.values = lambda shape: torch.full(shape, 2.0)
        assert states[0].tolist() == [2.0] * 4
        assert gpu.waits == {"to": 1, "tensor": 1, "tolist": 2, "item": 1} and gpu.transfers == 1
        with pytest.raises(RuntimeError, match="of the host and of the device"):
            states + host
        gpu.clear()
        assert not gpu.launches and not gpu.waits and not gpu.transfers
