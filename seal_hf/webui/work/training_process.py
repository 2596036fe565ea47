"""The process of a training run."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


GRACE = 20  # seconds between the request to end and the kill
_GUARD = Path(__file__).with_name("run_guard.py")


@dataclass
class TrainingProcess:
    """A run's process, which is paused while a visitor's job uses the device, and ends when the app is killed."""

    process: subprocess.Popen | None = None
    guard: subprocess.Popen | None = None
    is_paused: bool = False
    is_stopped: bool = False
    is_overdue: bool = False  # it was stopped since it had taken too long
    began: float = field(default_factory=time.monotonic)
    log_start: int = 0  # where the output of this launch begins in the log, in bytes
    # A job may end while the process starts. Without the lock, `begin` could pause the process after `resume`.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, process: subprocess.Popen) -> None:
        """
        Take a process that leads a group of its own.

        Raises:
            OSError: Its guard cannot be started. It is ended then.
        """
        command = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(process.pid), str(GRACE)]
        nothing = subprocess.DEVNULL
        try:
            self.guard = subprocess.Popen(
                command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
            )
        except OSError:
            process.kill()
            process.wait()
            raise
        with self.lock:
            self.process = process
            if self.is_paused:
                self._signal(signal.SIGSTOP)

    def wait(self) -> None:
        """Wait until it has ended."""
        self.process.wait()
        self.guard.kill()
        self.guard.wait()

    def pause(self) -> None:
        with self.lock:
            self.is_paused = True
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        with self.lock:
            self.is_paused = False
            self._signal(signal.SIGCONT)

    def end(self, number: signal.Signals) -> None:
        self._signal(number)
        self._signal(signal.SIGCONT)  # a paused process gets no other signal until it continues

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not. A second call does nothing."""
        if self.is_stopped or not self.is_running:
            return
        self.is_stopped = True
        self.end(signal.SIGTERM)
        timer = threading.Timer(GRACE, self.end, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.process is not None and self.process.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(self.process.pid, number)


def start_script(script: Path, config: Path, log: BinaryIO) -> subprocess.Popen:
    """
    Start a run, or continue it where it ended.

    Args:
        script (`Path`):
            `trainers/knowledge.py`.
        config (`Path`):
            The run's YAML file.
        log (`BinaryIO`):
            Where its output goes.

    Returns:
        `subprocess.Popen`: its process, which leads a group of its own.

    Raises:
        OSError: The process cannot be started.
    """
    # The script imports its neighbours as `trainers.arguments`, from whatever folder the app was started in.
    paths = [str(script.absolute().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TMPDIR": tempfile.gettempdir(),  # which the app has set, not the environment
    }
    return subprocess.Popen(
        [sys.executable, str(script), "--config", str(config), "--resume_from_checkpoint", "true"],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
