"""Adapters of a bank against those that PEFT trains alone."""

import copy
import importlib.util

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BitsAndBytesConfig

from helpers.inner_updates import (
    ATTENTION,
    ORDER_SEED,
    assert_same_tensors,
    greatest_difference,
    lora_config,
    random_update,
    snapshot,
    train_alone,
    unlike_updates,
)
from helpers.tiny_models import KINDS, tiny_llama, tiny_model, tiny_policy_model
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerUpdate, TrainingSequence
from seal_hf.inner_loop.within_memory import train_within_memory
from seal_hf.models.access import is_packed_for_inference


@pytest.mark.parametrize(
    ("kind", "target_modules", "count", "with_policy"),
    [
        ("llama", "all-linear", 8, False),
        ("llama", ATTENTION, 1, False),
        ("llama", ATTENTION, 3, True),
        ("qwen2", "all-linear", 3, False),
        ("qwen2", ATTENTION, 1, True),
        ("gemma2", "all-linear", 3, False),
        ("gemma2", ATTENTION, 3, True),
        ("gemma3", ATTENTION, 3, False),
        ("gemma3", "all-linear", 1, True),
        ("mistral", "all-linear", 3, True),
        ("mistral", ATTENTION, 8, False),
    ],
)
def test_each_adapter_equals_one_trained_alone(kind, target_modules, count, with_policy):
    build = tiny_policy_model if with_policy else tiny_model
    model = build(kind)
    before = snapshot(model)
    updates = unlike_updates(count)
    assert min(update.num_steps for update in updates) >= 20
    bank = AdapterBank.initialize(model, lora_config(target_modules), seeds=range(count))
    initial = bank.weights.clone()
    results = train(bank, updates, order_seed=ORDER_SEED)
    assert_same_tensors(model, before)

    for k, update in enumerate(updates):
        alone, losses = train_alone(build(kind), lora_config(target_modules), bank.layout, initial[k], update)
        assert greatest_difference(bank.layout, bank.weights[k], alone) < 1e-4
        assert (bank.weights[k] - initial[k]).abs().max() > 1e-2  # far more than the tolerance
        assert results[k].losses == pytest.approx(losses, abs=1e-4)
        assert results[k].stopped is None


@pytest.mark.parametrize("with_policy", [False, True])
def test_adapters_on_parents_equal_those_that_peft_trains_on_them(with_policy):
    """The parent is a frozen adapter beside the one that PEFT trains; a policy is below both."""
    build = tiny_policy_model if with_policy else tiny_llama
    model, config, updates = build(), lora_config(ATTENTION), unlike_updates(3)
    before = AdapterBank.initialize(model, config, seeds=[7, 8, 9])
    train(before, unlike_updates(3)[::-1], order_seed=ORDER_SEED)
    parents = [Adapter(before.layout, weights, "base") for weights in before.weights]
    trained = train_within_memory(model, config, updates, seed=ORDER_SEED, parents=parents)
    fresh = before.layout.initial_weights(ORDER_SEED)
    for parent, update, (layout, weights, result) in zip(parents, updates, trained, strict=True):
        assert layout.r == 2 * before.layout.r and layout.scaling == before.layout.scaling
        alone, losses = train_alone(_with_parent(build(), parent), config, before.layout, fresh, update)
        assert result.losses == pytest.approx(losses, abs=1e-4)
        own = before.layout.by_peft_key(torch.empty_like(fresh))
        for name, (lora_a, lora_b) in layout.views(weights).items():
            old_a, old_b = before.layout.views(parent.weights)[name]
            assert lora_a[:4].equal(old_a) and lora_b[:, :4].equal(old_b)
            for letter, new in (("A", lora_a[4:]), ("B", lora_b[:, 4:])):
                (key,) = (key for key in own if name in key and f"lora_{letter}" in key)
                torch.testing.assert_close(new, alone[key], atol=1e-4, rtol=0)


