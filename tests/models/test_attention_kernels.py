"""The choice of torch's attention kernels: no cuDNN inside, everything as it was outside."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.backends import cuda

from helpers.operators import Operators
from seal_hf.models.attention_kernels import without_cudnn


def flags():
    return {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


@pytest.fixture(params=[True, False], ids=["cudnn was on", "cudnn was off"])
def found(request):
    """The flags before; flash is off, which nothing here may change."""
    before = flags()
    cuda.enable_cudnn_sdp(request.param)
    cuda.enable_flash_sdp(False)
    yield flags()
    cuda.enable_cudnn_sdp(before["cudnn"])
    cuda.enable_flash_sdp(before["flash"])


def test_cudnn_is_left_out_and_the_flags_are_restored(found):
    with without_cudnn():
        assert flags() == {**found, "cudnn": False}
        with without_cudnn():
            assert not cuda.cudnn_sdp_enabled()
        assert not cuda.cudnn_sdp_enabled()
    assert flags() == found


def test_flags_are_restored_after_an_error(found):
    with pytest.raises(KeyError), without_cudnn():
        raise KeyError
    assert flags() == found


def test_blocks_of_two_threads_may_overlap(found):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with without_cudnn():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with without_cudnn():
        thread.start()
        assert entered.wait(60)
    assert not cuda.cudnn_sdp_enabled()  # the other's block is open
    leave.set()
    thread.join()
    assert flags() == found


@pytest.mark.parametrize("masked", [False, True])
def test_on_the_cpu_kernel_and_numbers_are_the_same(masked):
    query, key, value = torch.randn(3, 2, 4, 64, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(64, 64, dtype=torch.bool).tril() if masked else None
    with Operators() as usual:
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with without_cudnn(), Operators() as chosen:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(attended, expected)
    assert chosen.called == usual.called
    assert chosen.names[-1] == "_scaled_dot_product_flash_attention_for_cpu"
