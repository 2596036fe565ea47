"""The test Hub, as huggingface_hub's own client sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status
from safetensors.torch import save_file


ID = "tester/adapter"
CARD = "---\nbase_model: some/base\nlibrary_name: peft\nlicense: apache-2.0\n---\n# An adapter\n"
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
def folder(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"weight": torch.arange(100_000, dtype=torch.float32)}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def pushed(api, folder):
    api.create_repo(ID)
    api.upload_folder(repo_id=ID, folder_path=folder)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != ".gitattributes"}


def weights(token, repo_id=ID, **options):
    return Path(hf_hub_download(repo_id, WEIGHTS, token=token, **options)).read_bytes()


def test_files_come_back_byte_for_byte(xet_or_lfs, hub, api, pushed, token):
    assert contents(snapshot_download(ID, token=token)) == pushed
    assert hub.files(ID) == {**pushed, ".gitattributes": hub.files(ID)[".gitattributes"]}
    assert bool(hub.requests("/xet-write-token/")) == bool(hub.requests("/xet-read-token/")) == (xet_or_lfs == "xet")
    assert bool(hub.requests("^/_lfs/", "PUT")) == (xet_or_lfs == "lfs")


def test_a_process_of_its_own_downloads_too(xet_or_lfs, hub, pushed, tmp_path):
    code = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(*sys.argv[1:]))"
    out = subprocess.run([sys.executable, "-c", code, ID], capture_output=True, text=True, check=True, env=os.environ)
    assert contents(out.stdout.strip()) == pushed
    assert bool(hub.requests("/xet-read-token/")) == (xet_or_lfs == "xet")


def test_whose_and_what_is_listed(hub, api, pushed):
    assert api.whoami()["name"] == "tester"
    tags = api.model_info(ID).tags
    assert tags == ["peft", "license:apache-2.0", "base_model:some/base", "base_model:adapter:some/base"]
    api.create_repo("seal-org/dataset", repo_type="dataset", private=True)
    assert [model.id for model in api.list_models(filter="base_model:adapter:some/base")] == [ID]
    assert [model.id for model in api.list_models(author="tester", search="ADAPT")] == [ID]
    assert list(api.list_models(filter="base_model:adapter:some/other")) == []
    assert list(api.list_models(author="seal-org")) == list(api.list_models(search="none")) == []
    assert [dataset.id for dataset in api.list_datasets()] == ["seal-org/dataset"]
    assert list(HfApi(token=False).list_datasets()) == []
    assert get_session().get(f"{hub.url}/api/agent-harnesses").status_code == 404


def test_files_of_a_revision(api, hub, pushed):
    api.upload_file(path_or_fileobj=b"one", path_in_repo="deep/er/one.txt", repo_id=ID, commit_message="One")
    first, _, _ = commits = api.list_repo_commits(ID)
    assert first.title == "One" and commits[-1].title == "initial commit"
    top = {entry.path for entry in api.list_repo_tree(ID)}
    assert top == {*pushed, ".gitattributes", "deep"}
    below = [entry.path for entry in api.list_repo_tree(ID, "deep", recursive=True)]
    assert below == ["deep/er", "deep/er/one.txt"]
    info = {entry.path: entry for entry in api.get_paths_info(ID, ["deep", WEIGHTS, "none"])}
    assert list(info) == ["deep", WEIGHTS] and info[WEIGHTS].lfs.size == info[WEIGHTS].size == len(pushed[WEIGHTS])
    api.delete_folder("deep", ID)
    assert "deep/er/one.txt" not in api.list_repo_files(ID)
    assert "deep/er/one.txt" in api.list_repo_files(ID, revision=first.commit_id)


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


def test_two_branches_and_a_tag(api, hub, pushed, token):
    api.create_branch(ID, branch="seal/round-1")
    api.upload_file(path_or_fileobj=b"other", path_in_repo=WEIGHTS, repo_id=ID, revision="seal/round-1")
    api.create_tag(ID, tag="v1")
    assert weights(token) == weights(token, revision="v1") == pushed[WEIGHTS]
    assert weights(token, revision="seal/round-1") == b"other"
    assert len(api.list_repo_commits(ID, revision="seal/round-1")) == 3
    refs = api.list_repo_refs(ID)
    assert [ref.name for ref in refs.branches] == ["main", "seal/round-1"]
    assert [ref.name for ref in refs.tags] == ["v1"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(ID, branch="seal/round-1")
    api.delete_branch(ID, branch="seal/round-1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(ID, revision="seal/round-1")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.delete_file(WEIGHTS, ID, parent_commit=api.list_repo_commits(ID)[-1].commit_id)


def test_who_is_refused_what(api, hub, pushed, token):
    from helpers.hub_server import OTHER, READER

    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(ID, "none.txt", token=token)
    with pytest.raises(RepositoryNotFoundError):
        weights(token, "tester/none")
    for stranger in (READER.token, OTHER.token):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            HfApi(token=stranger).upload_file(path_or_fileobj=b"", path_in_repo="a.txt", repo_id=ID)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        HfApi(token=READER.token).create_repo("own")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").create_repo("own")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(ID)
    api.update_repo_settings(ID, private=True)
    for stranger, status in ((OTHER.token, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            HfApi(token=stranger).model_info(ID)
        assert caught.value.response.status_code == status
    api.delete_repo(ID)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(ID)


def test_gated(api, hub, pushed, token, tmp_path):
    from helpers.hub_server import OTHER, READER

    api.update_repo_settings(ID, gated="manual")
    hub.repo(ID).readers.add("reader")
    assert HfApi(token=False).model_info(ID).gated == "manual"
    for stranger, status in ((OTHER.token, 403), (False, 401)):
        with pytest.raises(GatedRepoError) as caught:
            weights(stranger)
        assert caught.value.response.status_code == status
    assert weights(READER.token) == pushed[WEIGHTS]
    assert weights(token, cache_dir=tmp_path) == pushed[WEIGHTS]


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: mit\nbase_model: [gpt2, some/base]\n" + INDEX, None),
        ("base_model: /home/me/model", "base_model"),
        ("base_model: ./model", "base_model"),
        ("base_model: outputs/run/model", "base_model"),
        ("license: Apache License 2.0", "license"),
        ("tags: [a", "YAML"),
        (INDEX.replace("type: question-answering", ""), "model-index"),
        (INDEX.replace(", value: 0.5", ""), "model-index"),
        (INDEX.replace("dataset: {name: passages, type: custom}", "dataset: passages"), "model-index"),
    ],
)
def test_cards_are_checked(api, metadata, wrong):
    text = f"---\n{metadata}\n---\nText"
    if wrong is None:
        ModelCard(text).validate()
        return
    if wrong not in ("YAML", "model-index"):  # which ModelCard reads itself
        with pytest.raises(ValueError, match=wrong):
            ModelCard(text, ignore_metadata_errors=True).validate()
    api.create_repo(ID)
    with pytest.raises(ValueError, match=wrong):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=ID)


def test_spaces(api, hub):
    api.create_repo("tester/demo", repo_type="space", space_sdk="gradio", space_variables=[{"key": "A", "value": "1"}])
    assert api.request_space_hardware("tester/demo", "t4-small").hardware == "t4-small"
    assert api.add_space_variable("tester/demo", "B", "2")["B"].value == "2"
    api.add_space_secret("tester/demo", "KEY", "secret")
    assert api.get_space_runtime("tester/demo").stage == "RUNNING"
    space = hub.repo("tester/demo", "space")
    assert (space.variables, space.secrets) == ({"A": "1", "B": "2"}, {"KEY": "secret"})
    assert api.space_info("tester/demo").sdk == "gradio"


def test_a_cut_download_is_resumed(hub, pushed, token, monkeypatch):
    # A cut within the first chunk (10 MB) begins anew.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_download(WEIGHTS)
    assert weights(token) == pushed[WEIGHTS]
    first, second = hub.requests(WEIGHTS, "GET")
    assert "range" not in first.headers and second.headers["range"].startswith("bytes=")


def test_downloads_that_are_always_cut_fail_until_they_are_not(hub, pushed, token):
    hub.cut_download(WEIGHTS, times=None)
    with pytest.raises(httpx2.RemoteProtocolError):
        weights(token)
    hub.reset_faults()
    assert weights(token) == pushed[WEIGHTS]


def test_cut_uploads(hub, api, folder):
    api.create_repo(ID)
    hub.cut_upload()
    api.upload_folder(repo_id=ID, folder_path=folder)
    assert [record.status for record in hub.requests("^/_lfs/")] == [None, 200]
    (folder / WEIGHTS).write_bytes(b"more")
    hub.cut_upload(times=None)
    with pytest.raises(RuntimeError, match=f"Error while uploading '{WEIGHTS}'") as caught:
        api.upload_folder(repo_id=ID, folder_path=folder)
    assert isinstance(caught.value.__cause__, httpx2.TransportError)
    hub.reset_faults()
    hub.cut_upload("/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_folder(repo_id=ID, folder_path=folder)
    assert hub.files(ID)[WEIGHTS] != b"more"
    hub.lose_answer("/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_folder(repo_id=ID, folder_path=folder)
    assert hub.files(ID)[WEIGHTS] == b"more"


@pytest.mark.parametrize("xet_or_lfs", ["xet"], indirect=True)
def test_a_xet_storage_that_is_down(xet_or_lfs, hub, api, folder):
    api.create_repo(ID)
    (folder / "new.bin").write_bytes(os.urandom(100_000))  # hf_xet does not send again what it sent in another test
    hub.break_xet()
    with pytest.raises(ConnectionError, match="error sending request"):
        api.upload_folder(repo_id=ID, folder_path=folder)
    hub.reset_faults()
    api.upload_folder(repo_id=ID, folder_path=folder)
    hub.break_xet()
    with pytest.raises(RuntimeError, match="error sending request"):
        weights(api.token)
    hub.reset_faults()
    assert weights(api.token) == (folder / WEIGHTS).read_bytes()


def test_ordered_answers(hub, api, pushed, token):
    hub.answer(503, f"/{WEIGHTS}$", "GET", times=1)
    with pytest.raises(HfHubHTTPError, match="503"):
        weights(token)
    assert weights(token) == pushed[WEIGHTS]
    hub.answer(500, "/commit/main", "POST")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="500"):
            api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=ID)


def test_the_hub_goes_down_and_comes_back(hub, api, pushed, token, tmp_path):
    url = hub.url
    hub.stop()
    with pytest.raises(LocalEntryNotFoundError):
        weights(token)
    with pytest.raises(httpx2.ConnectError):
        api.model_info(ID)
    with pytest.raises(httpx2.ConnectError):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=ID)
    hub.start()
    assert hub.url == url
    assert weights(token) == pushed[WEIGHTS]


def test_the_token_stays_with_the_hub(hub, pushed, token):
    hub.redirect_downloads()
    assert weights(token) == pushed[WEIGHTS]
    assert {record.authorization for record in hub.requests("/resolve/")} == {f"Bearer {token}"}
    (elsewhere,) = hub.storage_log
    assert elsewhere.headers["host"].startswith("localhost:") and elsewhere.authorization is None
