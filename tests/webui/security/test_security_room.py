"""Attacks on the room that all visitors share: the disk beside their sessions' folders, and the memory."""

import shutil
import threading
import zipfile

import pytest

from helpers.hub_server import Repo
from seal_hf.adapters import adapter as adapter_module
from seal_hf.webui.work import device, quota, sharing
from seal_hf.webui.work.jobs import JobRefused


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
    monkeypatch.setattr(device, "_adapters", type(device._adapters)())
    files = [kept.file for kept in with_adapters.adapters.values()]
    monkeypatch.setattr(device, "_LOADED_BYTES", files[0].stat().st_size + 1)
    for file in files:
        assert device._adapter(lm, file) is device._adapter(lm, file)
    assert list(device._adapters) == files[1:]
    monkeypatch.setattr(quota, "free_memory", lambda device: quota.SPARE_MEMORY)
    with pytest.raises(JobRefused, match="no memory"):
        device._adapter(lm, files[0])


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
