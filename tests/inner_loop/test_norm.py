"""RMSNorm with a backward pass of its own, against the module's."""

import pytest
import torch
from torch import nn

from helpers.fake_gpu import fake_gpu
from helpers.operators import Operators
from helpers.tiny_models import tiny_llama, tiny_model
from seal_hf.inner_loop import norm as norms
from seal_hf.inner_loop.norm import frozen_norms


@pytest.mark.parametrize(("kind", "changed"), [("llama", True), ("qwen2", True), ("gemma3", False)])
def test_frozen_norms(kind, changed):
    """Gemma's norm scales by one plus the weight, and is left alone."""
    model = tiny_model(kind).requires_grad_(False)
    norm = model.model.layers[0].input_layernorm
    norm.weight.copy_(torch.rand(32))
    hidden, weights = torch.randn(5, 32, requires_grad=True), torch.randn(5, 32)
    expected = norm(hidden)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    with frozen_norms(model):
        assert ("forward" in vars(norm)) == changed
        found = norm(hidden)
        (grad,) = torch.autograd.grad((found * weights).sum(), hidden)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_norms_with_trained_weights_are_left_alone_where_gradients_are_kept():
    model = tiny_llama()
    with frozen_norms(model):
        assert not any("forward" in vars(module) for module in model.modules())
    with torch.no_grad(), frozen_norms(model):
        assert "forward" in vars(model.model.norm)


class OtherDtypeRMSNorm(nn.Module):
    """Gives fp32 whatever it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8, dtype=torch.bfloat16), False), 1e-6

    def forward(self, hidden_states):
        wide = hidden_states.float()
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class LastRowRMSNorm(OtherDtypeRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states)[-1:].to(hidden_states.dtype)


@pytest.mark.parametrize("variant", [OtherDtypeRMSNorm, LastRowRMSNorm])
def test_variants_of_the_norm_are_left_alone(variant):
    """Among norms that are changed, one that differs in what it gives is not."""
    model = nn.ModuleList([tiny_llama().model.norm.requires_grad_(False), variant()])
    with frozen_norms(model):
        assert ["forward" in vars(module) for module in model] == [True, False]


def test_the_host_waits_once_for_all_norms(monkeypatch):
    read = []
    monkeypatch.setattr(norms, "to_host", lambda values: read.append(values) or [True] * len(values))
    model = tiny_llama(num_hidden_layers=3).requires_grad_(False)
    with Operators() as operators, frozen_norms(model):
        pass
    assert [values.tolist() for values in read] == [[True] * 7]
    with frozen_norms(model):
        assert len(read) == 1
    with frozen_norms(model.bfloat16()):
        assert len(read) == 2
    assert not {"equal", "_local_scalar_dense"} & set(operators.names)


def kernels_of_a_norm(weight_dtype=torch.bfloat16) -> list[str]:
    """What a GPU is asked for in both passes of a norm in bf16."""
    model = nn.Sequential(tiny_llama().model.norm.requires_grad_(False).to(weight_dtype))
    with fake_gpu() as gpu:
        hidden = torch.zeros(1, 5, 32, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        with frozen_norms(model.to("meta")):
            gpu.clear()
            normed = model(hidden)
        assert normed.shape == hidden.shape
        normed.backward(torch.empty_like(normed))
        assert hidden.grad.shape == hidden.shape
        return list(gpu.launches)


@pytest.mark.skipif(not norms._HAS_KERNELS, reason="this torch has no kernels for it")
def test_a_gpu_has_a_kernel_for_each_pass():
    assert kernels_of_a_norm() == ["_fused_rms_norm", "_fused_rms_norm_backward"]


def test_the_written_out_norm_where_the_kernels_do_not_serve(monkeypatch):
    """Before torch 2.9, and for weights of another dtype, whose result has theirs."""
    assert "rsqrt" in kernels_of_a_norm(torch.float32)
    monkeypatch.setattr(norms, "_HAS_KERNELS", False)
    assert "rsqrt" in kernels_of_a_norm()


@pytest.mark.skipif(not norms._HAS_KERNELS, reason="this torch has no kernels for it")
def test_the_kernels_compute_the_norm(monkeypatch):
    """What a GPU is asked for, asked of the CPU."""
    calls, kernel = [], torch._fused_rms_norm
    norm = tiny_llama().model.norm.requires_grad_(False)
    norm.weight.copy_(torch.rand(32))
    hidden = torch.randn(5, 32)
    expected, weight = norm(hidden), norm.weight
    monkeypatch.setattr(torch, "_fused_rms_norm", lambda *args: calls.append(args) or args[:1])
    with fake_gpu(), frozen_norms(norm.to("meta")):
        norm(torch.zeros(5, 32, device="cuda"))
    ((_, shape, _, epsilon),) = calls
    torch.testing.assert_close(kernel(hidden, shape, weight, epsilon)[0], expected)
