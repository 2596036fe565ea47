"""What training a bank leaves behind: the model as it was, divergent adapters stopped alone, stops, bad input."""

import itertools
import logging
import math
import threading

import pytest
import torch
from torch import nn

from helpers.inner_updates import (
    NUM_PROBES,
    ORDER_SEED,
    assert_same_tensors,
    hooked_modules,
    lora_config,
    random_update,
    snapshot,
    unlike_updates,
)
from helpers.tiny_models import tiny_llama, tiny_policy_model
from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.training import InnerStep, train
from seal_hf.inner_loop.update import InnerUpdate, training_order
from seal_hf.models.access import unwrap


def parameter_flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def module_modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


class _InterruptedError(RuntimeError):
    pass


def _break_off_in_forward(model: nn.Module, after_calls: int):
    calls = itertools.count()

    def hook(module, args, output):
        if next(calls) == after_calls:
            raise _InterruptedError("in the forward pass")

    return unwrap(model).get_submodule("model.layers.1.mlp").register_forward_hook(hook)


@pytest.mark.parametrize("with_policy", [False, True], ids=["base", "policy"])
@pytest.mark.parametrize("interruption", ["none", "on_step", "forward"])
def test_model_is_as_it_was(with_policy, interruption):
    model = tiny_policy_model() if with_policy else tiny_llama()
    model.train()
    unwrap(model).model.layers[0].eval()  # a mixed state, not a uniform one
    unwrap(model).model.embed_tokens.weight.requires_grad_(False)
    input_ids = torch.arange(10, 40)[None]
    before, flags, modes, logits = (
        snapshot(model),
        parameter_flags(model),
        module_modes(model),
        model(input_ids).logits,
    )
    assert set(flags.values()) == set(modes.values()) == {False, True}

    def on_step(step: InnerStep) -> None:
        assert not any(module_modes(model).values()) and not any(parameter_flags(model).values())
        if interruption == "on_step" and step.step == 3:
            raise _InterruptedError("in on_step")

    bank = AdapterBank.initialize(model, lora_config(), seeds=[0, 1])
    initial = bank.weights.clone()
    updates = [random_update(1, 3, num_train_epochs=3), random_update(2, 2, num_train_epochs=3)]
    if interruption == "none":
        train(bank, updates, on_step=on_step)
    else:
        handle = _break_off_in_forward(model, NUM_PROBES + 3) if interruption == "forward" else None
        with pytest.raises(_InterruptedError):
            train(bank, updates, on_step=on_step)
        if handle:
            handle.remove()
    assert (bank.weights != initial).any()
    assert_same_tensors(model, before)
    assert parameter_flags(model) == flags
    assert module_modes(model) == modes
    assert hooked_modules(model) == []
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model(input_ids).logits, logits, rtol=0, atol=0)


def _train_with_divergent(poison, count: int = 3, target: int = 1, **options):
    updates = unlike_updates(count)
    if options:
        updates[target] = random_update(101, 4, **options)
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(count))
    if poison:
        poison(bank.weights[target])
    initial = bank.weights.clone()
    results = train(bank, updates, order_seed=ORDER_SEED)
    return bank, results, updates, initial


def _inject_inf(weights: torch.Tensor) -> None:
    weights[5] = torch.inf


def _inject_nan(weights: torch.Tensor) -> None:
    weights[-1] = torch.nan


@pytest.mark.parametrize(
    ("poison", "options"),
    [
        (_inject_inf, {}),
        (_inject_nan, {}),
        (None, {"learning_rate": 1e30}),
        (None, {"learning_rate": 1e30, "max_grad_norm": 0.0, "batch_size": 2}),
        (None, {"learning_rate": 1e30, "lr_scheduler_type": "constant", "num_train_epochs": 40}),
    ],
)
def test_divergent_adapter_stops_alone(caplog, poison, options):
    with caplog.at_level(logging.WARNING, logger="seal_hf.inner_loop.training"):
        bank, results, updates, initial = _train_with_divergent(poison, **options)
    assert [result.stopped for result in results] == [None, "non-finite", None]
    warnings = [record.getMessage() for record in caplog.records if record.name == "seal_hf.inner_loop.training"]
    assert len(warnings) == 1 and warnings[0].startswith("Adapter 1 was stopped at step ")
    assert f"of {updates[1].num_steps}" in warnings[0]
    assert len(results[1].losses) < updates[1].num_steps
    assert all(math.isfinite(loss) for loss in results[1].losses)
    assert torch.equal(bank.weights[1].isfinite(), initial[1].isfinite())
    if poison:
        torch.testing.assert_close(bank.weights[1], initial[1], rtol=0, atol=0, equal_nan=True)

    others = AdapterBank(tiny_llama(), bank.layout, initial[[0, 2]])
    results_of_others = train(others, [updates[0], updates[2]], order_seed=ORDER_SEED)
    torch.testing.assert_close(bank.weights[[0, 2]], others.weights, rtol=0, atol=1e-5)
    for k, other in ((0, 0), (2, 1)):
        assert results[k].losses == pytest.approx(results_of_others[other].losses, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_adapters_that_take_their_step_together_stop_alone_too(monkeypatch, rows):
    """As on a GPU, where one that is not finite is left out of a group."""
    expected, results, _, _ = _train_with_divergent(_inject_nan)
    monkeypatch.setattr("seal_hf.adapters.layout._reads_vectors", lambda device: True)
    monkeypatch.setattr("seal_hf.inner_loop.optimizer._GRADIENT_VALUES", rows * expected.layout.num_parameters)
    bank, together, _, _ = _train_with_divergent(_inject_nan)
    assert [result.stopped for result in together] == [None, "non-finite", None]
    torch.testing.assert_close(bank.weights, expected.weights, rtol=0, atol=1e-5, equal_nan=True)
    for one, other in zip(results, together, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-5) and one.num_tokens == other.num_tokens


def test_weights_stay_finite_at_the_greatest_learning_rate():
    update = random_update(1, 2, num_train_epochs=1, batch_size=2, learning_rate=1e30)
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0])
    train(bank, [update])
    assert bank.weights.isfinite().all()


