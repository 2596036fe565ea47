"""What a run's folder keeps: policies appear whole, the furthest state is loaded, and a copy is all of a run or none."""

import errno
import os
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from helpers.run_folders import begun_run, contents, tiny_settings
from seal_hf.records.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return begun_run(tmp_path / "run")


def test_a_policy_appears_whole(tmp_path):
    folder = RunFolder(tmp_path, {})
    partial = folder.begin_policy(1)
    (partial / "adapter_model.safetensors").write_bytes(b"half")
    assert partial.is_dir() and not folder.policy(1).exists()
    assert folder.load_state() == {}
    # Begun anew, as after a crash, it has nothing of before.
    partial = folder.begin_policy(1)
    assert list(partial.iterdir()) == []
    (partial / "adapter_model.safetensors").write_bytes(b"whole")
    folder.finish_policy(1)
    assert not partial.exists()
    assert folder.policy(1) == tmp_path / "policy" / "round_001"
    assert contents(folder.policy(1)) == {"adapter_model.safetensors": b"whole"}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_policy_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch, function):
    folder = RunFolder(tmp_path, {})
    (folder.begin_policy(0) / "adapter_config.json").write_text("{}")

    def failing(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(OSError):
        folder.finish_policy(0)
    assert not folder.policy(0).exists()


def trainer_state(step, entries):
    return TrainerState(global_step=step, epoch=step / 4, log_history=[{"loss": i, "step": i} for i in range(entries)])


def test_state_round_trip(tmp_path):
    folder = RunFolder(tmp_path, {})
    assert folder.load_state() == {}
    state = trainer_state(6, 2)
    state.stateful_callbacks = {"Patience": {"args": {}, "attributes": {"left": 1}}}
    folder.save_state(state)
    log = [{"loss": 0, "step": 0}, {"loss": 1, "step": 1}]
    expected = {"global_step": 6, "epoch": 1.5, "log_history": log, "best_metric": None}
    assert folder.load_state() == expected | {"stateful_callbacks": state.stateful_callbacks}


@pytest.mark.parametrize(
    ("own", "first", "second", "furthest"),
    [
        ((6, 2), (4, 9), (5, 9), (6, 2)),
        ((6, 2), (7, 1), (5, 9), (7, 1)),
        ((6, 2), (6, 3), (8, 1), (8, 1)),
        ((6, 4), (6, 3), (6, 2), (6, 4)),  # of as many steps, the one that has logged more
        ((6, 2), (6, 3), (6, 5), (6, 5)),
        (None, (2, 1), (3, 1), (3, 1)),
    ],
)
def test_the_furthest_state_is_loaded(tmp_path, own, first, second, furthest):
    folder = RunFolder(tmp_path, {})
    if own is not None:
        folder.save_state(trainer_state(*own))
    for round_index, entry in enumerate((first, second)):
        partial = folder.begin_policy(round_index)
        folder.save_state(trainer_state(*entry), partial)
        folder.finish_policy(round_index)
    folder.save_state(trainer_state(99, 99), folder.begin_policy(2))  # never finished
    found = folder.load_state()
    assert (found["global_step"], len(found["log_history"])) == furthest


class Killed(BaseException):
    """Ends a process in which nothing else comes to be done."""


@pytest.fixture
def cached(run, tmp_path):
    """A complete run as the Hub's cache has it: links, beside files that others fetched."""
    run.journal.write_selected(0, [])
    run.begin_policy(0).joinpath("adapter_model.safetensors").write_bytes(b"weights")
    run.finish_policy(0)
    for name in ("policy/round_000/adapter_model.bin", "notes.txt", "elsewhere/run.json"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("of others")
    folder = tmp_path / "cached"
    for name in contents(run.path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(run.path / name)
    names = {"run.json", "proposals/round_000.jsonl", "selected/round_000.jsonl"}
    files = {name: data for name, data in contents(folder).items() if name in names or name.endswith(".safetensors")}
    assert len(files) == 4
    return SimpleNamespace(path=folder, files=files)


def test_a_copy_has_the_files_of_a_run(cached, tmp_path):
    copied = RunFolder(tmp_path / "copied", tiny_settings())
    copied.copy_from(cached.path)
    assert contents(copied.path) == cached.files and copied.holds_a_run()
    assert not any(path.is_symlink() for path in copied.path.rglob("*"))
    copied.open(True, 0)


@pytest.mark.parametrize("num_renamed", [0, 1, 3, 4])
def test_a_copy_that_was_killed_is_made_again(cached, tmp_path, monkeypatch, num_renamed):
    copied = RunFolder(tmp_path / "copied", tiny_settings())
    renamed = []

    def replace(source, target):
        if len(renamed) == num_renamed:
            raise Killed
        os.rename(source, target)
        renamed.append(target)

    with monkeypatch.context() as killed:
        killed.setattr("seal_hf.records.run_folder.os.replace", replace)
        killed.setattr("pathlib.Path.rmdir", lambda path: replace(path, path))
        with pytest.raises(Killed):
            copied.copy_from(cached.path)
    copied = RunFolder(tmp_path / "copied", tiny_settings())
    if num_renamed == len(cached.files):  # all but the removal of an empty folder
        assert copied.holds_a_run()
    else:
        assert not copied.holds_a_run()
        for resume in (True, False):
            message = "holds half of a run from the Hub; .*='last-checkpoint', or give another"
            with pytest.raises(ValueError, match=message):
                copied.check(resume, 0)
        (copied.path / "policy" / "round_009").mkdir(parents=True)  # of a commit that is no longer the last
        copied.copy_from(cached.path)
    copied.open(True, 0)
    copied.remove_staged()
    assert contents(copied.path) == cached.files
    assert {path.name for path in copied.path.iterdir()} == {"run.json", "policy", "proposals", "selected"}
    assert copied.num_policies() == 1


def test_a_copy_for_which_there_is_no_room_leaves_nothing(cached, tmp_path, monkeypatch):
    def copyfile(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copied = RunFolder(tmp_path / "copied", tiny_settings())
    with monkeypatch.context() as full:
        full.setattr("shutil.copyfile", copyfile)
        with pytest.raises(OSError, match="copied could not be written .*No space left.*; make room"):
            copied.copy_from(cached.path)
    assert list(copied.path.iterdir()) == []
    copied.copy_from(cached.path)
    assert contents(copied.path) == cached.files
