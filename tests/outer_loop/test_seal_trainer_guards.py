"""What SEALTrainer refuses, tells or outlives: policies that are not brought back, bad settings, full disks and memory."""

import dataclasses
import errno
import json
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerState

from helpers.observing import (
    Act,
    AlwaysWrong,
    GradingDomain,
    equal,
    policy_of,
    records,
    saved_policy,
    small_trainer,
    warnings_of,
)
from helpers.outer_loop import tiny_config, tiny_examples
from seal_hf import SEALTrainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.inner_loop import within_memory
from seal_hf.inner_loop.training import train
from seal_hf.outer_loop.outer_sft import PolicyNotFinite
from seal_hf.records.run_folder import RunFolder


pytestmark = pytest.mark.usefixtures("without_pictures")

OTHERS = tiny_examples(1, first=50)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_pictures):
    """A run of one round that came to its end."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = small_trainer(folder, num_rounds=1)
    start = policy_of(trainer.model)
    trainer.train()
    return SimpleNamespace(
        folder=folder,
        records=records(folder),
        start=start,
        policy=policy_of(trainer.model),
        log=list(trainer.state.log_history),
    )


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def without_times(log):
    return [{key: value for key, value in entry.items() if key != "inner/tokens_per_second"} for entry in log]


def test_policy_that_is_not_brought_back_is_neither_saved_nor_evaluated(finished, copied, tmp_path):
    trainer, before = small_trainer(copied, num_rounds=1), contents(copied)
    for call in (trainer.save_model, lambda: trainer.save_model(tmp_path / "saved"), trainer.evaluate):
        with pytest.raises(
            ValueError, match=r"policy of round 1, .* round 0; call train\(resume_from_checkpoint=True\)"
        ):
            call()
    assert contents(copied) == before and not (tmp_path / "saved").exists()

    trainer.train(resume_from_checkpoint=True)
    values = trainer.evaluate()
    assert values.items() <= finished.log[-1].items() and "eval_gain_over_round_0" in values
    trainer.save_model()
    assert equal(saved_policy(copied), finished.policy)


def test_evaluate_in_a_callback_needs_a_dataset(finished, tmp_path):
    trainer = small_trainer(tmp_path, num_rounds=1, callbacks=[Act("on_step_end", 1, lambda _: trainer.evaluate())])
    with pytest.raises(RuntimeError, match=r"called during train\(\), .*; give eval_dataset"):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert records(tmp_path) == finished.records


@pytest.mark.parametrize(
    ("event", "number", "step"),
    [
        ("on_epoch_begin", 1, 0),
        ("on_substep_end", 4, 0),  # between the banks of round 1
        ("on_step_end", 1, 1),
        ("on_step_end", 2, 2),  # in the SFT
        ("on_save", 1, 3),
        ("on_evaluate", 2, 3),
    ],
)
def test_evaluate_on_others_in_a_callback(event, number, step, finished, tmp_path):
    found = []
    evaluate = Act(event, number, lambda _: found.append(trainer.evaluate(OTHERS)))
    trainer = small_trainer(tmp_path, num_rounds=1, callbacks=[evaluate])
    trainer.train()
    log = trainer.state.log_history
    steps = [entry["step"] for entry in log]
    assert steps == sorted(steps)
    (own,) = [entry for entry in log if "eval_self_edits_accuracy" in entry and "round" not in entry]
    assert own["step"] == step and own["eval_num_passages"] == 1
    assert own.items() >= found[0].items() and len(found) == 1
    # All else is as without it.
    assert without_times(entry for entry in log if entry is not own) == without_times(finished.log)
    found, expected = records(tmp_path), dict(finished.records)
    for one in (found, expected):
        for name in [name for name in one if name.endswith("trainer_state.json")]:
            del one[name]
    assert found == expected


def test_evaluate_on_others_before_the_run(finished, tmp_path):
    trainer = small_trainer(tmp_path, num_rounds=1)
    values = trainer.evaluate(OTHERS)
    trainer.train()
    first, *log = trainer.state.log_history
    assert first.items() >= values.items() and "round" not in first
    assert without_times(log) == without_times(finished.log)


def test_round_that_cannot_be_graded_is_logged_once(tmp_path):
    options = {"num_rounds": 1, "num_eval": 0}
    trainer = small_trainer(tmp_path, domain=GradingDomain(lambda *_: None), **options)
    trainer.train()
    (logged,) = trainer.state.log_history
    assert logged["round"] == 1 and logged["step"] == 1 and "reward" not in logged
    before = contents(tmp_path)
    for _ in range(2):
        trainer = small_trainer(tmp_path, domain=GradingDomain(lambda *_: None), **options)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.log_history == [logged] and trainer.state.global_step == 1
        assert contents(tmp_path) == before


def test_prompt_that_leaves_no_room_for_a_self_edit(tmp_path):
    # A token a character. The evaluation set's are longer, but are not trained on.
    length = len("T1: The 1 cats sat very still.")
    with pytest.raises(ValueError) as raised:
        small_trainer(tmp_path, max_length=length)
    message = str(raised.value)
    assert message.startswith(f"train_dataset: example 1 has a prompt of {length} tokens, which leaves no room")
    assert f"max_length={length}; raise it, or drop the example" in message
    small_trainer(tmp_path, max_length=length + 1)


def stopping_early(folder, patience, **options):
    return small_trainer(
        folder,
        domain=KnowledgeDomain("{title}: {context}", grader=AlwaysWrong(), chat=False),
        min_reward=1.0,  # so that nothing is fitted
        eval_strategy="epoch",
        metric_for_best_model="eval_self_edits_accuracy",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience)],
        **options,
    )


def test_early_stopping(tmp_path):
    for num_rounds in (1, 2):
        # The second has no patience left at its first round only if it knows the best accuracy of the first.
        trainer = stopping_early(tmp_path, 1, num_rounds=5)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.best_metric == 0.0
        assert len(list((tmp_path / "policy").iterdir())) == num_rounds
        logged = [entry["round"] for entry in trainer.state.log_history if "eval_num_passages" in entry]
        assert logged == list(range(num_rounds + 1))


@pytest.mark.parametrize(("is_restored", "num_rounds"), [(True, 2), (False, 3)])
def test_early_stopping_counts_on_after_an_interruption(tmp_path, is_restored, num_rounds):
    stopping_early(tmp_path, 2, num_rounds=1).train()  # one evaluation without improvement
    trainer = stopping_early(tmp_path, 2, num_rounds=5, restore_callback_states_from_checkpoint=is_restored)
    trainer.train(resume_from_checkpoint=True)
    assert len(list((tmp_path / "policy").iterdir())) == num_rounds


def test_a_second_run_changes_nothing(failed):
    """Also where the settings of its fits may be others."""
    second, before = small_trainer(failed.folder, num_rounds=1, learning_rate=1e-3), contents(failed.folder)
    with RunFolder(failed.folder, {}).held():
        for call in (lambda: second.train(resume_from_checkpoint=True), second.evaluate):
            with pytest.raises(ValueError, match="Another process is working in"):
                call()
    assert contents(failed.folder) == before


def test_an_evaluation_whose_files_were_removed_is_logged_again(finished, copied):
    state = json.loads((copied / "trainer_state.json").read_text())
    stale = [entry for entry in state["log_history"] if "eval_self_edits_accuracy" in entry and entry["round"] == 1]
    stale[0]["eval_self_edits_accuracy"] = state["best_metric"] = 2.0
    for path in (copied / "trainer_state.json", copied / "policy" / "round_000" / "trainer_state.json"):
        path.write_text(json.dumps(state))
    (copied / "evaluation" / "journal" / "round_001.jsonl").unlink()
    metric = {"eval_strategy": "epoch", "metric_for_best_model": "self_edits_accuracy", "greater_is_better": True}
    trainer = small_trainer(copied, num_rounds=1, **metric)
    trainer.train(resume_from_checkpoint=True)
    assert without_times(trainer.state.log_history) == without_times(finished.log)
    accuracies = [entry.get("eval_self_edits_accuracy", 0.0) for entry in finished.log]
    assert trainer.state.best_metric == max(accuracies) < 2.0


def test_eval_on_start_changes_nothing(finished, tmp_path):
    small_trainer(tmp_path, num_rounds=1, eval_on_start=True, eval_strategy="epoch").train()
    assert records(tmp_path) == finished.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("load_best_model_at_end", True), ("eos_token", "</s>"), ("chat_template_path", "template.jinja")],
        ("assistant_only_loss", True),
    ],
)
def test_options_that_are_not_supported(name, value, tmp_path):
    # With strategies that transformers itself accepts.
    with pytest.raises(ValueError, match=f"^{name}={value!r} is not supported by SEALTrainer; leave it out"):
        tiny_config(tmp_path, eval_strategy="epoch", save_strategy="epoch", **{name: value})


@pytest.mark.parametrize("gone", ["run.json", "run.json and the rounds"])
def test_run_without_its_settings_is_left_alone(gone, copied):
    (copied / "run.json").unlink()
    if gone != "run.json":
        shutil.rmtree(copied / "proposals")  # those of the evaluation stay
    before, trainer = contents(copied), small_trainer(copied, num_rounds=1)
    for call in (trainer.train, lambda: trainer.train(resume_from_checkpoint=True), trainer.plan, trainer.evaluate):
        with pytest.raises(
            ValueError, match=r"holds a run, but not its run\.json, .*; restore the file, or give another"
        ):
            call()
    assert contents(copied) == before


def test_resume_after_save_state(finished, copied):
    """transformers' `save_state()` writes more to the same file than the trainer does."""
    trainer = small_trainer(copied, num_rounds=1)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_state()
    assert json.loads((copied / "trainer_state.json").read_text()).keys() > {"stateful_callbacks", "log_history"}

    trainer = small_trainer(copied, num_rounds=1)
    types = {field.name: type(getattr(trainer.state, field.name)) for field in dataclasses.fields(TrainerState)}
    trainer.state.is_world_process_zero = False  # as in the other processes, while the first has saved its own
    output = trainer.train(resume_from_checkpoint=True)
    assert output.global_step == finished.log[-1]["step"] and trainer.state.epoch == 1.0
    assert without_times(trainer.state.log_history) == without_times(finished.log)
    assert trainer.state.is_world_process_zero is False
    types["epoch"] = float
    assert {name: type(getattr(trainer.state, name)) for name in types} == types
    assert all(isinstance(one, dict) for one in trainer.state.stateful_callbacks.values())
    assert equal(policy_of(trainer.model), finished.policy)
    assert "eval_gain_over_round_0" in trainer.evaluate()


