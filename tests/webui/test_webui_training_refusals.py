"""Training runs that do not start: for want of passages, of room or of time, or since others reach the page."""

import errno
import json
from dataclasses import replace

import pytest
import yaml

from helpers.training_runs import PASSAGES, QUICK, launch_when_free, stub, wait_for
from seal_hf.webui.tabs import train_tab
from seal_hf.webui.work import training_runs
from seal_hf.webui.work.errors import explain
from seal_hf.webui.work.jobs import DONE, STOPPED, JobRefused
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_folders import RunFolders
from seal_hf.webui.work.training_records import CONFIG_NAME
from seal_hf.webui.work.training_runs import TrainingRuns


def test_every_round_needs_passages_of_its_own(jobs, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    with pytest.raises(ValueError, match="3 rounds, each on passages .* but 2 are to be learned from"):
        runs.start("ann", replace(QUICK, num_rounds=3))
    assert runs.snapshot("ann") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json, line 1: malformed JSON"),
        ("a.json", "[]", "a.json is empty"),
        ("a.jsonl", '{"context": "Ann"}', "no questions"),
        ("a.txt", "Ann", "a.txt is not a passage file"),
        ("a.json", json.dumps(PASSAGES[:1]), "There are 1 passages, but 2"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence_before_anything_starts(jobs, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    with pytest.raises(ValueError, match=message) as refusal:
        runs.start("ann", QUICK, file)
    assert str(tmp_path) not in explain(refusal.value)
    assert runs.snapshot("ann") is None


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_in_the_way_of_the_next_run(jobs, tmp_path, monkeypatch):
    file = tmp_path / "passages.json"
    file.write_text(json.dumps(PASSAGES))
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")

    def copy_nothing(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("shutil.copyfile", copy_nothing)
        runs.start("ann", QUICK, file)
    assert runs.snapshot("ann") is None
    runs.start("ann", QUICK, file)
    assert wait_for(runs, "ann", "failed", "done", "stopped").folder.name == "run_001"


def test_without_the_script_the_command_remains(jobs, tmp_path):
    thinking = {"enable_thinking": False}
    runs = TrainingRuns(jobs, tmp_path / "runs", None, "user/model", load_in_4bit=True, chat_template_kwargs=thinking)
    with pytest.raises(JobRefused, match="start it on your own machine"):
        runs.start("ann", QUICK)
    config = yaml.safe_load(runs.yaml(TrainingSettings(num_eval_passages=0), "mine.json"))
    assert config["model_name_or_path"] == "user/model" and config["load_in_4bit"] is True
    assert config["chat_template_kwargs"] == thinking
    assert config["dataset_name"] == "mine.json" and "dataset_test_split" not in config
    assert "num_eval_passages" not in config and "eval_dataset_name" not in config


def test_a_run_of_others_is_small_short_and_replaces_the_one_before(jobs, tmp_path):
    script = stub(tmp_path, "import time\ntime.sleep(60)")
    runs = TrainingRuns(jobs, tmp_path / "runs", script, "m", limits=replace(SHARED, run_seconds=0.5))
    large = TrainingSettings(
        num_train_passages=100, num_eval_passages=20, num_rounds=10, num_generations=3, inner_num_train_epochs=20
    )
    with pytest.raises(
        ValueError, match="learns 520 self-edits .*, times 20 epochs is 10,400, and 1,000 is the limit"
    ):
        runs.start("ann", large)
    assert runs.snapshot("ann") is None
    runs.start("ann", QUICK)
    stopped = wait_for(runs, "ann", STOPPED, seconds=30)
    assert stopped.error == "A visitor's runs are ended after 1 minute here."
    assert stopped.error in train_tab.status_text(stopped)
    for again in (lambda: runs.resume("ann"), lambda: runs.start("ann", QUICK)):
        with pytest.raises(
            JobRefused, match="Your runs have taken 1 minute, .* try again in 1 minute, or start the run"
        ):
            again()
    runs._usage._uses.clear()
    launch_when_free(lambda: runs.start("ann", QUICK))
    assert [folder.name for folder in runs.folders.runs("ann")] == ["run_002"] and not stopped.folder.exists()
    runs.forget("ann")
    assert not runs.is_running("ann") and runs.snapshot("ann") is None and not stopped.folder.parent.exists()


def test_the_user_of_this_machine_has_no_limits(jobs, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    with pytest.raises(ValueError, match="There are .* passages, but 200 are to be learned from"):
        runs.start("ann", TrainingSettings(num_train_passages=200, num_rounds=10))
    runs.start("ann", QUICK)
    first = wait_for(runs, "ann", DONE).folder
    launch_when_free(lambda: runs.start("ann", QUICK))
    wait_for(runs, "ann", DONE)
    assert len(runs.folders.runs("ann")) == 2 and first.exists()


def test_a_run_whose_settings_are_damaged_is_not_resumed(jobs, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    folder = runs.folders.make("ann")
    for content in ("{", "[1]", "seed: 1"):
        (folder / CONFIG_NAME).write_text(content)
        for ask in (runs.resume, runs.snapshot, runs.settings):
            with pytest.raises(ValueError, match="settings of the run run_001 cannot be read.* start a new run"):
                ask("ann")
    assert not runs.is_running("ann")


def test_a_run_that_does_not_begin_says_why(jobs, tmp_path, monkeypatch):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    (runs.folders.make("ann") / CONFIG_NAME).write_text(runs.yaml(QUICK))

    def fail(*arguments):
        raise RuntimeError("no thread can be started")

    monkeypatch.setattr(training_runs, "start_script", fail)
    with pytest.raises(RuntimeError, match="no thread"):
        runs.resume("ann")
    assert runs.snapshot("ann").state == STOPPED


def test_a_folder_without_settings_is_in_the_way_of_no_run(tmp_path):
    folders = RunFolders(tmp_path)
    assert [folders.make("ann").name for _ in range(2)] == ["run_001", "run_002"]  # the app was killed after the first
    assert folders.runs("ann") == []
