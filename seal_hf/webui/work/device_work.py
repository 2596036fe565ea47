"""
The work on the device: writing, learning, answering. Arguments and results are plain data and files, since ZeroGPU does
the work in another process (see [`device.run`]). Its progress goes to the job's log.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ...domains import KnowledgeDomain
from ...domains.knowledge.own_questions import own_questions
from ...hub.model_card import AdapterCard
from ...inner_loop.training import NON_FINITE, STOP, InnerStep
from ...rollout.rewards import Asked, ask_and_grade, mean
from ...rollout.watching import AnswerStays, QuestionWatch
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit, joined_self_edits
from ..languages import Message
from .adapter_zip import save_zip
from .inputs import clean, has_words, passage_of
from .jobs import Job
from .loaded_adapters import loaded_adapter
from .session_items import Draft
from .settings import Settings


LONGEST_ANSWER = 64  # tokens


class WritingSettings(Protocol):
    """How self-edits are written, for one of the domains."""

    num_generations: int

    def lm(self, base: SelfAdaptingLM) -> SelfAdaptingLM: ...

    def sampling(self) -> dict[str, object]: ...


def _as_set(base: SelfAdaptingLM, settings: WritingSettings, writer: Path | None) -> SelfAdaptingLM:
    """
    The same model with these settings, whose self-edits a policy writes where one is given. It is an adapter of this object's
    prompts alone: the base, which all visitors share, stays as it is.
    """
    lm = settings.lm(base)
    lm.writer = None if writer is None else loaded_adapter(base, writer)
    return lm


def _on_text(job: Job) -> Callable[[list[str]], None]:
    """Tells a job's log of new texts, as they are written."""
    return lambda new_texts: job.emit("text", new=new_texts)


def write_texts(
    base: SelfAdaptingLM, job: Job, example: dict, settings: WritingSettings, writer: Path | None = None
) -> list[str]:
    """Write self-edits, all in one batch. Every token goes to the log. `writer` is as in [`write`]."""
    job.emit("writing", count=settings.num_generations)
    (generations,) = _as_set(base, settings, writer).write_batch(
        [example], settings.num_generations, on_text=_on_text(job), stop=job.stop, **settings.sampling()
    )
    return [generation.text.strip() for generation in generations]


def write(
    base: SelfAdaptingLM, job: Job, example: dict, settings: Settings, writer: Path | None = None
) -> list[Draft]:
    """
    Write self-edits about a passage, and answer what they ask. After a stop questions stay as they were written.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        job ([`Job`]):
            Where to report the progress.
        example (`dict`):
            The passage.
        settings ([`Settings`]):
            How to write.
        writer (`Path`, *optional*):
            The PEFT folder of a policy that writes in place of the base model. The base model answers.
    """
    lm, texts = _as_set(base, settings, writer), write_texts(base, job, example, settings, writer)
    drafts = [Draft(text, use=has_words(text), written=text) for text in texts]
    if settings.training_format != "prompt_completion":  # a question is no example of its own
        return drafts
    edits = [lm.domain.parse(clean(text), example) if has_words(text) else None for text in texts]
    asking = {place: edit for place, edit in enumerate(edits) if edit is not None and edit.calls}
    if not asking or job.stop.is_set():
        return drafts
    job.emit("answering", count=sum(len(edit.calls) for edit in asking.values()))
    answered = lm.carry_out(list(asking.values()), [example] * len(asking), stop=job.stop)
    if job.stop.is_set():
        return drafts
    for place, edit in zip(asking, answered, strict=True):
        pairs, statements = lm.domain.learned_pairs(edit), lm.domain.statements(clean(texts[place]))
        drafts[place] = Draft(
            "\n".join(statements),
            use=bool(pairs or statements),
            pairs=[list(pair) for pair in pairs],
            written=texts[place],
        )
    return drafts


