"""What is said to be deleted is deleted, and no other user of the machine reads it before."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from gradio_client.utils import encode_file_path

from helpers.folders import ROOT
from helpers.processes import wait_for
from helpers.web_page import PASSAGE, served_page
from seal_hf.webui.work import private_folder


@pytest.fixture(scope="module")
def app(lm, tmp_path_factory):
    """A page whose files are where `app.py` puts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        with private_folder.private_folder() as folder, served_page(folder.parent, lm) as page:
            page.folder = folder
            yield page


@pytest.fixture(scope="module")
def client(app):
    return Client(app.url, verbose=False)


@pytest.fixture(scope="module")
def adapter_file(lm, learned_session, tmp_path_factory):
    """A zip file of an adapter for the model."""
    return shutil.copy(learned_session.adapter().file, tmp_path_factory.mktemp("zip") / "adapter.zip")


@pytest.fixture
def downloaded(app, client, adapter_file):
    """A session with an adapter, and the address of its zip file as a browser gets it."""
    loaded = client.predict("", "", handle_file(adapter_file), api_name="/load_adapter")
    session, adapter = loaded["session"], loaded["adapter"]["id"]
    answer = httpx2.post(f"{app.url}gradio_api/call/download_adapter", json={"data": [session, adapter]}).json()
    lines = httpx2.get(f"{app.url}gradio_api/call/download_adapter/{answer['event_id']}").text.splitlines()
    file = json.loads(next(line for line in lines if line.startswith("data: [")).removeprefix("data: "))[0]
    return session, adapter, Path(file["path"])


def address_of(app, file):
    return f"{app.url}gradio_api/file={encode_file_path(str(file))}"


def files_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_deleted_adapter_has_no_address(app, downloaded):
    session, adapter, file = downloaded
    assert httpx2.get(address_of(app, file)).status_code == 200
    app.workbench.sessions.open(session).delete(adapter)
    assert httpx2.get(address_of(app, file)).status_code == 403


def test_a_deleted_session_has_no_address(app, downloaded):
    session, _, file = downloaded
    current = app.workbench.sessions.open(session)
    current.used = time.monotonic() - 7200
    app.workbench.sessions.sweep()
    assert not current.folder.exists() and httpx2.get(address_of(app, file)).status_code == 403


def test_a_download_is_no_further_copy(app, downloaded):
    session, _, file = downloaded
    assert file.is_relative_to(app.workbench.sessions.open(session).folder)
    content = file.read_bytes()
    assert [path for path in files_below(app.folder.parent) if path.read_bytes() == content] == [file]


def test_nobody_else_on_the_machine_reads_the_files(app):
    answer = httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("mine.zip", b"PK")})
    upload = Path(answer.json()[0])
    assert upload.parents[1] == app.folder.parent and httpx2.get(address_of(app, upload)).status_code == 200
    own, runs = app.folder.parents[1], app.folder.parent / "runs"
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (own, runs)] == [0o700] * 2
    for name in ("lock", "tmp"):  # beside the files that are served
        assert httpx2.get(address_of(app, own / name)).status_code == 403


# --- the end ---


@pytest.fixture
def start(tmp_path):
    """Starts a program that uses a private folder below TMPDIR and waits."""
    program = textwrap.dedent(
        """
        import os, tempfile, time
        from seal_hf.webui.work.private_folder import exit_on_signals, private_folder

        exit_on_signals()
        with private_folder() as folder:
            folder.mkdir()
            (folder / "secret").write_text("secret")
            tempfile.mkstemp()
            open(os.path.join(os.environ["GRADIO_TEMP_DIR"], "upload"), "w").close()
            print("ready", flush=True)
            while True:  # a signal just before a sleep is handled after it
                time.sleep(0.05)
        """
    )
    started = []

    def start(before="", **options):
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", before + program]
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)
        started.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


def made_old(folder):
    """As if it was made some time ago: a new one may belong to an app that is about to lock it."""
    for path in folder.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_every_end_that_can_be_caught_removes_the_files(start, tmp_path, name):
    child = start()
    assert len(files_below(tmp_path)) == 4  # with the lock
    child.send_signal(getattr(signal, name))
    child.send_signal(signal.SIGTERM)  # an impatient second one
    assert child.wait(30) == 0 and files_below(tmp_path) == []


def test_the_next_start_removes_what_a_killed_one_left_and_nothing_else(start, tmp_path):
    running, killed = start(), start()
    killed.kill()
    killed.wait()
    of_running = {path for path in tmp_path.iterdir() if (path / "lock").exists()}
    assert len(of_running) == 2
    # What others may put there, under a name that looks like ours.
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    (tmp_path / "seal-hf-app-link").symlink_to(target)
    (tmp_path / "seal-hf-app-file").touch()
    made_old(tmp_path)
    third = start()
    left = [path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(left) == 3 and (target / "precious").exists()  # of the two that run, and the target
    for child in (running, third):
        child.terminate()
        assert child.wait(30) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seal-hf-app-file", "seal-hf-app-link", "target"]


def test_a_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "seal-hf-app-x").mkdir()
    made_old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        private_folder.remove_abandoned()
    assert (tmp_path / "seal-hf-app-x").exists()
    private_folder.remove_abandoned()
    assert not (tmp_path / "seal-hf-app-x").exists()


def test_an_ignored_signal_stays_ignored(start, tmp_path):
    """As `nohup` does it."""
    child = start("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    child.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.terminate()
    assert child.wait(30) == 0


def test_the_app_leaves_nothing_when_it_is_told_to_end(process):
    """With a file that was uploaded, one on its way, and a job that runs."""
    app = process()
    folder = app.folder / "tmp"
    upload = httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("a.zip", b"PK")})
    assert Path(upload.json()[0]).is_relative_to(folder)
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.glob("seal-hf-app-*")] == [0o700]
    httpx2.post(f"{app.url}gradio_api/call/propose", json={"data": ["", PASSAGE, 8, "rewrite", 0, ""]})
    with socket.create_connection(("127.0.0.1", app.port)) as upload:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="b.zip"\r\n\r\n' + "b" * 5000
        upload.sendall((head + part).encode())
        wait_for(lambda: [path for path in files_below(folder) if path.name.startswith("tmp")])
        wait_for(lambda: any(b'"running"' in path.read_bytes() for path in folder.rglob("events.jsonl")))
        app.child.terminate()
        assert app.child.wait(60) == 0, app.log.read_text()
    assert files_below(folder) == []
