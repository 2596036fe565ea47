"""The processes of one run: what the first does for all, what all tell each other, and what is said when one is lost."""

import atexit
import gc
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed, nn
from torch.distributed import ProcessGroup

from ..models.sharding import OtherProcessFailed, gathering


Item, Result = TypeVar("Item"), TypeVar("Result")


# What gloo's errors have in common, which are plain RuntimeErrors (torch 2.11 and 2.13); CUDA's have none of it.
_LOST_CONNECTION = re.compile(r"gloo[/\\]transport|pair closure|Connection (closed|reset) by peer")
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)

_object_groups: dict[tuple[ProcessGroup, float], ProcessGroup] = {}


class ProcessEnded(RuntimeError):
    """Another process of the run has ended, or does not answer, so that this one cannot continue."""


class Processes:
    """
    The processes that `accelerate launch` or `torchrun` started, or the only one.

    What they tell each other goes over a process group of its own on gloo, whatever else they use: its tensors are on the
    CPU, and a process that waits notices when the connection to a dead one closes, which NCCL's do not.

    Parameters:
        output_dir (`Path`):
            Where the run's work is kept, for messages.
        timeout (`float`, *optional*, defaults to `21600`):
            How long one process waits for another, in seconds. It is long, since a process that has trained its banks
            waits for those of the others.
        remedy (`str`, *optional*):
            What is said where one of the processes has ended. Defaults to how a run of a trainer is resumed.
    """

    def __init__(self, output_dir: Path, timeout: float = 21600, remedy: str | None = None):
        self._state = PartialState()
        self.count, self.index = self._state.num_processes, self._state.process_index
        self.local_index = self._state.local_process_index
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self.is_main = self.index == 0
        self._timeout = timeout
        self._remedy = remedy or (
            f"Every bank that was scored is in {output_dir}; start the run again with resume_from_checkpoint=True, with any "
            "number of processes."
        )
        if self.count > 1:
            _leave_in_order()
            # All make their group here, and go on when all have it: one that ended sooner would break the others' connections.
            self.wait()

    @property
    def group(self) -> ProcessGroup:
        """The processes on gloo. There are at least two."""
        return _object_group(self._timeout)

    def wait(self) -> None:
        """
        Go on when all processes have come here.

        Raises:
            ProcessEnded: Another process has ended.
        """
        if self.count > 1:
            self._collective(distributed.barrier)

    def on_main(self, function: Callable[..., Result], *args: Any) -> Result:
        """
        Call a function in the first process only; its result is returned, or its error raised, in all of them.

        Raises:
            ProcessEnded: Another process has ended.
        """
        if self.count == 1:
            return function(*args)
        outcome: list[Any] = [None, None]
        own_error = None
        if self.is_main:
            try:
                outcome = [function(*args), None]
            except Exception as error:
                outcome, own_error = [None, _told(error)], error
        self._collective(distributed.broadcast_object_list, outcome, src=0)
        result, error = outcome
        if error is not None:
            raise own_error or error
        return result

    def gather(self, value: Any) -> list[Any]:
        """
        What every process has to tell, by rank.

        Raises:
            ProcessEnded: Another process has ended.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        self._collective(distributed.all_gather_object, values, value)
        return values

    def any(self, flag: bool) -> bool:
        """
        Whether the flag is set in any process.

        Raises:
            ProcessEnded: Another process has ended.
        """
        return any(self.gather(flag))

    @contextmanager
    def explaining_termination(self, clean_up: Callable[[], None] = lambda: None) -> Iterator[None]:
        """
        Where this process ends with an error, or is ended because another one died, say how to resume, and call `clean_up` for
        what the other one has left.
        """
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(signum: int, frame: object) -> None:
            raise SystemExit(f"This process was told to end, probably because another one died. {self._remedy}")

        former = signal.signal(signal.SIGTERM, end)
        try:
            yield
        except Exception as error:
            # DDP and NCCL have errors of their own for a process that is gone. The handler stays: the launcher's signal may
            # come before the error is printed, and would end this process without a word.
            error.add_note(self._remedy)
            clean_up()
            raise
        except SystemExit:
            clean_up()
            raise
        signal.signal(signal.SIGTERM, former)

    def _collective(self, function: Callable[..., None], *args: Any, **options: Any) -> None:
        with self.naming_losses():
            function(*args, group=self.group, **options)

    @contextmanager
    def naming_losses(self) -> Iterator[None]:
        """
        Raises:
            ProcessEnded: Another process was lost inside the block, in whatever it shares with this one.
        """
        try:
            yield
        except OtherProcessFailed as error:
            raise ProcessEnded(str(error)) from error
        except RuntimeError as error:
            # Others, such as those of pickling or of CUDA, are this process's own.
            if not (isinstance(error, distributed.DistError) or _LOST_CONNECTION.search(str(error))):
                raise
            if _TIMED_OUT.search(str(error)):
                raise ProcessEnded(
                    f"Another process of this run has not answered for {self._timeout:g} seconds (ddp_timeout)."
                ) from error
            raise ProcessEnded("Another process of this run has ended.") from error


def in_shared_batches(
    processes: Processes,
    model: nn.Module,
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Sequence[Item]], list[Result]],
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> list[Result]:
    """
    Do with a model what items need, batch by batch, of which each process takes its turns. The batches depend on the items alone.

    Args:
        processes ([`Processes`]):
            The processes of the run.
        model (`PreTrainedModel` or `PeftModel`):
            The model that `work` calls, which may be sharded.
        items (`Sequence`):
            What is to be done.
        batch_size (`int`):
            Items of one batch.
        work (`Callable[[Sequence], list]`):
            Does the items of one batch.
        on_batch (`Callable[[int], None]`, *optional*):
            Called after every batch of this process with the number of its items.

    Returns:
        `list`: what `work` gave for all batches, in their order, in every process.

    Raises:
        ProcessEnded: Another process has ended.
    """
    starts = range(0, len(items), batch_size)
    own: dict[int, list[Result]] = {}
    with processes.naming_losses(), gathering(model):
        for start in starts[processes.index :: processes.count]:
            batch = items[start : start + batch_size]
            own[start] = work(batch)
            on_batch(len(batch))
    done = {start: results for share in processes.gather(own) for start, results in share.items()}
    return [result for start in starts for result in done[start]]


def _told(error: Exception) -> Exception:
    """An error as the other processes can read it: itself, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _object_group(timeout: float) -> ProcessGroup:
    """The group for objects, which all processes make together; one for all users of a timeout."""
    key = (distributed.group.WORLD, timeout)
    if key not in _object_groups:
        try:
            _object_groups[key] = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        except RuntimeError as error:
            error.add_note("On several machines GLOO_SOCKET_IFNAME names the network interface that connects them.")
            raise
    return _object_groups[key]


@cache
def _leave_in_order() -> None:
    """
    Have this process end gloo's threads before the interpreter ends.

    A thread that still holds the tensors of the last collective aborts the process when it lets go of them later
    (pytorch/pytorch#179291).
    """

    @atexit.register
    def leave() -> None:
        own = list(_object_groups.values())
        _object_groups.clear()
        gc.collect()  # DistributedDataParallel's share in the group, which would keep the threads
        if not distributed.is_initialized():
            return
        if distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
        else:  # NCCL's might wait for a process that is gone
            while own:
                distributed.destroy_process_group(own.pop())
