"""The tab Train: the command and the tables that it shows."""

from helpers.folders import ROOT
from helpers.scripts import run_main
from helpers.tiny_models import save_tiny_model
from seal_hf.grading.intervals import accuracy
from seal_hf.records.report import Evaluation
from seal_hf.webui.tabs import train_tab
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_records import Candidate
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
    assert [row[0] for row in train_tab.held_out_table([before])] == [
        "base",
        "passage only",
        "self-edits, before training",
    ]
    measured, recitations = {"passage only": other, "self-edits": one}, {"self-edits": other}
    after = Evaluation(1, measured, {}, "passage only", recitations, {"passage only": one, "self-edits": other})
    assert train_tab.held_out_table([before, after]) == [
        ["base", str(one), "–"],
        ["passage only, before training", str(one), "–"],
        ["self-edits, before training", str(other), "–"],
        ["passage only, after round 1", str(other), "25 %"],
        ["self-edits, after round 1", str(one), "100 %"],
        ["recitation, self-edits, after round 1", str(other), ""],
    ]
    label = train_tab.held_out_label([before])
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
    assert train_tab.rounds_table(candidates) == [
        ["1", "4 of 4", "38 %", "50 %", "2"],
        ["2", "1 of 2", "50 %", "50 %", "–"],
    ]
    points = train_tab.reward_points(candidates)
    # The plot must know all kinds from its first data on.
    for known in (points, train_tab.reward_points(candidates[-2:])):
        assert set(known[known["reward"].isna()]["self-edit"]) == {"kept", "rejected", "not selected yet"}
    points = points[points["reward"].notna()]
    assert points["self-edit"].tolist() == ["kept", "rejected", "kept", "rejected", "not selected yet"]
    assert points["number"].tolist() == [1, 2, 3, 4, 5]
    assert train_tab.edits_table(candidates)[:3] == [
        ["Round 2, #1: Ann", "50 %", "e"],
        ["Round 2, #2: Ann", "–", "f"],
        ["Round 1, #1: Ann", "100 %, kept", "a"],
    ]
    assert train_tab.edits_table(candidates)[3][1] == "50 %, rejected"
