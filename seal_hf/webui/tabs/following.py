"""How a page follows a job, and what it says of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import wraps

from ..work.jobs import DONE, FAILED, QUEUED, STOPPED, Job, JobLog
from ..work.workbench import Workbench


_REFRESH = 0.25  # seconds between two states of the page; the first word is looked for more often
_FIRST = 0.03


async def follow(job: Job) -> AsyncIterator[tuple[JobLog, list[dict]]]:
    """
    A job's log and its new events, from the first, until it ends. Leaving changes nothing for the job.

    While nothing happens it still yields every few seconds, since the place in the queue may have changed.
    """
    log, quiet, wait = JobLog(job), 0.0, _FIRST
    while True:
        events = log.read()
        if events or quiet >= 2 or log.has_ended:
            yield log, events
            quiet = 0.0
        if log.has_ended:
            return
        if any(event["event"] in ("text", "step") for event in events):
            wait = _REFRESH
        await asyncio.sleep(wait)
        quiet += wait


def cumulative(handler: Callable[..., AsyncIterator[dict]]) -> Callable[..., AsyncIterator[dict]]:
    """A handler whose every state of the widgets holds the earlier ones too: a page skips one that another follows at once."""

    @wraps(handler)
    async def whole(*arguments: object) -> AsyncIterator[dict]:
        state: dict = {}
        async for update in handler(*arguments):
            state |= update
            yield dict(state)

    return whole


def waiting_text(workbench: Workbench, job: Job) -> str:
    """Where a job is in the queue."""
    before, seconds = workbench.jobs.queue_place(job)
    if not before:
        return "Starting …"
    return f"Waiting for {before} other{'s' * (before > 1)} on this device, about {duration(seconds)}."


def ended_text(log: JobLog, done: str, stopped: str) -> str:
    """How a job has ended, in a sentence."""
    return {DONE: done, STOPPED: stopped, FAILED: f"⚠️ {escape(log.error or '')}"}.get(log.state, "")


def is_waiting(log: JobLog) -> bool:
    """Whether a job has not begun."""
    return log.state == QUEUED


def duration(seconds: float) -> str:
    """A time for people: `"8 s"`, `"2 min"`."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def escape(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+!|~$&" else character for character in text)


def append(texts: list[str], new_texts: Sequence[str]) -> None:
    """Add what was written to each text."""
    for place, new_text in enumerate(new_texts):
        texts[place] += new_text
