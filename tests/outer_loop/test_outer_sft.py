"""The outer SFT: what it learns equals a plain training loop, and nothing but the adapter's values is changed."""

import copy
import logging
from contextlib import suppress

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled
from transformers import TrainerState

from helpers.outer_sft import (
    CHAT,
    PLAIN,
    RowsSeen,
    Trained,
    forward_pass,
    new_policy,
    reference_fit,
    same,
    state,
    tokenized,
    values,
    written,
)
from helpers.tiny_models import BOS_ID, EOS_ID, UNK_ID, tiny_tokenizer
from seal_hf import SEALConfig
from seal_hf.outer_loop.outer_sft import PolicyNotFinite, fit_policy, optimizer_steps
from seal_hf.outer_loop.policy import undone_on_error
from seal_hf.records.schema import SelectedSelfEdit


# AdamW makes a full step of a rounding error where a gradient is close to zero: for comparisons by value, a short one.
LOW_RATE = 1e-3


class Ended(Exception):
    """A fit was ended early."""


@pytest.fixture
def fit(tmp_path):
    """Fit a model, undone where it does not come to its end, and return its logs."""

    def fit(model, selected=PLAIN, *, tokenizer=None, seed=3, on_step=lambda: False, finished=True, **options):
        args = SEALConfig(
            str(tmp_path),
            **{"bf16": False, "gradient_checkpointing": False, "sft_batch_size": 2, "learning_rate": 1e-2, **options},
        )
        settings, logs = copy.deepcopy(args.to_dict()), []
        with suppress(Ended), undone_on_error(model, TrainerState()):
            outcome = fit_policy(
                *(model, tokenizer or tiny_tokenizer(), selected, args),
                seed=seed,
                output_dir=tmp_path / "sft",
                on_step=on_step,
                on_log=logs.append,
            )
            if not outcome:
                raise Ended
        assert outcome is finished
        assert args.to_dict() == settings
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        return logs

    return fit


@pytest.mark.parametrize("selected", [PLAIN, CHAT], ids=["plain", "chat"])
def test_equals_a_plain_training_loop(fit, selected):
    model, expected = new_policy(), new_policy()
    rows = [tokenized(tiny_tokenizer(), edit) for edit in selected]
    seen = RowsSeen(model, rows)
    logs = fit(
        *(model, selected),
        learning_rate=LOW_RATE,
        per_device_train_batch_size=1,
        max_grad_norm=0.5,
        num_train_epochs=3,
    )
    steps = seen.steps(2)
    # Every epoch is a permutation of its own, in steps of 2, 2 and 1.
    assert [len(step) for step in steps] == [2, 2, 1] * 3
    epochs = [sum(steps[i : i + 3], []) for i in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len(set(map(tuple, epochs))) > 1
    losses, norms = reference_fit(expected, rows, steps, LOW_RATE, max_grad_norm=0.5)
    assert [log["loss"] for log in logs] == pytest.approx(losses, abs=1e-4)
    assert [log["grad_norm"] for log in logs] == pytest.approx(norms, rel=1e-3)
    assert max(norms) > 0.5  # so that clipping took part
    assert [log["learning_rate"] for log in logs] == pytest.approx([LOW_RATE * (1 - i / 9) for i in range(9)])
    trained, start = values(model), values(new_policy())
    for name, reference in values(expected).items():
        assert torch.allclose(trained[name], reference, rtol=0, atol=1e-5), name
        assert not torch.allclose(trained[name], start[name], rtol=0, atol=1e-3), name


def test_only_the_adapter_changes_and_all_of_it(fit):
    model = new_policy()
    base, before = values(model, lora=False), values(model)
    fit(model)
    assert same(values(model, lora=False), base)
    after = values(model)
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert unchanged == []
    assert sum("lora_B" in name for name in after) == 14  # seven linear layers in each of two blocks


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"bf16": True, "neftune_noise_alpha": 5.0}])
def test_all_else_is_left_as_found(fit, options, training):
    model, tokenizer = new_policy().train(training), tiny_tokenizer(pad=False)
    model.base_model.model.model.layers[0].eval()
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: None)
    before = state(model, tokenizer)
    assert before["tokenizer"][0] is None
    fit(model, tokenizer=tokenizer, **options)
    after = state(model, tokenizer)
    for part in before:
        assert after[part] == before[part], part
    assert "forward" not in vars(model) and "forward" not in vars(model.get_base_model())
    assert len(model.get_input_embeddings()._forward_hooks) == 1


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True, "bf16": True}, {"bf16": False}])
def test_three_fits_leave_the_base_and_its_speed(fit, options):
    model = new_policy(dtype=torch.bfloat16 if options["bf16"] else torch.float32)
    (_, adapted_count), (logits, count) = forward_pass(model)
    assert adapted_count > count > 0
    for _ in range(3):
        fit(model, **options)
        (adapted, adapted_count_now), (logits_now, count_now) = forward_pass(model)
        assert torch.equal(logits_now, logits) and logits_now.dtype == logits.dtype
        assert (adapted_count_now, count_now) == (adapted_count, count)
        assert not torch.equal(adapted, logits)


