"""What is said to be deleted is deleted, and no other user of the machine reads it before."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import httpx2
import pytest
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.utils import encode_file_path

from helpers.app_calls import handlers
from helpers.folders import ROOT
from helpers.strangers import pressed_on_page
from helpers.web_page import served_page
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


def test_a_session_in_use_keeps_the_files_that_it_has_shown(app, client, downloaded):
    session, _, file = downloaded
    widget = next(block for block in app.page.blocks.values() if block.elem_id == "download")
    showing = (
        name for name, one in handlers(app.url).items() if widget._id in one["outputs"] and len(one["inputs"]) == 1
    )
    show_tab = next(showing)
    shown = pressed_on_page(app, show_tab, [session])
    assert file.name in shown
    upload = Path(httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("old.zip", b"PK")}).json()[0])
    time.sleep(0.05)
    delete_files_created_by_app(app.page, 0)  # what Gradio does with files of an hour
    assert file.is_file() and not upload.exists()
    assert file.name in pressed_on_page(app, show_tab, [session])


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


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGABRT", "SIGXCPU", "SIGUSR1", "SIGUSR2"]
)
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
