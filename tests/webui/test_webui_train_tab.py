"""The tab Train: the command and the tables that it shows."""

from dataclasses import replace

from helpers.finished_runs import write_finished_run
from helpers.folders import ROOT
from helpers.scripts import run_main
from helpers.tiny_models import save_tiny_model
from seal_hf.domains import load_demo_passages, shuffle_passages
from seal_hf.grading.intervals import accuracy
from seal_hf.records.report import Evaluation
from seal_hf.webui.tabs import train_tab, train_tables
from seal_hf.webui.work import inputs
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_records import Candidate, self_edits_of
from seal_hf.webui.work.training_runs import TrainingRuns


def test_the_command_that_is_shown_is_accepted_by_the_script(jobs, tmp_path, monkeypatch):
    runs = TrainingRuns(jobs, tmp_path / "runs", None, str(save_tiny_model(tmp_path / "model")))
    file = tmp_path / "config.yaml"
    file.write_text(runs.yaml(TrainingSettings(num_train_passages=2, num_eval_passages=1, prompt_style="rewrite")))
    command = train_tab._COMMAND.replace("config.yaml", str(file)).split()
    assert command[:4] == ["accelerate", "launch", "-m", "trainers.knowledge"]
    monkeypatch.chdir(tmp_path)
    script = ROOT.joinpath(*command[3].split(".")).with_suffix(".py")
    planned = run_main(script, *command[4:], "--dry_run")
    assert planned.returncode == 0 and "examples: 2, evaluated on: 1" in planned.stdout


def test_held_out_table_says_of_which_policy_a_row_is():
    one, other = accuracy([[True, False], [False]]), accuracy([[True, True], [True]])
    before = Evaluation(0, {"base": one, "passage only": one, "self-edits": other}, {}, "passage only", {}, {})
    assert [row[0] for row in train_tables.held_out_table([before])] == [
        "base",
        "passage only",
        "self-edits, before training",
    ]
    measured, recitations = {"passage only": other, "self-edits": one}, {"self-edits": other}
    after = Evaluation(1, measured, {}, "passage only", recitations, {"passage only": one, "self-edits": other})
    assert train_tables.held_out_table([before, after]) == [
        ["base", str(one), "–"],
        ["passage only, before training", str(one), "–"],
        ["self-edits, before training", str(other), "–"],
        ["passage only, after round 1", str(other), "25 %"],
        ["self-edits, after round 1", str(one), "100 %"],
        ["recitation, self-edits, after round 1", str(other), ""],
    ]
    label = train_tables.held_out_label([before])
    assert label.startswith(
        "Held-out passages: 2, with 3 questions. Means over the passages. Recited: the share of answers"
    )


def test_tables():
    candidates = [
        Candidate(1, "Ann", 1, "a", 1.0, True),
        Candidate(1, "Ann", 2, "b", 0.5, False),
        Candidate(1, "Bob", 1, "c", 0.0, True),
        Candidate(1, "Bob", 2, "d", 0.0, False),
        Candidate(2, "Ann", 1, "e", 0.5, None),
        Candidate(2, "Ann", 2, "f", None, None),
    ]
    assert train_tables.rounds_table(candidates) == [
        ["1", "4 of 4", "38 %", "50 %", "2"],
        ["2", "1 of 2", "50 %", "50 %", "–"],
    ]
    points = train_tables.reward_points(candidates)
    # The plot must know all kinds from its first data on.
    for known in (points, train_tables.reward_points(candidates[-2:])):
        assert set(known[known["reward"].isna()]["self-edit"]) == {"kept", "rejected", "not selected yet"}
    points = points[points["reward"].notna()]
    assert points["self-edit"].tolist() == ["kept", "rejected", "kept", "rejected", "not selected yet"]
    assert points["number"].tolist() == [1, 2, 3, 4, 5]
    assert train_tables.edits_table(
        [(candidates[0], [("Who?", "Ann")]), (candidates[3], []), (candidates[5], [])]
    ) == [
        ["Ann, #1\n100 %, kept", "Who? → Ann"],
        ["Bob, #2\n0 %, rejected", "d"],
        ["Ann, #2\n–", "f"],
    ]
    of_round = [(one, []) for one in candidates if one.round == 1]
    assert train_tables.edits_label(of_round, candidates) == "Self-edits of round 1: 4, 2 kept"
    assert train_tables.edits_label(of_round[:3], candidates).endswith("2 kept, of which the first 3 are shown")
    assert (
        train_tables.edits_label([(candidates[-1], [])] * 2, candidates)
        == "Self-edits of round 2: 2, not selected yet"
    )
    assert train_tables.edits_label([], candidates) == "Self-edits"


def test_the_self_edits_of_a_chosen_round_are_read_with_their_pairs(jobs, tmp_path, lm):
    runs = TrainingRuns(jobs, tmp_path / "runs", None, lm.base_model_id)
    write_finished_run(runs, "ann", lm)
    snapshot = runs.snapshot("ann")
    assert snapshot.policies == [1, 2]
    for number, round_number in ((0, 2), (1, 1), (2, 2)):
        (rejected, few), (kept, many) = self_edits_of(snapshot, number)
        assert (rejected.round, rejected.kept, rejected.reward) == (round_number, False, 0.25)
        assert (kept.round, kept.kept, kept.reward) == (round_number, True, 0.5)
        assert few == [("Which is number 1?", "answer 0.1"), ("Which is number 2?", "answer 0.2")] and len(many) == 14
    assert rejected.passage == kept.passage == inputs.name_of(shuffle_passages(load_demo_passages("train"), 42)[1])
    (_, cell) = train_tables.edits_table([(kept, many)])[0]
    assert cell.split("\n")[0] == "Which is number 1? → answer 1.1" and cell.endswith("12\n… and 2 more")
    assert self_edits_of(snapshot, 1, most=1) == self_edits_of(snapshot, 1)[:1]
    assert self_edits_of(snapshot, 3) == []


def test_accuracies_are_drawn_for_every_condition(jobs, tmp_path, lm):
    runs = TrainingRuns(jobs, tmp_path / "runs", None, lm.base_model_id)
    write_finished_run(runs, "ann", lm)
    found = runs.snapshot("ann").evaluations
    points = train_tables.accuracy_points(found)
    lines = {
        name: list(zip(own["round"], own["accuracy"], strict=True)) for name, own in points.groupby("answered by")
    }
    assert lines == {
        "base": [(0, 0.25), (2, 0.25)],  # measured once
        "passage in context": [(0, 1.0), (2, 1.0)],
        "passage only": [(0, 0.5), (2, 0.5)],
        "self-edits": [(0, 0.5), (1, 0.625), (2, 1.0)],
    }
    colors = train_tables.accuracy_colors(found)
    assert set(lines) < set(colors) and len(set(colors.values())) == len(colors)
    # The first evaluation: of the self-edits there is one point, which is no line yet.
    assert train_tables.accuracy_points(found[:1])["round"].tolist() == [0, 0.08, 0, 1, 0, 1, 0, 1]
    known = [replace(one, recitations={"self-edits": one.accuracies["self-edits"]}) for one in found]
    drawn = train_tables.accuracy_points(known)
    assert drawn[drawn["answered by"] == "one recitation earns"]["accuracy"].tolist() == [0.5, 0.625, 1.0]
