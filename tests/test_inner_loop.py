import copy
import importlib.util
import itertools
import logging
import math
import random
import threading

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny_models import KINDS, VOCAB_SIZE, tiny_llama, tiny_model, tiny_policy_model
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, get_scheduler

from seal_hf import packed_forward
from seal_hf.adapter_bank import AdapterBank, is_packed_for_inference
from seal_hf.inner_loop import InnerStep, train
from seal_hf.inner_update import SCHEDULES, InnerLoopConfig, InnerUpdate, TrainingSequence, training_order
from seal_hf.lora_layout import LoraLayout, unwrap
from seal_hf.packed_forward import TrainingForward


ATTENTION = ["q_proj", "v_proj"]
ORDER_SEED = 3
NUM_PROBES = 4  # forward passes before the first step


def lora_config(target_modules: str | list[str] = "all-linear", **options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": target_modules, **options})


def random_update(seed: int, num_sequences: int, longest: int = 28, **options) -> InnerUpdate:
    """Sequences of 4 to `longest` random tokens, half of them with a prompt of 1 to 3 tokens."""
    generator = random.Random(seed)
    sequences = []
    for _ in range(num_sequences):
        length = generator.randint(4, longest)
        ids = tuple(generator.randrange(4, VOCAB_SIZE) for _ in range(length))
        sequences.append(TrainingSequence(ids, generator.choice([0, 0, 0, 1, 2, 3])))
    return InnerUpdate(tuple(sequences), InnerLoopConfig(**options))


def unlike_updates(count: int) -> list[InnerUpdate]:
    """
    Updates that differ in everything they can: numbers of sequences and steps, rates, schedules, batches, clipping.

    The seed is one for which the plain loop itself is well conditioned: AdamW's first steps depend on the sign of every
    gradient, so a gradient below the rounding error makes two correct implementations differ by a learning rate. Here,
    nudging the base weights by their rounding error moves no trained weight of the plain loop by more than 1e-5.
    """
    return [
        random_update(
            seed=200 + k,
            num_sequences=3 + k % 4,
            learning_rate=1e-3 * (1 + k % 3),
            num_train_epochs=[20, 14, 12, 9][k % 4] + k // 4,
            batch_size=1 + (k + k // 4) % 3,
            lr_scheduler_type=SCHEDULES[k % 3],
            warmup_ratio=[0.0, 0.1, 0.25, 0.0, 0.3][k % 5],
            max_grad_norm=[1.0, 0.0, 0.05][(k + k // 3) % 3],
        )
        for k in range(count)
    ]


def add_inner_adapter(model: PreTrainedModel | PeftModel, config: LoraConfig) -> PeftModel:
    """PEFT's own form of an inner adapter: the only adapter, or a second one that is active beside the frozen policy."""
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name="inner")
    model.add_adapter("inner", config)
    model.base_model.set_adapter(["default", "inner"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".inner." in name)
    return model


def train_alone(
    model: PreTrainedModel | PeftModel,
    config: LoraConfig,
    layout: LoraLayout,
    weights: torch.Tensor,
    update: InnerUpdate,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A plain PEFT loop from the same initial weights and in the same order: the final state dict, and the losses."""
    peft_model = add_inner_adapter(model, config).train()
    set_peft_model_state_dict(peft_model, layout.state_dict(weights), adapter_name="inner")
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == layout.num_parameters
    optimizer = torch.optim.AdamW(trained, lr=update.config.learning_rate, weight_decay=0.0)
    scheduler = get_scheduler(
        update.config.lr_scheduler_type.replace("constant", "constant_with_warmup"),
        optimizer,
        num_warmup_steps=math.ceil(update.num_steps * update.config.warmup_ratio),
        num_training_steps=update.num_steps,
    )
    losses = []
    for indices in training_order(update, ORDER_SEED):
        sequences = [update.sequences[i] for i in indices]
        length = max(len(sequence.input_ids) for sequence in sequences)
        input_ids = torch.zeros(len(sequences), length, dtype=torch.long)
        attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
        for row, sequence in enumerate(sequences):
            end = len(sequence.input_ids)
            input_ids[row, :end] = torch.tensor(sequence.input_ids)
            attention_mask[row, :end] = 1
            labels[row, sequence.prompt_length : end] = input_ids[row, sequence.prompt_length : end]
        loss = peft_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        if update.config.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, update.config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return get_peft_model_state_dict(peft_model, adapter_name="inner"), losses


def greatest_difference(layout: LoraLayout, weights: torch.Tensor, expected: dict[str, torch.Tensor]) -> float:
    actual = layout.state_dict(weights)
    assert set(actual) == set(expected)
    return max((actual[key] - expected[key]).abs().max().item() for key in expected)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_tensors(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert set(after) == set(before)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


def hooked_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


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


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "batch_size", "max_grad_norm"),
    [
        ("linear", 0.0, 1, 1.0),
        ("linear", 0.2, 2, 0.0),
        ("cosine", 0.0, 3, 0.05),
        ("cosine", 0.2, 1, 0.0),
        ("constant", 0.0, 2, 0.05),
        ("constant", 0.2, 3, 1.0),
    ],
)
def test_schedule_batch_and_clipping_equal_plain_loop(schedule, warmup_ratio, batch_size, max_grad_norm):
    options = {
        "learning_rate": 2e-3,
        "num_train_epochs": 7 * batch_size,
        "batch_size": batch_size,
        "lr_scheduler_type": schedule,
        "warmup_ratio": warmup_ratio,
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
    monkeypatch.setattr(packed_forward, "_BLOCK_COST" if packs else "_PASS_COST", cost)
    monkeypatch.setattr(TrainingForward, "_can_pack", lambda self: packs)
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), seeds=range(4))
    train(bank, updates)
    torch.testing.assert_close(bank.weights, expected.weights, rtol=0, atol=2e-5)


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
    with caplog.at_level(logging.WARNING, logger="seal_hf.inner_loop"):
        bank, results, updates, initial = _train_with_divergent(poison, **options)
    assert [result.stopped for result in results] == [None, "non-finite", None]
    warnings = [record.getMessage() for record in caplog.records if record.name == "seal_hf.inner_loop"]
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


def test_kinds_are_all_covered():
    marks = test_each_adapter_equals_one_trained_alone.pytestmark
    cases = next(mark.args[1] for mark in marks if mark.name == "parametrize")
    assert {case[0] for case in cases} == set(KINDS)
