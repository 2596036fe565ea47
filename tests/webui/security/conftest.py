"""What the attacks share: the app as a stranger reaches it, over HTTP on the loopback address."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import constants

from helpers.folders import ROOT
from helpers.tiny_models import save_tiny_model
from helpers.web_page import QUICK, served_page
from seal_hf.webui import api
from seal_hf.webui.tabs import shared


@pytest.fixture(scope="module")
def serve(lm, tmp_path_factory):
    """
    Starts the page of `app.py` in this process, on a free port and a tiny model: `serve(**options)`, with the options of
    `served_page`. It ends with the module.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(api, "PRESETS", {"Tiny model": QUICK})
        patch.setattr(shared, "_REFRESH", 0.02)  # a page would be updated less often
        yield lambda **options: stack.enter_context(served_page(tmp_path_factory.mktemp("app"), lm, **options))


@pytest.fixture(scope="module")
def app(serve):
    """The default app: `url` (ends with "/"), `workbench`, `page`."""
    return serve()


@pytest.fixture(scope="session")
def called():
    """
    Calls an endpoint as a program does: `called(url, "ask", [session, question], **headers)`.

    Returns what the endpoint returned, as a list. Raises `Refused` with its message, which is `"None"` where Gradio hides it.
    """

    def called(url, name, data, **headers):
        with httpx2.Client(base_url=url, timeout=60, headers=headers) as client:
            answer = client.post(f"gradio_api/call/{name}", json={"data": data})
            if answer.status_code != 200:
                raise Refused(f"{answer.status_code} {answer.text}")
            lines = client.get(f"gradio_api/call/{name}/{answer.json()['event_id']}").text.splitlines()
        event, data = [line.partition(": ")[2] for line in lines if line.startswith(("event: ", "data: "))][-2:]
        if event != "complete":
            raise Refused(str((json.loads(data) or {}).get("error")))
        return json.loads(data)

    return called


@pytest.fixture(scope="session")
def pressed():
    """
    Does what the page does for one of its handlers, known by its function's name or by its number in the page:
    `pressed(app, "on_push", [session, ...], **headers)`. Returns the last `{"data": ...}` or `{"error": ...}` of the server. `page`
    is the name of the page that it is done on, by default a new one; a list offers what an earlier event on its page put there.
    """

    def pressed(app, name, data, page=None, **headers):
        number = next(
            key
            for key, function in app.page.fns.items()
            if name in (key, getattr(function.fn, "__name__", None))
        )  # fmt: skip
        body = {"data": data, "fn_index": number, "session_hash": page or secrets.token_hex(8)}
        with httpx2.Client(base_url=app.url, timeout=60, headers=headers) as client:
            if not app.page.fns[number].queue:
                answer = client.post("gradio_api/run/predict", json=body)
                return answer.json() if answer.status_code == 200 else {"error": answer.text}
            answer = client.post("gradio_api/queue/join", json=body)
            if answer.status_code != 200:
                return {"error": answer.text}
            lines = client.get(
                "gradio_api/queue/data", params={"session_hash": body["session_hash"]}
            ).text.splitlines()
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return next(message["output"] for message in messages if message["msg"] == "process_completed")

    return pressed


class Refused(Exception):
    """The server refused a call; the text is what it said."""


@pytest.fixture(scope="session")
def refused():
    """The exception of `called`, for `pytest.raises(refused, match=...)`."""
    return Refused


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny model on disk."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_model(folder)
    return folder


@pytest.fixture
def process(tiny_folder, tmp_path):
    """
    Starts `app.py` as a process of its own, on a free port: `process("--host", "localhost", SPACE_ID="a/b")`. It takes ten seconds
    or more, so use `serve` where that will do. Returns `url`, `port`, `child` (`Popen`), `log` (`Path`), and `folder`, which holds all
    temporary files of the process. What still runs is ended after the test.
    """
    started = []

    def process(*arguments, address="127.0.0.1", **environment):
        folder = tmp_path / f"app {len(started)}"
        (folder / "tmp").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_TOKEN", "GRADIO_", "SPACE"))
        }
        clean |= {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder / "tmp"),
            "HF_ENDPOINT": constants.ENDPOINT,
            "HF_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        log = folder / "log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py"), "--model_name_or_path", str(tiny_folder), "--port", str(port)]
                + ["--output_dir", str(folder / "runs"), *arguments],
                cwd=folder,
                env=clean,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(child)
        url = f"http://{address}:{port}/"
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}config", timeout=5).status_code == 200:
                    break
            assert child.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return SimpleNamespace(url=url, port=port, child=child, log=log, folder=folder)

    yield process
    for child in started:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
