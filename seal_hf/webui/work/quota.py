"""
How many bytes the sessions may have on the disk: adapters, logs, training runs, and what is written elsewhere for a moment.
What is going to be written is reserved before, as is the memory for adapters that are going to be loaded.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ...models.memory import free_memory
from ..languages import Message
from .jobs import JobRefused


SESSION_BYTES = 4 * 2**30
TOTAL_BYTES = 32 * 2**30
SPARE_BYTES = 2**30  # of the disk, which stay free
FILE_BYTES = 2**21  # for the texts beside an adapter's weights
SPARE_MEMORY = 2**28  # bytes of the machine's memory, which stay free
# What is read, what it is converted to, and what is written of it.
_COPIES_IN_MEMORY = 3

_reserved: Counter[Path] = Counter()
_elsewhere: dict[Path, Path] = {}  # folders, and the session's folder of which each counts as a part
_loading: list[int] = []  # bytes of each adapter
_lock = threading.Lock()


def used_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


def free_bytes(folder: Path) -> int:
    """How much more may be written into a session's folder; it is below 0 where there is too much already."""
    return min(free for free, _ in _limits(folder))


def require(folder: Path, num_bytes: int) -> None:
    """
    Raises:
        JobRefused: There is not enough room in a session's folder.
    """
    for free, remedy in _limits(folder):
        if num_bytes > free:
            raise JobRefused(Message("quota.no_room", size=_size(num_bytes), remedy=remedy))


def _limits(folder: Path) -> list[tuple[int, Message]]:
    """What each limit leaves, and what to do where that is too little."""
    root = folder.parent
    reserved = sum(count for other, count in list(_reserved.items()) if other.parent == root)
    elsewhere = [(owner, used_bytes(other)) for other, owner in list(_elsewhere.items()) if owner.parent == root]
    own = sum(count for owner, count in elsewhere if owner == folder)
    session = SESSION_BYTES - used_bytes(folder) - own - _reserved[folder]
    total = TOTAL_BYTES - used_bytes(root) - sum(count for _, count in elsewhere) - reserved
    disk = shutil.disk_usage(root).free - SPARE_BYTES - reserved
    return [
        (session, Message("quota.of_session", size=_size(SESSION_BYTES))),
        (total, Message("quota.of_all", size=_size(TOTAL_BYTES))),
        (disk, Message("quota.of_disk")),
    ]


@contextmanager
def room(folder: Path, num_bytes: int) -> Iterator[None]:
    """
    Reserve room for what the block writes into a session's folder, or elsewhere on the session's behalf.

    Raises:
        JobRefused: There is not enough.
    """
    with _lock:
        require(folder, num_bytes)
        _reserved[folder] += num_bytes
    try:
        yield
    finally:
        with _lock:
            _reserved[folder] -= num_bytes
            if not _reserved[folder]:
                del _reserved[folder]


def count_with(folder: Path, other: Path) -> None:
    """Count the files of another folder as those of a session's folder, until [`forget`]."""
    _elsewhere[other] = folder


def forget(other: Path) -> None:
    """Count a folder no longer, which is removed."""
    _elsewhere.pop(other, None)


def has_memory(num_bytes: int) -> bool:
    """Whether the machine has memory for one more adapter of `num_bytes`."""
    needed = _COPIES_IN_MEMORY * (num_bytes + sum(_loading))
    return needed <= free_memory(torch.device("cpu")) - SPARE_MEMORY


@contextmanager
def memory(num_bytes: int) -> Iterator[None]:
    """
    Reserve memory of the machine for an adapter of `num_bytes` that the block loads, so that several which are loaded at once fit
    together.

    Raises:
        JobRefused: There is not enough.
    """
    with _lock:
        if not has_memory(num_bytes):
            raise JobRefused(Message("quota.no_memory", size=_size(num_bytes)))
        _loading.append(num_bytes)
    try:
        yield
    finally:
        with _lock:
            _loading.remove(num_bytes)


def _size(num_bytes: int) -> Message:
    if num_bytes >= 1e9:
        return Message("size.gigabytes", size=num_bytes / 1e9)
    return Message("size.megabytes", size=num_bytes / 1e6)
