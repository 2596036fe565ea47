"""Attacks on the room that all visitors share: the disk beside their sessions' folders, and the memory."""

import errno
import logging
import shutil
import threading
import zipfile
from dataclasses import replace

import pytest

from helpers.hub_server import Repo
from helpers.web_page import QUESTIONS, QUICK, finish
from seal_hf.adapters import adapter as adapter_module
from seal_hf.hub.errors import HubError
from seal_hf.webui.work import device_work, loaded_adapters, quota, sharing
from seal_hf.webui.work.errors import explain
from seal_hf.webui.work.jobs import FAILED, JobRefused
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_runs import TrainingRuns


@pytest.fixture
def archive(with_adapters, tmp_path):
    """Makes a zip file of an adapter, to be loaded and removed."""
    return lambda name: shutil.copy(with_adapters.adapter().file, tmp_path / name)


def test_adapters_that_are_loaded_at_once_fit_together(bench, archive, monkeypatch):
    """Each for itself would fit."""
    sessions, going, reading = [bench.sessions.open() for _ in range(2)], threading.Event(), threading.Event()
    read, num_bytes = adapter_module.read_weights, []

    def slow_read(files, layout):
        num_bytes.append(layout.num_bytes)
        reading.set()
        assert going.wait(30)
        return read(files, layout)

    monkeypatch.setattr(adapter_module, "read_weights", slow_read)
    first = threading.Thread(target=sharing.load_adapter, args=(bench.lm, sessions[0], archive("a.zip")))
    first.start()
    assert reading.wait(30)
    enough = quota.SPARE_MEMORY + 5 * num_bytes[0]
    monkeypatch.setattr(quota, "free_memory", lambda device: enough)
    with pytest.raises(JobRefused, match="no memory for an adapter of .* now: try again in a minute"):
        sharing.load_adapter(bench.lm, sessions[1], archive("b.zip"))
    going.set()
    first.join()
    assert len(num_bytes) == 1 and sessions[0].adapters and not sessions[1].adapters
    sharing.load_adapter(bench.lm, sessions[1], archive("c.zip"))
    assert sessions[1].adapters


def test_adapters_that_stay_in_memory_have_a_limit_of_bytes(lm, with_adapters, monkeypatch):
    monkeypatch.setattr(loaded_adapters, "_adapters", type(loaded_adapters._adapters)())
    files = [kept.file for kept in with_adapters.adapters.values()]
    monkeypatch.setattr(loaded_adapters, "_LOADED_BYTES", files[0].stat().st_size + 1)
    for file in files:
        assert loaded_adapters.loaded_adapter(lm, file) is loaded_adapters.loaded_adapter(lm, file)
    assert [file for file, _ in loaded_adapters._adapters] == files[1:]
    monkeypatch.setattr(quota, "free_memory", lambda device: quota.SPARE_MEMORY)
    with pytest.raises(JobRefused, match="no memory"):
        loaded_adapters.loaded_adapter(lm, files[0])


def test_a_copy_for_a_push_has_room_or_is_not_made(bench, with_adapters, monkeypatch):
    monkeypatch.setattr(quota, "SESSION_BYTES", quota.used_bytes(with_adapters.folder) + 1000)
    monkeypatch.setattr(sharing, "with_namespace", lambda *arguments: pytest.fail("the Hub was asked"))
    with pytest.raises(JobRefused, match="There is no room for .* is the limit of a visitor: delete some adapters"):
        sharing.push(bench.lm, with_adapters, None, "bees", private=True, publish_passage=False, token="hf_any")