@pytest.fixture
def failed(finished, tmp_path):
    """A run whose first fit came to no numbers."""
    trainer = small_trainer(tmp_path, num_rounds=1, learning_rate=1e30)
    with pytest.raises(PolicyNotFinite, match="resume the run with a lower learning_rate") as caught:
        trainer.train()
    assert equal(policy_of(trainer.model), finished.start)
    assert not any("loss" in entry for entry in trainer.state.log_history)
    assert "nan" not in (tmp_path / "trainer_state.json").read_text().lower()
    return SimpleNamespace(folder=tmp_path, trainer=trainer, error=caught.value)


def test_a_fit_that_is_not_finite_loses_nothing(failed, finished, monkeypatch):
    scored = (failed.folder / "journal" / "round_000.jsonl").read_bytes()
    trainer = small_trainer(failed.folder, num_rounds=1)
    trainer.train(resume_from_checkpoint=True)
    assert (failed.folder / "journal" / "round_000.jsonl").read_bytes() == scored
    assert equal(policy_of(trainer.model), finished.policy)
    assert without_times(trainer.state.log_history) == without_times(finished.log)
    record = json.loads((failed.folder / "run.json").read_text())
    assert record["settings"]["learning_rate"] == 1e-2
    assert record["former"] == [{"rounds_fitted": 0, "learning_rate": 1e30}]
    # From here on the settings are fixed again.
    with pytest.raises(ValueError, match="other settings: learning_rate"):
        small_trainer(failed.folder, num_rounds=1, learning_rate=1e-3).train(resume_from_checkpoint=True)


