"""The process of the outer loop beside the page: paused, resumed and ended by signals, and why it failed."""

import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class TrainingProcess:
    """A run's process, which is paused while another's job has the device."""

    process: subprocess.Popen | None = None
    is_paused: bool = False
    is_stopped: bool = False
    log_start: int = 0  # where this launch's lines begin in the log, in bytes
    # A job may end while the process begins, and what it resumes must not be paused after that.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, process: subprocess.Popen) -> None:
        with self.lock:
            self.process = process
            if self.is_paused:
                self._signal(signal.SIGSTOP)

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
        self._signal(signal.SIGCONT)  # one that is paused takes no other signal

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.killpg(self.process.pid, number)


def decode(log: bytes) -> str:
    """What a run wrote; a character that is cut in two does not matter."""
    return log.decode("utf-8", errors="replace")


def failure(code: int, log: str) -> str:
    """Why a run failed, by its exit code and by what it wrote."""
    lines = [line for line in log.splitlines() if line.strip()]
    if said := next((line for line in reversed(lines) if line.startswith("error: ")), None):
        return said.removeprefix("error: ")
    if code == -signal.SIGKILL:
        return (
            "The run was killed (SIGKILL), most likely because memory ran out: close other programs, or start one with "
            "fewer self-edits per passage."
        )
    if code < 0:
        return (
            f"The run was ended by {signal.strsignal(-code) or f'signal {-code}'}: the log's last lines may tell why."
        )
    return lines[-1] if lines else "The run ended without a word."
