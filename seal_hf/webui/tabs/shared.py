"""What the tabs share: how a page follows a job, and how it shows tables, times and texts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import wraps

import gradio as gr
from gradio.i18n import I18nData

from ...grading import show_gold_answers
from ..languages import Message, say, told
from ..work.jobs import DONE, FAILED, QUEUED, STOPPED, Job, JobLog, JobRefused
from ..work.sessions import Session
from ..work.workbench import Workbench


_REFRESH = 0.25  # seconds between two updates of the page
_FIRST = 0.03  # the same until there is something to show
MARKS = {True: "✓ ", False: "✗ ", None: ""}  # before an answer, by its verdict
RECITED = Message("common.recited_means")


def keep_shown_files(widget: gr.components.Component) -> None:
    """
    Keep Gradio from deleting the files that a widget shows an hour after it has shown them first. They are a session's own, which
    Gradio serves without a copy, and go with the session.
    """
    widget.keep_in_cache = widget.temp_files


async def follow(
    workbench: Workbench, job: Job, *, is_program: bool = False
) -> AsyncIterator[tuple[JobLog, list[dict]]]:
    """
    A job's log with its new events, from the first one until the job ends. The job continues for a while if nobody follows it.

    Without new events it still yields every few seconds, since the position in the queue may have changed.

    Args:
        workbench ([`Workbench`]):
            Does the job.
        job ([`Job`]):
            The job.
        is_program (`bool`, *optional*, defaults to `False`):
            Whether a program has called. Unlike a page's, such a call goes on when the caller has left.

    Raises:
        JobRefused: Too many follow the job.
    """
    log, quiet, wait = JobLog(job), 0.0, _FIRST
    with workbench.jobs.follower(job):
        while True:
            if not is_program or is_waiting(log):
                workbench.sessions.find(job.owner)  # its visitor is there
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


async def opened(workbench: Workbench, session_id: str) -> Session:
    """
    The visitor's session.

    Raises:
        gr.Error: There is no room for it.
    """
    try:
        return await asyncio.to_thread(workbench.sessions.open, session_id)
    except JobRefused as error:
        raise gr.Error(told(error), print_exception=False) from error


async def started(start: Callable[[], Job]) -> Job | str:
    """
    The job that `start` returns, or why there is none. `start` may count the tokens of a long text, so that it has a thread: no other
    visitor waits for it.
    """
    try:
        return await asyncio.to_thread(start)
    except ValueError as error:
        return warning(error)


def cumulative(handler: Callable[..., AsyncIterator[dict]]) -> Callable[..., AsyncIterator[dict]]:
    """
    A handler whose updates contain the earlier ones too.

    A page skips an update if the next one comes at once, so each has to be complete.
    """

    @wraps(handler)
    async def whole(*arguments: object) -> AsyncIterator[dict]:
        state: dict = {}
        async for update in handler(*arguments):
            state |= update
            yield dict(state)

    return whole


def waiting_text(workbench: Workbench, job: Job) -> str:
    """Where a job is in the queue."""
    before, seconds = workbench.jobs.queue_position(job)
    if not before:
        return say("job.starting")
    return say("job.waiting", count=before, time=duration(seconds))


def ended_text(log: JobLog, done: str, stopped: str) -> str:
    """How a job has ended, in a sentence: `done`, `stopped`, or its error."""
    error = escape(told(log.error or ""))
    return {DONE: done, STOPPED: f"{stopped} {error}".rstrip(), FAILED: f"⚠️ {error}"}.get(log.state, "")


def warning(error: str | BaseException) -> str:
    """An error, or the text of one, as Markdown in the visitor's language."""
    return f"⚠️ {escape(told(error))}"


def is_waiting(log: JobLog) -> bool:
    """Whether a job has not started yet."""
    return log.state == QUEUED


def duration(seconds: float) -> str:
    """A time for people: `"8 s"`, `"2 min"`."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def percent(share: float | None) -> str:
    """A share for people, in percent; a dash for `None`."""
    return "–" if share is None else f"{100 * share:.0f} %"


def escape(text: str) -> str:
    """A text for Markdown, which shows it unchanged."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+!|~$&" else character for character in text)


def append(texts: list[str], new_texts: Sequence[str]) -> None:
    """Append to each text its new part."""
    for index, new_text in enumerate(new_texts):
        texts[index] += new_text


def answers_table(
    questions: Sequence[dict], answers: Sequence[Sequence[str]], verdicts: Sequence[Sequence] | None = None
) -> list[list[str]]:
    """
    What several models answered.

    Args:
        questions (`Sequence[dict]`):
            The questions with their right answers.
        answers (`Sequence[Sequence[str]]`):
            The answers of each model.
        verdicts (`Sequence[Sequence]`, *optional*):
            Whether each of these answers is right.

    Returns:
        `list[list[str]]`: For each question itself with its right answer, and the marked answer of each model.
    """
    verdicts = verdicts or [[None] * len(questions)] * len(answers)
    cells = [
        [MARKS[verdict] + answer for answer, verdict in zip(*model, strict=True)]
        for model in zip(answers, verdicts, strict=True)
    ]
    asked = [" → ".join(filter(None, (item["question"], show_gold_answers(item.get("answer"))))) for item in questions]
    return [list(line) for line in zip(asked, *cells, strict=True)]


def table_of(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> dict:
    """
    The value of a table, with its columns in the visitor's language, which Gradio does not translate.

    Args:
        headers (`Sequence[str]`):
            The keys of the columns' names; empty for one without a name.
        lines (`Sequence[Sequence[str]]`):
            The cells.
    """
    return {"headers": [key and say(key) for key in headers], "data": [list(line) for line in lines]}


def read_only_table(
    widths: Sequence[int], *, elem_id: str | None = None, label: str | I18nData | None = None, **options
) -> gr.Dataframe:
    """
    A table of texts that is no wider than the page. Its values have its columns (see [`table_of`]).

    Args:
        widths (`Sequence[int]`):
            Width of each column, in percent.
        elem_id, label, options:
            As in `gr.Dataframe`.
    """
    return gr.Dataframe(
        headers=[""] * len(widths),
        datatype="str",
        column_widths=[f"{width}%" for width in widths],
        wrap=True,
        interactive=False,
        buttons=[],
        label=label,
        show_label=label is not None,
        elem_id=elem_id,
        elem_classes="table",
        **options,
    )
