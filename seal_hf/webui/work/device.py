"""
The work on the device: writing, learning, answering. Arguments and results are plain data and files, since ZeroGPU does
the work in another process. Its progress goes to the job's log.
"""

import gc
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from ...adapters.adapter import Adapter
from ...adapters.sources import WEIGHTS_NAME
from ...domains import KnowledgeDomain
from ...domains.knowledge.own_questions import own_questions
from ...hub.model_card import AdapterCard
from ...inner_loop.training import InnerStep
from ...rollout.rewards import Asked, ask_and_grade, mean
from ...rollout.watching import AnswerStays, QuestionWatch
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit, joined_self_edits
from . import quota
from .adapter_zip import save_zip
from .errors import explain
from .inputs import clean, has_words, passage_of
from .jobs import Job, stop_after
from .limits import GPU_SECONDS, GPU_SPARE_SECONDS
from .sessions import Draft
from .settings import Settings


LONGEST_ANSWER = 64  # tokens
_LOADED, _LOADED_BYTES = 8, 2**31  # adapters that stay in memory

# On ZeroGPU the app has imported it before torch.
spaces = sys.modules.get("spaces") if os.environ.get("SPACES_ZERO_GPU") else None

_models: list[SelfAdaptingLM] = []
# By its file or folder, and when that was written: another one may come to the same place.
_adapters: OrderedDict[tuple[Path, int], Adapter] = OrderedDict()
_adapters_lock = threading.Lock()


def hold(lm: SelfAdaptingLM) -> int:
    """Keep a model for [`run`], which takes the number that this returns. Processes that are forked later have it too."""
    _models.append(lm)
    return len(_models) - 1


def _reserved(seconds: float, *_) -> int:
    """
    The time that ZeroGPU reserves, in seconds. A visitor who is not signed in has two minutes a day, and a request for more than is
    left of them is refused. Shorter requests wait less.
    """
    return int(min(max(30, 2 * seconds + GPU_SPARE_SECONDS), GPU_SECONDS))


def _on_gpu(function: Callable) -> Callable:
    return spaces.GPU(duration=_reserved)(function) if spaces else function


def run(seconds: float, model: int, work: Callable, job: Job, *arguments: object) -> object:
    """
    Do a piece of work on the device.

    Args:
        seconds (`float`):
            How long it will probably take.
        model (`int`):
            The number of the model.
        work (`Callable`):
            [`write`], [`learn`], [`answer`], or the [`learn_task`] of ARC.
        job ([`Job`]):
            Where to report the progress.
        arguments:
            Further arguments of `work`.

    Returns:
        What `work` returns.

    Raises:
        ValueError: On ZeroGPU, with a sentence for the visitor.
        Exception: Elsewhere, the error of `work` itself.
    """
    if not spaces:
        return _work(model, work, job, *arguments)
    try:
        result, message = _work_on_gpu(seconds, model, work, job, *arguments)
    except Exception as error:
        # An error of ZeroGPU itself, such as a used-up quota, is one of Gradio's, with its sentence in `message`.
        raise ValueError(getattr(error, "message", None) or explain(error)) from error
    if message:
        raise ValueError(message)
    return result


def _work(model: int, work: Callable, job: Job, *arguments: object) -> object:
    try:
        return work(_models[model], job, *arguments)
    except (MemoryError, RuntimeError):  # torch's out of memory is a RuntimeError
        free_memory()
        raise


@_on_gpu
def _work_on_gpu(
    seconds: float, model: int, work: Callable, job: Job, *arguments: object
) -> tuple[object, str | None]:
    """
    The result and no message, or no result and why; an exception would lose its text on the way out of ZeroGPU. ZeroGPU kills what
    takes longer than was reserved, so that the job is stopped before.
    """
    reserved = _reserved(seconds)
    reason = (
        f"The {reserved} seconds of GPU time were almost over: try again, with shorter self-edits or fewer epochs."
    )
    timer = stop_after(reserved - GPU_SPARE_SECONDS, job, reason)
    try:
        return _work(model, work, job, *arguments), None
    except Exception as error:
        return None, explain(error)
    finally:
        timer.cancel()


def free_memory() -> None:
    """Free the memory of work that has failed."""
    with _adapters_lock:
        _adapters.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    lm.writer = None if writer is None else _adapter(base, writer)
    return lm


