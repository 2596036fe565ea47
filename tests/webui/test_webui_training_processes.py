"""The processes of training runs: how they are stopped, paused and killed, and end with the app."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.folders import ROOT
from helpers.training_runs import QUICK, state_of, stub, wait_for
from seal_hf.webui.work import training_process
from seal_hf.webui.work.jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused
from seal_hf.webui.work.training_records import CONFIG_NAME
from seal_hf.webui.work.training_runs import TrainingRuns


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
    kill = training_process.os.killpg

    def slow_kill(group, number):
        if number == signal.SIGSTOP:  # the job ends just before the new process is paused
            stopping.set()
            time.sleep(0.3)
        kill(group, number)

    monkeypatch.setattr(training_process.os, "killpg", slow_kill)
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
