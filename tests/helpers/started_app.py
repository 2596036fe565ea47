"""`app.py` as a process of its own, which serves a tiny model on a free port of this machine."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import httpx2
from huggingface_hub import constants

from helpers.folders import ROOT


SPACE_HOST, SPACE_SECRET = "tester-seal.hf.space", "the Space's secret"
SHARE_LINK = "https://tested.gradio.live"


@dataclass(frozen=True)
class Configuration:
    """
    How `app.py` is started.

    Parameters:
        options (`tuple[str, ...]`):
            Its options.
        address (`str`, *optional*, defaults to `"127.0.0.1"`):
            The name by which tests reach it.
        uses_token (`bool`, *optional*, defaults to `False`):
            Whether it may use the token of whoever starts it.
        environment (`tuple[tuple[str, str], ...]`, *optional*):
            Names and values of further variables.
        is_forked (`bool`, *optional*, defaults to `True`):
            Whether `app.py` runs in a fork of [`Starter`], which saves most of a start, or as `python app.py`.
        offers_tools (`bool`, *optional*, defaults to `False`):
            Whether it is started with `--mcp`, where the package is installed.
        end_signal (`signal.Signals`, *optional*, defaults to `SIGTERM`):
            What ends it.
    """

    options: tuple[str, ...]
    address: str = "127.0.0.1"
    uses_token: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    is_forked: bool = True
    offers_tools: bool = False
    end_signal: Signals = Signals.SIGTERM

    @property
    def is_space(self) -> bool:
        return "SPACE_ID" in dict(self.environment)


_OAUTH = {
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": SPACE_SECRET,
    "OAUTH_SCOPES": "openid profile contribute-repos",
    "OPENID_PROVIDER_URL": constants.ENDPOINT,
}
_SPACE = {"SPACE_ID": "tester/seal", "SPACE_HOST": SPACE_HOST, "SYSTEM": "spaces", **_OAUTH}
# The first of each audience come first.
CONFIGURATIONS = {
    "no options": Configuration((), uses_token=True, is_forked=False),
    "--host 0.0.0.0": Configuration(("--host", "0.0.0.0"), offers_tools=True, end_signal=Signals.SIGUSR1),
    "a Space": Configuration((), environment=tuple(_SPACE.items())),
    "--host localhost": Configuration(
        ("--host", "localhost"), "localhost", uses_token=True, offers_tools=True, end_signal=Signals.SIGINT
    ),
    "--host ::1": Configuration(("--host", "::1"), "[::1]", uses_token=True, end_signal=Signals.SIGHUP),
    "--share": Configuration(("--share",), end_signal=Signals.SIGQUIT),
}
AUDIENCES = list(CONFIGURATIONS)[:3]
OF_STRANGERS = AUDIENCES[:2]


@dataclass
class StartedApp:
    """
    An app that runs.

    Parameters:
        configuration ([`Configuration`]):
            How it was started.
        folder (`Path`):
            Where it was started. `folder / "tmp"` holds all its temporary files.
        port (`int`):
            Its port.
        pid (`int`):
            The id of its process.
        wait_for_end (`Callable`):
            Waits so many seconds for its end and returns the exit code once, or `None` if it runs on.
    """

    configuration: Configuration
    folder: Path
    port: int
    pid: int
    wait_for_end: Callable[[float], int | None]
    exit_code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """The exit code, or `None` if it still runs after so many seconds."""
        if self.exit_code is None:
            self.exit_code = self.wait_for_end(seconds)
        return self.exit_code

    @property
    def url(self) -> str:
        return f"http://{self.configuration.address}:{self.port}/"

    @property
    def own_origin(self) -> str:
        """What a browser sends with a request of the app's own page."""
        return f"https://{SPACE_HOST}" if self.configuration.is_space else self.url.rstrip("/")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def temporary_files(self) -> list[Path]:
        return [path for path in (self.folder / "tmp").rglob("*") if path.is_file()]

    @property
    def jobs(self) -> list[Path]:
        """The events of each job that it has had."""
        return [path for path in self.temporary_files if path.name == "events.jsonl"]


class Starter:
    """
    Runs `app_starter.py`, for one app after another.

    Parameters:
        home (`Path`):
            What the apps take for the home of Hugging Face's libraries, which read it at their import.
    """

    def __init__(self, home: Path):
        self._environment = {**of_tests(), **at_import(home), **_OAUTH}
        self._process: subprocess.Popen | None = None

    def start(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> int:
        """Start the app and return the id of its process."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "helpers" / "app_starter.py")],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # so that a line that was not read yet is seen by `select`
            )
        order = {"folder": str(folder), "arguments": arguments, "environment": environment}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = self._answer(300)
        assert pid is not None, "app_starter.py has not imported app.py in five minutes"
        return pid

    def wait(self, seconds: float) -> int | None:
        """The exit code of the app that was started last, or `None` if it runs on."""
        return self._answer(seconds)

    def _answer(self, seconds: float) -> int | None:
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()


def of_tests() -> dict[str, str]:
    """The variables of the tests, without those that an app reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_TOKEN", "GRADIO_", "SPACE"))}


def at_import(home: Path) -> dict[str, str]:
    """Variables that libraries read at their import. Gradio asks at this address for a link, by `with_share_client`."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home),
        "HF_ENDPOINT": constants.ENDPOINT,
        "GRADIO_SHARE_SERVER_ADDRESS": "127.0.0.1:9",
    }


def with_share_client(home: Path) -> None:
    """Put a stand-in for Gradio's program that opens a share link where Gradio finds it: it has a link, and no network."""
    from gradio import tunneling

    file = home / "gradio" / "frpc" / tunneling.BINARY_FILENAME
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\necho 'start proxy success: {SHARE_LINK}'\nexec sleep 300\n")
    file.chmod(0o700)


def has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def started_app(
    configuration: Configuration, starter: Starter, folder: Path, token: str, model: str, *options: str
) -> Iterator[StartedApp]:
    """
    The app, from when it answers to the end of the block.

    Args:
        configuration ([`Configuration`]):
            How it is started.
        starter ([`Starter`]):
            Runs it, unless it needs a start of its own.
        folder (`Path`):
            A new folder for its files.
        token (`str`):
            The token of whoever starts it, in `HF_TOKEN`.
        model (`str`):
            Its base model, on the Hub.
        options (`str`):
            Options beside those of the configuration.
    """
    (folder / "tmp").mkdir(parents=True)
    port = free_port()
    own = {"TMPDIR": str(folder / "tmp"), "HF_TOKEN": token, "SEAL_MODEL": model, "GRADIO_SERVER_PORT": str(port)}
    own["SEAL_HF_HOME"] = str(folder / "seal")
    environment = {**of_tests(), **at_import(folder.parent / "home"), **own, **dict(configuration.environment)}
    arguments = [*configuration.options, *options]
    if configuration.is_forked:
        app = StartedApp(configuration, folder, port, starter.start(folder, arguments, environment), starter.wait)
    else:
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py"), *arguments], cwd=folder, env=environment, stdout=log, stderr=log
            )

        def wait(seconds: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(seconds)

        app = StartedApp(configuration, folder, port, child.pid, wait)
    try:
        until_it_answers(app)
        yield app
    finally:
        for number in (Signals.SIGTERM, Signals.SIGKILL):
            if app.wait(0) is None:
                os.kill(app.pid, number)
                app.wait(30)


def until_it_answers(app: StartedApp) -> None:
    end = time.monotonic() + 300
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{app.url}config", timeout=5, verify=False).status_code == 200:
                return
        assert app.wait(0.1) is None and time.monotonic() < end, app.log
