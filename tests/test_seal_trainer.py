"""SEALTrainer's rounds on tiny random models: what it learns, logs, calls and leaves on disk."""

import concurrent.futures
import hashlib
import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from outer_loop import HashGrader, tiny_config, tiny_examples, tiny_trainer
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny_models import tiny_llama, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from seal_hf import SEALTrainer, SelfEdit, outer_sft, seal_trainer
from seal_hf.domains import Domain, KnowledgeDomain
from seal_hf.grading import GradingIncomplete
from seal_hf.run_report import results_table


BASE_ID = "someone/tiny-llama"
SMALL = {"num_train": 2, "num_eval": 2, "num_generations": 2, "num_evaluations": 1, "adapters_per_batch": 2}
PROMPT = torch.arange(4, 40)[None]


def small_trainer(output_dir, **options):
    return tiny_trainer(output_dir, **{**SMALL, **options})


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def policy_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def saved_policy(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    return {name.replace(".weight", ".default.weight"): value for name, value in weights.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def records(output_dir):
    """All that a run leaves on disk, by file, except for times."""
    found = {}
    for path in output_dir.rglob("*"):
        name = path.relative_to(output_dir).as_posix()
        if path.suffix == ".jsonl":
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in read(path)]
        elif path.suffix == ".safetensors":
            found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        elif path.name == "trainer_state.json":
            found[name] = json.loads(path.read_text())
            for entry in found[name]["log_history"]:
                entry.pop("inner/tokens_per_second", None)
        elif path.name == "run.json":
            found[name] = json.loads(path.read_text())
        elif path.is_file():
            found[name] = "there"
    return found


class Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


class Recorder(TrainerCallback):
    """Notes every event with the step count, and what a forward pass is like whenever nothing else is under way."""

    def __init__(self):
        self.events, self.passes, self.metrics = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self._note("train_begin", state, kwargs["model"])

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._note("epoch_begin", state)

    def on_substep_end(self, args, state, control, **kwargs):
        self._note("substep_end", state)

    def on_step_end(self, args, state, control, **kwargs):
        self._note("step_end", state)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(metrics)
        self._note("evaluate", state, kwargs["model"])

    def on_save(self, args, state, control, **kwargs):
        self._note("save", state, kwargs["model"])

    def on_epoch_end(self, args, state, control, **kwargs):
        self._note("epoch_end", state)

    def on_train_end(self, args, state, control, **kwargs):
        self._note("train_end", state)

    def _note(self, event, state, model=None):
        self.events.append((event, state.global_step))
        if model is None:
            return
        with torch.no_grad():
            with Operations() as with_policy:
                model(PROMPT)
            with model.disable_adapter(), Operations() as without:
                logits = model(PROMPT).logits
        self.passes.append((logits, with_policy.number, without.number))

    def count(self, event):
        return sum(name == event for name, _ in self.events)


class Act(TrainerCallback):
    """Calls `action(control)` at the `number`-th of one kind of event, once."""

    def __init__(self, event, number, action):
        self.left = number

        def on_event(args, state, control, **kwargs):
            self.left -= 1
            if self.left == 0:
                action(control)

        setattr(self, event, on_event)


def stop(control):
    control.should_training_stop = True


def interrupt(control):
    raise KeyboardInterrupt


class GradingDomain(KnowledgeDomain):
    """Verdicts by example: `verdict(title, place of the question, answer)`."""

    def __init__(self, verdict):
        super().__init__("{title}: {context}", chat=False)
        self._verdict = verdict

    def grade(self, examples, answers):
        return [
            [self._verdict(example["title"], place, answer) for place, answer in enumerate(own)]
            for example, own in zip(examples, answers, strict=True)
        ]


def hashed(answer):
    return HashGrader().grade(None, None, [answer])[0]


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    # They take a third of a small run; test_run_report.py and test_knowledge_script.py draw them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal_trainer, "save_plot", lambda folder: None)
        yield


def observed(trainer):
    """Train, and note the policy before and after each fit and the rows that the SFT gets."""
    fits, rows = [], []

    class ObservedSFTTrainer(SFTTrainer):
        def __init__(self, *args, train_dataset, **kwargs):
            rows.append(train_dataset.to_list())
            super().__init__(*args, train_dataset=train_dataset, **kwargs)

    def fit_policy(model, *args, **kwargs):
        before = policy_of(model)
        result = outer_sft.fit_policy(model, *args, **kwargs)
        fits.append((before, policy_of(model)))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer_sft, "SFTTrainer", ObservedSFTTrainer)
        patch.setattr(seal_trainer, "fit_policy", fit_policy)
        output = trainer.train()
    return fits, rows, output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An unbroken run of two rounds, with everything that was seen of it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    model = tiny_llama()
    model.config.name_or_path = BASE_ID
    recorder = Recorder()
    trainer = tiny_trainer(folder, model=model, callbacks=[recorder])
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    fits, rows, output = observed(trainer)
    return SimpleNamespace(
        trainer=trainer,
        folder=folder,
        start=everything,
        log=list(trainer.state.log_history),
        events=list(recorder.events),
        passes=list(recorder.passes),
        metrics=list(recorder.metrics),
        recorder=recorder,
        fits=fits,
        rows=rows,
        output=output,
    )


