"""RMSNorm with a backward pass of its own, against the module's."""

import pytest
import torch

from helpers.tiny_models import tiny_llama, tiny_model
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


def test_norms_with_trained_weights_are_left_alone():
    model = tiny_llama()
    with frozen_norms(model):
        assert not any("forward" in vars(module) for module in model.modules())