def test_an_error_leaves_all_as_found_too(fit):
    model, tokenizer = new_policy(), tiny_tokenizer(pad=False)
    before = state(model, tokenizer)

    def failing():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, tokenizer=tokenizer, on_step=failing, gradient_checkpointing=True)
    assert state(model, tokenizer) == before


def test_a_second_fit_goes_on_from_the_first_with_a_fresh_schedule(fit):
    model = new_policy()
    first = fit(model)
    between = copy.deepcopy(model)
    second = fit(model)
    assert [log["learning_rate"] for log in first] == [log["learning_rate"] for log in second]
    assert second[0]["learning_rate"] == 1e-2
    assert second[0]["loss"] < first[0]["loss"]
    # Nothing of the first is left but the values: a model that has just them fits alike.
    assert fit(between) == second
    assert same(values(between), values(model))


def test_the_number_of_rows_per_pass_does_not_matter(fit):
    fitted = []
    for per_device in (1, 2, 8):
        model = new_policy()
        logs = fit(model, sft_batch_size=3, per_device_train_batch_size=per_device)
        assert len(logs) == 4
        fitted.append((values(model), [log["loss"] for log in logs]))
    for other, losses in fitted[1:]:
        assert losses == pytest.approx(fitted[0][1], abs=1e-4)
        for name, value in fitted[0][0].items():
            assert torch.allclose(other[name], value, rtol=0, atol=1e-6), name


def test_seed_draws_order_and_dropout(fit):
    models = [new_policy(dropout=0.2) for _ in range(3)]
    for before, (model, seed) in enumerate(zip(models, (2**62 + 1, 2**62 + 1, 2**62 + 2), strict=True)):
        torch.manual_seed(before)  # has no part in it
        fit(model, CHAT, seed=seed)
    assert same(values(models[0]), values(models[1]))
    assert not same(values(models[0]), values(models[2]))


def test_another_seed_is_another_order(fit):
    orders = []
    for seed in (1, 2):
        model = new_policy()
        seen = RowsSeen(model, [tokenized(tiny_tokenizer(), edit) for edit in PLAIN])
        fit(model, seed=seed, per_device_train_batch_size=1)
        orders.append(seen.places)
    assert orders[0] != orders[1]


def test_ending_early_gives_the_values_back(fit):
    model = new_policy()
    fit(model)
    before, calls = values(model), []

    def on_step():
        calls.append(same(values(model), before))
        return len(calls) == 2

    logs = fit(model, on_step=on_step, finished=False)
    assert calls == [False, False]  # it had learned by then
    assert len(logs) <= 2
    assert same(values(model), before)


def test_values_that_are_not_finite_are_not_kept(fit):
    model, tokenizer = new_policy(), tiny_tokenizer(pad=False)
    fit(model)
    before, settings = values(model), state(model, tokenizer)
    with pytest.raises(PolicyNotFinite, match="not finite, at learning_rate=1e.30, .* a lower learning_rate"):
        fit(model, tokenizer=tokenizer, learning_rate=1e30)
    assert same(values(model), before) and state(model, tokenizer) == settings
    last = [parameter for name, parameter in model.named_parameters() if "lora_B" in name][-1]
    with pytest.raises(PolicyNotFinite):  # a single value
        fit(model, on_step=lambda: last.data[-1, -1].fill_(torch.inf) is None)
    assert same(values(model), before)


def test_an_error_undoes_what_was_done_to_policy_and_state():
    model, state = new_policy(), TrainerState(global_step=3, epoch=1.0, log_history=[{"loss": 1.0}])
    before, expected = values(model), copy.deepcopy(state)
    with pytest.raises(KeyboardInterrupt), undone_on_error(model, state):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = (parameter.data + 1).bfloat16()
        state.global_step, state.epoch = 5, 2.0
        state.log_history.append({"loss": 0.5})
        raise KeyboardInterrupt
    assert same(values(model), before) and state == expected


def test_attention_is_kept_from_cudnn_in_a_fit_alone(fit):
    enabled = []
    fit(new_policy(), on_step=lambda: bool(enabled.append(cudnn_sdp_enabled())))
    assert set(enabled) == {False} and cudnn_sdp_enabled()


