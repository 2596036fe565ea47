"""Self-edits that set their own training: what is recorded, composed into banks, trained, logged and resumed."""

import hashlib
from dataclasses import replace
from statistics import fmean

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import AskingDomain, tiny_trainer
from seal_hf.domains.knowledge.training_settings import split_training_settings
from seal_hf.rollout.bank_schedule import compose_banks


pytestmark = pytest.mark.usefixtures("without_pictures")
OPTIONS = {"num_train": 2, "num_eval": 2, "num_generations": 6, "num_repeats": 1, "num_rounds": 1}
LINES = (
    "Training: 1 epochs, learning rate 1e-3, batch size 2",
    "Training: 5 epochs, learning rate 2e-5, batch size 1",
    "Training: batch size 40",
    "As it is",
)


def line_of(completion):
    return LINES[hashlib.sha256(completion.encode()).digest()[3] % len(LINES)]


class ChoosingDomain(AskingDomain):
    """The text of a self-edit decides what it sets; some of them call a tool, too."""

    def __init__(self):
        super().__init__()
        self.sets_training = True

    def parse(self, completion, example):
        self_edit = super().parse(f"{completion}\n{line_of(completion)}", example)
        return self_edit and replace(self_edit, completion=completion)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = tiny_trainer(tmp_path_factory.mktemp("run"), domain=ChoosingDomain(), **OPTIONS)
    trainer.train()
    return trainer


def folder_of(trainer):
    return trainer._folder.path


def chosen_by(proposal):
    return split_training_settings(line_of(proposal["completion"]))[1]


def test_what_a_self_edit_sets_is_trained_and_recorded(unbroken):
    proposals = read(folder_of(unbroken) / "proposals" / "round_000.jsonl")
    seen, work = set(), []
    for one in proposals:
        chosen = chosen_by(one)
        told = {name: value for name, value in (one["metrics"] or {}).items() if "training" in name}
        if one["condition"] != "self-edits":
            assert one["metrics"] is None
            continue
        if one["metrics"] is None:  # parse() found nothing to train on
            assert not one["well_formed"]
            continue
        assert told == {
            "sets_training": bool(chosen),
            **({"training_epochs": chosen["num_train_epochs"]} if "num_train_epochs" in chosen else {}),
            **({"training_rate": chosen["learning_rate"]} if "learning_rate" in chosen else {}),
            **({"training_batch": chosen["batch_size"]} if chosen else {}),
        }
        assert ("coverage" in one["metrics"]) == (one["tool_examples"] is not None)
        if not one["well_formed"]:
            continue
        seen.add((line_of(one["completion"]), one["tool_examples"] is not None))
        num_epochs, batch_size = chosen.get("num_train_epochs", 2), chosen.get("batch_size", 1)
        assert one["tokens"] % num_epochs == 0
        num_sequences = len(one["tool_examples"] or self_edit_of(unbroken, one).examples)
        num_steps = num_epochs * -(-num_sequences // batch_size)
        work.append((one, (num_steps, one["tokens"])))
    assert {line for line, _ in seen} == set(LINES) and {with_tool for _, with_tool in seen} == {True, False}
    # Banks are composed by the steps and tokens that were chosen.
    expected = compose_banks([own for _, own in work], num_repeats=1, adapters_per_bank=4)
    assert [one["banks"] for one, _ in work] == expected


def self_edit_of(trainer, proposal):
    return trainer.domain.parse(proposal["completion"], trainer._train.examples[proposal["example"]])


def test_adapters_have_the_training_that_was_set(unbroken):
    """The same self-edits with other settings, in one bank: each equals the one that is trained alone."""
    example = unbroken._train.examples[0]
    text = "The cats sat.\nThey sat still.\nAll of them."
    edits = [AskingDomain().parse(text, example)] * len(LINES)
    edits = [
        replace(edit, calls=(), overrides=split_training_settings(line)[1])
        for edit, line in zip(edits, LINES, strict=True)
    ]
    together = unbroken.lm.adapt(edits, seed=[7] * len(edits))
    assert [adapter.training["num_train_epochs"] for adapter in together] == [1, 5, 2, 2]
    assert [adapter.training["batch_size"] for adapter in together] == [2, 1, 16, 1]
    assert [adapter.training["learning_rate"] for adapter in together] == [1e-3, 2e-5, 1e-2, 1e-2]
    assert [len(adapter.training["losses"]) for adapter in together] == [2, 20, 2, 8]
    for adapter, edit in zip(together, edits, strict=True):
        alone = unbroken.lm.adapt(edit, seed=7)
        assert adapter.training["losses"] == pytest.approx(alone.training["losses"], abs=1e-5)


def test_metrics_of_a_round_and_of_an_evaluation(unbroken):
    (log,) = [entry for entry in unbroken.state.log_history if "self_edits/valid_ratio" in entry]
    proposals = read(folder_of(unbroken) / "proposals" / "round_000.jsonl")
    for name in ("sets_training", "training_epochs", "training_rate", "training_batch"):
        values = [one["metrics"][name] for one in proposals if name in (one["metrics"] or {})]
        assert log[f"self_edits/{name}"] == pytest.approx(fmean(values))
    assert 0 < log["self_edits/sets_training"] < 1
    assert any("eval_self_edits_sets_training" in entry for entry in unbroken.state.log_history)


@pytest.mark.parametrize("event", ["on_substep_end", "on_step_end"])
def test_a_resumed_run_equals_an_unbroken_one(unbroken, tmp_path, event):
    number = {"on_substep_end": 2, "on_step_end": 1}[event]
    tiny_trainer(tmp_path / "run", domain=ChoosingDomain(), callbacks=[Act(event, number, stop)], **OPTIONS).train()
    assert records(tmp_path / "run") != records(folder_of(unbroken))
    tiny_trainer(tmp_path / "run", domain=ChoosingDomain(), **OPTIONS).train(resume_from_checkpoint=True)
    assert records(tmp_path / "run") == records(folder_of(unbroken))
