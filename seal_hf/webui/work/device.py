"""
What runs on the device: writing, learning, answering. Arguments and results are plain data and files, since ZeroGPU runs
it in another process; how far it is goes to the job's log.
"""

import gc
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
import torch

from ...adapters.adapter import Adapter
from ...domains.knowledge.own_questions import own_questions
from ...hub.model_card import AdapterCard
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit
from .explaining import explain
from .jobs import Job
from .settings import Settings


LONGEST_ANSWER = 64  # tokens
_LOADED = 8  # adapters in memory

# The app imports it before torch, where it is installed.
spaces = sys.modules.get("spaces")

_models: list[SelfAdaptingLM] = []
_adapters: OrderedDict[Path, Adapter] = OrderedDict()
_adapters_lock = threading.Lock()


def hold(lm: SelfAdaptingLM) -> int:
    """Keep a model for [`run`], which takes the number that this returns; processes that are forked later have it too."""
    _models.append(lm)
    return len(_models) - 1


def _reserved(seconds: float, *_) -> int:
    """
    The time that ZeroGPU reserves, in seconds. A visitor who is not signed in has two minutes a day, and is refused when
    more are asked for; shorter requests wait less.
    """
    return int(min(max(30, 2 * seconds), 120))


def _on_gpu(function: Callable) -> Callable:
    return spaces.GPU(duration=_reserved)(function) if spaces else function


@_on_gpu
def run(seconds: float, model: int, work: Callable, job: Job, *arguments: object) -> object:
    """
    Do a piece of work on the device.

    Parameters:
        seconds (`float`):
            How long it will probably take.
        model (`int`):
            The number of the model.
        work (`Callable`):
            [`write`], [`learn`] or [`answer`].
        job ([`Job`]):
            Where to say how far it is.
        arguments:
            The work's own.
    """
    try:
        return work(_models[model], job, *arguments)
    except Exception as error:
        if isinstance(error, MemoryError | RuntimeError):  # torch's out of memory is one of the latter
            free_memory()
        if spaces:  # which tells the page of another error's class alone
            raise gr.Error(explain(error), print_exception=False) from error
        raise


def free_memory() -> None:
    """Give back what a failed piece of work has held."""
    with _adapters_lock:
        _adapters.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write(base: SelfAdaptingLM, job: Job, example: dict, settings: Settings) -> list[str]:
    """Write self-edits, all in one batch; every token goes to the log."""

    def on_text(new_texts: list[str]) -> None:
        job.emit("text", new=new_texts)

    job.emit("writing", count=settings.num_generations)
    (generations,) = settings.lm(base).write_batch(
        [example], settings.num_generations, on_text=on_text, stop=job.stop, **settings.sampling()
    )
    return [generation.text.strip() for generation in generations]


def learn(
    base: SelfAdaptingLM,
    job: Job,
    example: dict,
    self_edits: Sequence[SelfEdit],
    settings: Settings,
    folders: Sequence[Path],
    num_own_questions: int,
) -> dict:
    """
    Train an adapter on each self-edit, all together, and ask each the questions.

    Parameters:
        example (`dict`):
            The passage; where it has no questions, the model writes its own.
        self_edits (`Sequence[SelfEdit]`):
            What is learned.
        folders (`Sequence[Path]`):
            Where each adapter is saved, as soon as they are trained.
        num_own_questions (`int`):
            How many questions the model writes.

    Returns:
        `dict`: the seconds of the training, whether there are adapters (there are none when it was stopped before the
        first step), and, if it was not stopped, the questions, whether they are the model's own, and verdicts and
        answers of the base model and of each adapter.
    """
    lm = settings.lm(base)
    trained = {"seconds": 0.0}

    def on_step(step) -> None:
        trained["seconds"] = step.seconds
        job.emit(
            "step",
            step=step.step,
            num_steps=step.num_steps,
            losses=step.losses,
            num_tokens=step.num_tokens,
            seconds=step.seconds,
        )

    adapters = lm.adapt(list(self_edits), seed=settings.seed, on_step=on_step, stop=job.stop)
    has_adapters = bool(adapters[0].training["num_steps"])
    if has_adapters:
        for adapter, folder in zip(adapters, folders, strict=True):
            adapter.save_pretrained(folder, AdapterCard(passage=example["context"]))
        job.emit("saved", count=len(adapters))
    result = {"seconds": trained["seconds"], "has_adapters": has_adapters}
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
    askers = [None, *adapters]
    written = lm.answer_prompts(
        prompts * len(askers),
        [asker for asker in askers for _ in prompts],
        max_answer_length=LONGEST_ANSWER,
        stop=job.stop,
    )
    if job.stop.is_set():
        return result
    answers = [written[start : start + len(prompts)] for start in range(0, len(written), len(prompts))]
    verdicts = lm.domain.grade([example] * len(askers), answers)
    return {**result, "questions": example["questions"], "own": is_own, "answers": answers, "verdicts": verdicts}


def answer(
    base: SelfAdaptingLM, job: Job, questions: Sequence[dict], title: str, folder: Path
) -> tuple[list[str], list[str]]:
    """
    Closed-book answers of the base and of the adapted model, in one batch; every token goes to the log.

    Parameters:
        questions (`Sequence[dict]`):
            Each with its `question`.
        title (`str`):
            The topic.
        folder (`Path`):
            Of the adapter.
    """

    def on_text(new_texts: list[str]) -> None:
        job.emit("text", new=new_texts)

    prompts = base.domain.questions({"title": title, "context": "", "questions": list(questions)})
    adapter = _adapter(base, folder)
    answers = base.answer_prompts(
        prompts * 2,
        [None] * len(prompts) + [adapter] * len(prompts),
        max_answer_length=LONGEST_ANSWER,
        on_text=on_text,
        stop=job.stop,
    )
    return answers[: len(prompts)], answers[len(prompts) :]


def _adapter(base: SelfAdaptingLM, folder: Path) -> Adapter:
    """An adapter from its folder; the last few stay in memory."""
    with _adapters_lock:
        if folder not in _adapters:
            _adapters[folder] = base.load_adapter(folder)
            while len(_adapters) > _LOADED:
                _adapters.popitem(last=False)
        _adapters.move_to_end(folder)
        return _adapters[folder]
