"""Files from strangers: adapters made to take memory, disk or time, or to be more than numbers and names."""

import zipfile
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants

from helpers.app_calls import uploaded
from helpers.hostile_adapters import CONFIG, WEIGHTS, filled, honest_files, with_config, zip_of
from helpers.hub_server import Repo
from helpers.web_page import QUESTIONS, QUICK, written
from seal_hf.webui.work import quota


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The files of an adapter of the tiny model."""
    return honest_files(tmp_path_factory.mktemp("honest"))


def loaded(app, called, zipped, session=""):
    """What `load_adapter` returns for an uploaded file."""
    return called(app.url, "load_adapter", [session, "", uploaded(app.url, "mine.zip", zipped)])[0]


def kept_bytes(app):
    return quota.used_bytes(app.workbench.sessions._folder)


def test_an_honest_adapter_is_taken_and_its_upload_removed(app, called, honest):
    found = loaded(app, called, zip_of({**honest, "optimizer.pt": bytes(2**20)}))
    session = app.workbench.sessions.open(found["session"])
    assert found["adapter"]["name"] == "mine" and found["adapter"]["bytes"] == session.adapter().num_bytes
    file = uploaded(app.url, "mine.zip", zip_of(honest))
    assert called(app.url, "load_adapter", [found["session"], "", file])[0]["session"] == found["session"]
    assert httpx2.get(f"{app.url}gradio_api/file={file['path']}").status_code in (403, 404)


def test_what_is_kept_is_kept_once(app, called, honest):
    found = loaded(app, called, zip_of(honest))
    called(app.url, "download_adapter", [found["session"], ""])
    folder = app.workbench.sessions.open(found["session"]).folder
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    assert file.stat().st_size == found["adapter"]["bytes"]
    assert set(zipfile.ZipFile(file).namelist()) >= {CONFIG, WEIGHTS}


def test_huge_numbers_spoil_nobody_elses_answers(app, called, honest):
    mine = loaded(app, called, zip_of(with_config(filled(honest, 3e38), lora_alpha=1e6)))["session"]
    other = loaded(app, called, zip_of(honest))["session"]
    before = called(app.url, "ask", [other, "Who drew it?", ""])
    called(app.url, "ask", [mine, "Who drew it?", ""])
    assert called(app.url, "ask", [other, "Who drew it?", ""]) == before


def test_a_large_adapter_of_the_hub_is_not_fetched(app, called, refused, honest, hub):
    hub.add_repo(Repo("evil/large"), {**honest, WEIGHTS: bytes(2**23)})
    with pytest.raises(refused, match=f"evil/large@.*: {WEIGHTS} has 8.4 MB, but for this base model"):
        called(app.url, "load_adapter", ["", "evil/large", None])
    assert not hub.requests(WEIGHTS, "GET")


def test_what_strangers_load_from_the_hub_does_not_stay(serve, called, honest, hub):
    public = serve(may_push=False)
    hub.add_repo(Repo("ann/adapter"), honest)
    found = called(public.url, "load_adapter", ["", "ann/adapter", None])[0]
    assert found["adapter"]["name"] == "ann/adapter" and hub.requests(WEIGHTS, "GET")
    assert not (Path(constants.HF_HUB_CACHE) / "models--ann--adapter").exists()


def test_a_session_has_a_limit_of_bytes(app, called, refused, honest, monkeypatch):
    monkeypatch.setattr(quota, "FILE_BYTES", 10_000)
    first = loaded(app, called, zip_of(honest))
    monkeypatch.setattr(quota, "SESSION_BYTES", 4 * first["adapter"]["bytes"])
    session = app.workbench.sessions.open(first["session"])
    for _ in range(5):
        try:
            loaded(app, called, zip_of(honest), session.id)
        except refused as refusal:
            assert "there is room for" in str(refusal)
            break
    else:
        pytest.fail("there was no limit")
    called(app.url, "download_adapter", [session.id, ""])
    assert len(session.adapters) < 5 and quota.used_bytes(session.folder) <= quota.SESSION_BYTES


def test_there_is_a_limit_for_all_sessions(app, called, refused, honest, monkeypatch):
    monkeypatch.setattr(quota, "TOTAL_BYTES", kept_bytes(app))
    with pytest.raises(refused, match="there is room for 0.0 MB"):
        loaded(app, called, zip_of(honest))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("SESSION_BYTES", "There is no room for .* is the limit of a visitor: delete some adapters"),
        ("TOTAL_BYTES", "There is no room for .* the adapters of all visitors may have .*: try again later"),
    ],
)
def test_learning_is_refused_before_the_start_where_there_is_no_room(bench, session, monkeypatch, limit, message):
    written(bench, session)
    monkeypatch.setattr(quota, limit, quota.used_bytes(session.folder) + 1_000_000)
    with pytest.raises(ValueError, match=message):
        bench.adapt(session, [0, 1], QUICK, QUESTIONS)
    assert not bench.jobs.active(session.id)


def test_what_is_reserved_is_not_given_twice(session, monkeypatch):
    monkeypatch.setattr(quota, "SESSION_BYTES", quota.used_bytes(session.folder) + 1000)
    with quota.room(session.folder, 600):
        assert quota.free_bytes(session.folder) == 400
        with pytest.raises(ValueError, match="There is no room for"), quota.room(session.folder, 600):
            pass
    assert quota.free_bytes(session.folder) == 1000


def test_an_adapter_of_the_hub_can_be_loaded_by_tools_that_leave_out_the_file(app, called):
    """An MCP tool's arguments are required where the endpoint's description gives no default."""
    described = httpx2.get(f"{app.url}gradio_api/info").json()["named_endpoints"]["/load_adapter"]["parameters"]
    found = {one["parameter_name"]: one["parameter_has_default"] for one in described}
    assert found == {"session": True, "repo_id": True, "file": True}
