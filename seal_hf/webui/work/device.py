"""
Where the work of jobs is done: in this process, or in another one that has a GPU for its time (ZeroGPU). So arguments and
results are plain data and files.
"""

import gc
import os
import sys
from collections.abc import Callable

import torch

from ...self_adapting_lm import SelfAdaptingLM
from ..languages import Message
from . import loaded_adapters
from .errors import explain
from .jobs import Job, stop_after
from .limits import GPU_SECONDS, GPU_SPARE_SECONDS


# On ZeroGPU the app has imported it before torch.
spaces = sys.modules.get("spaces") if os.environ.get("SPACES_ZERO_GPU") else None

_models: list[SelfAdaptingLM] = []


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
            One of the functions of `device_work`, or the [`learn_task`] of ARC.
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
    reason = Message("job.gpu_time", seconds=reserved)
    timer = stop_after(reserved - GPU_SPARE_SECONDS, job, reason)
    try:
        return _work(model, work, job, *arguments), None
    except Exception as error:
        return None, explain(error)
    finally:
        timer.cancel()


def free_memory() -> None:
    """Free the memory of work that has failed."""
    loaded_adapters.forget_all()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
