"""Adapters that are asked stay in memory for a while, so that the next question need not read them again."""

import threading
from collections import OrderedDict
from pathlib import Path

from ...adapters.adapter import Adapter
from ...adapters.sources import WEIGHTS_NAME
from ...self_adapting_lm import SelfAdaptingLM
from . import quota


_LOADED, _LOADED_BYTES = 8, 2**31  # adapters that stay in memory

# By its file or folder, and when that was written: another one may come to the same place.
_adapters: OrderedDict[tuple[Path, int], Adapter] = OrderedDict()
_lock = threading.Lock()


def loaded_adapter(base: SelfAdaptingLM, source: Path) -> Adapter:
    """
    An adapter from its zip file or PEFT folder. The last few stay in memory.

    Raises:
        JobRefused: There is no memory for it.
    """
    key = source, source.stat().st_mtime_ns
    with _lock:
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


def forget_all() -> None:
    """Keep none of them in memory any longer."""
    with _lock:
        _adapters.clear()
