# ruff: noqa: E402 (Hugging Face's libraries read their settings at import, so these come first)
import atexit
import gc
import os
import shutil
import socket
import tempfile


def reserved_port() -> socket.socket:
    """A port of 127.0.0.1 that refuses connections, and that only the test Hub takes while this socket is open."""
    holder = socket.socket()
    if hasattr(socket, "SO_REUSEPORT"):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


HUB_PORT = reserved_port()
HUB_FOLDER = tempfile.mkdtemp(prefix="seal-hf-tests-")
atexit.register(shutil.rmtree, HUB_FOLDER, ignore_errors=True)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT.getsockname()[1]}",
    "HF_HUB_CACHE": f"{HUB_FOLDER}/cache",
    "HF_TOKEN_PATH": f"{HUB_FOLDER}/no token",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # the test Hub has LFS alone
}

from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import pytest
import torch
from huggingface_hub import close_session, constants

from seal_hf.models.embedded import EMBEDDED_TINY, embedded_model_path


# Small models on a busy machine are many times slower with two threads than with one, and rounding depends on the number.
torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What was imported stays; without looking through all of it a collection of garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """The long form of the table of architectures runs only where it is asked for."""
    if "architectures" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("architectures")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("architectures")]


@pytest.fixture(scope="session")
def embedded_path():
    """Folder of the smaller embedded model, prepared once in the cache of the user who runs the tests."""
    return embedded_model_path(EMBEDDED_TINY)


@pytest.fixture(scope="session")
def hub_server():
    """The test Hub on the reserved port. Tests take `hub`, which is this one emptied."""
    from helpers.hub_server import Hub

    server = Hub(HUB_PORT.getsockname()[1])
    assert constants.ENDPOINT == server.url, "huggingface_hub was imported before this file"
    yield server
    server.stop()


@pytest.fixture
def hub(hub_server, monkeypatch):
    """The test Hub, running and empty, for clients with empty caches that do not wait before they try again."""
    hub_server.clear()
    hub_server.start()
    shutil.rmtree(f"{HUB_FOLDER}/cache", ignore_errors=True)
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda seconds: None))
    yield hub_server
    hub_server.reset_faults()
    assert hub_server.errors == [], "the test Hub itself failed"


@pytest.fixture
def token():
    """The token of "tester", who may write. It is nowhere on this machine but in the tests."""
    from helpers.hub_server import TESTER

    return TESTER.token


@pytest.fixture
def short_silence(monkeypatch):
    """Uploads give up within half a second on a Hub that does not answer."""
    close_session()
    monkeypatch.setattr("seal_hf.hub.transfer._SILENCE", httpx2.Timeout(0.5))
    for module in ("transfer", "model_card"):
        monkeypatch.setattr(f"seal_hf.hub.{module}.LOOK_UP_SECONDS", 0.5)
    yield
    close_session()


@contextmanager
def no_pictures():
    # They take a third of a small run; test_plot.py and test_knowledge_script.py draw them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seal_hf.outer_loop.seal_trainer.save_plot", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def without_pictures():
    with no_pictures():
        yield


# The modules of the runs below take seconds to import, which only the tests of the trainer need.


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """An unbroken run of two rounds, with everything that was seen of it."""
    from helpers.observing import BASE_ID, Recorder, observed
    from helpers.outer_loop import tiny_trainer
    from helpers.tiny_models import tiny_llama

    folder = tmp_path_factory.mktemp("run") / "out"
    model = tiny_llama()
    model.config.name_or_path = BASE_ID
    recorder = Recorder()
    trainer = tiny_trainer(folder, model=model, callbacks=[recorder])
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with no_pictures():
        fits, rows, output = observed(trainer)
    return SimpleNamespace(
        trainer=trainer,
        folder=folder,
        start=everything,
        log=list(trainer.state.log_history),
        events=list(recorder.events),
        passes=list(recorder.passes),
        metrics=list(recorder.metrics),
        recorder=recorder,
        fits=fits,
        rows=rows,
        output=output,
    )


@pytest.fixture(scope="session")
def bf16_run(tmp_path_factory):
    """A run of a bf16 base without evaluation, whose SFT sees the self-edits of all rounds."""
    from helpers.observing import Recorder, observed, small_trainer
    from helpers.tiny_models import tiny_llama

    folder, recorder = tmp_path_factory.mktemp("bf16"), Recorder()
    model = tiny_llama(dtype=torch.bfloat16)
    trainer = small_trainer(folder, model=model, num_eval=0, sft_on="all", bf16=True, callbacks=[recorder])
    with no_pictures():
        _, rows, _ = observed(trainer)
    return SimpleNamespace(trainer=trainer, folder=folder, rows=rows, events=recorder.events, passes=recorder.passes)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A small unbroken run, to compare broken ones with."""
    from helpers.observing import policy_of, records, small_trainer

    folder = tmp_path_factory.mktemp("reference")
    trainer = small_trainer(folder)
    with no_pictures():
        trainer.train()
    return SimpleNamespace(folder=folder, records=records(folder), policy=policy_of(trainer.model))
