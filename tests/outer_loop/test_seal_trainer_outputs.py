"""What SEALTrainer gives away: the saved policy and its card, uploads, plans and reported metrics."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoTokenizer

from helpers.folders import TESTS
from helpers.observing import BASE_ID, PROMPT, equal, policy_of, records, saved_policy, small_trainer
from helpers.outer_loop import tiny_examples, tiny_trainer
from helpers.tiny_models import tiny_llama
from seal_hf.records.report import evaluations
from seal_hf.records.tables import results_table
from seal_hf.rollout.planning import Counts


pytestmark = pytest.mark.usefixtures("without_pictures")


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
    assert card.data.to_dict()["library_name"] == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"seal", "trl", "lora", f"base_model:adapter:{BASE_ID}"} == set(card.data.tags)
    assert results_table(run.folder).strip() in card.text
    assert "| self-edits after round 2 " in card.text and "- num_generations: 3\n" in card.text
    first, last = (evaluations(run.trainer._folder.evaluation)[index] for index in (0, -1))
    conditions = {
        "base": (first, "base"),
        "passage in context": (first, "passage in context"),
        "passage only before training": (first, "passage only"),
        "self-edits before training": (first, "self-edits"),
        "passage only after round 2": (last, "passage only"),
        "self-edits after round 2": (last, "self-edits"),
    }
    named = {}
    for name, (one, condition) in conditions.items():
        size = f"(n = {one.accuracies[condition].num_questions})"
        recited = round(one.recited[condition].value, 4)
        named[f"accuracy, {name} {size}"] = (round(one.accuracies[condition].value, 4), recited)
        if condition != "passage in context":
            named[f"accuracy, recitation, {name} {size}"] = (round(one.recitations[condition].value, 4), None)
    assert {
        one.metric_name: (one.metric_value, one.metric_args.get("share_of_answers_that_recite"))
        for one in card.data.eval_results
    } == named

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


def test_plan_counts_the_work(tmp_path):
    folder = tmp_path / "run"
    trainer = tiny_trainer(folder, num_eval_generations=2)
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    plan = trainer.plan()
    assert list(folder.rglob("*")) == []
    assert equal(dict(trainer.model.named_parameters()), everything)
    assert (plan.num_rounds, plan.num_examples, plan.num_eval_examples, plan.num_processes) == (2, 4, 3, 1)
    for counts in plan.rounds:
        # Each adapter is asked 3 questions, and the base once for each passage.
        assert (counts.prompts_to_write, counts.prompts_to_answer) == (4 * 3, 3 * (4 * 3 * 2 + 4))
        assert counts.adapters == 4 * 3 * 2 and counts.adapters_per_bank == 4
    # 3 passages: 2 self-edits and the passage alone, before, between and after the rounds.
    assert [counts.adapters for counts in plan.evaluations] == [3 * (2 + 1)] * 3
    # 4 kept self-edits, 2 a step, 2 epochs.
    assert plan.optimizer_steps == [4, 4]
    # A token a character, 2 epochs: title, line break, passage, end.
    train, evaluation = (
        2 * sum(len(f"{example['title']}\n{example['context']}") + 1 for example in examples)
        for examples in (tiny_examples(4), tiny_examples(3, first=100))
    )
    assert plan.everything.tokens == 2 * train * 3 * 2 * 2 + evaluation * (2 * 2 + 1) * 3
    assert plan.seconds > 0
    text = str(plan)
    assert text.startswith("rounds: 2, examples: 4, evaluated on: 3, processes: 1; left to be done:\n")
    assert "is estimated" in text and "without the SFT" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]
    assert [row[0] for row in cells] == ["stage", "round 1", "round 2", "evaluations", "all"]
    assert cells[2] == ["round 2", "12", "24", "~4", f"~{2 * train * 3 * 2:,}", "84", "4"]
    assert cells[4][2] == str(2 * 24 + 27) and cells[4][-1] == "8"
    assert tiny_trainer(folder, keep_best=None, num_eval=0).plan().optimizer_steps == [12, 12]
    growing = tiny_trainer(folder, num_eval=0, sft_on="all").plan()
    assert growing.optimizer_steps == [4, 8] and growing.evaluations == []
    # no more than there are self-edits
    assert tiny_trainer(folder, adapters_per_bank=1000, num_eval=0).plan().everything.adapters_per_bank == 12


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 12), ({"num_generations": 2}, 8), ({"num_generations": 60}, 60)]
)
def test_plan_of_banks_that_are_chosen(tmp_path, monkeypatch, options, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    trainer = tiny_trainer(tmp_path, num_eval=0, adapters_per_bank=None, **options)
    # 29 tokens a step on average: 71 adapters have 2048, so that 240 take four banks.
    assert trainer.plan().everything.adapters_per_bank == expected


def test_plan_of_a_single_step(tmp_path):
    # One epoch over a passage is one step: too few to leave out the first.
    plan = tiny_trainer(tmp_path, inner_num_train_epochs=1, num_eval=0).plan()
    assert plan.everything.tokens == 2 * 3 * 2 * 2 * sum(
        len(f"{one['title']}\n{one['context']}") + 1 for one in tiny_examples(4)
    )
    assert plan.seconds >= 0


def test_plan_of_a_run_that_is_there(reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    with pytest.raises(ValueError, match="holds a run with these settings; resume it with resume_from_checkpoint"):
        small_trainer(folder).plan()
    plan = small_trainer(folder).plan(resume_from_checkpoint=True)
    assert plan.num_rounds == 2 and plan.everything == Counts() and plan.optimizer_steps == [0, 0]
    assert plan.seconds is None and records(folder) == reference.records


REPORTING_RUN = """
import sys
from helpers.outer_loop import tiny_trainer
trainer = tiny_trainer(
    sys.argv[1], num_train=2, num_eval=2, num_generations=2, num_rounds=1, report_to=["tensorboard", "trackio"],
    project="bees", run_name="first", push_to_hub=True, hub_model_id="tester/bees", hub_token=sys.argv[2],
)
trainer.train()
"""


@pytest.mark.slow
def test_metrics_of_a_run_that_is_pushed_stay_on_this_machine(hub, token, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", REPORTING_RUN, str(folder), token], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert list(hub.repos) == [("model", "tester/bees")]
    assert all(file.is_dir() or token.encode() not in file.read_bytes() for file in tmp_path.rglob("*"))
    assert token not in done.stdout + done.stderr
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
