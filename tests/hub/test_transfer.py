"""Uploads and downloads with a Hub that does not answer, and what is said of an error of the Hub."""

import errno

import httpx2
import pytest
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled, XetDownloadError
from huggingface_hub.utils._http import default_client_factory

from seal_hf.hub.errors import HubError, explaining_hub_errors, without_tokens
from seal_hf.hub.transfer import download, hub_api, upload


REPO = "tester/files"


@pytest.fixture
def folder(tmp_path):
    """Two large files and a small one."""
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    for name, data in (("data/a.bin", b"\0a"), ("b.bin", b"\0b"), ("c.txt", b"c")):
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "^/_lfs/", "/commit/"])
def test_an_upload_gives_up(hub, token, folder, short_silence, path):
    hub.fall_silent(path)
    options = {"repo_type": "dataset", "token": token, "safe": "All is here."}
    with pytest.raises(
        HubError, match=r"the Hub \(http.*\) could not be reached \(.*timed out.*All is here"
    ) as raised:
        upload(folder, REPO, commit_message="first", **options)
    assert not raised.value.is_refusal
    hub.reset_faults()
    upload(folder, REPO, commit_message="second", **options)
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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Data processing error: CAS Client Error: of Xet"), "could not be reached .*; try again later"),
        (XetDownloadError("of Xet"), "could not be reached .*; try again later"),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full; make room, or set HF_HOME to a larger disk"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_errors_name_the_cause_and_the_next_step(error, message):
    for raised in (error, RuntimeError("an upload of one file")):
        raised.__cause__ = None if raised is error else error
        with pytest.raises(HubError, match=f"^The upload failed: .*{message}. All is here.$") as explained:
            with explaining_hub_errors("The upload", REPO, "All is here."):
                raise raised
        assert not explained.value.is_refusal
    with pytest.raises(KeyError), explaining_hub_errors("The upload", REPO):
        raise KeyError("nothing of the Hub's")


def test_tokens_of_a_sign_in_are_taken_out_whole():
    shown = (
        "Illegal header value b'Bearer hf_oauth_eyJh.eyJ-x_y.sig-1': hf_oauth_eyJh.eyJ-x_y.sig-1 and hf_abc. A word"
    )
    assert without_tokens(shown) == "Illegal header value b'Bearer hf_***': hf_*** and hf_***. A word"
