"""SEALTrainer's runs that have little to learn, are stopped, resumed or extended."""

import json
import logging
import shutil
from collections import Counter
from statistics import fmean
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from helpers.observing import (
    Act,
    AlwaysWrong,
    GradingDomain,
    Recorder,
    equal,
    hashed,
    interrupt,
    policy_of,
    read,
    records,
    saved_policy,
    small_trainer,
    stop,
    warnings_of,
)
from helpers.outer_loop import HashGrader, tiny_examples
from seal_hf.domains import KnowledgeDomain
from seal_hf.grading import GradingIncomplete
from seal_hf.records.journal import Journal


pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_run_without_a_reward_learns_nothing_and_says_so(tmp_path, caplog):
    domain = KnowledgeDomain("{title}: {context}", grader=AlwaysWrong(), chat=False)
    recorder = Recorder()
    trainer = small_trainer(tmp_path, domain=domain, callbacks=[recorder])
    start = policy_of(trainer.model)
    with caplog.at_level(logging.WARNING):
        output = trainer.train()
    first, second = warnings_of(caplog)
    assert first.startswith(
        "Round 1: the rewards of all 4 self-edits are 0, so nothing is learned; look at the answers in"
    )
    assert first.endswith("or set min_reward to 0 to learn in any case.")
    assert second.startswith("Round 2: the rewards of all 4 self-edits are 0, so nothing is learned")
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
    # 2 of the 3 banks of round 1, all 3 of round 2, and 2 for each evaluation after them.
    assert resumed.count("substep_end") == 2 + 2 + 3 + 2


def test_a_bank_that_is_not_the_one_asked_for_is_run_again(reference, tmp_path):
    # The evaluation before the first round has two banks.
    small_trainer(tmp_path, callbacks=[Act("on_substep_end", 2 + 3, stop)]).train()
    first, *_, last = sorted((tmp_path / "journal" / "round_000").iterdir())
    first.write_bytes(last.read_bytes())
    repaired, whole = Recorder(), Recorder()
    small_trainer(tmp_path, callbacks=[repaired]).train(resume_from_checkpoint=True)
    assert records(tmp_path) == reference.records
    small_trainer(tmp_path / "whole", callbacks=[whole]).train()
    assert repaired.count("substep_end") == whole.count("substep_end") - 2 - 3 + 1


def test_the_size_of_the_banks_is_chosen_once(tmp_path, monkeypatch):
    def with_memory(num_bytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))

    options = {
        "adapters_per_bank": None,
        "num_eval": 0,
        "num_rounds": 1,
        "num_repeats": 2,
        "num_train": 3,
        "num_generations": 4,
    }
    with_memory(1_800_000)
    small_trainer(tmp_path / "unbroken", **options).train()
    banks = Counter(proposal.banks[0] for proposal in Journal(tmp_path / "unbroken").proposals(0))
    assert len(banks) > 1 and max(banks.values()) > 1
    small_trainer(tmp_path / "moved", callbacks=[Act("on_substep_end", 1, stop)], **options).train()
    with_memory(10**12)
    small_trainer(tmp_path / "moved", **options).train(resume_from_checkpoint=True)
    assert records(tmp_path / "moved") == records(tmp_path / "unbroken")
    # The same memory holds larger banks where less is kept of a token.
    with_memory(1_800_000)
    small_trainer(tmp_path / "checkpointed", inner_gradient_checkpointing=True, **options).train()
    checkpointed = Counter(proposal.banks[0] for proposal in Journal(tmp_path / "checkpointed").proposals(0))
    assert max(checkpointed.values()) > max(banks.values())


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
    assert resumed.count("substep_end") == 2  # the last evaluation's
    assert resumed.count("step_end") == 2 and resumed.count("save") == 1


@pytest.mark.parametrize(
    ("event", "last"),
    [("on_step_end", ("step_end", 1)), ("on_save", ("epoch_end", 3)), ("on_epoch_end", ("epoch_end", 3))],
)
def test_a_stop_between_two_pieces_of_work_ends_the_run_there(reference, tmp_path, event, last):
    folder = tmp_path / "run"
    recorder = Recorder()
    trainer = small_trainer(folder, callbacks=[Act(event, 1, stop), recorder])
    assert trainer.train().global_step == last[1]
    assert recorder.events[-2:] == [last, ("train_end", last[1])]
    # neither the fit nor the evaluation after it has begun
    assert (folder / "policy").exists() == (event != "on_step_end")
    assert not (folder / "evaluation" / "proposals" / "round_001.jsonl").exists()

    finish_both(trainer, folder, tmp_path)
    assert records(folder) == reference.records == records(tmp_path / "copy")


