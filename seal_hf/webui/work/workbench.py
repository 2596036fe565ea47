"""The work of the page, without widgets: write self-edits, learn them, ask. Each becomes a job on the device."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ...self_adapting_lm import SelfAdaptingLM
from ..languages import Message
from . import device, device_work, inputs
from .adaptation import checked_adaptation
from .asking import ask_both, probing_examples
from .errors import explain
from .job_queue import JobQueue
from .jobs import Job
from .limits import OWN_MACHINE, Limits
from .pace import TRAINED_PER_SECOND, WRITTEN_PER_SECOND, Pace
from .self_edit_inputs import checked_self_edits, texts_of
from .session_items import Draft, KeptAdapter
from .sessions import Session, Sessions
from .settings import Settings
from .shelves import Shelves
from .training_runs import TrainingRuns


logger = logging.getLogger(__name__)


class Workbench:
    """
    One model and all its visitors.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model, loaded once.
        folder (`Path`):
            Where sessions keep their files.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of jobs at a time (see [`JobQueue`]).
        keep_seconds (`float`, *optional*, defaults to `3600`):
            How long an unused session is kept.
        limits ([`Limits`], *optional*):
            What one visitor may take of the device. Defaults to the limits of the user of this machine.
        shelf (`Path`, *optional*):
            Folder of the shelf that stays on this machine, for its user alone. Defaults to none: each session has a shelf, which
            goes with it.

    Attributes:
        shelves ([`Shelves`]):
            The books of the sessions.
        runs ([`TrainingRuns`], *optional*):
            The training runs of the sessions. A session with one under way is in use.
    """

    def __init__(
        self,
        lm: SelfAdaptingLM,
        folder: Path,
        *,
        num_workers: int = 1,
        keep_seconds: float = 3600,
        limits: Limits = OWN_MACHINE,
        shelf: Path | None = None,
    ):
        self.lm, self.limits = lm, limits
        self.shelves = Shelves(lm, shelf)
        self.runs: TrainingRuns | None = None
        self._model = device.hold(lm)
        self.jobs = JobQueue(explain, num_workers=num_workers, limits=limits, visitor_of=self._visitor_of)
        self.sessions = Sessions(
            folder,
            keep_seconds=keep_seconds,
            max_of_visitor=limits.visitor_sessions,
            unattended_seconds=limits.unattended_seconds,
            is_busy=self._is_busy,
            on_unattended=self._end_work,
            on_forget=self._forget,
        )
        self._pace = Pace()
        threading.Thread(target=self._sweep, args=(min(keep_seconds, 60),), name="sweep", daemon=True).start()

    # --- write ---

    def propose(
        self, session: Session, title: str, passage: str, questions: Sequence[Mapping], settings: Settings
    ) -> Job:
        """
        Write self-edits. They replace those of the session when all are written. The session's policy writes them, where it
        has chosen one.

        Args:
            session ([`Session`]):
                The session.
            title, passage (`str`):
                What to write about.
            questions (`Sequence[Mapping]`):
                The visitor's questions and answers.
            settings ([`Settings`]):
                How to write.

        Raises:
            ValueError: The passage cannot be learned.
            JobRefused: The session writes about something else at the moment, or too many jobs are waiting.
        """
        example = inputs.checked_example(settings.lm(self.lm), title, passage, questions, settings)
        writer = session.writer

        def work(job: Job) -> None:
            if writer is not None and not writer.folder.is_dir():
                raise ValueError(Message("teach.other_writer", writer=writer.name))
            drafts = self.run(device_work.write, job, example, settings, writer=writer and writer.folder)
            if any(draft.use for draft in drafts):
                session.example, session.settings, session.drafts = example, asdict(settings), drafts
                session.written_by = writer.name if writer else ""
            elif not job.stop.is_set():
                raise ValueError(Message("teach.nothing_written"))

        job = self.submit(
            session,
            "propose",
            [example, asdict(settings), writer and str(writer.folder)],
            work,
            settings.max_completion_length / WRITTEN_PER_SECOND,
            "write",
        )
        session.passage = example
        session.shown.pop("adapt", None)  # it was about another passage
        return job

    def training_texts(self, session: Session, draft: Draft) -> list[str]:
        """The texts that are trained on when a self-edit is this one; none where it cannot be learned as it is."""
        if session.example is None:
            return []
        lm = Settings(**session.settings).lm(self.lm)
        try:
            (self_edit,) = checked_self_edits(lm, session.example, [draft], [0])
        except ValueError:
            return []
        return texts_of(self_edit)

    # --- learn ---

    def adapt(
        self,
        session: Session,
        chosen: Sequence[int],
        settings: Settings,
        questions: Sequence[Mapping],
        drafts: Sequence[Draft] | None = None,
        *,
        together: bool = False,
        watched: str = "",
        stops_early: bool = True,
    ) -> Job:
        """
        Train an adapter on each of the chosen self-edits and find out which has learned most, or one on all of them.

        Args:
            session ([`Session`]):
                The session.
            chosen (`Sequence[int]`):
                Numbers of the session's drafts, from 0.
            settings ([`Settings`]):
                How to train.
            questions (`Sequence[Mapping]`):
                The visitor's questions and answers. If there are none, the model writes its own.
            drafts (`Sequence[Draft]`, *optional*):
                Self-edits that replace those of the session, once the job is accepted.
            together (`bool`, *optional*, defaults to `False`):
                Whether one adapter learns all chosen self-edits.
            watched (`str`, *optional*, defaults to `""`):
                A question to ask the adapters while they are trained, or none. If it is one of `questions`, its answers are graded.
            stops_early (`bool`, *optional*, defaults to `True`):
                Whether the training ends once the answers to it stay (see [`AnswerStays`]).

        Raises:
            ValueError: No self-edit is chosen, one is empty, the training would be too long, or the watched question is.
            JobRefused: The session has no self-edit, too many adapters or no room for more, it learns something else at the
                moment, too many jobs are waiting, the visitor has had too much in this hour, or there is no room on the disk.
        """
        adaptation = checked_adaptation(
            self.lm,
            self.limits,
            session,
            chosen,
            settings,
            questions,
            drafts,
            together=together,
            watched=watched,
            stops_early=stops_early,
        )
        job = self.submit(
            session,
            "adapt",
            adaptation.key,
            partial(adaptation.learn, run=self.run, shelves=self.shelves),
            adaptation.num_tokens / TRAINED_PER_SECOND + 10,
            "learn",
            adaptation.num_tokens,
        )
        session.passage, session.drafts = adaptation.example, adaptation.drafts
        return job

    # --- ask ---

    def ask(self, session: Session, question: str, adapter_id: str | None = None) -> Job:
        """
        Ask the base and the adapted model the same question, without the passage.

        Args:
            session ([`Session`]):
                The session.
            question (`str`):
                The question.
            adapter_id (`str`, *optional*):
                The adapter. Defaults to the chosen one.

        Raises:
            ValueError: The question has no words, or is too long.
            JobRefused: There is no such adapter, the session asks something else at the moment, or too many jobs are
                waiting.
        """
        kept = session.adapter(adapter_id)
        question = inputs.checked_question(self.lm, question)
        return self._answer(session, "ask", [inputs.example_of(kept.title, "", [{"question": question}])], kept)

    def score(self, session: Session, questions: Sequence[Mapping], adapter_id: str | None = None) -> Job:
        """
        Let both models answer the visitor's questions, and grade the answers.

        Args:
            session, adapter_id:
                As in [`ask`].
            questions (`Sequence[Mapping]`):
                The questions with their answers.

        Raises:
            ValueError: There are no questions.
            JobRefused: As in [`ask`].
        """
        kept = session.adapter(adapter_id)
        if not questions:
            raise ValueError(Message("ask.no_questions"))
        return self._answer(session, "score", [inputs.example_of(kept.title, "", questions)], kept)

    def probe(self, session: Session, adapter_id: str | None = None) -> Job:
        """
        Let both models answer questions that have nothing to do with the passage, and grade the answers; and one about its topic
        that it does not answer.

        Args:
            session, adapter_id:
                As in [`ask`].

        Raises:
            JobRefused: As in [`ask`].
        """
        kept = session.adapter(adapter_id)
        return self._answer(session, "probe", probing_examples(kept), kept)

    def _answer(self, session: Session, kind: str, examples: Sequence[Mapping], kept: KeptAdapter) -> Job:
        work = partial(
            ask_both, session=session, kind=kind, examples=examples, kept=kept, run=self.run, domain=self.lm.domain
        )
        seconds = 3 + device_work.LONGEST_ANSWER / WRITTEN_PER_SECOND
        return self.submit(session, kind, [list(examples), kept.id], work, seconds, "answer")

    # --- jobs ---

    def stop(self, session: Session, kind: str) -> bool:
        """Ask the session's job of this kind to end. Returns whether there was one."""
        active = self.jobs.active(session.id, kind)
        for job in active:
            self.jobs.stop(job)
        return bool(active)

    def submit(
        self,
        session: Session,
        kind: str,
        key: object,
        work: Callable[[Job], None],
        seconds: float,
        pace: str,
        num_tokens: int = 0,
    ) -> Job:
        """
        Start a job of a session.

        Args:
            session ([`Session`]):
                The session.
            kind (`str`), work (`Callable[[Job], None]`):
                As in [`JobQueue.submit`].
            key (`object`):
                What it works on, in plain data.
            seconds (`float`):
                How long it would take on the slow machine of the estimates.
            pace (`str`):
                `"write"`, `"learn"` or `"answer"`: of what its time corrects the estimates.

        Raises:
            JobRefused: As in [`JobQueue.submit`].
        """

        def timed(job: Job) -> None:
            start = time.monotonic()
            work(job)
            if not job.stop.is_set():
                self._pace.correct(pace, seconds, time.monotonic() - start)

        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        job = self.jobs.submit(
            session.id,
            kind,
            digest,
            session.folder / "jobs",
            timed,
            seconds=self._pace.seconds(pace, seconds),
            num_tokens=num_tokens,
        )
        session.shown[kind] = job.id
        return job

    def run(self, work: Callable, job: Job, *arguments: object, **options: object) -> object:
        """Do a piece of a job's work on the device (see [`device.run`])."""
        return device.run(job.seconds, self._model, partial(work, **options), job, *arguments)

    def _visitor_of(self, session_id: str) -> str:
        return self.sessions.visitor_of(session_id)

    def _is_busy(self, session_id: str) -> bool:
        return bool(self.jobs.active(session_id)) or (self.runs is not None and self.runs.is_running(session_id))

    def _end_work(self, session_id: str) -> None:
        for job in self.jobs.active(session_id):
            self.jobs.stop(job)
        # A run on one's own machine may take days. What it has is on disk, for its user to look at.
        if self.runs is not None and self.limits.is_shared:
            self.runs.stop(session_id)

    def _forget(self, session_id: str) -> None:
        self.jobs.forget(session_id)
        if self.runs is not None and self.limits.is_shared:
            self.runs.forget(session_id)

    def _sweep(self, seconds: float) -> None:
        while True:
            time.sleep(seconds)
            try:
                self.sessions.sweep()
            except Exception:  # such as a full disk; the next sweep may find room
                logger.exception("The sessions could not be looked through")
