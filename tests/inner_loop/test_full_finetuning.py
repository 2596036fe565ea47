"""Full finetuning against a plain loop of torch's own optimizer, one sequence after another."""

import logging

import pytest
import torch
from transformers import get_scheduler

from helpers.inner_updates import assert_same_tensors, random_update, snapshot
from helpers.tiny_models import tiny_llama, tiny_model, tiny_policy_model
from seal_hf.inner_loop import full_finetuning
from seal_hf.inner_loop.full_finetuning import check_finetunable, finetune
from seal_hf.inner_loop.update import training_order
from seal_hf.models.fit import DoesNotFit


SEED = 3
OPTIONS = {"learning_rate": 1e-3, "num_train_epochs": 3, "batch_size": 2, "warmup_steps": 2, "max_grad_norm": 0.5}


def by_hand(model, update):
    """The loop as it stands in a textbook: weights in fp32, of which the model has copies in its own dtype."""
    config, order = update.config, training_order(update, SEED)
    weights = [parameter.detach().float().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    scheduler = get_scheduler(config.lr_scheduler_type, optimizer, int(config.warmup_steps), len(order))
    losses = []
    for places in order:
        batch = [update.sequences[place] for place in places]
        num_labels = sum(len(one.input_ids) - one.first_label for one in batch)
        total = 0.0
        for one in batch:
            ids = torch.tensor([one.input_ids])
            log_probs = model(ids).logits[0].float().log_softmax(-1)
            for place in range(one.first_label, len(one.input_ids)):
                total = total - log_probs[place - 1, one.input_ids[place]]
        model.zero_grad()
        (total / num_labels).backward()
        for weight, parameter in zip(weights, model.parameters(), strict=True):
            weight.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for weight, parameter in zip(weights, model.parameters(), strict=True):
                parameter.copy_(weight)
        losses.append((total / num_labels).item())
    return losses


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("gemma3", {}),
    ],
)
def test_it_equals_a_plain_loop(kind, options):
    update = random_update(seed=200, num_sequences=5, **OPTIONS)
    model, plain = tiny_model(kind, **options), tiny_model(kind, **options)
    before = snapshot(model)
    trained, result = finetune(model, update, seed=SEED)
    assert_same_tensors(model, before)
    assert result.losses == pytest.approx(by_hand(plain, update), abs=1e-5)
    assert result.stopped is None
    assert result.num_tokens == 3 * sum(len(one.input_ids) for one in update.sequences)
    for (name, own), other in zip(trained.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=0)
        assert not own.requires_grad and own.grad is None
        assert not own.equal(before[name])
    assert not trained.training


def test_bfloat16_weights_are_copies_of_fp32_ones():
    """A rate so low that no bf16 weight would change in one step, and that all do in many."""
    update = random_update(
        seed=200, num_sequences=2, learning_rate=2e-5, num_train_epochs=40, lr_scheduler_type="constant"
    )
    model, plain = tiny_llama(dtype=torch.bfloat16), tiny_llama(dtype=torch.bfloat16)
    trained, result = finetune(model, update, seed=SEED)
    losses = by_hand(plain, update)
    assert result.losses == pytest.approx(losses, abs=2e-2) and result.losses[-1] < result.losses[0] - 0.02
    moved = (trained.lm_head.weight - model.lm_head.weight).float()
    assert (moved - (plain.lm_head.weight - model.lm_head.weight).float()).abs().mean() < 0.1 * moved.abs().mean()


def test_neither_cuts_nor_checkpoints_change_it(monkeypatch):
    update = random_update(seed=201, num_sequences=6, **OPTIONS | {"batch_size": 6})
    whole, _ = finetune(tiny_llama(), update, seed=SEED)
    monkeypatch.setattr(full_finetuning, "_LOGITS", 30 * 104)
    monkeypatch.setattr(full_finetuning, "pass_tokens", lambda device: 50)
    passes = full_finetuning._cut(update.sequences, full_finetuning._Limits.of(tiny_llama()))
    assert 1 < len(passes) < 6 and sum(map(len, passes)) == 6
    for checkpointing in (False, True):
        own, _ = finetune(tiny_llama(), update, seed=SEED, gradient_checkpointing=checkpointing)
        for one, other in zip(own.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_a_step_that_is_not_finite_ends_it(caplog):
    update = random_update(seed=200, num_sequences=3, learning_rate=1e30, num_train_epochs=3)
    trained, result = finetune(tiny_llama(), update)
    assert result.stopped == "non-finite" and 0 < len(result.losses) < update.num_steps
    assert "its loss or gradient is not finite" in caplog.text
    assert "learning_rate=1e+30 suits adapters" in caplog.text
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


def test_the_memory_is_checked_before(monkeypatch):
    model, update = tiny_llama(), random_update(seed=200, num_sequences=3)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(full_finetuning, "free_memory", lambda device: 16 * num_weights)
    monkeypatch.setattr(full_finetuning, "deepcopy", None)  # nothing is begun
    with pytest.raises(DoesNotFit, match="takes about .* GB besides the model .* train adapters"):
        finetune(model, update)


def test_what_cannot_be_finetuned_is_refused(caplog):
    with pytest.raises(ValueError, match="Full finetuning: the model carries a policy adapter"):
        check_finetunable(tiny_policy_model())
    quantized = tiny_llama()
    quantized.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(
        ValueError, match="quantized weights, which cannot be trained; load it with load_in_4bit=False"
    ):
        check_finetunable(quantized)
    with caplog.at_level(logging.WARNING):
        finetune(tiny_llama(), random_update(seed=200, num_sequences=1, learning_rate=1e-5, num_train_epochs=1))
    assert "suits adapters" not in caplog.text