def test_a_stop_without_an_evaluation_ends_before_the_next_round(tmp_path):
    trainer = small_trainer(tmp_path, num_eval=0, callbacks=[Act("on_save", 1, stop)])
    trainer.train()
    assert [file.name for file in (tmp_path / "proposals").iterdir()] == ["round_000.jsonl"]


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
    assert recorder.count("substep_end") == 3 + 2 and recorder.count("save") == 1
    assert trainer.state.max_steps == 6 == trainer.state.global_step

    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")}
    trainer = small_trainer(folder, num_rounds=3)
    trainer.train(resume_from_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(path.name for path in (folder / "policy").iterdir()) == [f"round_00{i}" for i in range(3)]
    assert [entry["round"] for entry in trainer.state.log_history if "reward" in entry] == [1, 2, 3]
    assert equal(saved_policy(folder / "policy" / "round_002"), policy_of(trainer.model))
    assert not equal(policy_of(trainer.model), reference.policy)


def test_rounds_cannot_be_taken_back(reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    trainer = small_trainer(folder, num_rounds=1)
    for go_on in (trainer.train, trainer.plan):
        with pytest.raises(ValueError, match="holds 2 rounds, more than num_rounds=1; set num_rounds to at least 2"):
            go_on(resume_from_checkpoint=True)
    assert records(folder) == reference.records


def test_two_do_not_train_in_one_folder(tmp_path):
    refused = []

    def train_too(control):
        with pytest.raises(ValueError, match=f"Another process is working in {tmp_path}; wait for its end"):
            small_trainer(tmp_path).train(resume_from_checkpoint=True)
        refused.append(True)
        control.should_training_stop = True

    small_trainer(tmp_path, callbacks=[Act("on_substep_end", 1, train_too)]).train()
    assert refused
    assert small_trainer(tmp_path).train(resume_from_checkpoint=True).global_step == 6


def test_a_damaged_log_is_passed_over(reference, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    state = folder / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    with caplog.at_level(logging.WARNING):
        small_trainer(folder).train(resume_from_checkpoint=True)
    assert any(warning.startswith(f"{state} is damaged") for warning in warnings_of(caplog, "records.run_folder"))
    logged = records(folder)["trainer_state.json"]["log_history"]
    assert [entry for entry in logged if "reward" in entry] == [
        entry for entry in reference.records["trainer_state.json"]["log_history"] if "reward" in entry
    ]


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


def test_answers_that_cannot_be_graded_are_left_out_of_the_reward(tmp_path, caplog):
    # The last question never, the second example not at all.
    domain = GradingDomain(lambda title, place, answer: None if title == "T1" or place == 2 else hashed(answer))
    trainer = small_trainer(tmp_path, domain=domain, num_eval=0, num_train=3, num_rounds=1, num_repeats=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert warnings_of(caplog) == [
        "Round 1: 2 of 6 self-edits could not be graded and are left out; look at what grades them. Remove the round's files in "
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


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def test_a_round_whose_files_were_removed_is_scored_again(tmp_path):
    options = {"num_eval": 0, "num_rounds": 1}
    expected = tmp_path / "expected"
    small_trainer(expected, domain=GradingDomain(lambda title, place, answer: hashed(answer)), **options).train()

    folder = tmp_path / "run"
    failing = GradingDomain(lambda title, place, answer: None if title == "T1" else hashed(answer))
    small_trainer(folder, domain=failing, callbacks=[Act("on_step_end", 2, stop)], **options).train()
    (before,) = [entry for entry in state_of(folder)["log_history"] if "reward" in entry]
    for name in ("journal", "selected"):
        (folder / name / "round_000.jsonl").unlink()
    mended = GradingDomain(lambda title, place, answer: hashed(answer))
    trainer = small_trainer(folder, domain=mended, **options)
    trainer.train(resume_from_checkpoint=True)
    assert before not in trainer.state.log_history
    assert trainer.state.global_step == state_of(expected)["global_step"]
    for output_dir in (folder, expected):
        table = pq.read_table(output_dir / "self_edits" / "round_000.parquet")
        assert None not in table["reward"].to_pylist()
    assert records(folder) == records(expected)


def test_evaluation_that_cannot_be_graded(tmp_path):
    def strict(title, place, answer):
        return None if title == "T100" and place == 1 else hashed(answer)

    # Each bank holds one adapter, so that some are scored before the grader fails.
    trainer = small_trainer(tmp_path, domain=GradingDomain(strict), num_rounds=1, adapters_per_bank=1)
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
    trainer = small_trainer(tmp_path, domain=working, num_rounds=1, adapters_per_bank=1, callbacks=[recorder])
    trainer.train(resume_from_checkpoint=True)
    assert proposals.read_bytes() == before
    # 2 self-edits and 2 passages each in a bank, and one bank without adapters, less those of the first run.
    first_evaluation = [name for name, _ in recorder.events].index("evaluate")
    assert [name for name, _ in recorder.events[1:first_evaluation]] == ["substep_end"] * (5 - len(banks))
    assert trainer.state.log_history[-1]["round"] == 1
