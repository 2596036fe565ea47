"""The processes of one run: what the first does for all, what all tell each other, and what is said when one is lost."""

import atexit
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


Result = TypeVar("Result")


class ProcessEnded(RuntimeError):
    """Another process of the run has ended, so that this one cannot continue."""


class Processes:
    """
    The processes that `accelerate launch` or `torchrun` started, or the only one.

    Parameters:
        output_dir (`Path`):
            Where the run's work is kept, for messages.
    """

    def __init__(self, output_dir: Path):
        self._state = PartialState()
        self.count, self.index = self._state.num_processes, self._state.process_index
        self.is_main = self.index == 0
        self._output_dir = output_dir
        if self.count > 1:
            _leave_in_order()

    def on_main(self, function: Callable[..., Result], *args: Any) -> Result:
        """
        Call a function in the first process only; its result is returned, or its error raised, in all of them.

        Raises:
            ProcessEnded: Another process has ended.
        """
        if self.count == 1:
            return function(*args)
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome = [function(*args), None]
            except Exception as error:
                outcome = [None, error]
        result, error = self._collective(broadcast_object_list, outcome)
        if error is not None:
            raise error
        return result

    def gather(self, value: Any) -> list[Any]:
        """
        What every process has to tell, by rank.

        Raises:
            ProcessEnded: Another process has ended.
        """
        return self._collective(gather_object, [value])

    def any(self, flag: bool) -> bool:
        """
        Whether the flag is set in any process.

        Raises:
            ProcessEnded: Another process has ended.
        """
        return any(self.gather(flag))

    @contextmanager
    def explaining_termination(self) -> Iterator[None]:
        """Where this process ends with an error, or is ended because another one died, say how to resume."""
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(signum: int, frame: object) -> None:
            raise SystemExit(f"This process was told to end, probably because another one died. {self._remedy()}")

        former = signal.signal(signal.SIGTERM, end)
        try:
            yield
        except Exception as error:
            # DDP and NCCL have errors of their own for a process that is gone. The handler stays: the launcher's signal may
            # come before the error is printed, and would end this process without a word.
            error.add_note(self._remedy())
            raise
        signal.signal(signal.SIGTERM, former)

    def _collective(self, function: Callable[[list], list], values: list) -> list:
        if self.count == 1:
            return function(values)
        try:
            return function(values)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ProcessEnded("Another process of this run has ended.") from error

    def _remedy(self) -> str:
        return (
            f"Every bank that was scored is in {self._output_dir}; start the run again with "
            "resume_from_checkpoint=True, with any number of processes."
        )


@cache
def _leave_in_order() -> None:
    """
    Have this process end gloo's threads before the interpreter ends.

    A thread that still holds the tensors of the last collective aborts the process when it lets go of them later
    (pytorch/pytorch#179291).
    """

    @atexit.register
    def leave() -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            gc.collect()  # DistributedDataParallel's share in the group, which would keep the threads
            torch.distributed.destroy_process_group()
