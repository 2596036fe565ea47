"""A Hub that takes requests and never answers: whoever waits for it gives up in time, and Ctrl+C ends the wait at once."""

import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from helpers.observing import small_trainer
from helpers.outer_loop import child_environment
from helpers.tiny_models import tiny_llama
from huggingface_hub import close_session, get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from transformers import TrainerCallback

from seal_hf.hub.errors import HubError
from seal_hf.hub.transfer import download, hub_api, upload


REPO = "tester/policy"


@pytest.fixture
def short_silence(monkeypatch):
    close_session()
    monkeypatch.setattr("seal_hf.hub.transfer._SILENCE", httpx2.Timeout(0.5))
    for module in ("transfer", "model_card"):
        monkeypatch.setattr(f"seal_hf.hub.{module}.LOOK_UP_SECONDS", 0.5)
    monkeypatch.setattr("seal_hf.outer_loop.publishing._RETRY_WAITS", (0.0, 0.0))
    yield
    close_session()


@pytest.fixture
def folder(tmp_path):
    """Two large files in a folder, a small one, and one that is half written."""
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    for name, data in (("data/a.bin", b"\0a"), ("b.bin", b"\0b"), ("c.txt", b"c"), ("d.bin.partial", b"\0d")):
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "^/_lfs/", "/commit/"])
def test_an_upload_gives_up(hub, token, folder, short_silence, path):
    hub.fall_silent(path)
    with pytest.raises(
        HubError, match=r"the Hub \(http.*\) could not be reached \(.*timed out\); try again"
    ) as raised:
        upload(folder, REPO, commit_message="first", repo_type="dataset", token=token)
    assert not raised.value.is_refusal and f"Everything is still in {folder}" in str(raised.value)
    hub.reset_faults()
    upload(folder, REPO, commit_message="second", repo_type="dataset", token=token)
    assert set(hub.files(REPO, "dataset")) == {".gitattributes", "data/a.bin", "b.bin", "c.txt"}


def test_a_download_gives_up_or_comes_from_the_cache(hub, token, folder, short_silence):
    upload(folder, REPO, commit_message="first", private=True, token=token)
    hub.fall_silent()
    with pytest.raises(HubError, match="could not be reached .*timed out") as raised:
        download(REPO, ["*"], token=token)
    assert not raised.value.is_refusal
    hub.reset_faults()
    fetched = download(REPO, ["*"], token=token)
    hub.fall_silent()
    assert download(REPO, ["*"], token=token) == fetched
    with pytest.raises(HubError, match="could not be reached .*timed out"):
        upload(folder, REPO, commit_message="second", private=True, token=token)


def test_limits_that_others_have_set_stay():
    try:
        set_client_factory(lambda: httpx2.Client(timeout=7.0))
        hub_api()
        assert get_session().timeout == httpx2.Timeout(7.0)
        set_client_factory(default_client_factory)
        hub_api()
        assert get_session().timeout.read == 100.0
    finally:
        set_client_factory(default_client_factory)


UPLOAD = """
import sys
from seal_hf.hub.transfer import upload
upload(sys.argv[1], "tester/edits", repo_type="dataset", token=sys.argv[2], commit_message="never")
"""


@pytest.mark.slow
def test_ctrl_c_ends_an_upload_that_stalls(hub, token, folder):
    hub.fall_silent("^/_lfs/")
    command = [sys.executable, "-c", UPLOAD, folder, token]
    with subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: hub.requests("^/_lfs/") or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT, printed
    assert token not in printed and len(hub.requests("^/_lfs/")) == 1


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def pushing(hub, token, tmp_path, without_pictures):
    def make(**options):
        model = tiny_llama()
        model.config.name_or_path = "tester/tiny-base"
        defaults = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": token, "num_rounds": 1, "num_eval": 0}
        return small_trainer(tmp_path / "run", model=model, **{**defaults, **options})

    return make


def test_a_run_ends_and_says_that_its_push_did_not_arrive(pushing, hub, caplog, short_silence, monkeypatch, tmp_path):
    monkeypatch.setattr("seal_hf.outer_loop.publishing._PATIENCE", 0.4)
    caplog.set_level("INFO", "seal_hf")
    hub.fall_silent()
    trainer = pushing()
    assert "timed out" in caplog.text and "Training starts all the same" in caplog.text
    assert trainer.train().global_step > 0
    assert "timed out" in trainer.failed_push and f"Everything is in {tmp_path / 'run'}" in trainer.failed_push
    waiting = f"Waiting for the push of the run's last state to {REPO}. Ctrl+C ends the wait: everything is in "
    assert waiting in caplog.text and "It is tried again" not in caplog.text
    hub.reset_faults()
    trainer.push_to_hub()
    assert trainer.failed_push is None and "adapter_model.safetensors" in hub.files(REPO)


def test_ctrl_c_ends_the_wait_for_the_last_push(pushing, hub, tmp_path):
    trainer = pushing()
    hub.fall_silent("/commit/")

    class Interrupt(TrainerCallback):
        def on_push_begin(self, args, state, control, **kwargs):
            threading.Thread(target=self.press, daemon=True).start()

        def press(self):
            wait_for(lambda: hub.requests("/commit/"))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupt = Interrupt()
    trainer.add_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "run" / "policy" / "round_000").is_dir()
    hub.reset_faults()
    again = pushing()
    again.train(resume_from_checkpoint=True)
    assert again.failed_push is None and "adapter_model.safetensors" in hub.files(REPO)
    assert not list((tmp_path / "run").glob(".push-*"))
