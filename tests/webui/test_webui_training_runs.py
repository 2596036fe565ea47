"""Runs of the outer loop: what the page learns about them, while they run and after a restart of the app."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from helpers.folders import TRAINERS
from helpers.tiny_models import save_tiny_model
from helpers.training_runs import PASSAGES, QUICK, launch_when_free, stub, wait_for
from seal_hf.records.journal import Journal, Proposal, TrialResult
from seal_hf.webui.tabs import train_tab
from seal_hf.webui.work import sessions as sessions_module
from seal_hf.webui.work.errors import without_folders
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED, JobRefused
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_records import CONFIG_NAME
from seal_hf.webui.work.training_runs import TrainingRuns
from trainers.arguments import load_dataset_argument


SCRIPT = TRAINERS / "knowledge.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def passages(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PASSAGES))
    return file


@pytest.mark.slow
def test_a_run_is_shown_from_start_to_end(jobs, model, passages, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    runs = TrainingRuns(jobs, tmp_path / "runs", SCRIPT, str(model))
    assert runs.snapshot("ann") is None
    runs.start("ann", QUICK, passages)
    runs.start("ann", QUICK, passages)  # the same click twice
    with pytest.raises(JobRefused, match="Another training run is under way"):
        runs.start("bob", QUICK, passages)
    snapshot = wait_for(runs, "ann", DONE, FAILED, seconds=120)
    assert (snapshot.state, snapshot.error) == (DONE, None), snapshot.log
    assert snapshot.phase == "The round is done"
    assert {(one.round, one.passage, one.number) for one in snapshot.candidates} == {
        (1, name, number) for name in ("Ann", "Bob") for number in (1, 2)
    }
    assert all(one.reward is not None and one.kept is not None and one.text for one in snapshot.candidates)
    # The script shuffles the passages: each self-edit is shown with the one that it was written for.
    written_for = [edit.prompt for edit in Journal(snapshot.folder / "run").proposals(0)]
    assert all(
        f"{one.passage} keeps bees" in str(prompt)
        for one, prompt in zip(snapshot.candidates, written_for, strict=True)
    )
    assert [evaluation.round for evaluation in snapshot.evaluations] == [0, 1]
    run = snapshot.folder / "run"
    assert (run / "adapter_model.safetensors").is_file() and (run / "rewards.png").is_file()
    assert runs.snapshot("bob") is None

    # The script's own resume is tested with the script.
    runs._script = stub(tmp_path, "import sys\nprint(sys.argv[1:])")
    runs.resume("ann")
    resumed = wait_for(runs, "ann", DONE, FAILED)
    assert (resumed.state, resumed.candidates) == (DONE, snapshot.candidates)
    options = ["--config", str(snapshot.folder / CONFIG_NAME), "--resume_from_checkpoint", "true"]
    assert resumed.log.splitlines()[-1] == str(options)


def test_a_run_that_fails_says_why_and_frees_the_place(jobs, tmp_path):
    script = stub(tmp_path, "import sys\nprint('loading')\nsys.exit('error: There is no room on the disk.')")
    runs = TrainingRuns(jobs, tmp_path / "runs", script, "m")
    runs.start("ann", QUICK)
    snapshot = wait_for(runs, "ann", FAILED)
    assert snapshot.error == "There is no room on the disk."
    assert "There is no room" in train_tab.status_text(snapshot) and "Resume" in train_tab.status_text(snapshot)
    launch_when_free(lambda: runs.start("bob", QUICK))
    wait_for(runs, "bob", FAILED)
    first = runs.snapshot("bob").folder
    launch_when_free(lambda: runs.start("bob", QUICK))
    assert runs.snapshot("bob").folder != first and (first / CONFIG_NAME).is_file()


def test_an_error_is_that_of_the_last_launch(jobs, tmp_path):
    first = tmp_path / "first"
    script = stub(
        tmp_path,
        f"import pathlib, sys\nfirst = pathlib.Path({str(first)!r})\n"
        "if not first.exists():\n first.touch(); sys.exit('error: The disk is full.')\nraise RuntimeError('of bees')",
    )
    runs = TrainingRuns(jobs, tmp_path / "runs", script, "m")
    runs.start("ann", QUICK)
    assert wait_for(runs, "ann", FAILED).error == "The disk is full."
    launch_when_free(lambda: runs.resume("ann"))
    snapshot = wait_for(runs, "ann", FAILED)
    assert snapshot.error == "RuntimeError: of bees"
    assert "The disk is full." in snapshot.log  # what was said before stays to be read


def test_self_edits_are_shown_with_their_passage(jobs, passages, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    runs.start("ann", QUICK, passages)
    folder = wait_for(runs, "ann", DONE).folder
    config = yaml.safe_load((folder / CONFIG_NAME).read_text())
    taken = load_dataset_argument(config["dataset_name"], None, config["num_train_passages"], config["shuffle_seed"])
    proposals = [
        Proposal(0, "self-edits", place, str(place), 0, "Write.", example["title"], 1, True, 1, [0])
        for place, example in enumerate(taken)
    ]
    Journal(folder / "run").write_proposals(0, proposals)
    assert [one.passage for one in runs.snapshot("ann").candidates] == [example["title"] for example in taken]
    assert taken != PASSAGES[:2]


def test_files_that_go_while_they_are_read_are_read_again(jobs, tmp_path, monkeypatch):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, "import time\ntime.sleep(60)"), "m")
    runs.start("ann", QUICK)
    journal = Journal(runs.snapshot("ann").folder / "run")
    journal.write_proposals(0, [Proposal(0, "self-edits", 0, "0", 0, "Write.", "Bees.", 1, True, 1, [0])])
    journal.write_bank(0, 0, [TrialResult("self-edits", 0, 0, 0, 0, 0.5, ["a"], [True], None, 1, 1.0)])
    read, reads = Path.read_bytes, []

    def read_what_goes(path):
        if path.name == "bank_0000.jsonl" and not reads:
            reads.append(path)
            journal.forget_banks(0)  # as the trainer does once a round is scored
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_what_goes)
    (candidate,) = runs.snapshot("ann").candidates
    assert reads and candidate.text == "Bees."
    runs.stop("ann")
    wait_for(runs, "ann", STOPPED)


@pytest.mark.parametrize(("is_saved", "state"), [(True, DONE), (False, STOPPED)])
def test_an_app_that_starts_again_tells_a_run_that_is_done_from_one_that_is_not(jobs, tmp_path, is_saved, state):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    runs.start("ann", QUICK)
    snapshot = wait_for(runs, "ann", DONE)
    if is_saved:
        (snapshot.folder / "run").mkdir()
        (snapshot.folder / "run" / "adapter_model.safetensors").touch()
    assert TrainingRuns(jobs, tmp_path / "runs", None, "m").snapshot("ann").state == state


@pytest.mark.parametrize("num_eval_passages", [0, 3])
def test_a_page_that_is_loaded_again_has_the_settings_of_its_run(jobs, tmp_path, num_eval_passages):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    settings = TrainingSettings(3, num_eval_passages, num_rounds=3, temperature=0.9, seed=7)
    runs.start("ann", settings)
    wait_for(runs, "ann", DONE)
    assert TrainingRuns(jobs, tmp_path / "runs", None, "m").settings("ann") == settings
    assert runs.settings("bob") is None


def test_a_session_whose_run_has_ended_expires(bench, tmp_path, monkeypatch):
    """On one's own machine, too. Its files stay."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sessions_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    bench.runs = runs = TrainingRuns(bench.jobs, tmp_path / "runs", stub(tmp_path, "import time\ntime.sleep(60)"), "m")
    session = bench.sessions.open()
    runs.start(session.id, QUICK)
    for clock.now in (1e5, 2e5):  # days without its page
        bench.sessions.sweep()
    assert runs.is_running(session.id) and session.folder.is_dir()
    folder = runs.snapshot(session.id).folder
    runs.stop(session.id)
    runs._runs[session.id].wait()
    clock.now += 3601
    bench.sessions.sweep()
    assert not session.folder.exists() and (folder / CONFIG_NAME).is_file()


def test_no_folder_is_named_to_others():
    said = "/home/ann/runs/a.py, line 3: no '/srv/b/c.txt' (https://huggingface.co/a/b) in ./x/y, 3/4 of a/b"
    assert without_folders(said) == "a.py, line 3: no 'c.txt' (https://huggingface.co/a/b) in ./x/y, 3/4 of a/b"
