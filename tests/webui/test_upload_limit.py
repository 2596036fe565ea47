"""Uploads of all visitors have a limit, and what breaks off is removed."""

import json
import os

import anyio
import pytest
from starlette.requests import ClientDisconnect

from seal_hf.webui import upload_limit
from seal_hf.webui.upload_limit import BoundedUploads


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(upload_limit, "MAX_UPLOADS", 1000)
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "adapter").write_bytes(bytes(5000))
    return tmp_path


def sent(folder, length, path="/gradio_api/upload", inside=None, app=None):
    """The status and text of an upload of so many bytes, which is stored as Gradio does it."""

    async def store(scope, receive, send):
        place = folder / f"hash{len(list(folder.iterdir()))}"
        place.mkdir()
        (place / "file").write_bytes(bytes(int(length)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps([str(place / "file")]).encode()})

    messages = []

    async def send(message):
        messages.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    app = app or BoundedUploads(None, folder, folder / "sessions")
    app._app = inside or store
    anyio.run(app, scope, None, send)
    return messages[0]["status"], messages[1]["body"].decode()


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/process_recording"])
def test_no_more_than_the_limit_is_kept(folder, path):
    assert sent(folder, 600)[0] == 200
    status, text = sent(folder, 401, path)
    assert status == 413 and "no room" in text
    assert sent(folder, 300)[0] == 200 and sent(folder, 1001)[0] == 413


def test_stale_uploads_go_where_room_is_needed(folder, monkeypatch):
    assert sent(folder, 900)[0] == 200
    monkeypatch.setattr(upload_limit.time, "time", lambda: os.stat(folder).st_ctime + 700)
    assert sent(folder, 90)[0] == 200 and len(list(folder.rglob("file"))) == 2
    assert sent(folder, 500)[0] == 200 and len(list(folder.rglob("file"))) == 1
    assert (folder / "sessions" / "adapter").exists()


def test_one_visitor_does_not_take_all_the_room(folder, monkeypatch):
    monkeypatch.setattr(upload_limit, "MAX_OF_VISITOR", 500)
    name = ["ann"]
    app = BoundedUploads(None, folder, folder / "sessions", visitor=lambda scope: name[0])
    assert sent(folder, 400, app=app)[0] == 200
    for length in (101, 501):
        status, text = sent(folder, length, app=app)
        assert status == 413 and "those from your address may have" in text
    name[0] = "bob"
    assert sent(folder, 450, app=app)[0] == 200
    name[0] = "ann"
    next(path for path in folder.rglob("file") if path.stat().st_size == 400).unlink()  # it was read
    assert sent(folder, 450, app=app)[0] == 200


@pytest.mark.parametrize("length", [None, "-1", "many"])
def test_an_upload_says_its_size(folder, length):
    status, text = sent(folder, length)
    assert status == 411 and "Content-Length" in text


def test_what_breaks_off_is_removed(folder):
    async def broken(scope, receive, send):
        (folder / "tmpabc").write_bytes(bytes(100))
        raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        sent(folder, 500, inside=broken)
    assert [path.name for path in folder.iterdir()] == ["sessions"]


def test_other_requests_pass(folder):
    assert sent(folder, 5000, path="/gradio_api/queue/join")[0] == 200