def write_texts(
    base: SelfAdaptingLM, job: Job, example: dict, settings: WritingSettings, writer: Path | None = None
) -> list[str]:
    """Write self-edits, all in one batch. Every token goes to the log. `writer` is as in [`write`]."""

    def on_text(new_texts: list[str]) -> None:
        job.emit("text", new=new_texts)

    job.emit("writing", count=settings.num_generations)
    (generations,) = _as_set(base, settings, writer).write_batch(
        [example], settings.num_generations, on_text=on_text, stop=job.stop, **settings.sampling()
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
        `dict`: `"seconds"` of the training and `"has_adapters"`, which is false after a stop before the first step; after it
        also, of each adapter, `"pairs"`, the questions that it learned with their answers, and `"losses"`, that of its last
        step. Without a stop also `"questions"`, `"own"` (whether the model wrote them), and of the base model and of each adapter
        `"answers"`, `"verdicts"`, `"recitations"`, the share of the questions that its answer to "Tell me about ..." would be
        right for, and `"recited"`, the share of its answers that recite (see [`Domain.recited`]).
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

    trained = lm.carry_out(self_edits, [example] * len(self_edits), stop=job.stop)
    if job.stop.is_set():  # before a tool had come to its end
        return {"seconds": 0.0, "has_adapters": False}
    if together:
        trained = [joined_self_edits([edit for edit in trained if edit.examples] or trained)]
    for edit, one in zip(self_edits, trained, strict=not together):
        if not one.examples:
            raise ValueError(
                f"None of the questions of a self-edit (“{edit.calls[0]}”) can be answered from the passage: change them, or do "
                "not use it."
            )
    if watch is not None and stops_early:
        stays = AnswerStays(len(trained), stop=job.stop)
    adapters = lm.adapt(trained, seed=settings.seed, on_step=on_step, stop=stays or job.stop)
    has_adapters = bool(adapters[0].training["num_steps"])
    if has_adapters:
        for adapter, file in zip(adapters, files, strict=True):
            save_zip(adapter, file, AdapterCard(passage=passage_of(example)))
        job.emit("saved", count=len(adapters))
    result = {
        "seconds": clock["seconds"],
        "has_adapters": has_adapters,
        "pairs": [lm.domain.learned_pairs(edit) for edit in trained],
        "losses": [adapter.training["losses"][-1] if has_adapters else None for adapter in adapters],
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
    asked = [Asked(one, example, prompts) for one in (None, *adapters)]
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

    def on_text(new_texts: list[str]) -> None:
        job.emit("text", new=new_texts)

    prompts = [prompt for example in examples for prompt in base.domain.questions(example)]
    adapter = _adapter(base, file)
    plain, adapted = base.answer_groups(
        [prompts] * 2, [None, adapter], max_answer_length=LONGEST_ANSWER, on_text=on_text, stop=job.stop
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

    def on_text(new_texts: list[str]) -> None:
        job.emit("text", new=new_texts)

    prompts = base.domain.questions(example)
    adapters = [None if folder is None else _adapter(base, folder)] * len(prompts)
    return base.answer_prompts(prompts, adapters, max_answer_length=LONGEST_ANSWER, on_text=on_text, stop=job.stop)


def _adapter(base: SelfAdaptingLM, source: Path) -> Adapter:
    """
    An adapter from its zip file or PEFT folder. The last few stay in memory.

    Raises:
        JobRefused: There is no memory for it.
    """
    key = source, source.stat().st_mtime_ns
    with _adapters_lock:
        if key not in _adapters:
            num_bytes = (source / WEIGHTS_NAME if source.is_dir() else source).stat().st_size
            while _adapters and not _fits(num_bytes):
                _adapters.popitem(last=False)
            with quota.memory(num_bytes):
                _adapters[key] = base.load_adapter(source)
        _adapters.move_to_end(key)
        return _adapters[key]


def _fits(num_bytes: int) -> bool:
    """Whether one more adapter may stay in memory with the others."""
    held = sum(adapter.layout.num_bytes for adapter in _adapters.values())
    return len(_adapters) < _LOADED and held + num_bytes <= _LOADED_BYTES and quota.has_memory(num_bytes)
