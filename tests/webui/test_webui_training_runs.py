"""Runs of the outer loop: what the page learns about them, and how they are stopped, paused and resumed."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from helpers.folders import ROOT, TRAINERS
from helpers.tiny_models import save_tiny_model
from seal_hf.records.journal import Journal
from seal_hf.records.schema import Proposal, TrialResult
from seal_hf.webui.tabs import train_tab
from seal_hf.webui.work import sessions as sessions_module
from seal_hf.webui.work import training_runs
from seal_hf.webui.work.errors import without_folders
from seal_hf.webui.work.jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_records import CONFIG_NAME
from seal_hf.webui.work.training_runs import TrainingRuns
from trainers.arguments import load_dataset_argument


SCRIPT = TRAINERS / "knowledge.py"
QUICK = TrainingSettings(
    num_train_passages=2,
    num_eval_passages=1,
    num_generations=2,
    prompt_style="rewrite",
    max_completion_length=16,
    inner_num_train_epochs=1,
    num_train_epochs=1,
)
PASSAGES = [
    {"title": name, "context": f"{name} keeps bees.", "questions": [{"question": "Who?", "answer": name}]}
    for name in ("Ann", "Bob", "Cleo")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def passages(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PASSAGES))
    return file


def stub(tmp_path, text):
    """A script that replaces the trainer's."""
    file = tmp_path / "stub.py"
    file.write_text(text)
    return file


def wait_for(runs, owner, *states, seconds=60):
    for _ in range(seconds * 20):
        if (snapshot := runs.snapshot(owner)).state in states:
            return snapshot
        time.sleep(0.05)
    raise AssertionError(f"still {snapshot.state}: {snapshot.log}")


