"""
The work of the tab ARC: write self-edits about a task, learn one, and predict with it. Its jobs are those of the [`Workbench`], with
the same model, sessions and limits.

An adapter is of no use for another task, so that none is kept.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from peft import LoraConfig

from ...domains import ArcDomain
from ...domains.arc.augmentation import Augmented, augment
from ...domains.arc.choices import Choices, read_choices
from ...domains.arc.tasks import Task
from ...inner_loop.update import InnerLoopConfig, tokenize_self_edit
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit
from ..languages import Message
from . import arc_inputs, device_work
from .jobs import Job
from .pace import TRAINED_PER_SECOND, WRITTEN_PER_SECOND
from .session_items import Puzzle
from .sessions import Session
from .settings import as_number, check_range
from .workbench import Workbench


WRITING, LEARNING = "arc-propose", "arc-learn"  # kinds of jobs
MAX_SELF_EDITS = 4
_LONGEST_SELF_EDIT = 4_000  # characters
_MAX_LENGTH = 8192  # tokens of a training task
# A task has a token for each cell, so that no text has many more characters than tokens.
_CHARACTERS_PER_TOKEN = 4
_FEWER = Message("arc.fewer_steps")


@dataclass(frozen=True)
class ArcSettings:
    """
    How self-edits about an ARC task are written and learned. The defaults suit a small model on two CPU cores.

    Parameters:
        num_generations (`int`, *optional*, defaults to `2`):
            Number of self-edits, 1 to 4.
        temperature, max_completion_length, seed:
            As in [`SelfAdaptingLM.propose`]. The seed is also that of [`ArcDomain`].
        max_tasks (`int`, *optional*, defaults to `24`):
            As in [`ArcDomain`].
        batch_size:
            As in [`InnerLoopConfig`].
        lora_r:
            Rank of the adapter; its alpha is twice that.

    Raises:
        ValueError: A value is out of its range.
    """

    num_generations: int = 2
    temperature: float = 0.8
    max_completion_length: int = 160
    seed: int = 0
    max_tasks: int = 24
    batch_size: int = 4
    lora_r: int = 32

    def __post_init__(self):
        for name, (label, least, most) in RANGES.items():
            check_range(label, getattr(self, name), least, most)

    @classmethod
    def of(cls, **values: object) -> "ArcSettings":
        """From the widgets' values, in which whole numbers may be floats."""
        return cls(**{name: as_number(value) for name, value in values.items()})

    def lm(self, base: SelfAdaptingLM) -> SelfAdaptingLM:
        """The same model with these settings."""
        return base.with_domain(
            ArcDomain(self.seed, self.max_tasks),
            peft_config=LoraConfig(r=self.lora_r, lora_alpha=2 * self.lora_r, target_modules="all-linear"),
            inner_config=InnerLoopConfig(
                batch_size=self.batch_size,
                lr_scheduler_type="cosine",
                warmup_steps=3,
                max_length=min(_MAX_LENGTH, base.context_length or _MAX_LENGTH),
            ),
        )

    def sampling(self) -> dict[str, object]:
        """The sampling arguments of [`SelfAdaptingLM.write_batch`]."""
        names = ("temperature", "max_completion_length", "seed")
        return {"top_p": 1.0} | {name: value for name, value in asdict(self).items() if name in names}


# Label on the page, smallest and largest value.
RANGES = {
    "num_generations": (Message("settings.self_edits"), 1, MAX_SELF_EDITS),
    "temperature": (Message("settings.temperature"), 0.05, 2.0),
    "max_completion_length": (Message("settings.longest"), 16, 512),
    "seed": (Message("settings.seed"), 0, 2**31 - 1),
    "max_tasks": (Message("settings.max_tasks"), 1, 250),
    "batch_size": (Message("settings.batch_size"), 1, 16),
    "lora_r": (Message("settings.lora_r"), 1, 128),
}


@dataclass(frozen=True)
class Preview:
    """
    What the tools that a self-edit chose make of a task.

    Parameters:
        choices ([`Choices`]):
            The self-edit.
        made ([`Augmented`]):
            The training tasks.
    """

    choices: Choices
    made: Augmented