def test_bank_ends_when_every_adapter_diverged():
    steps = []
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 1])
    bank.weights[:, 0] = torch.nan
    results = train(bank, [random_update(1, 3), random_update(2, 3)], on_step=steps.append)
    assert [result.stopped for result in results] == ["non-finite", "non-finite"]
    assert [result.losses for result in results] == [[], []]
    assert [result.num_tokens for result in results] == [0, 0]
    assert len(steps) == 1


def test_stop_event_keeps_the_weights():
    updates = [random_update(1, 3, num_train_epochs=4), random_update(2, 1, num_train_epochs=2)]
    stop, at_stop = threading.Event(), []

    def on_step(step: InnerStep) -> None:
        if step.step == 5:
            at_stop.append(bank.weights.clone())
            stop.set()

    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 1])
    initial = bank.weights.clone()
    results = train(bank, updates, on_step=on_step, stop=stop)
    assert [result.stopped for result in results] == ["stop", None]  # the second had its 2 steps
    assert [len(result.losses) for result in results] == [5, 2]
    assert torch.equal(bank.weights, at_stop[0])
    assert (bank.weights != initial).any(dim=1).all()


def test_stop_event_set_before_the_start():
    stop = threading.Event()
    stop.set()
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 1])
    initial = bank.weights.clone()
    results = train(bank, [random_update(1, 3), random_update(2, 3)], stop=stop)
    assert [(result.stopped, result.losses) for result in results] == [("stop", []), ("stop", [])]
    assert torch.equal(bank.weights, initial)


def test_on_step_values():
    updates = unlike_updates(4)
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(4))
    steps = []
    results = train(bank, updates, order_seed=ORDER_SEED, on_step=steps.append)
    num_steps = max(update.num_steps for update in updates)
    assert [step.step for step in steps] == list(range(1, num_steps + 1))
    assert {step.num_steps for step in steps} == {num_steps}
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(steps))

    orders = [training_order(update, ORDER_SEED) for update in updates]
    tokens = [0] * len(updates)
    for i, step in enumerate(steps):
        taking_part = {k for k, update in enumerate(updates) if i < update.num_steps}
        assert set(step.losses) == taking_part
        assert all(step.losses[k] == results[k].losses[i] for k in taking_part)
        for k in taking_part:
            tokens[k] += sum(len(updates[k].sequences[j].input_ids) for j in orders[k][i])
        assert step.num_tokens == sum(tokens)
    assert [result.num_tokens for result in results] == tokens
    assert [len(result.losses) for result in results] == [update.num_steps for update in updates]


def test_finished_adapter_leaves_the_batch():
    short = random_update(1, 2, num_train_epochs=1)
    long = random_update(2, 3, num_train_epochs=4)
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 1])
    weights = []
    train(bank, [short, long], on_step=lambda step: weights.append(bank.weights.clone()))
    assert len(weights) == 12
    assert all(torch.equal(later[0], weights[1][0]) for later in weights[2:])
    assert not torch.equal(weights[0][0], weights[1][0])
    assert all(not torch.equal(a[1], b[1]) for a, b in itertools.pairwise(weights))


def test_every_matrix_is_trained():
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0])
    initial = bank.weights.clone()
    train(bank, [random_update(1, 3, num_train_epochs=2, lr_scheduler_type="constant")])
    changed = bank.layout.views((bank.weights - initial)[0])
    assert len(changed) == 14  # 7 projections in each of 2 layers
    assert all(matrix.abs().max() > 0 for matrices in changed.values() for matrix in matrices)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([random_update(1, 2)], "1 updates were given for a bank of 2 adapters"),
        ([random_update(1, 2), InnerUpdate(())], "update of adapter 1 has no sequences"),
    ],
)
def test_invalid_updates(updates, message):
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 1])
    with pytest.raises(ValueError, match=message):
        train(bank, updates)
