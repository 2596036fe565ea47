"""Layers that compute their activations again: the same adapters, from less memory."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MambaConfig, MambaForCausalLM

from helpers.inner_updates import (
    ATTENTION,
    ORDER_SEED,
    assert_same_tensors,
    hooked_modules,
    lora_config,
    snapshot,
    unlike_updates,
)
from helpers.tiny_models import VOCAB_SIZE, tiny_llama, tiny_model, tiny_policy_model
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop.checkpointing import checkpointed_layers
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.lora import LoraParameters
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import TrainingSequence


class LiveMemory(TorchDispatchMode):
    """
    Counts the memory of the tensors that operations make anew.

    Attributes:
        num_bytes, peak (`int`):
            What those that are still there take, and the most that it was.
    """

    def __init__(self):
        super().__init__()
        self.num_bytes = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]:
            if storage._cdata not in given:
                weakref.finalize(storage, self._free, storage.nbytes())
                self.num_bytes += storage.nbytes()
                self.peak = max(self.peak, self.num_bytes)
        return result

    def _free(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes


@pytest.mark.parametrize("grouped", [False, True], ids=["by block", "grouped"])
@pytest.mark.parametrize(
    ("build", "kind", "target_modules"),
    [
        (tiny_model, "llama", "all-linear"),
        (tiny_policy_model, "llama", ATTENTION),
        (tiny_model, "gemma2", "all-linear"),  # is not packed
        (tiny_model, "gemma3", ["down_proj"]),
    ],
)
def test_adapters_are_the_same(monkeypatch, build, kind, target_modules, grouped):
    monkeypatch.setattr("seal_hf.inner_loop.forward.has_grouped_products", lambda *args: grouped)
    updates, results, weights = unlike_updates(3), [], []
    for checkpointed in (False, True):
        model = build(kind)
        before = snapshot(model)
        bank = AdapterBank.initialize(model, lora_config(target_modules, r=8), seeds=range(3))
        initial = bank.weights.clone()
        results.append(train(bank, updates, order_seed=ORDER_SEED, gradient_checkpointing=checkpointed))
        weights.append(bank.weights)
        assert (bank.weights != initial).any(dim=1).all()
        assert_same_tensors(model, before)
        assert hooked_modules(model) == []
        assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(*weights)
    assert results[0] == results[1]


def test_layers_are_run_twice_and_are_as_they_were_after_an_error(monkeypatch):
    model = tiny_llama().requires_grad_(False)
    forward = TrainingForward(model, lora_layout(model, lora_config()), gradient_checkpointing=True)
    parameters = LoraParameters(forward.layout, torch.float32, torch.device("cpu"), 1)
    parameters.weights.write([forward.layout.initial_weights(0)])
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    forward.backward(parameters, [[[TrainingSequence((5, 6, 7))]]])
    assert calls == [False, True]
    handle.remove()
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward.backward(parameters, [[[TrainingSequence((5, 6, 7))]]])
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules()) and hooked_modules(model) == []


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_less_is_kept_for_the_backward_pass(kind):
    """What a layer keeps beside its input is there for one layer, not for eight."""
    model = tiny_model(kind, num_hidden_layers=8).requires_grad_(False)
    layout = lora_layout(model, lora_config())
    sequences = [[TrainingSequence(tuple(range(5, 65)))], [TrainingSequence(tuple(range(9, 69)))]]
    peaks = []
    for checkpointed in (False, True):
        forward = TrainingForward(model, layout, gradient_checkpointing=checkpointed)
        parameters = LoraParameters(layout, torch.float32, torch.device("cpu"), 2)
        parameters.weights.write([layout.initial_weights(0)] * 2)
        with LiveMemory() as memory:
            losses = forward.backward(parameters, [sequences])
        peaks.append(memory.peak)
        assert memory.num_bytes == losses.nbytes  # the rest is given back
    inputs = 8 * 120 * 32 * 4
    assert inputs < peaks[1] < peaks[0] / 3


def test_gradients_that_go_past_the_hidden_states_are_not_lost():
    """A layer that is given another tensor with a gradient is left alone."""
    model = tiny_llama().requires_grad_(False)
    layer, anchor = model.model.layers[0], torch.zeros((), requires_grad=True)
    hidden = torch.randn(1, 5, 32, requires_grad=True)
    rotary = model.model.rotary_emb(hidden, torch.arange(5)[None])
    rotary = tuple(part.clone().requires_grad_() for part in rotary)
    expected = torch.autograd.grad(layer(hidden, position_embeddings=rotary).square().sum(), [hidden, *rotary])
    with checkpointed_layers(model, anchor):
        found = torch.autograd.grad(layer(hidden, position_embeddings=rotary).square().sum(), [hidden, *rotary])
    assert all(map(torch.equal, found, expected))


def test_model_without_such_layers_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="Sequential has no layers for gradient_checkpointing=True"):
        with checkpointed_layers(model, torch.zeros((), requires_grad=True)):
            pass


def test_layers_that_are_no_transformer_blocks_are_checkpointed_too():
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=2)
    weights = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        bank = AdapterBank.initialize(MambaForCausalLM(config), lora_config(["in_proj", "x_proj"]), seeds=[0, 1])
        train(bank, unlike_updates(2), gradient_checkpointing=checkpointed)
        weights.append(bank.weights)
    assert torch.equal(*weights)
