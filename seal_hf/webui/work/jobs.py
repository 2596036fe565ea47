"""
A job: work on the device in the background, with a log on disk that a page can follow.

A job outlives the page that started it. Its events go to a file, which its owner's pages can read from the start. A file
also stops it. Both work as well where the device belongs to another process (ZeroGPU).
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..languages import as_data, of_data


QUEUED, RUNNING, DONE, STOPPED, FAILED = "queued", "running", "done", "stopped", "failed"
ENDED = (DONE, STOPPED, FAILED)
EVENTS_NAME = "events.jsonl"
_STOP_NAME = "stop"


class JobRefused(ValueError):
    """A job cannot be accepted now. The message says why and what to do."""


class StopFile:
    """Like a `threading.Event`, but a file, so that another process can set and read it."""

    def __init__(self, path: Path):
        self.path = path

    def set(self, reason: str = "") -> None:
        """`reason` is for the page, where it is not its visitor who stops the work. The first call counts."""
        with suppress(FileExistsError), self.path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(as_data(reason)))

    def is_set(self) -> bool:
        return self.path.exists()

    @property
    def reason(self) -> str:
        """Why it was set; empty where its visitor did it."""
        text = self.path.read_text(encoding="utf-8")  # nothing yet, where it is just being written
        return of_data(json.loads(text)) if text else ""


@dataclass(frozen=True)
class Job:
    """
    One piece of work.

    Parameters:
        id (`str`):
            Its id, which cannot be guessed.
        owner (`str`):
            The session that it belongs to. No other session sees it.
        kind (`str`):
            What it does, such as `"propose"`.
        key (`str`):
            What it works on. A second click on the same button has the same key.
        folder (`Path`):
            Where its events and files are.
        seconds (`float`):
            How long it will probably take.
    """

    id: str
    owner: str
    kind: str
    key: str
    folder: Path
    seconds: float

    @property
    def stop(self) -> StopFile:
        """Set to end the work early."""
        return StopFile(self.folder / _STOP_NAME)

    def emit(self, event: str, **values: object) -> None:
        """Append an event to the log. The values must fit into JSON."""
        line = json.dumps({"event": event, "time": time.time(), **values}, ensure_ascii=False)
        with (self.folder / EVENTS_NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class JobLog:
    """
    Reads a job's events from the start, as they come.

    Parameters:
        job ([`Job`]):
            The job.

    Attributes:
        state (`str`):
            `"queued"`, `"running"`, `"done"`, `"stopped"` or `"failed"`, according to the events read so far.
        error (`str`, *optional*):
            Why the job failed or was ended, in a sentence; a [`Message`] where the app itself says it.
    """

    def __init__(self, job: Job):
        self.job, self.state, self.error = job, QUEUED, None
        self._offset = 0

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def read(self) -> list[dict]:
        """The events since the last call."""
        path = self.job.folder / EVENTS_NAME
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:  # its session has just been deleted
            self.state = STOPPED
            return []
        complete, _, _ = written.rpartition(b"\n")
        self._offset += len(complete) + bool(complete)
        events = [json.loads(line) for line in complete.splitlines()]
        for event in events:
            if event["event"] == "state":
                self.state, self.error = event["state"], of_data(event.get("error"))
        return events


def stop_after(seconds: float, job: Job, reason: str) -> threading.Timer:
    """Stop a job after so many seconds, unless the timer is cancelled before. `reason` tells its page why."""

    def end() -> None:
        with suppress(OSError):  # its folder has gone
            job.stop.set(reason)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
