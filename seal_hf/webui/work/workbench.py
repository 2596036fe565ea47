"""The work of the page, without widgets: write self-edits, learn them, ask. Each becomes a job on the device."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from ...adapters.layout import lora_layout
from ...domains.knowledge.passages import load_retention_questions, unanswered_question
from ...grading import LexicalGrader
from ...models.encoding import encode_prompt
from ...rollout.rewards import mean
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit, TrainingExample
from . import device, inputs, quota
from .errors import explain
from .jobs import Job, JobRefused, Jobs
from .limits import OWN_MACHINE, Limits
from .sessions import Draft, KeptAdapter, Session, Sessions
from .settings import Settings
from .shelves import Shelves
from .training_runs import TrainingRuns


NUM_OWN_QUESTIONS = 5
_LONGEST_HISTORY = 50  # questions
# Tokens per second of a small model on two CPU cores, written in one text and trained on. The time that jobs really take
# corrects the estimates.
WRITTEN_PER_SECOND, TRAINED_PER_SECOND = 12.0, 250.0
_FEWER = "choose fewer self-edits, shorter ones or fewer epochs"


class Workbench:
    """
    One model and all its visitors.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model, loaded once.
        folder (`Path`):
            Where sessions keep their files.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of jobs at a time (see [`Jobs`]).
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
        self.jobs = Jobs(explain, num_workers=num_workers, limits=limits, visitor_of=self._visitor_of)
        self.sessions = Sessions(
            folder,
            keep_seconds=keep_seconds,
            max_of_visitor=limits.visitor_sessions,
            unattended_seconds=limits.unattended_seconds,
            is_busy=self._is_busy,
            on_unattended=self._end_work,
            on_forget=self._forget,
        )
        self._pace_lock = threading.Lock()
        self._pace = {"write": 1.0, "learn": 1.0, "answer": 1.0}
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
                raise ValueError(
                    f"The self-edits are no longer written by {writer.name}: press “Write self-edits” again."
                )
            drafts = self.run(device.write, job, example, settings, writer=writer and writer.folder)
            if any(draft.use for draft in drafts):
                session.example, session.settings, session.drafts = example, asdict(settings), drafts
                session.written_by = writer.name if writer else ""
            elif not job.stop.is_set():
                raise ValueError("The model wrote nothing that can be learned: try another prompt style or seed.")

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
            (self_edit,) = inputs.checked_self_edits(lm, session.example, [draft], [0])
        except ValueError:
            return []
        # Questions that the model will answer are shown as they are.
        return [*self_edit.calls, *map(_shown, self_edit.examples)]

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
        if session.example is None:
            raise JobRefused("There is no self-edit yet: let the model write some first.")
        # How a self-edit is read follows from how it was asked for.
        settings = replace(settings, prompt_style=session.settings["prompt_style"])
        lm = settings.lm(self.lm)
        # One more is the folder that becomes the zip file of one, and later the book.
        num_adapters = 1 if together else len(chosen)
        num_bytes = (1 + num_adapters) * (lora_layout(lm.model, lm.peft_config).num_bytes + quota.FILE_BYTES)
        quota.require(session.folder, num_bytes)
        example = {**session.example, "questions": [dict(item) for item in questions]}
        drafts = session.drafts if drafts is None else list(drafts)
        self_edits = inputs.checked_self_edits(lm, example, drafts, chosen)
        session.require_room(num_adapters)
        self._require_short(settings, self_edits)
        labels = [str(number + 1) for number in chosen]
        if together:
            labels = [" + ".join(labels)]
        names = [f"{inputs.name_of(example)} · self-edit {label}" for label in labels]
        watched_example = self._watched(example, watched)
        targets = [session.new_file(name) for name in names]
        writer = session.writer
        num_tokens = settings.num_train_epochs * sum(
            len(encode_prompt(lm.processing_class, one.prompt)) + inputs.count_tokens(lm, one.completion)
            for edit in self_edits
            for one in edit.examples
        )
        self.limits.check_tokens(num_tokens, _FEWER)

        def work(job: Job) -> None:
            job.emit("learning", names=labels, watched=watched_example["questions"][0] if watched_example else None)
            files = [file for _, file in targets]
            with quota.room(session.folder, num_bytes):
                try:
                    result = self.run(
                        device.learn,
                        job,
                        example,
                        self_edits,
                        settings,
                        files,
                        NUM_OWN_QUESTIONS,
                        together=together,
                        watched=watched_example,
                        writer=writer.folder if writer is not None and writer.folder.is_dir() else None,
                        stops_early=stops_early,
                    )
                except BaseException:
                    # The adapters that were saved before the error stay, without a reward.
                    saved = [index for index, file in enumerate(files) if file.is_file()]
                    own, kept = [names[index] for index in saved], [targets[index] for index in saved]
                    result = {"seconds": None, "has_adapters": bool(saved)}
                    self._keep_learned(session, job, example, own, kept, result)
                    raise
                best = self._keep_learned(session, job, example, names, targets, result)
                if best is not None:
                    self._put_on_shelf(
                        session, job, example, targets[best][0], result["pairs"][best], result["losses"][best]
                    )

        key = [
            example,
            [edit.completion for edit in self_edits],
            asdict(settings),
            together,
            watched_example,
            stops_early,
        ]
        job = self.submit(session, "adapt", key, work, num_tokens / TRAINED_PER_SECOND + 10, "learn", num_tokens)
        session.passage, session.drafts = example, drafts
        return job

    def _watched(self, example: Mapping, question: str) -> dict | None:
        """
        The watched question as an example of its own, with its answers where they are known.

        Raises:
            ValueError: It has no words, or is too long.
        """
        if not (question or "").strip():
            return None
        question = inputs.checked_question(self.lm, question)
        known = [item for item in example["questions"] if item["question"].casefold() == question.casefold()]
        return inputs.example_of(inputs.title_of(example), "", known[:1] or [{"question": question}])

    def _require_short(self, settings: Settings, self_edits: Sequence[SelfEdit]) -> None:
        """
        Raises:
            ValueError: The training has too many steps.
        """
        # Each question that the model is to answer becomes one more example, and the passage another.
        sizes = [len(edit.examples) + len(edit.calls) + bool(edit.calls) for edit in self_edits]
        num_steps = settings.num_train_epochs * sum(-(-size // settings.batch_size) for size in sizes)
        self.limits.check_steps(num_steps, _FEWER)

    def _keep_learned(
        self,
        session: Session,
        job: Job,
        example: dict,
        names: Sequence[str],
        targets: Sequence[tuple[str, Path]],
        result: dict,
    ) -> int | None:
        """Give the session its new adapters. Returns the place of the best one, or `None` where there is none."""
        if not result["has_adapters"]:
            return None
        verdicts = result.get("verdicts")
        rewards = [sum(one) / len(one) for one in verdicts] if verdicts else None
        best = max(range(len(targets)), key=lambda index: rewards[index + 1]) if rewards else 0
        for index, (adapter_id, file) in enumerate(targets):
            kept = KeptAdapter(
                adapter_id,
                names[index],
                file,
                title=inputs.title_of(example),
                passage=inputs.passage_of(example),
                reward=rewards[index + 1] if rewards else None,
                base_reward=rewards[0] if rewards else None,
                best_of=len(targets) if rewards and rewards[index + 1] == max(rewards[1:]) else 1,
                recitation=result["recitations"][index + 1] if rewards else None,
                recited=result["recited"][index + 1] if rewards else None,
                base_recited=result["recited"][0] if rewards else None,
                num_questions=len(verdicts[0]) if verdicts else 0,
                own_questions=result.get("own", False),
                seconds=result["seconds"],
            )
            session.keep(kept, choose=index == best)
        job.emit(
            "learned",
            adapters=[adapter_id for adapter_id, _ in targets],
            best=best,
            **(
                {key: result[key] for key in ("questions", "own", "answers", "verdicts", "recited")} if rewards else {}
            ),
        )
        return best

    def _put_on_shelf(
        self,
        session: Session,
        job: Job,
        example: dict,
        adapter_id: str,
        pairs: list[tuple[str, str]],
        loss: float | None,
    ) -> None:
        """Make a book of the best adapter. Where that fails, the adapter stays, and the page says why there is no book."""
        try:
            kept = session.adapter(adapter_id)
            book = self.shelves.put(session, kept, example, pairs, loss, is_whole=not job.stop.is_set())
        except (OSError, ValueError) as error:
            job.emit("shelved", book=None, error=explain(error))
            return
        job.emit("shelved", book=book.id if book else None, error=None)

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
            raise ValueError("There are no questions yet: write some with their answers in the first step.")
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
        examples = [inputs.example_of("", "", load_retention_questions())]
        if question := unanswered_question(inputs.example_of(kept.title, kept.passage)):
            examples.append(inputs.example_of(kept.title, "", [{"question": question}]))
        return self._answer(session, "probe", examples, kept)

    def _answer(
        self,
        session: Session,
        kind: str,
        examples: Sequence[Mapping],
        kept: KeptAdapter,
    ) -> Job:
        questions = [item for example in examples for item in example["questions"]]

        def work(job: Job) -> None:
            if kept.id not in session.adapters:
                raise ValueError(f"The adapter “{kept.name}” has been deleted: choose another one under Adapters.")
            job.emit("asked", questions=questions, adapter=kept.name)
            base, adapted = self.run(device.answer, job, examples, kept.file)
            verdicts = recited = None
            if kind != "ask" and not job.stop.is_set():
                verdicts = [_graded(questions, answers) for answers in (base, adapted)]
                about = inputs.example_of(kept.title, kept.passage)
                recited = [mean(self.lm.domain.recited(about, answers)) for answers in (base, adapted)]
            if kind == "ask" and not job.stop.is_set():
                session.asked = [*session.asked, (questions[0]["question"], base[0], adapted[0])][-_LONGEST_HISTORY:]
            best_of = 1 if kept.own_questions else kept.best_of  # by questions of the visitor
            job.emit("answered", base=base, adapted=adapted, verdicts=verdicts, recited=recited, best_of=best_of)

        key = [list(examples), kept.id]
        return self.submit(session, kind, key, work, 3 + device.LONGEST_ANSWER / WRITTEN_PER_SECOND, "answer")

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
                As in [`Jobs.submit`].
            key (`object`):
                What it works on, in plain data.
            seconds (`float`):
                How long it would take on the slow machine of the estimates.
            pace (`str`):
                `"write"`, `"learn"` or `"answer"`: of what its time corrects the estimates.

        Raises:
            JobRefused: As in [`Jobs.submit`].
        """

        def timed(job: Job) -> None:
            start = time.monotonic()
            work(job)
            if not job.stop.is_set():
                with self._pace_lock:
                    # Only half of the difference, so that one slow job does not spoil all estimates.
                    self._pace[pace] = (self._pace[pace] + (time.monotonic() - start) / seconds) / 2

        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        job = self.jobs.submit(
            session.id,
            kind,
            digest,
            session.folder / "jobs",
            timed,
            seconds=seconds * self._pace[pace],
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
            self.sessions.sweep()


def _graded(questions: Sequence[Mapping], answers: Sequence[str]) -> list[bool | None]:
    """The verdict on each answer; `None` where the right answer is not known."""
    known = [place for place, item in enumerate(questions) if "answer" in item]
    columns = ([questions[place]["question"] for place in known], [questions[place]["answer"] for place in known])
    verdicts = dict(zip(known, LexicalGrader().grade(*columns, [answers[place] for place in known]), strict=True))
    return [verdicts.get(place) for place in range(len(questions))]


def _shown(example: TrainingExample) -> str:
    """A training example as a text: what is asked, without the template of a chat, and what is answered."""
    if isinstance(example.prompt, str):
        return example.prompt + example.completion
    return "\n".join([*(message["content"] for message in example.prompt), example.completion])