def _with_parent(model, parent):
    """The model with the parent's product added to its weights, which PEFT then leaves alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        for name, (lora_a, lora_b) in parent.layout.views(parent.weights).items():
            module = base.get_submodule(name)
            weight = (module.base_layer if isinstance(module, BaseTunerLayer) else module).weight
            weight += parent.layout.scaling * lora_b @ lora_a
    return model


def test_parents_of_several_layouts_are_refused():
    model = tiny_llama()
    layouts = [lora_layout(model, lora_config(ATTENTION, r=r)) for r in (2, 3)]
    parents = [Adapter(layout, layout.initial_weights(0), "base") for layout in layouts]
    with pytest.raises(ValueError, match="stand on parents of one layout"):
        AdapterBank.initialize(model, lora_config(ATTENTION), [0, 0], parents)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "batch_size", "max_grad_norm"),
    [
        ("linear", 0.0, 1, 1.0),
        ("linear", 0.2, 2, 0.0),
        ("cosine", 0.0, 3, 0.05),
        ("cosine", 0.2, 1, 0.0),
        ("constant", 0.0, 2, 0.05),
        ("constant", 0.2, 3, 1.0),
    ],
)
def test_schedule_batch_and_clipping_equal_plain_loop(schedule, warmup_steps, batch_size, max_grad_norm):
    options = {
        "learning_rate": 2e-3,
        "num_train_epochs": 7 * batch_size,
        "batch_size": batch_size,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup_steps,
        "max_grad_norm": max_grad_norm,
    }
    update = random_update(5, 4, **options)  # 4 sequences: the last batch of 3 is ragged
    other = random_update(6, 3, num_train_epochs=3)
    model = tiny_llama()
    bank = AdapterBank.initialize(model, lora_config(), seeds=[0, 1])
    initial = bank.weights.clone()
    train(bank, [update, other], order_seed=ORDER_SEED)
    alone, _ = train_alone(tiny_llama(), lora_config(), bank.layout, initial[0], update)
    assert greatest_difference(bank.layout, bank.weights[0], alone) < 1e-4


def test_completion_only_and_full_losses():
    full = random_update(8, 4)
    full = InnerUpdate(tuple(TrainingSequence(s.input_ids, 0) for s in full.sequences), full.config)
    completion = InnerUpdate(
        tuple(TrainingSequence(s.input_ids, len(s.input_ids) - 2) for s in full.sequences), full.config
    )
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=[0, 0])
    initial = bank.weights[0].clone()
    results = train(bank, [full, completion], order_seed=ORDER_SEED)
    for k, update in enumerate([full, completion]):
        alone, losses = train_alone(tiny_llama(), lora_config(), bank.layout, initial, update)
        assert greatest_difference(bank.layout, bank.weights[k], alone) < 1e-4
        assert results[k].losses == pytest.approx(losses, abs=1e-4)
    assert (bank.weights[0] - bank.weights[1]).abs().max() > 1e-3


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "by-block"])
@pytest.mark.parametrize("cost", [0, 10**6])
def test_cuts_do_not_change_the_adapters(monkeypatch, cost, packs):
    updates = unlike_updates(4)
    expected = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(4))
    train(expected, updates)
    monkeypatch.setattr(f"seal_hf.inner_loop.passes.{'_BLOCK_COST' if packs else '_PASS_COST'}", cost)
    monkeypatch.setattr(TrainingForward, "_can_pack", lambda self: (packs, True))
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(4))
    train(bank, updates)
    torch.testing.assert_close(bank.weights, expected.weights, rtol=0, atol=2e-5)


def test_a_step_of_several_passes_equals_one_of_one_pass(monkeypatch):
    """Adapters take their step behind their own pass, and passes hold different numbers of them."""
    updates, weights, losses = unlike_updates(5), [], []
    for most_tokens in (10**6, 30):
        monkeypatch.setattr("seal_hf.inner_loop.passes._PASS_TOKENS", most_tokens)
        bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(5))
        losses.append([result.losses for result in train(bank, updates, order_seed=ORDER_SEED)])
        weights.append(bank.weights)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)
    for one, several in zip(*losses, strict=True):
        assert one == pytest.approx(several, abs=1e-4)


def test_losses_agree_in_bfloat16():
    updates = unlike_updates(3)
    model = tiny_llama(dtype=torch.bfloat16)
    bank = AdapterBank.initialize(model, lora_config(), seeds=range(3))
    assert bank.weights.dtype == torch.float32
    initial = bank.weights.clone()
    results = train(bank, updates, order_seed=ORDER_SEED)
    for k, update in enumerate(updates):
        _, losses = train_alone(tiny_llama(dtype=torch.bfloat16), lora_config(), bank.layout, initial[k], update)
        assert results[k].losses == pytest.approx(losses, abs=0.05)
        assert losses[-1] < losses[0] - 0.1  # the decline that must agree is larger than the tolerance


@pytest.fixture(scope="module")
def quantized_model(tmp_path_factory):
    """A tiny Llama in NF4; its projections are whole blocks of 64 weights."""
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    folder = tmp_path_factory.mktemp("tiny-llama")
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    model.save_pretrained(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return type(model).from_pretrained(folder, quantization_config=nf4, dtype=torch.float32, device_map="cpu").eval()


def infer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(10, 20)[None]).logits


@pytest.mark.parametrize("target_modules", [ATTENTION, "all-linear"], ids=["attention", "all-linear"])
def test_nf4_base(quantized_model, target_modules):
    model = copy.deepcopy(quantized_model)
    projection = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert type(projection).__name__ == "Linear4bit" and projection.weight.dtype == torch.uint8
    updates = unlike_updates(2)
    bank = AdapterBank.initialize(model, lora_config(target_modules), seeds=range(2))
    before, logits = snapshot(model), infer(model)
    initial = bank.weights.clone()
    results = train(bank, updates, order_seed=ORDER_SEED)
    assert_same_tensors(model, before)
    assert torch.equal(infer(model), logits)
    for k, update in enumerate(updates):
        config = lora_config(target_modules)
        alone, losses = train_alone(copy.deepcopy(quantized_model), config, bank.layout, initial[k], update)
        assert greatest_difference(bank.layout, bank.weights[k], alone) < 1e-4
        assert results[k].losses == pytest.approx(losses, abs=1e-4)


def test_nf4_weights_packed_for_inference_are_refused(quantized_model):
    model = copy.deepcopy(quantized_model)
    infer(model)
    if not is_packed_for_inference(model):
        pytest.skip("bitsandbytes packs 4-bit weights on processors with AVX512-BF16 only")
    bank = AdapterBank.initialize(model, lora_config(), seeds=[0])
    with pytest.raises(ValueError, match="no backward pass; load the model again and call keep_trainable"):
        train(bank, [random_update(1, 2)])


def test_kinds_are_all_covered():
    marks = test_each_adapter_equals_one_trained_alone.pytestmark
    cases = next(mark.args[1] for mark in marks if mark.name == "parametrize")
    assert {case[0] for case in cases} == set(KINDS)