@pytest.fixture(scope="module")
def bf16_run(tmp_path_factory):
    """A run of a bf16 base without evaluation, whose SFT sees the self-edits of all rounds."""
    folder, recorder = tmp_path_factory.mktemp("bf16"), Recorder()
    model = tiny_llama(dtype=torch.bfloat16)
    trainer = small_trainer(folder, model=model, num_eval=0, sft_on="all", bf16=True, callbacks=[recorder])
    _, rows, _ = observed(trainer)
    return SimpleNamespace(trainer=trainer, folder=folder, rows=rows, events=recorder.events, passes=recorder.passes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A small unbroken run, to compare broken ones with."""
    folder = tmp_path_factory.mktemp("reference")
    trainer = small_trainer(folder)
    trainer.train()
    return SimpleNamespace(folder=folder, records=records(folder), policy=policy_of(trainer.model))


def test_steps_grow_over_the_rounds(run):
    steps = [entry["step"] for entry in run.log]
    # Evaluation; then per round one step of scoring, four of SFT (4 self-edits, 2 a step, 2 epochs), an evaluation.
    assert steps == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert [entry["round"] for entry in run.log] == [0, *[1] * 6, *[2] * 6]
    assert run.trainer.state.max_steps == 10 and run.output.global_step == 10
    scoring = [entry["step"] for entry in run.log if "reward" in entry]
    assert scoring == [1, 6]


@pytest.mark.parametrize("round_index", [0, 1])
def test_logged_rewards_are_those_of_the_journal(run, round_index):
    logged = next(entry for entry in run.log if "reward" in entry and entry["round"] == round_index + 1)
    edits = read(run.folder / "journal" / f"round_{round_index:03d}.jsonl")
    kept = read(run.folder / "selected" / f"round_{round_index:03d}.jsonl")
    assert len(edits) == 12 and len(kept) == 4

    rewards = {}
    for edit in edits:
        assert len(edit["repeats"]) == 2
        own = fmean(fmean(repeat["verdicts"]) for repeat in edit["repeats"])
        assert all(
            repeat["verdicts"] == HashGrader().grade(None, None, repeat["answers"]) for repeat in edit["repeats"]
        )
        assert edit["reward"] == pytest.approx(own)
        rewards.setdefault(edit["example_id"], []).append(own)
    everything = [reward for own in rewards.values() for reward in own]
    assert len(set(everything)) > 2  # rewards that differ, or this would say little
    seconds = sum(edit["seconds"] for edit in edits)
    expected = {
        "reward": fmean(everything),
        "reward_std": fmean(pstdev(own) for own in rewards.values()),
        "frac_reward_zero_std": fmean(len({round(one, 9) for one in own}) == 1 for own in rewards.values()),
        "reward/best": fmean(max(own) for own in rewards.values()),
        "completions/mean_length": fmean(edit["completion_tokens"] for edit in edits),
        "completions/min_length": min(edit["completion_tokens"] for edit in edits),
        "completions/max_length": max(edit["completion_tokens"] for edit in edits),
        "self_edits/valid_ratio": fmean(edit["well_formed"] for edit in edits),
        "self_edits/kept_ratio": 4 / 12,
        "inner/loss": fmean(repeat["loss"] for edit in edits for repeat in edit["repeats"]),
        "inner/gain": fmean(edit["reward"] - edit["base_reward"] for edit in edits),
        "inner/tokens_per_second": sum(edit["tokens"] for edit in edits) / seconds,
        "num_examples": 4,
    }
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert set(logged) == {*expected, "round", "step", "epoch"}

    best = {example: max(own) for example, own in rewards.items()}
    assert {edit["example_id"]: edit["reward"] for edit in kept} == pytest.approx(best)


def test_train_returns_the_last_round_and_the_mean_loss(run):
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert run.output.training_loss == pytest.approx(fmean(losses))
    assert run.output.metrics == next(entry for entry in run.log if "reward" in entry and entry["round"] == 2)


def test_learning_rate_starts_afresh_in_every_round(run):
    for number in (1, 2):
        fits = [entry for entry in run.log if "loss" in entry and entry["round"] == number]
        assert [entry["learning_rate"] for entry in fits] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
        assert all(set(entry) == {"round", "step", "epoch", "loss", "grad_norm", "learning_rate"} for entry in fits)
        assert all(entry["grad_norm"] > 0 for entry in fits)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_logged_accuracies_are_those_of_the_journal(run, number):
    logged = next(entry for entry in run.log if "eval_self_edits_accuracy" in entry and entry["round"] == number)

    def accuracy(which, condition):
        edits = read(run.folder / "evaluation" / "journal" / f"round_{which:03d}.jsonl")
        own = [fmean(edit["repeats"][0]["verdicts"]) for edit in edits if edit["condition"] == condition]
        assert len(own) == 3
        return fmean(own)

    own = accuracy(number, "self-edits")
    expected = {"eval_self_edits_accuracy": own, "eval_num_passages": 3, "eval_num_questions": 9}
    for condition in ("base", "passage in context", "passage only"):
        name, baseline = condition.replace(" ", "_"), accuracy(0, condition)
        expected[f"eval_gain_over_{name}"] = own - baseline
        if number == 0:
            expected[f"eval_{name}_accuracy"] = baseline
    for earlier in {0, number - 1} if number else ():
        expected[f"eval_gain_over_round_{earlier}"] = own - accuracy(earlier, "self-edits")
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    estimates = [name for name in expected if "_num_" not in name]
    intervals = {f"{name}_{end}" for name in estimates for end in ("low", "high")}
    assert set(logged) == {*expected, *intervals, "round", "step", "epoch"}
    assert all(logged[f"{name}_low"] <= logged[name] <= logged[f"{name}_high"] for name in estimates)
    assert run.metrics[number] == {name: value for name, value in logged.items() if name.startswith("eval_")}


def test_policy_goes_on_from_round_to_round(run):
    (start, after_first), (before_second, end) = run.fits
    assert all((value == 0).all() == ("lora_B" in name) for name, value in start.items())
    assert equal(start, {name: run.start[name] for name in start})
    assert equal(before_second, after_first)
    assert equal(end, policy_of(run.trainer.model))
    for one, other in ((start, after_first), (after_first, end)):
        assert not any(torch.equal(one[name], other[name]) for name in one)
    assert equal(saved_policy(run.folder / "policy" / "round_000"), after_first)
    assert equal(saved_policy(run.folder / "policy" / "round_001"), end)


def test_base_is_never_changed(run):
    after = dict(run.trainer.model.named_parameters())
    base = [name for name in run.start if "lora_" not in name]
    assert len(base) > 15
    assert all(torch.equal(after[name], run.start[name]) for name in base)
    trainable = {name for name, value in after.items() if value.requires_grad}
    assert trainable == {name for name in run.start if "lora_" in name}


@pytest.mark.parametrize(("which", "dtype"), [("run", torch.float32), ("bf16_run", torch.bfloat16)])
def test_forward_pass_is_the_same_after_every_round(which, dtype, request):
    own = request.getfixturevalue(which)
    (logits, with_policy, without), *later = own.passes
    assert len(later) == (5 if which == "run" else 2)  # two saves, and evaluations where there are some
    assert logits.dtype == dtype and with_policy > without > 50
    for logits_later, *operations in later:
        assert logits_later.dtype == dtype
        assert torch.equal(logits_later, logits)
        assert operations == [with_policy, without]


def test_sft_sees_the_self_edits_of_the_round(run):
    for index, rows in enumerate(run.rows):
        selected = read(run.folder / "selected" / f"round_{index:03d}.jsonl")
        assert rows == [{name: edit[name] for name in ("prompt", "completion")} for edit in selected]
    assert run.rows[0] != run.rows[1]


def test_sft_sees_the_self_edits_of_all_rounds(bf16_run):
    first, second = (
        [
            {name: edit[name] for name in ("prompt", "completion")}
            for edit in read(bf16_run.folder / "selected" / f"round_{index:03d}.jsonl")
        ]
        for index in range(2)
    )
    assert len(first) == len(second) == 2
    assert bf16_run.rows == [first, first + second]
    # 1 step of scoring and 2 of SFT; then 1 and 4.
    assert bf16_run.trainer.state.global_step == 8


def test_callbacks_see_every_bank_step_save_and_evaluation(run):
    def banks(number, step):
        return [("substep_end", step)] * number

    # Banks of 4. First evaluation: 3 self-edits and 3 passages, and one bank without adapters; later ones: 3 self-edits.
    # A round: 4 examples x 3 self-edits x 2 repeats, and one bank without adapters.
    expected = [("train_begin", 0), *banks(3, 0), ("evaluate", 0)]
    for first in (0, 5):
        expected += [("epoch_begin", first), *banks(7, first)]
        expected += [("step_end", first + i) for i in range(1, 6)]
        expected += [("save", first + 5), ("epoch_end", first + 5), *banks(1, first + 5), ("evaluate", first + 5)]
    assert run.events == [*expected, ("train_end", 10)]


def test_run_without_evaluation_set(bf16_run):
    assert {name for name, _ in bf16_run.events}.isdisjoint({"evaluate"})
    assert not (bf16_run.folder / "evaluation").exists()
    with pytest.raises(ValueError, match="nothing to evaluate on; give eval_dataset"):
        bf16_run.trainer.evaluate()


def test_evaluate_gives_what_was_logged(run):
    banks, folder = run.recorder.count("substep_end"), records(run.folder)
    values = run.trainer.evaluate()
    assert values == run.metrics[-1]
    assert run.recorder.metrics[-1] == values
    assert run.recorder.count("substep_end") == banks  # it is on disk
    assert records(run.folder) == folder
    renamed = run.trainer.evaluate(metric_key_prefix="validation")
    assert renamed == {name.replace("eval_", "validation_", 1): value for name, value in values.items()}


def test_evaluate_on_other_examples_leaves_the_run_alone(run):
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    policy = policy_of(run.trainer.model)
    values = run.trainer.evaluate(tiny_examples(2, first=50), metric_key_prefix="test")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert equal(policy_of(run.trainer.model), policy)
    conditions = ("base", "passage_in_context", "passage_only", "self_edits")
    assert {name for name in values if name.endswith("accuracy")} == {f"test_{name}_accuracy" for name in conditions}
    assert values["test_num_passages"] == 2 and values["test_num_questions"] == 6
    assert run.trainer.state.log_history[-1].items() >= values.items()
    assert run.trainer.evaluate(tiny_examples(2, first=50), metric_key_prefix="test") == values


def test_saved_policy_is_a_peft_adapter_of_the_base(run, tmp_path):
    run.trainer.save_model(tmp_path)
    base = tiny_llama()
    loaded = PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        logits = loaded(PROMPT).logits
        assert torch.equal(logits, run.trainer.model(PROMPT).logits)
        with loaded.disable_adapter():
            assert not torch.allclose(logits, loaded(PROMPT).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE_ID
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Who keeps 3 bees?"
    assert tokenizer(text).input_ids == run.trainer.processing_class(text).input_ids


def test_card_of_the_saved_policy(run, tmp_path):
    run.trainer.save_model(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == BASE_ID
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"seal", "trl", "lora", f"base_model:adapter:{BASE_ID}"} == set(card.data.tags)
    assert results_table(run.folder).strip() in card.text
    assert "| self-edits after round 2  |" in card.text and "- num_generations: 3\n" in card.text

    run.trainer.save_model()  # beside the run's records
    try:
        assert equal(saved_policy(run.folder), policy_of(run.trainer.model))
        run.trainer.create_model_card("me/bees", "me/passages", tags="bees")
        card = ModelCard.load(run.folder / "README.md")
        assert "bees" in card.data.tags and "# me/bees" in card.text and "- dataset: me/passages\n" in card.text
    finally:
        for path in run.folder.glob("*"):
            if path.is_file() and path.name not in ("run.json", "trainer_state.json"):
                path.unlink()


def test_card_names_no_base_that_the_hub_would_refuse(bf16_run, tmp_path):
    # The Hub rejects a card whose base_model is a local path or empty, after all the training.
    for name in ("", str(tmp_path)):
        bf16_run.trainer.base_model_id = name
        bf16_run.trainer.save_model(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model is None
        assert not any(tag.startswith("base_model:") for tag in card.data.tags)
        assert "huggingface.co/)" not in card.text and f"huggingface.co/{tmp_path}" not in card.text


PUSHED = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PUSHED.add("chat_template.jinja")


def test_push_uploads_the_policy_and_no_records(run, monkeypatch):
    calls, repos = [], []

    def upload_folder(folder_path, **options):
        files = {path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()}
        calls.append((files, (Path(folder_path) / "README.md").read_text(), options))
        return "https://huggingface.co/me/out/commit/1"

    def init_hf_repo(token=None):
        repos.append(token)
        run.trainer.hub_model_id = "me/out"

    monkeypatch.setattr(seal_trainer, "upload_folder", upload_folder)
    monkeypatch.setattr(run.trainer, "init_hf_repo", init_hf_repo)
    monkeypatch.setattr(run.trainer, "hub_model_id", None)
    assert run.trainer.push_to_hub("Two rounds", token="secret") == "https://huggingface.co/me/out/commit/1"
    ((files, card, options),) = calls
    assert files == PUSHED
    assert repos == ["secret"]
    assert (
        options["repo_id"] == "me/out" and options["commit_message"] == "Two rounds" and options["token"] == "secret"
    )
    assert "secret" not in card
    assert '"me/out")' in card  # the example loads it from where it is now

    run.trainer.push_to_hub()
    assert len(repos) == 1  # the repository is known


def test_push_in_the_background_keeps_its_files_until_they_are_uploaded(run, monkeypatch):
    may_start = concurrent.futures.Future()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def upload_folder(folder_path, run_as_future, **options):
            assert run_as_future

            def upload():
                may_start.result(timeout=60)
                return {path.name for path in Path(folder_path).rglob("*")}

            return pool.submit(upload)

        monkeypatch.setattr(seal_trainer, "upload_folder", upload_folder)
        monkeypatch.setattr(run.trainer, "hub_model_id", "me/out")
        future = run.trainer.push_to_hub(blocking=False)
        may_start.set_result(None)
        assert future.result(timeout=60) == PUSHED


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "seal_hf.seal_trainer"]


class AlwaysWrong:
    def grade(self, questions, golds, answers):
        return [False] * len(answers)


def test_selection_that_keeps_nothing(tmp_path, caplog):
    domain = KnowledgeDomain("{title}: {context}", grader=AlwaysWrong(), chat=False)
    recorder = Recorder()
    trainer = small_trainer(tmp_path, domain=domain, min_reward=1.0, callbacks=[recorder])
    start = policy_of(trainer.model)
    with caplog.at_level(logging.WARNING):
        output = trainer.train()
    first, second = warnings_of(caplog)
    assert first.startswith(
        "Round 1: the selection keeps none of 4 self-edits, so there is nothing new to learn; lower min"
    )
    assert second.startswith("Round 2: the selection keeps none of 4 self-edits")
    assert equal(policy_of(trainer.model), start)
    assert output.global_step == 2 and output.training_loss == 0.0
    assert recorder.count("save") == 2 and recorder.count("evaluate") == 3
    for index in range(2):
        assert equal(saved_policy(tmp_path / "policy" / f"round_{index:03d}"), start)
        assert read(tmp_path / "selected" / f"round_{index:03d}.jsonl") == []
        assert (tmp_path / "self_edits" / f"round_{index:03d}.parquet").is_file()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["self_edits/kept_ratio"] for entry in logged] == [0.0, 0.0]
    assert [entry["frac_reward_zero_std"] for entry in logged] == [1.0, 1.0]


class Mute(KnowledgeDomain):
    def parse(self, completion, example):
        return None


def test_all_self_edits_malformed(tmp_path, caplog):
    domain = Mute("{title}: {context}", grader=HashGrader(), chat=False)
    trainer = small_trainer(tmp_path, domain=domain)
    start = policy_of(trainer.model)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    first, second = warnings_of(caplog)
    assert first.startswith("Round 1: all 4 self-edits are malformed, so nothing is learned; look at ")
    assert str(tmp_path / "proposals") in first and second.startswith("Round 2: all 4")
    assert equal(policy_of(trainer.model), start)
    edits = read(tmp_path / "journal" / "round_001.jsonl")
    assert [(edit["well_formed"], edit["reward"], edit["repeats"]) for edit in edits] == [(False, 0.0, [])] * 4
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [(entry["reward"], entry["self_edits/valid_ratio"]) for entry in logged] == [(0.0, 0.0)] * 2
    assert "inner/loss" not in logged[0]
    # A malformed self-edit teaches nothing, so its passage counts as answered by the base.
    values = trainer.evaluate()
    assert values["eval_gain_over_base"] == 0 and values["eval_num_passages"] == 2


def test_examples_whose_rewards_are_equal_are_dropped(tmp_path):
    domain = GradingDomain(lambda title, place, answer: True if title == "T1" else hashed(answer))
    trainer = small_trainer(tmp_path, domain=domain, num_eval=0, num_rounds=1, num_generations=3, drop_zero_std=True)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert logged["frac_reward_zero_std"] == 0.5
    assert [edit["example_id"] for edit in read(tmp_path / "selected" / "round_000.jsonl")] == ["0"]


def finish_both(trainer, folder, tmp_path):
    """Go on with a run that ended early, in its trainer and, with a copy of the folder, in a new one."""
    shutil.copytree(folder, tmp_path / "copy")
    recorder = Recorder()
    other = small_trainer(tmp_path / "copy", callbacks=[recorder])
    for one in (trainer, other):
        one.train(resume_from_checkpoint=True)
    return other, recorder


def test_stop_after_a_bank(reference, tmp_path):
    folder = tmp_path / "run"
    recorder = Recorder()
    # The evaluation before round 1 has banks 1 to 3, so the fourth is the first of round 1.
    trainer = small_trainer(folder, callbacks=[Act("on_substep_end", 4, stop), recorder])
    start = policy_of(trainer.model)
    output = trainer.train()
    assert recorder.events[-3:] == [("epoch_begin", 0), ("substep_end", 0), ("train_end", 0)]
    assert output.global_step == 0
    (bank,) = (folder / "journal").rglob("*.jsonl")
    assert bank.parent.name == "round_000"
    assert len(read(bank)) == 2 and all(len(trial["answers"]) == 3 for trial in read(bank))
    assert (folder / "evaluation" / "journal" / "round_000.jsonl").is_file()
    assert not (folder / "selected").exists() and not (folder / "policy").exists()
    assert equal(policy_of(trainer.model), start)

    other, resumed = finish_both(trainer, folder, tmp_path)
    assert records(folder) == reference.records == records(tmp_path / "copy")
    assert equal(policy_of(trainer.model), reference.policy) and equal(policy_of(other.model), reference.policy)
    # 2 of the 3 banks of round 1, all 3 of round 2, and 1 for each evaluation after them.
    assert resumed.count("substep_end") == 2 + 1 + 3 + 1


def test_stop_in_the_middle_of_a_fit(reference, tmp_path):
    folder = tmp_path / "run"
    recorder = Recorder()
    # Scoring, two steps of SFT; scoring, and the first step of the second SFT.
    trainer = small_trainer(folder, callbacks=[Act("on_step_end", 5, stop), recorder])
    output = trainer.train()
    assert recorder.events[-2:] == [("step_end", 5), ("train_end", 4)]
    assert output.global_step == 4 and trainer.state.log_history[-1].keys() >= {"reward"}
    assert (folder / "selected" / "round_001.jsonl").is_file()
    assert [path.parent.name for path in folder.rglob("adapter_model.safetensors")] == ["round_000"]
    assert equal(policy_of(trainer.model), saved_policy(folder / "policy" / "round_000"))

    other, resumed = finish_both(trainer, folder, tmp_path)
    assert records(folder) == reference.records == records(tmp_path / "copy")
    assert equal(policy_of(trainer.model), reference.policy) and equal(policy_of(other.model), reference.policy)
    assert resumed.count("substep_end") == 1  # the last evaluation's
    assert resumed.count("step_end") == 2 and resumed.count("save") == 1


def test_interrupted_fit_goes_on_in_the_same_trainer(reference, tmp_path):
    # As in a notebook whose cell is stopped, and run again.
    trainer = small_trainer(tmp_path, callbacks=[Act("on_step_end", 2, interrupt)])
    start = policy_of(trainer.model)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert equal(policy_of(trainer.model), start)
    trainer.train(resume_from_checkpoint=True)
    assert records(tmp_path) == reference.records


def test_evaluate_after_a_run_that_was_stopped(tmp_path):
    trainer = small_trainer(tmp_path, callbacks=[Act("on_substep_end", 1, stop)])
    trainer.train()
    assert trainer.evaluate(tiny_examples(2, first=50))["eval_num_passages"] == 2


def test_plan_and_evaluation_ahead_change_nothing(reference, tmp_path):
    trainer = small_trainer(tmp_path)
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.plan()
    ahead = trainer.evaluate()
    assert equal(dict(trainer.model.named_parameters()), everything)
    trainer.train()
    assert records(tmp_path) == reference.records
    logged = reference.records["trainer_state.json"]["log_history"]
    assert logged[0].items() >= ahead.items()


def test_rounds_can_be_added(reference, tmp_path):
    folder = tmp_path / "run"
    small_trainer(folder, num_rounds=1).train()
    recorder = Recorder()
    trainer = small_trainer(folder, num_rounds=2, callbacks=[recorder])
    trainer.train(resume_from_checkpoint=True)
    assert records(folder) == reference.records
    assert recorder.count("substep_end") == 3 + 1 and recorder.count("save") == 1
    assert trainer.state.max_steps == 6 == trainer.state.global_step

    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")}
    trainer = small_trainer(folder, num_rounds=3)
    trainer.train(resume_from_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(path.name for path in (folder / "policy").iterdir()) == [f"round_00{i}" for i in range(3)]
    assert [entry["round"] for entry in trainer.state.log_history if "reward" in entry] == [1, 2, 3]
    assert equal(saved_policy(folder / "policy" / "round_002"), policy_of(trainer.model))
    assert not equal(policy_of(trainer.model), reference.policy)


def test_finished_run_returns_at_once(reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    recorder = Recorder()
    trainer = small_trainer(folder, callbacks=[recorder])
    output = trainer.train(resume_from_checkpoint=True)
    assert output.global_step == 6 and output.metrics["round"] == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert equal(policy_of(trainer.model), reference.policy)
    assert {"substep_end", "step_end", "save", "evaluate"}.isdisjoint(name for name, _ in recorder.events)
    assert trainer.evaluate()["eval_gain_over_round_0"] == pytest.approx(
        reference.records["trainer_state.json"]["log_history"][-1]["eval_gain_over_round_0"]
    )


def test_another_seed_gives_other_records(reference, tmp_path):
    small_trainer(tmp_path, seed=4, num_eval=0, num_rounds=1).train()
    other = records(tmp_path)
    for name in ("proposals/round_000.jsonl", "journal/round_000.jsonl", "policy/round_000/adapter_model.safetensors"):
        assert other[name] != reference.records[name]
    completions = {edit["completion"] for edit in other["journal/round_000.jsonl"]}
    assert completions.isdisjoint(edit["completion"] for edit in reference.records["journal/round_000.jsonl"])


class Sums(Domain):
    """A task of one's own; a self-edit's first character decides how it is trained on."""

    def prompt(self, example):
        return f"{example['a']}+{example['b']}="

    def parse(self, completion, example):
        if not completion:
            return None
        overrides = [{}, {"num_train_epochs": 3}, {"num_train_epochs": 0}][self.kind(completion)]
        return SelfEdit(self.prompt(example), completion, ((self.prompt(example), completion),), overrides)

    def kind(self, completion):
        return ord(completion[0]) % 3

    def questions(self, example):
        return [self.prompt(example), self.prompt({"a": example["b"], "b": example["a"]})]

    def grade(self, examples, answers):
        return [[hashed(answer) for answer in own] for own in answers]


def test_domain_of_ones_own(tmp_path):
    domain = Sums()
    examples = [{"id": f"{a}+{b}", "a": a, "b": b} for a, b in ((1, 2), (3, 4), (5, 67))]
    trainer = SEALTrainer(
        model=tiny_llama(),
        args=tiny_config(tmp_path, num_rounds=1, num_evaluations=1, num_generations=4),
        domain=domain,
        train_dataset=examples,
        eval_dataset=[{"a": 8, "b": 9}, {"a": 9, "b": 11}],
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    plan = trainer.plan()
    assert plan.inner_tokens is None and plan.seconds is None
    assert plan.adapters_per_round == 12 and plan.evaluation_adapters == 2 * 2
    assert str(plan).splitlines()[0] == "rounds: 1, examples: 3, evaluated on: 2, processes: 1"
    start = policy_of(trainer.model)
    trainer.train()
    assert not equal(policy_of(trainer.model), start)

    edits = read(tmp_path / "journal" / "round_000.jsonl")
    assert [edit["example_id"] for edit in edits] == [example["id"] for example in examples for _ in range(4)]
    assert {domain.kind(edit["completion"]) for edit in edits} == {0, 1, 2}
    for edit in edits:
        kind = domain.kind(edit["completion"])
        assert edit["well_formed"] == (kind != 2)
        if kind == 2:
            assert edit["reward"] == 0.0 and edit["repeats"] == [] and edit["tokens"] == 0
        else:
            epochs = 3 if kind == 1 else 2
            # One token a character, and the end of the sequence.
            assert edit["tokens"] == epochs * (len(edit["prompt"]) + len(edit["completion"]) + 1)
            assert edit["reward"] == pytest.approx(fmean(edit["repeats"][0]["verdicts"]))
    kept = read(tmp_path / "selected" / "round_000.jsonl")
    assert all(domain.kind(edit["completion"]) != 2 for edit in kept)

    conditions = [edit["condition"] for edit in read(tmp_path / "evaluation" / "journal" / "round_000.jsonl")]
    assert conditions == ["self-edits"] * 2 + ["base"] * 2
    first = trainer.state.log_history[0]
    names = {name for name in first if name.endswith("accuracy") or "gain" in name and name.endswith("base")}
    assert names == {"eval_base_accuracy", "eval_self_edits_accuracy", "eval_gain_over_base"}
    assert "minus base" in results_table(tmp_path)


def test_answers_that_cannot_be_graded_are_left_out_of_the_reward(tmp_path, caplog):
    # The last question never, the second example not at all.
    domain = GradingDomain(lambda title, place, answer: None if title == "T1" or place == 2 else hashed(answer))
    trainer = small_trainer(tmp_path, domain=domain, num_eval=0, num_train=3, num_rounds=1, num_evaluations=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert warnings_of(caplog) == [
        "Round 1: 2 of 6 self-edits could not be graded and are left out; look at the grader. Remove the round's files in "
        "journal/ and selected/ before its policy is there to score it again."
    ]
    edits = read(tmp_path / "journal" / "round_000.jsonl")
    for edit in edits:
        verdicts = [repeat["verdicts"] for repeat in edit["repeats"]]
        if edit["example_id"] == "1":
            assert verdicts == [[None] * 3] * 2
            assert edit["reward"] is None and edit["base_reward"] is None
        else:
            assert all(own[2] is None and None not in own[:2] for own in verdicts)
            assert edit["reward"] == pytest.approx(fmean(fmean(own[:2]) for own in verdicts))
    assert [edit["example_id"] for edit in read(tmp_path / "selected" / "round_000.jsonl")] == ["0", "2"]
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert logged["reward"] == pytest.approx(fmean(edit["reward"] for edit in edits if edit["reward"] is not None))
    assert logged["num_examples"] == 3


def test_evaluation_that_cannot_be_graded(tmp_path):
    def strict(title, place, answer):
        return None if title == "T100" and place == 1 else hashed(answer)

    # Each bank holds one adapter, so that some are scored before the grader fails.
    trainer = small_trainer(tmp_path, domain=GradingDomain(strict), num_rounds=1, adapters_per_batch=1)
    with pytest.raises(GradingIncomplete):
        trainer.train()
    folder = tmp_path / "evaluation"
    assert not (folder / "journal" / "round_000.jsonl").exists()
    banks = {path: path.read_bytes() for path in folder.rglob("bank_*.jsonl")}
    assert banks
    for path in banks:
        (trial,) = read(path)
        assert trial["example"] == 1 and None not in trial["verdicts"]
    assert not (tmp_path / "proposals").exists()
    proposals = folder / "proposals" / "round_000.jsonl"
    before = proposals.read_bytes()

    recorder = Recorder()
    working = GradingDomain(lambda title, place, answer: hashed(answer))
    trainer = small_trainer(tmp_path, domain=working, num_rounds=1, adapters_per_batch=1, callbacks=[recorder])
    trainer.train(resume_from_checkpoint=True)
    assert proposals.read_bytes() == before
    # 2 self-edits and 2 passages each in a bank, and one bank without adapters, less those of the first run.
    first_evaluation = [name for name, _ in recorder.events].index("evaluate")
    assert [name for name, _ in recorder.events[1:first_evaluation]] == ["substep_end"] * (5 - len(banks))
    assert trainer.state.log_history[-1]["round"] == 1


def test_plan_counts_the_work(tmp_path):
    folder = tmp_path / "run"
    trainer = tiny_trainer(folder, num_eval_generations=2)
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    plan = trainer.plan()
    assert list(folder.rglob("*")) == []
    assert equal(dict(trainer.model.named_parameters()), everything)
    assert (plan.num_rounds, plan.num_examples, plan.num_eval_examples, plan.num_processes) == (2, 4, 3, 1)
    assert plan.self_edits_per_round == 4 * 3
    assert plan.adapters_per_round == 4 * 3 * 2 and plan.adapters_per_batch == 4
    # 3 passages: 2 self-edits each before, between and after the rounds, and the passage alone once.
    assert plan.evaluation_adapters == 3 * (2 * 3 + 1)
    # 4 kept self-edits, 2 a step, 2 epochs.
    assert plan.optimizer_steps_per_round == 4
    # A token a character, 2 epochs: title, line break, passage.
    train, evaluation = (
        2 * sum(len(f"{example['title']}\n{example['context']}") for example in examples)
        for examples in (tiny_examples(4), tiny_examples(3, first=100))
    )
    assert plan.inner_tokens == 2 * train * 3 * 2 * 2 + evaluation * (2 * 2 * 3 + 1)
    assert plan.seconds > 0
    lines = str(plan).splitlines()
    assert lines[0] == "rounds: 2, examples: 4, evaluated on: 3, processes: 1"
    assert lines[1] == "each round: 12 self-edits, 24 adapters in banks of 4, 4 steps of outer SFT"
    assert lines[2] == "all evaluations: 21 adapters"
    assert tiny_trainer(folder, keep_best=None, num_eval=0).plan().optimizer_steps_per_round == 12


def test_plan_of_a_single_step(tmp_path):
    # One epoch over a passage is one step: too few to leave out the first.
    plan = tiny_trainer(tmp_path, inner_num_train_epochs=1, num_eval=0).plan()
    assert plan.inner_tokens == 2 * 3 * 2 * 2 * sum(
        len(f"{one['title']}\n{one['context']}") for one in tiny_examples(4)
    )
    assert plan.seconds >= 0


def test_plan_of_a_run_that_is_there(reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    with pytest.raises(ValueError, match="holds a run with these settings; go on with it with resume_from_checkpoint"):
        small_trainer(folder).plan()
    assert small_trainer(folder).plan(resume_from_checkpoint=True).num_rounds == 2
    assert records(folder) == reference.records


REPORTING_RUN = """
import sys
from outer_loop import tiny_trainer
trainer = tiny_trainer(
    sys.argv[1], num_train=2, num_eval=2, num_generations=2, num_rounds=1, report_to=["tensorboard", "trackio"],
    project="bees", run_name="first",
)
trainer.train()
"""


@pytest.mark.slow
def test_metrics_go_to_tensorboard_and_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", REPORTING_RUN, str(folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    reward = next(entry for entry in log if "reward" in entry)
    accuracies = [(entry["step"], entry["eval_self_edits_accuracy"]) for entry in log if "eval_num_passages" in entry]
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    assert len(accuracies) == len(losses) == 2

    (events,) = (folder / "runs").rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events))
    scalars.Reload()

    def points(name):
        return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in scalars.Scalars(name)]

    assert [(1, reward["reward"])] == points("train/reward")
    assert [(1, reward["inner/gain"])] == points("train/inner/gain")
    assert accuracies == points("eval/self_edits_accuracy")
    assert losses == points("train/loss")

    with sqlite3.connect(tmp_path / "trackio" / "bees.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        config = json.loads(database.execute("SELECT config FROM configs").fetchone()[0])
    assert {name for name, _ in rows} == {"first"}
    metrics = [json.loads(row) for _, row in rows]
    assert len(metrics) == len(log)
    assert [row["train/reward"] for row in metrics if "train/reward" in row] == pytest.approx([reward["reward"]])
    assert accuracies == [
        (row["train/global_step"], pytest.approx(row["eval/self_edits_accuracy"]))
        for row in metrics
        if "eval/self_edits_accuracy" in row
    ]
    assert config["num_generations"] == 2 and config["inner_lora_r"] == 2


def test_policy_files_name_what_they_hold(run):
    digests = {
        hashlib.sha256(
            (run.folder / "policy" / f"round_{index:03d}" / "adapter_model.safetensors").read_bytes()
        ).hexdigest()
        for index in range(2)
    }
    assert len(digests) == 2
    state = json.loads((run.folder / "policy" / "round_000" / "trainer_state.json").read_text())
    assert state["global_step"] == 5 and state["epoch"] == 1.0
    assert [entry["step"] for entry in state["log_history"]] == [0, 1, 2, 3, 4, 5]
