"""The policy adapter that a model carries: known by a fingerprint, and copied only when it has changed."""

import gc

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.overrides import TorchFunctionMode

from helpers.adapters import BASE_ID
from helpers.fake_gpu import fake_gpu
from helpers.tiny_models import tiny_llama, tiny_policy_model
from seal_hf.adapters import policy as policies
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.policy import carried_policy
from seal_hf.models.access import (
    carries_policy,
    policy_in_activation_dtype,
    policy_parameters,
    without_policy,
)
from seal_hf.models.architecture import linear_modules


def step(model, **options) -> None:
    parameters = policy_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, **options)
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_an_optimizer_step_makes_another_policy(options):
    model = tiny_policy_model()
    before = carried_policy(model, BASE_ID)
    assert carried_policy(model, BASE_ID) is before
    step(model, **options)
    after = carried_policy(model, BASE_ID)
    assert after.fingerprint != before.fingerprint
    assert torch.equal(after.weights, Adapter.from_peft_model(model, BASE_ID).weights)
    assert (after.weights - before.weights).abs().max() == pytest.approx(1e-5, rel=1e-2)


def test_one_changed_value_makes_another_policy():
    model = tiny_policy_model()
    before = carried_policy(model, BASE_ID)
    policy_parameters(model)[3].data.view(-1)[5] += 1e-4
    assert carried_policy(model, BASE_ID).fingerprint != before.fingerprint


def test_a_restored_policy_is_the_one_it_was():
    model = tiny_policy_model()
    weights = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    before = carried_policy(model, BASE_ID)
    set_peft_model_state_dict(model, {name: value + 0.1 for name, value in weights.items()})
    other = carried_policy(model, BASE_ID)
    set_peft_model_state_dict(model, weights)
    again = carried_policy(model, BASE_ID)
    assert before.fingerprint == again.fingerprint != other.fingerprint


def test_the_dtype_that_the_policy_is_held_in_counts():
    model = tiny_policy_model(dtype=torch.bfloat16)
    for parameter in policy_parameters(model):
        parameter.data = parameter.data.float() + 1e-4
    trained = carried_policy(model, BASE_ID)
    with policy_in_activation_dtype(model):
        rounded = carried_policy(model, BASE_ID)
    assert torch.equal(rounded.weights, trained.weights.bfloat16().float())
    assert trained.fingerprint == carried_policy(model, BASE_ID).fingerprint != rounded.fingerprint


class CopiesToHost(TorchFunctionMode):
    """Plays the copies of tensors from the GPU, and counts them."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu and args[0].is_meta:
            self.number += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_a_gpu_once_and_once_more_for_a_changed_policy():
    model = tiny_policy_model().to("meta")
    with fake_gpu() as gpu, CopiesToHost() as copies:
        first = carried_policy(model, BASE_ID)
        assert (gpu.waits.total(), copies.number) == (1, 1)
        gpu.clear()
        assert carried_policy(model, BASE_ID) is first
        assert (gpu.waits.total(), copies.number) == (1, 1)
        gpu.clear()
        gpu.values = torch.zeros
        assert carried_policy(model, BASE_ID) is not first
        assert (gpu.waits.total(), copies.number) == (1, 2)


def test_equal_policies_of_two_models_have_one_fingerprint():
    one, same, other = (carried_policy(tiny_policy_model(seed=seed), BASE_ID) for seed in (7, 7, 8))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_model_without_a_policy():
    assert carried_policy(tiny_llama(), BASE_ID) is None
    with without_policy(tiny_llama()) as nothing:
        assert nothing is None


@pytest.mark.parametrize("is_trainable", [True, False])
def test_a_policy_is_left_out_and_back_as_it_was(is_trainable):
    model, tokens = tiny_policy_model(), torch.arange(4, 24)[None]
    for parameter in policy_parameters(model):
        parameter.requires_grad_(is_trainable)
    before = carried_policy(model, BASE_ID)
    with torch.no_grad():
        with_policy = model(tokens).logits
    with pytest.raises(KeyError), torch.no_grad(), without_policy(model):
        assert not carries_policy(model) and carried_policy(model, BASE_ID) is None
        assert torch.equal(model(tokens).logits, tiny_llama()(tokens).logits)
        plain = linear_modules(tiny_llama())
        assert linear_modules(model).keys() == plain.keys()
        assert {type(module) for module in linear_modules(model).values()} == {torch.nn.Linear}
        raise KeyError
    assert carries_policy(model) and carried_policy(model, BASE_ID) is before
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, with_policy)
    assert {parameter.requires_grad for parameter in policy_parameters(model)} == {is_trainable}


def test_nothing_of_a_model_is_kept_when_it_is_gone():
    model = tiny_policy_model()
    carried_policy(model, BASE_ID)
    number = len(policies._copies)
    del model
    gc.collect()
    assert len(policies._copies) == number - 1


def test_a_saved_policy_comes_back(tmp_path):
    trained, ids = tiny_policy_model(), torch.arange(4, 12)[None]
    saved = carried_policy(trained, BASE_ID)
    saved.save_pretrained(tmp_path / "policy")
    loaded = Adapter.from_pretrained(tmp_path / "policy", tiny_llama(), BASE_ID)
    model = loaded.as_policy(tiny_llama())
    assert carried_policy(model, BASE_ID).fingerprint == saved.fingerprint
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-6)
        with without_policy(model):
            assert torch.equal(model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)
    with pytest.raises(ValueError, match="cannot be the policy of a model that carries one; load the base"):
        loaded.as_policy(model)