def test_what_the_hub_sends_counts_while_it_comes(bench, session, archive, hub, monkeypatch):
    with zipfile.ZipFile(archive("a.zip")) as files:
        hub.add_repo(Repo("ann/adapter"), {name: files.read(name) for name in files.namelist()})
    free, read = [], adapter_module.read_weights
    before = quota.free_bytes(session.folder)

    def watched(files, layout):
        free.append((before - quota.free_bytes(session.folder)) // layout.num_bytes)
        return read(files, layout)

    monkeypatch.setattr(adapter_module, "read_weights", watched)
    sharing.load_adapter(bench.lm, session, "ann/adapter", False)
    assert free[0] >= 3 and before - quota.free_bytes(session.folder) == session.adapter().num_bytes


# --- training runs ---


@pytest.fixture
def runs_of_others(bench, tmp_path):
    """Makes the training runs of an app that others reach, with a script that writes a megabyte and waits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\nfolder = pathlib.Path(sys.argv[2]).parent\n"
        "(folder / 'policy').write_bytes(bytes(10**6))\ntime.sleep(60)"
    )
    limits = replace(SHARED, run_seconds=1000)

    def made(**options):
        folder = tmp_path / "runs"
        return TrainingRuns(bench.jobs, folder, script, "m", limits=limits, sessions=bench.sessions, **options)

    return made


SETTINGS = TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1)


def test_a_training_run_for_which_there_is_no_room_does_not_start(bench, session, runs_of_others, monkeypatch):
    monkeypatch.setattr(quota, "SESSION_BYTES", 25_000_000)
    runs = runs_of_others(policy_bytes=5_000_000)
    with pytest.raises(JobRefused, match="There is no room for 30.0 MB, .* is the limit of a visitor"):
        runs.start(session.id, SETTINGS)
    assert runs.snapshot(session.id) is None


def test_a_training_run_counts_as_its_session_and_its_visitor(bench, session, runs_of_others):
    other = bench.sessions.open()
    session.visitor = other.visitor = "ann"
    runs, before, before_other = runs_of_others(), quota.free_bytes(session.folder), quota.free_bytes(other.folder)
    runs.start(session.id, SETTINGS)
    policy = runs.snapshot(session.id).folder / "policy"
    while not policy.exists() or policy.stat().st_size < 10**6:
        pass
    runs.stop(session.id)
    runs._runs[session.id].wait()
    while quota._reserved[session.folder]:
        pass
    assert before - quota.free_bytes(session.folder) >= 10**6
    assert 0 < runs._usage.total("ann") < 60 and quota.free_bytes(other.folder) == before_other
    runs._usage.add("ann", 1000)
    with pytest.raises(JobRefused, match="Your runs have taken 17 minutes"):
        runs.start(other.id, SETTINGS)
    runs.forget(session.id)
    assert quota.free_bytes(session.folder) == before


# --- what is said where the disk is full ---


def test_a_full_disk_shows_no_path(bench, with_adapters, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "/srv/private/adapters/a could not be written (No space left on device)")

    monkeypatch.setattr(device_work, "save_zip", full)
    with caplog.at_level(logging.ERROR):
        log, _ = finish(bench, bench.adapt(with_adapters, [0], QUICK, QUESTIONS))
    assert log.state == FAILED
    assert (
        log.error
        == "The app's disk is full: delete some adapters under Adapters or books under Shelf, or try again later."
    )
    assert "/srv/private/adapters/a" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/srv/private/a"),
            "The app could not read or write a file",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "/srv/private/a"), "The app could not read or write a file"),
        (OSError("/srv/private/a.txt is damaged"), "a.txt is damaged"),
        (ValueError("/srv/private/a.json, row 1 has no question"), "a.json, row 1 has no question"),
        (HubError("ann/a is damaged (/srv/private/a)"), "ann/a is damaged (a)"),
        (HubError("See https://huggingface.co/ann/a"), "See https://huggingface.co/ann/a"),
        (HubError("The download of ann/a failed; try again."), "The download of ann/a failed; try again."),
        (JobRefused("There is no adapter yet."), "There is no adapter yet."),
    ],
)
def test_an_error_is_said_without_a_path(error, said):
    assert said in explain(error) and "/srv" not in explain(error)
