"""The test Hub, as huggingface_hub's own client sees it."""

import json
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import hf_raise_for_status
from safetensors.torch import save_file


ID = "tester/adapter"
WEIGHTS = "adapter_model.safetensors"
INDEX = """model-index:
- name: adapter
  results:
  - task: {type: question-answering}
    dataset: {name: passages, type: custom}
    metrics: [{type: accuracy, value: 0.5}]
"""


@pytest.fixture
def api(hub, token):
    return HfApi(token=token)


@pytest.fixture
def pushed(api, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"weight": torch.arange(100_000, dtype=torch.float32)}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text("{}")
    api.create_repo(ID)
    api.upload_folder(repo_id=ID, folder_path=folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights(token, **options):
    return Path(hf_hub_download(ID, WEIGHTS, token=token, **options)).read_bytes()


def test_files_come_back_byte_for_byte(xet_or_lfs, hub, api, pushed, token):
    folder = Path(snapshot_download(ID, token=token))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files(ID)
    assert hub.files(ID) == {**pushed, ".gitattributes": hub.files(ID)[".gitattributes"]}
    assert bool(hub.requests("/xet-write-token/")) == bool(hub.requests("/xet-read-token/")) == (xet_or_lfs == "xet")
    assert bool(hub.requests("^/_lfs/", "PUT")) == (xet_or_lfs == "lfs")


def test_revisions(hub, api, pushed, token):
    first = api.model_info(ID).sha
    api.create_branch(ID, branch="seal/round-1")
    api.upload_file(path_or_fileobj=b"other", path_in_repo=WEIGHTS, repo_id=ID, revision="seal/round-1")
    assert weights(token) == weights(token, revision=first) == pushed[WEIGHTS]
    assert weights(token, revision="seal/round-1") == b"other"
    with pytest.raises(RevisionNotFoundError):
        api.model_info(ID, revision="round-2")


def test_a_commit_of_bytes_that_never_came_is_refused(hub, api, pushed):
    header = {"key": "header", "value": {"summary": "A pointer to nothing"}}
    pointer = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    answer = httpx2.post(
        f"{hub.url}/api/models/{ID}/commit/main",
        content="\n".join(json.dumps(line) for line in (header, pointer)),
        headers={"authorization": f"Bearer {api.token}"},
    )
    with pytest.raises(BadRequestError, match="does not exist"):
        hf_raise_for_status(answer)
    assert hub.requests("/commit/")[-1].status == 400


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: mit\nbase_model: [gpt2, some/base]\n" + INDEX, None),
        ("base_model: /home/me/model", "base_model"),
        ("base_model: outputs/run/model", "base_model"),
        ("license: Apache License 2.0", "license"),
        ("tags: [a", "YAML"),
        (INDEX.replace("type: question-answering", ""), "model-index"),
        (INDEX.replace(", value: 0.5", ""), "model-index"),
    ],
)
def test_cards_are_checked(api, metadata, wrong):
    text = f"---\n{metadata}\n---\nText"
    if wrong is None:
        ModelCard(text).validate()
        return
    api.create_repo(ID)
    with pytest.raises(ValueError, match=wrong):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=ID)


def test_faults(hub, api, pushed, token, monkeypatch):
    # A cut within the first chunk (10 MB) begins anew.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_download(WEIGHTS)
    assert weights(token) == pushed[WEIGHTS]
    first, second = hub.requests(WEIGHTS, "GET")
    assert "range" not in first.headers and second.headers["range"].startswith("bytes=")
    hub.cut_upload()
    api.upload_file(path_or_fileobj=b"more", path_in_repo=WEIGHTS, repo_id=ID)
    assert [record.status for record in hub.requests("^/_lfs/")][-2:] == [None, 200]
    hub.cut_upload("/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=ID)
    hub.answer(503, "/commit/", times=1)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=ID)
    url = hub.url
    hub.stop()
    with pytest.raises(httpx2.ConnectError):
        api.model_info(ID)
    hub.start()
    assert hub.url == url and "a.txt" not in hub.files(ID)