class ArcWork:
    """
    The work of the tab, by the jobs of a workbench.

    Parameters:
        workbench ([`Workbench`]):
            The model and its visitors.
    """

    def __init__(self, workbench: Workbench):
        self.workbench = workbench

    def propose(self, session: Session, task: Task, settings: ArcSettings) -> Job:
        """
        Write self-edits. They replace those of the session when all are written.

        Raises:
            ValueError: The task is longer than the model's context.
            JobRefused: The session writes about something else at the moment, or too many jobs are waiting.
        """
        arc_inputs.check_fits(settings.lm(self.workbench.lm), task, settings.max_completion_length)

        def work(job: Job) -> None:
            job.emit("task", task=task)
            texts = self.workbench.run(device_work.write_texts, job, task, settings)
            if any(texts) or not job.stop.is_set():
                session.puzzle = Puzzle(task, texts, asdict(settings))

        seconds = settings.max_completion_length / WRITTEN_PER_SECOND
        job = self.workbench.submit(session, WRITING, [task, asdict(settings)], work, seconds, "write")
        session.shown.pop(LEARNING, None)  # it was about another task
        return job

    def preview(self, task: Task, text: str, settings: ArcSettings) -> Preview | None:
        """What a self-edit makes of a task; `None` where it is malformed."""
        choices = read_choices(text) if len(text) <= _LONGEST_SELF_EDIT else None
        if choices is None:
            return None
        return Preview(choices, augment(task, choices.groups, settings.seed, settings.max_tasks))

    def learn(self, session: Session, task: Task, text: str | None, settings: ArcSettings) -> Job:
        """
        Train an adapter on what a self-edit makes of a task, and let it and the base model predict the test outputs.

        Args:
            session ([`Session`]):
                The session.
            task (`dict`):
                The task.
            text (`str`, *optional*):
                The self-edit; all tools in the authors' setting by hand where it is `None`.
            settings ([`ArcSettings`]):
                How to train.

        Raises:
            ValueError: The self-edit is malformed, or its training too long; or the task is longer than the model's context.
            JobRefused: The session learns something else at the moment, or too many jobs are waiting.
        """
        lm = settings.lm(self.workbench.lm)
        predicted = 2 * len(lm.domain.questions(task)) * arc_inputs.check_fits(lm, task, 0)
        self_edit = lm.domain.all_tools(task) if text is None else _parsed(lm, task, text)
        update_tokens, num_steps = self._size(lm, self_edit)
        self.workbench.limits.check_steps(num_steps, _FEWER)
        num_tokens = update_tokens + predicted
        self.workbench.limits.check_tokens(num_tokens, _FEWER)

        def work(job: Job) -> None:
            job.emit("task", task=task, seed=settings.seed)
            answers = self.workbench.run(learn_task, job, task, self_edit, settings)
            if answers is not None and not job.stop.is_set():
                solved = None
                if arc_inputs.has_solutions(task):
                    solved = [verdict for (verdict,) in lm.domain.grade([task] * 2, answers)]
                job.emit("predicted", answers=answers, solved=solved)

        seconds = num_tokens / TRAINED_PER_SECOND + 10
        key = [task, self_edit.completion, asdict(settings)]
        return self.workbench.submit(session, LEARNING, key, work, seconds, "learn", num_tokens)

    def _size(self, lm: SelfAdaptingLM, self_edit: SelfEdit) -> tuple[int, int]:
        """Tokens and steps of a training, all epochs."""
        epochs = self_edit.overrides["num_train_epochs"]
        # By their characters first, before any is tokenized.
        num_characters = sum(len(str(one.prompt)) + len(one.completion) for one in self_edit.examples)
        self.workbench.limits.check_tokens(epochs * num_characters // _CHARACTERS_PER_TOKEN, _FEWER)
        update = tokenize_self_edit(self_edit, lm.processing_class, lm.inner_config)
        return epochs * sum(len(one.input_ids) for one in update.sequences), update.num_steps


def _parsed(lm: SelfAdaptingLM, task: Mapping, text: str) -> SelfEdit:
    """
    Raises:
        ValueError: The self-edit is malformed, or its training too long.
    """
    if len(text) > _LONGEST_SELF_EDIT or read_choices(text) is None:
        raise ValueError(Message("arc.malformed_self_edit"))
    if (self_edit := lm.domain.parse(text, task)) is None:
        raise ValueError(Message("arc.many_sequences", most=lm.domain.max_sequences))
    return self_edit


def learn_task(
    base: SelfAdaptingLM, job: Job, task: dict, self_edit: SelfEdit, settings: ArcSettings
) -> list[list[str]] | None:
    """
    Train an adapter on a self-edit, and predict the test outputs without and with it.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        job ([`Job`]):
            Where to report the progress.
        task (`dict`), self_edit ([`SelfEdit`]), settings ([`ArcSettings`]):
            What to learn, and how.

    Returns:
        `list[list[str]]`, *optional*: the answers of the base model and of the adapted one to the domain's questions; `None` after a
            stop.
    """
    lm = settings.lm(base)
    adapter = lm.adapt(
        self_edit, seed=settings.seed, on_step=lambda step: device_work.emit_step(job, step), stop=job.stop
    )
    if job.stop.is_set():
        return None
    prompts = lm.domain.questions(task)
    job.emit("predicting", count=len(prompts))
    return lm.answer_groups(
        [prompts] * 2,
        [None, adapter],
        max_answer_length=lm.domain.max_answer_length(task),
        stop=job.stop,
    )