def test_what_was_scored_with_them_stays_fixed_after_a_failed_fit(failed):
    for options in ({"learning_rate": 1e-2, "temperature": 0.5}, {"seed": 4}, {"inner_learning_rate": 1e-3}):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            small_trainer(failed.folder, num_rounds=1, **options).train(resume_from_checkpoint=True)
    with pytest.raises(PolicyNotFinite):  # the same again
        small_trainer(failed.folder, num_rounds=1, learning_rate=1e30).train(resume_from_checkpoint=True)


def memory_for(monkeypatch, number):
    def train_few(bank, *args, **options):
        if len(bank) > number:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(bank, *args, **options)

    monkeypatch.setattr(within_memory, "train", train_few)


def taken_losses(found):
    """The inner updates' losses, taken out of the records."""
    repeats = [repeat for edit in found["journal/round_000.jsonl"] for repeat in edit["repeats"]]
    states = [found[name] for name in sorted(found) if name.endswith("trainer_state.json")]
    logged = [entry for state in states for entry in state["log_history"] if "inner/loss" in entry]
    return [repeat.pop("loss") for repeat in repeats] + [entry.pop("inner/loss") for entry in logged]


def test_bank_that_is_too_large_is_halved(tmp_path, monkeypatch, caplog):
    options = {"num_rounds": 1, "num_eval": 0, "num_generations": 4, "adapters_per_bank": 8}
    small_trainer(tmp_path / "unbroken", **options).train()
    memory_for(monkeypatch, 2)
    with caplog.at_level(logging.WARNING):
        small_trainer(tmp_path / "halved", **options).train()
    expected = [
        f"A bank of {size} adapters is too large for the memory; it is trained in halves." for size in (8, 4, 4)
    ]
    assert warnings_of(caplog, "inner_loop.within_memory") == expected
    found, expected = records(tmp_path / "halved"), records(tmp_path / "unbroken")
    losses, expected_losses = taken_losses(found), taken_losses(expected)
    # An adapter is the same among others up to rounding, which shows in the losses alone.
    assert losses == pytest.approx(expected_losses, rel=1e-6) and len(losses) == 8 + 2
    assert found == expected


