"""The queue of the device: jobs wait for their turn and run, one at a time for each device."""

import bisect
import contextvars
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..languages import Message, as_data
from .jobs import DONE, ENDED, FAILED, QUEUED, RUNNING, STOPPED, Job, JobRefused, stop_after
from .limits import HOUR, MAX_FOLLOWERS, MAX_JOBS, OWN_MACHINE, Limits, Usage, minutes


logger = logging.getLogger(__name__)

_LONGEST_DETOUR = 600.0  # seconds that others may come before a job that was there first
_KEPT = 8  # ended jobs of each owner


class Pausable(Protocol):
    """Long work that leaves the device to the jobs while they run."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass
class _Entry:
    job: Job
    visitor: str
    work: Callable[[Job], None]
    context: contextvars.Context
    order: float  # when its turn comes; the smallest is next
    state: str = QUEUED
    started: float | None = None
    num_followers: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


class JobQueue:
    """
    Runs jobs in the order in which they came, but one whose owner asks less of the device, and had less of it, may go first.

    Parameters:
        explain (`Callable[[BaseException], str]`):
            Turns an error into a sentence for the page.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of jobs at a time; more than one only where each has a device of its own.
        max_waiting (`int`, *optional*, defaults to `32`):
            Number of jobs that may wait.
        limits ([`Limits`], *optional*):
            How many jobs there may be and how long they may run. Defaults to those of the user of this machine.
        visitor_of (`Callable[[str], str]`, *optional*):
            Names the visitor who is charged for an owner's jobs. Defaults to the owner.
    """

    def __init__(
        self,
        explain: Callable[[BaseException], str],
        *,
        num_workers: int = 1,
        max_waiting: int = 32,
        limits: Limits = OWN_MACHINE,
        visitor_of: Callable[[str], str] = lambda owner: owner,
    ):
        self._explain, self._max_waiting, self._limits = explain, max_waiting, limits
        self._visitor_of = visitor_of
        self._usage, self._tokens = Usage(HOUR), Usage(HOUR)
        self._waiting: list[_Entry] = []  # in the order of their turns
        self._running: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}
        self._background: Pausable | None = None
        self._changed = threading.Condition()
        for number in range(num_workers):
            threading.Thread(target=self._serve, name=f"device {number}", daemon=True).start()

    def submit(
        self,
        owner: str,
        kind: str,
        key: str,
        folder: Path,
        work: Callable[[Job], None],
        *,
        seconds: float,
        num_tokens: int = 0,
    ) -> Job:
        """
        Add a job to the queue.

        Args:
            owner, kind, key, seconds:
                As in [`Job`].
            folder (`Path`):
                Where to make the job's folder.
            work (`Callable[[Job], None]`):
                Does the work. It should end soon after `job.stop` is set; an exception becomes the job's error.
            num_tokens (`int`, *optional*, defaults to `0`):
                Tokens that it trains on, which count for the visitor's hour from now on.

        Returns:
            [`Job`]: The new job, or the owner's job with this kind and key that has not ended.

        Raises:
            JobRefused: The owner has a job of this kind with another key that has not ended, the owner or the visitor has too
                many jobs, the visitor has had too much of the device, or too many are waiting.
        """
        with self._changed:
            active = [
                entry for entry in self._entries.values() if entry.job.owner == owner and entry.state not in ENDED
            ]
            for entry in active:
                if entry.job.kind == kind:
                    if entry.job.key == key:
                        return entry.job
                    raise JobRefused(Message("job.same"))
            visitor = self._visitor_of(owner)
            self._require_room(visitor, active)
            self._require_time(visitor, num_tokens)
            self._forget_old(owner)
            job_id = secrets.token_urlsafe(12)
            job = Job(job_id, owner, kind, key, folder / job_id, seconds)
            job.folder.mkdir(parents=True)
            job.emit("state", state=QUEUED)
            order = time.monotonic() + min(self._usage.total(visitor) + seconds, _LONGEST_DETOUR)
            if num_tokens:
                self._tokens.add(visitor, num_tokens)
            entry = _Entry(job, visitor, work, contextvars.copy_context(), order)
            self._entries[job_id] = entry
            bisect.insort(self._waiting, entry, key=lambda one: one.order)
            self._changed.notify()
        return job

    def _require_room(self, visitor: str, active: Sequence[_Entry]) -> None:
        """Refuse a visitor's further job, of an owner with these, for want of room or of a place in the queue."""
        of_visitor = [
            entry for entry in self._entries.values() if entry.visitor == visitor and entry.state not in ENDED
        ]
        if len(active) >= MAX_JOBS or len(of_visitor) >= self._limits.visitor_jobs:
            raise JobRefused(Message("job.many", count=max(len(active), len(of_visitor))))
        num_waiting = len(self._waiting)
        # The second half of the places is for those who have none.
        has_one = any(entry.state == QUEUED for entry in of_visitor)
        if num_waiting >= self._max_waiting or (has_one and 2 * num_waiting >= self._max_waiting):
            raise JobRefused(Message("job.many_waiting", count=num_waiting))

    def _require_time(self, visitor: str, num_tokens: int) -> None:
        """Refuse the job of a visitor who has had enough in this hour."""
        if self._usage.total(visitor) >= self._limits.hour_seconds:
            wait = minutes(self._usage.next_free(visitor))
            raise JobRefused(Message("job.hour_seconds", most=minutes(self._limits.hour_seconds), wait=wait))
        used = self._tokens.total(visitor)
        if num_tokens and used + num_tokens > self._limits.hour_tokens:
            wait, most = minutes(self._tokens.next_free(visitor)), self._limits.hour_tokens
            raise JobRefused(Message("job.hour_tokens", num_tokens=num_tokens, used=used, most=most, wait=wait))

    def _forget_old(self, owner: str) -> None:
        """Remove the owner's oldest ended jobs, so that a session's logs do not add up."""
        ended = [entry for entry in self._entries.values() if entry.job.owner == owner and entry.state in ENDED]
        for entry in ended[: max(0, len(ended) - _KEPT + 1)]:
            del self._entries[entry.job.id]
            shutil.rmtree(entry.job.folder, ignore_errors=True)

    @contextmanager
    def follower(self, job: Job) -> Iterator[None]:
        """
        Inside the block, somebody follows the job.

        Raises:
            JobRefused: Too many follow it.
        """
        entry = self._entries.get(job.id)
        if entry is None:  # its session has just been deleted
            yield
            return
        with self._changed:
            if entry.num_followers >= MAX_FOLLOWERS:
                raise JobRefused(Message("job.many_pages", count=MAX_FOLLOWERS))
            entry.num_followers += 1
        try:
            yield
        finally:
            with self._changed:
                entry.num_followers -= 1

    def find(self, job_id: str, owner: str) -> Job | None:
        """The job with an id, if it belongs to this owner."""
        entry = self._entries.get(job_id)
        return entry.job if entry is not None and entry.job.owner == owner else None

    def active(self, owner: str, kind: str | None = None) -> list[Job]:
        """The owner's jobs that have not ended, oldest first."""
        with self._changed:
            return [
                entry.job
                for entry in self._entries.values()
                if entry.job.owner == owner and kind in (None, entry.job.kind) and entry.state not in ENDED
            ]

    def queue_position(self, job: Job) -> tuple[int, float]:
        """
        How long a job has to wait.

        Returns:
            `tuple[int, float]`: The number of jobs before it, which is 0 if it runs or has ended, and how many seconds they
            will probably take.
        """
        with self._changed:
            waiting = [entry.job.id for entry in self._waiting]
            if job.id not in waiting:
                return 0, 0.0
            before = self._waiting[: waiting.index(job.id)]
            now = time.monotonic()
            left = sum(max(1.0, entry.job.seconds - (now - entry.started)) for entry in self._running)
            return len(before) + len(self._running), left + sum(entry.job.seconds for entry in before)

    def wait(self, job: Job, timeout: float | None = None) -> bool:
        """Wait until a job has ended, for at most `timeout` seconds. Returns whether it has."""
        entry = self._entries.get(job.id)
        return entry is None or entry.ended.wait(timeout)

    def stop(self, job: Job) -> None:
        """Ask a job to end. A waiting job ends at once. A second call, or one after the end, does nothing."""
        with self._changed:
            entry = self._entries.get(job.id)
            if entry is None or entry.state in ENDED:
                return
            job.stop.set()
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._resume_if_idle()
                self._end(entry, STOPPED)

    def forget(self, owner: str) -> None:
        """Stop all jobs of an owner, wait for them and remove their folders."""
        jobs = [entry.job for entry in list(self._entries.values()) if entry.job.owner == owner]
        for job in jobs:
            self.stop(job)
        for job in jobs:
            self.wait(job)
            with self._changed:
                self._entries.pop(job.id, None)
            shutil.rmtree(job.folder, ignore_errors=True)

    def close(self, timeout: float) -> None:
        """Stop all jobs and wait for them, for at most `timeout` seconds in all."""
        jobs, end = [entry.job for entry in list(self._entries.values())], time.monotonic() + timeout
        for job in jobs:
            self.stop(job)
        for job in jobs:
            self.wait(job, max(0.0, end - time.monotonic()))

    @contextmanager
    def background(self, work: Pausable) -> Iterator[None]:
        """Inside the block, `work` is paused whenever a job runs."""
        with self._changed:
            if self._background is not None:
                raise JobRefused(Message("job.other_run"))
            self._background = work
            if self._running:
                work.pause()
        try:
            yield
        finally:
            with self._changed:
                self._background = None

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                entry = self._waiting.pop(0)
                self._running.append(entry)
                entry.state, entry.started = RUNNING, time.monotonic()
                if self._background is not None:
                    self._background.pause()
            state, error = DONE, None
            timer = self._timer(entry.job)
            try:
                entry.job.emit("state", state=RUNNING)
                entry.context.run(entry.work, entry.job)
                if entry.job.stop.is_set():
                    state, error = STOPPED, entry.job.stop.reason or None
            # Any error belongs to the job and must not end the queue. A panic in Rust is not an `Exception`.
            except BaseException as failure:
                state, error = FAILED, self._explain(failure)
            if timer is not None:
                timer.cancel()
            self._usage.add(entry.visitor, time.monotonic() - entry.started)
            with self._changed:
                self._running.remove(entry)
                self._resume_if_idle()
                self._end(entry, state, error)

    def _resume_if_idle(self) -> None:
        if self._background is not None and not self._running and not self._waiting:
            self._background.resume()

    def _timer(self, job: Job) -> threading.Timer | None:
        """Stops a job that takes too long."""
        seconds = self._limits.job_seconds
        if seconds == math.inf:
            return None
        return stop_after(seconds, job, Message("job.overdue", time=minutes(seconds)))

    def _end(self, entry: _Entry, state: str, error: str | None = None) -> None:
        entry.state = state
        try:
            entry.job.emit("state", state=state, **({"error": as_data(error)} if error else {}))
        except OSError:  # disk full, or no folder; pages would follow a log without an end for ever
            logger.warning("The end of a job could not be written", exc_info=True)
            shutil.rmtree(entry.job.folder, ignore_errors=True)
        entry.ended.set()