def test_too_long_ones_are_cut_with_a_warning(fit, caplog):
    model, expected = new_policy(), new_policy()
    tokenizer = tiny_tokenizer()
    edits = [written("p" * n, "completion") for n in (3, 9, 10, 30)]
    rows = [tokenized(tokenizer, edit) for edit in edits[:2]]
    rows = [(ids[:10], prompt_length) for ids, prompt_length in rows]
    seen = RowsSeen(model, rows)
    with caplog.at_level(logging.WARNING, logger="seal_hf.outer_loop.outer_sft"):
        fit(model, edits, max_length=10, learning_rate=LOW_RATE, per_device_train_batch_size=1)
    assert [record.getMessage() for record in caplog.records if record.name == "seal_hf.outer_loop.outer_sft"] == [
        "max_length=10 cuts 2 of 4 kept self-edits and leaves out 2; raise it to learn them in full."
    ]
    reference_fit(expected, rows, seen.steps(2), LOW_RATE, max_grad_norm=1.0)
    for name, reference in values(expected).items():
        assert torch.allclose(values(model)[name], reference, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("max_length", [None, 30])
def test_what_fits_is_silent(fit, caplog, max_length):
    with caplog.at_level(logging.WARNING, logger="seal_hf.outer_loop.outer_sft"):
        fit(new_policy(), PLAIN[:2], max_length=max_length, num_train_epochs=1)
    assert [record for record in caplog.records if record.name == "seal_hf.outer_loop.outer_sft"] == []


def test_what_just_fits_is_silent(fit, caplog):
    (ids, _) = tokenized(tiny_tokenizer(), PLAIN[0])
    with caplog.at_level(logging.WARNING, logger="seal_hf.outer_loop.outer_sft"):
        fit(new_policy(), PLAIN[:1], max_length=len(ids), num_train_epochs=1)
    assert [record for record in caplog.records if record.name == "seal_hf.outer_loop.outer_sft"] == []


def test_none_that_fits_is_an_error_and_changes_nothing(fit):
    model, tokenizer = new_policy(), tiny_tokenizer(pad=False)
    before, trained = state(model, tokenizer), values(model)
    with pytest.raises(
        ValueError, match="None of the 5 kept self-edits fits into max_length=4 tokens .*raise max_len"
    ):
        fit(model, tokenizer=tokenizer, max_length=4)
    assert state(model, tokenizer) == before
    assert same(values(model), trained)


def test_one_that_was_cut_off_gets_no_end_token(fit):
    model = new_policy()
    trained = Trained(model)
    fit(
        model,
        [written("ab", "cd"), written("ab", "ef", finished=False), written(CHAT[0].prompt, "gh", finished=False)],
    )
    prompt, chat = (tiny_tokenizer()(text)["input_ids"] for text in ("ab", "[user] Passage 0: \n[assistant] "))
    cd, ef, gh = (tiny_tokenizer()(text)["input_ids"] for text in ("cd", "ef", "gh"))
    assert trained.labels == {
        (*prompt, *cd, EOS_ID): [-100, -100, *cd, EOS_ID],
        (*prompt, *ef): [-100, -100, *ef],
        (*chat, *gh): [-100] * len(chat) + gh,
    }


def test_tokens_that_the_text_would_not_give_back(fit):
    # What a model wrote need not be what a tokenizer would, and special tokens are not in the text.
    model, ids = new_policy(), [60, UNK_ID, 61, BOS_ID, EOS_ID]
    trained = Trained(model)
    fit(model, [SelectedSelfEdit("ab", "stripped", "0", 0, 1.0, ids)])
    prompt = tiny_tokenizer()("ab")["input_ids"]
    assert trained.labels == {(*prompt, *ids): [-100, -100, *ids]}


def test_the_loss_on_the_prompt_too(fit):
    model = new_policy()
    trained = Trained(model)
    fit(model, PLAIN[:1], completion_only_loss=False)
    assert [list(ids) for ids in trained.labels] == list(trained.labels.values())


def test_a_quantized_models_adapter_is_trained_in_fp32(fit, monkeypatch):
    # TRL takes a model with this attribute to be quantized, and casts its adapter to bf16.
    plain, quantized = new_policy(), new_policy()
    monkeypatch.setattr(quantized, "is_loaded_in_4bit", True, raising=False)
    start = values(plain)
    for model in (plain, quantized):
        fit(model, learning_rate=1e-7)
    assert same(values(plain), values(quantized))
    moved = [not torch.equal(values(quantized)[name], value) for name, value in start.items()]
    assert all(moved)
    assert not any(same({name: value.bfloat16().float()}, {name: value}) for name, value in values(quantized).items())


@pytest.mark.parametrize(("num_examples", "steps"), [(1, 3), (10, 3), (11, 6), (25, 9)])
def test_optimizer_steps(tmp_path, num_examples, steps):
    args = SEALConfig(str(tmp_path), bf16=False, sft_batch_size=10, num_train_epochs=3)
    assert optimizer_steps(num_examples, args) == [steps] * args.num_rounds


def test_no_more_are_kept_than_are_written(tmp_path):
    args = SEALConfig(
        str(tmp_path), bf16=False, sft_batch_size=10, num_train_epochs=1, num_generations=5, keep_best=10
    )
    assert optimizer_steps(10, args) == [5, 5]