def test_adapter_that_is_too_large(tmp_path, monkeypatch, caplog):
    memory_for(monkeypatch, 0)
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError):
        small_trainer(tmp_path, num_rounds=1, num_eval=0).train()
    assert [message[:20] for message in warnings_of(caplog, "inner_loop.within_memory")] == ["A bank of 2 adapters"]
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize(("name", "value"), [("device_map", "auto"), ("quantization_config", {"load_in_8bit": True})])
def test_model_is_not_spread_or_quantized_by_init_kwargs(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"^model_init_kwargs has '{name}': .*; leave it out"):
        SEALTrainer(
            "someone/no-such-model",
            tiny_config(tmp_path, model_init_kwargs={name: value}),
            train_dataset=tiny_examples(1),
        )


def fail_while_writing(patch):
    def write_policy(model, folder, weights=None):
        (folder / "adapter_model.safetensors").write_bytes(b"the beginning")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    patch.setattr("seal_hf.outer_loop.policy.write_policy", write_policy)


def fail_while_syncing(patch):
    finish_policy = RunFolder.finish_policy

    def fsync(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    def finish(self, round_index):
        with pytest.MonkeyPatch.context() as disk:
            disk.setattr(os, "fsync", fsync)
            finish_policy(self, round_index)

    patch.setattr(RunFolder, "finish_policy", finish)


@pytest.mark.parametrize(
    ("fail", "number", "reason"),
    [
        (fail_while_writing, errno.EIO, r"I/O error: No space left on device \(os error 28\)"),
        (fail_while_syncing, errno.ENOSPC, "No space left on device"),
    ],
)
def test_policy_that_cannot_be_written(fail, number, reason, finished, tmp_path):
    trainer = small_trainer(tmp_path, num_rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch)
        remedy = "make room or give another output_dir, then resume with resume_from_checkpoint=True"
        folder = tmp_path / "policy" / "round_000"
        with pytest.raises(OSError, match=rf"{folder} could not be written \({reason}\); {remedy}") as raised:
            trainer.train()
    assert raised.value.errno == number
    assert not folder.exists()
    assert equal(policy_of(trainer.model), finished.start)
    assert trainer.state.global_step == 1 and "reward" in trainer.state.log_history[-1]  # back to before the fit

    trainer.train(resume_from_checkpoint=True)
    assert equal(policy_of(trainer.model), finished.policy)
    assert records(tmp_path) == finished.records
