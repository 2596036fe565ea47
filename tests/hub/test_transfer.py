"""Uploads and downloads with a Hub that does not answer: they give up in time, and Ctrl+C ends the wait at once."""

import signal
import subprocess
import sys

import httpx2
import pytest
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from helpers.outer_loop import child_environment
from helpers.processes import wait_for
from seal_hf.hub.errors import HubError, without_tokens
from seal_hf.hub.transfer import download, hub_api, upload


REPO = "tester/files"


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


def test_tokens_of_a_sign_in_are_taken_out_whole():
    shown = (
        "Illegal header value b'Bearer hf_oauth_eyJh.eyJ-x_y.sig-1': hf_oauth_eyJh.eyJ-x_y.sig-1 and hf_abc. A word"
    )
    assert without_tokens(shown) == "Illegal header value b'Bearer hf_***': hf_*** and hf_***. A word"