def add_question(base: SelfAdaptingLM, job: Job, example: dict, fact: str, settings: Settings) -> list[str] | None:
    """A question about a name or number of a passage with its answer, as the model finds both; `None` where it finds none."""
    domain = KnowledgeDomain("questions-by-fact", chat=base.domain.chat, training_format="prompt_completion")
    lm = settings.lm(base).with_domain(domain)
    pair = lm.domain.pair_about(fact, example, lm.asked_by_tool(stop=job.stop))
    return None if pair is None else list(pair)


def learn(
    base: SelfAdaptingLM,
    job: Job,
    example: dict,
    self_edits: Sequence[SelfEdit],
    settings: Settings,
    files: Sequence[Path],
    num_own_questions: int,
    *,
    together: bool = False,
    watched: dict | None = None,
    writer: Path | None = None,
    stops_early: bool = True,
) -> dict:
    """
    Train an adapter on each self-edit, all of them side by side, or one on all self-edits, and ask each the questions.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        job ([`Job`]):
            Where to report the progress.
        example (`dict`):
            The passage with its questions. If there are none, the model writes its own.
        self_edits (`Sequence[SelfEdit]`):
            What to learn.
        settings ([`Settings`]):
            How to train.
        files (`Sequence[Path]`):
            Where to save each adapter, as a zip file.
        num_own_questions (`int`):
            Number of questions that the model writes.
        together (`bool`, *optional*, defaults to `False`):
            Whether one adapter learns all self-edits.
        watched (`dict`, *optional*):
            An example with a question that the adapters are asked while they are trained.
        writer (`Path`, *optional*):
            As in [`write`]: it asks what a self-edit has left out, where that was not done yet. The base model learns.
        stops_early (`bool`, *optional*, defaults to `True`):
            Whether the training ends once the answers to that question stay (see [`AnswerStays`]).

    Returns:
        `dict`: `"seconds"` of the training and `"trained"`, which of the adapters have learned anything, from 0: none after a stop
        before the first step, and none that diverged there. Where there are some also `"diverged"`, which of the others did, and of
        each that is trained `"pairs"`, the questions that it learned with their answers, `"losses"`, that of its last step, and
        `"is_whole"`, whether its training came to its end, if an early one. Without a stop also `"questions"`, `"own"` (whether
        the model wrote them), and of the base model and of each trained adapter `"answers"`, `"verdicts"`, `"recitations"`, the
        share of the questions that its answer to "Tell me about ..." would be right for, and `"recited"`, the share of its answers
        that recite (see [`Domain.recited`]).

    Raises:
        ValueError: The model finds no answer to any question of a self-edit, or the training of every adapter diverged at its first
            step.
    """
    lm = _as_set(base, settings, writer)
    clock = {"seconds": 0.0}
    watch = stays = None
    if watched is not None:
        watch = QuestionWatch(lm, watched, max_answer_length=LONGEST_ANSWER, stop=job.stop)
        job.emit("watched", step=0, **vars(watch.ask_base()))

    def on_step(step: InnerStep) -> None:
        clock["seconds"] = step.seconds
        emit_step(job, step)
        if watch is None:
            return
        if (seen := watch.ask(step)) is not None:
            job.emit("watched", step=step.step, **vars(seen))
        if stays is not None:
            stays.look(step, seen)
            if stays.has_settled:
                job.emit("settled", step=step.step, num_steps=step.num_steps)

    edits = lm.carry_out(self_edits, [example] * len(self_edits), stop=job.stop)
    if job.stop.is_set():  # before a tool had come to its end
        return {"seconds": 0.0, "trained": []}
    if together:
        edits = [joined_self_edits([edit for edit in edits if edit.examples] or edits)]
    for edit, one in zip(self_edits, edits, strict=not together):
        if not one.examples:
            raise ValueError(Message("learn.none_answerable", question=edit.calls[0]))
    if watch is not None and stops_early:
        stays = AnswerStays(len(edits), stop=job.stop)
    adapters = lm.adapt(edits, seed=settings.seed, on_step=on_step, stop=stays or job.stop)
    records = [adapter.training for adapter in adapters]
    trained = [place for place, record in enumerate(records) if record["num_steps"]]
    diverged = [
        place for place, record in enumerate(records) if not record["num_steps"] and record["stopped"] == NON_FINITE
    ]
    if not trained:
        if diverged:
            raise ValueError(Message("learn.all_diverged", learning_rate=settings.learning_rate))
        return {"seconds": clock["seconds"], "trained": []}
    for place in trained:
        save_zip(adapters[place], files[place], AdapterCard(passage=passage_of(example)))
    job.emit("saved", count=len(trained))
    whole = (None, STOP) if stays is not None and stays.has_settled else (None,)
    result = {
        "seconds": clock["seconds"],
        "trained": trained,
        "diverged": diverged,
        "pairs": [lm.domain.learned_pairs(edits[place]) for place in trained],
        "losses": [records[place]["losses"][-1] for place in trained],
        "is_whole": [records[place]["stopped"] in whole for place in trained],
    }
    if job.stop.is_set():
        return result
    is_own = not example["questions"]
    if is_own:
        job.emit("asking_itself")
        example = {**example, "questions": own_questions(lm, example, num_own_questions, stop=job.stop)}
    job.emit("questions", questions=example["questions"], own=is_own)
    if job.stop.is_set() or not example["questions"]:
        return result
    prompts = lm.domain.questions(example)
    asked = [Asked(one, example, prompts) for one in (None, *(adapters[place] for place in trained))]
    graded = ask_and_grade(lm, asked, LONGEST_ANSWER, stop=job.stop)
    if job.stop.is_set():
        return result
    return {
        **result,
        "questions": example["questions"],
        "own": is_own,
        "answers": [own.answers for own in graded],
        "verdicts": [own.verdicts for own in graded],
        "recitations": [mean(own.recitation["verdicts"]) for own in graded],
        "recited": [mean(lm.domain.recited(example, own.answers)) for own in graded],
    }