def state_of(process):
    """The state of a process in Linux; "T" for one that is paused."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def launch_when_free(launch):
    """Launch a run as soon as the one before it no longer counts as under way."""
    for _ in range(100):
        try:
            return launch()
        except JobRefused:
            time.sleep(0.02)
    raise AssertionError("another run is still under way")


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


def test_stop_ends_it_and_resume_goes_on(jobs, tmp_path):
    runs = TrainingRuns(
        jobs, tmp_path / "runs", stub(tmp_path, "import time\nprint('on', flush=True)\ntime.sleep(60)"), "m"
    )
    with pytest.raises(JobRefused, match="There is no run to resume"):
        runs.resume("ann")
    runs.start("ann", QUICK)
    assert runs.snapshot("ann").state == RUNNING and runs.is_running("ann")
    runs.stop("ann")
    runs.stop("ann")
    assert wait_for(runs, "ann", STOPPED).error is None
    runs.resume("ann")
    assert wait_for(runs, "ann", RUNNING).state == RUNNING
    runs.stop("ann")
    wait_for(runs, "ann", STOPPED)
    assert not runs.is_running("ann")


def test_a_job_on_the_device_pauses_it(jobs, tmp_path):
    script = stub(tmp_path, "import time\nfor i in range(10**6):\n print(i, flush=True)\n time.sleep(0.01)")
    runs = TrainingRuns(jobs, tmp_path / "runs", script, "m")
    runs.start("ann", QUICK)
    log = runs.snapshot("ann").folder / "log.txt"
    while not log.stat().st_size:
        time.sleep(0.01)
    going = threading.Event()
    job = jobs.submit("bob", "ask", "", tmp_path / "jobs", lambda job: going.wait(30), seconds=1)
    while not runs.snapshot("ann").is_paused:
        time.sleep(0.01)
    process = runs._runs["ann"].process
    while state_of(process) != "T":
        time.sleep(0.01)
    size = log.stat().st_size
    going.set()
    jobs.wait(job)
    for _ in range(200):
        if log.stat().st_size > size:
            break
        time.sleep(0.02)
    assert log.stat().st_size > size and not runs.snapshot("ann").is_paused
    # One that is paused can be stopped.
    waiting = threading.Event()
    job = jobs.submit("bob", "ask", "again", tmp_path / "jobs", lambda job: waiting.wait(30), seconds=1)
    while not runs.snapshot("ann").is_paused:
        time.sleep(0.01)
    runs.stop("ann")
    wait_for(runs, "ann", STOPPED)
    waiting.set()
    jobs.wait(job)


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


def test_a_run_that_was_killed_is_said_to_be(jobs, tmp_path):
    script = stub(
        tmp_path,
        "import os, signal\nprint('Loading: 100 %', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    runs = TrainingRuns(jobs, tmp_path / "runs", script, "m")
    runs.start("ann", QUICK)
    error = wait_for(runs, "ann", FAILED).error
    assert "SIGKILL" in error and "memory" in error and "fewer self-edits" in error


def test_a_job_that_ends_while_a_run_begins_leaves_it_going(jobs, tmp_path, monkeypatch):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, "import time\ntime.sleep(60)"), "m")
    going, stopping = threading.Event(), threading.Event()
    job = jobs.submit("bob", "ask", "", tmp_path / "jobs", lambda job: going.wait(30), seconds=1)
    while jobs.queue_position(job) != (0, 0.0):
        time.sleep(0.01)
    kill = training_runs.os.killpg

    def slow_kill(group, number):
        if number == signal.SIGSTOP:  # the job ends just before the new process is paused
            stopping.set()
            time.sleep(0.3)
        kill(group, number)

    monkeypatch.setattr(training_runs.os, "killpg", slow_kill)
    starting = threading.Thread(target=runs.start, args=("ann", QUICK))
    starting.start()
    assert stopping.wait(10)
    going.set()
    jobs.wait(job)
    starting.join()
    process = runs._runs["ann"].process
    assert not runs.snapshot("ann").is_paused
    assert state_of(process) != "T"
    runs.stop("ann")
    wait_for(runs, "ann", STOPPED)


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


def test_every_round_needs_passages_of_its_own(jobs, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    with pytest.raises(ValueError, match="3 rounds, each on passages .* but 2 are to be learned from"):
        runs.start("ann", replace(QUICK, num_rounds=3))
    assert runs.snapshot("ann") is None


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
    assert str(tmp_path) not in str(refusal.value)
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


@pytest.mark.parametrize("num_eval_passages", [0, 3])
def test_a_page_that_is_loaded_again_has_the_settings_of_its_run(jobs, tmp_path, num_eval_passages):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, ""), "m")
    settings = TrainingSettings(3, num_eval_passages, num_rounds=3, temperature=0.9, seed=7)
    runs.start("ann", settings)
    wait_for(runs, "ann", DONE)
    assert TrainingRuns(jobs, tmp_path / "runs", None, "m").settings("ann") == settings
    assert runs.settings("bob") is None


def test_the_end_of_the_app_ends_its_runs(jobs, tmp_path):
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, "import time\ntime.sleep(60)"), "m")
    runs.start("ann", QUICK)
    process = runs._runs["ann"].process
    runs.close()
    assert process.wait(20) == -signal.SIGTERM
    assert (runs.snapshot("ann").folder / CONFIG_NAME).is_file()


def test_a_run_ends_when_the_app_is_killed_also_while_it_is_paused(tmp_path):
    program = textwrap.dedent(
        """
        import subprocess, sys, time
        from seal_hf.webui.work.training_process import TrainingProcess

        run = TrainingProcess(is_paused=True)
        run.begin(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True))
        print(run.process.pid, flush=True)
        time.sleep(60)
        """
    )
    app = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(app.stdout.readline())
    app.kill()
    app.wait()
    app.stdout.close()
    for _ in range(600):
        if not Path(f"/proc/{pid}").exists() or state_of(SimpleNamespace(pid=pid)) == "Z":
            return
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    pytest.fail("the run goes on")


def test_a_run_is_closed_to_others_and_has_its_own_place_for_a_moment(jobs, tmp_path, monkeypatch):
    """Also in a folder that was there, for all to read."""
    (tmp_path / "runs").mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "private"))
    runs = TrainingRuns(jobs, tmp_path / "runs", stub(tmp_path, "import tempfile\nprint(tempfile.gettempdir())"), "m")
    (tmp_path / "private").mkdir()
    runs.start("ann", QUICK)
    snapshot = wait_for(runs, "ann", DONE)
    folders = (snapshot.folder, snapshot.folder.parent, tmp_path / "runs")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700, 0o755]
    assert snapshot.log == str(tmp_path / "private")


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
    assert [folder.name for folder in runs._folders("ann")] == ["run_002"] and not stopped.folder.exists()
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
    assert len(runs._folders("ann")) == 2 and first.exists()


def test_no_folder_is_named_to_others():
    said = "/home/ann/runs/a.py, line 3: no '/srv/b/c.txt' (https://huggingface.co/a/b) in ./x/y, 3/4 of a/b"
    assert without_folders(said) == "a.py, line 3: no 'c.txt' (https://huggingface.co/a/b) in ./x/y, 3/4 of a/b"