def emit_step(job: Job, step: InnerStep) -> None:
    """Tell a job's log of a step of the training."""
    job.emit(
        "step",
        step=step.step,
        num_steps=step.num_steps,
        losses=step.losses,
        num_tokens=step.num_tokens,
        seconds=step.seconds,
    )


def answer(base: SelfAdaptingLM, job: Job, examples: Sequence[dict], file: Path) -> tuple[list[str], list[str]]:
    """
    Answer questions without the passage, in one batch. Every token goes to the log.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        job ([`Job`]):
            Where to report the progress.
        examples (`Sequence[dict]`):
            The questions, with the titles that they name.
        file (`Path`):
            The adapter's file.

    Returns:
        `tuple[list[str], list[str]]`: The answers of the base model, and of the adapted one.
    """
    prompts = [prompt for example in examples for prompt in base.domain.questions(example)]
    adapter = loaded_adapter(base, file)
    plain, adapted = base.answer_groups(
        [prompts] * 2, [None, adapter], max_answer_length=LONGEST_ANSWER, on_text=_on_text(job), stop=job.stop
    )
    return plain, adapted


def answer_with(base: SelfAdaptingLM, job: Job, example: dict, folder: Path | None) -> list[str]:
    """
    Answer questions without the passage, by one adapter or the base model. Every token goes to the log.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        job ([`Job`]):
            Where to report the progress.
        example (`dict`):
            The questions, with the title that they name.
        folder (`Path`, *optional*):
            The adapter's folder; the base model answers where it is `None`.
    """
    prompts = base.domain.questions(example)
    adapters = [None if folder is None else loaded_adapter(base, folder)] * len(prompts)
    return base.answer_prompts(
        prompts, adapters, max_answer_length=LONGEST_ANSWER, on_text=_on_text(job), stop=job.stop
    )
