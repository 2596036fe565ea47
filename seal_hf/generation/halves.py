"""
Work on many rows, in halves where the memory of a GPU does not hold them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch


logger = logging.getLogger(__name__)

_Step = TypeVar("_Step")


def in_halves(batches: Iterable[Sequence[int]], steps: Callable[[Sequence[int]], Iterator[_Step]]) -> Iterator[_Step]:
    """
    What the steps of one batch after another give. A batch that runs out of memory is halved, and later ones are cut alike.

    Args:
        batches (`Iterable[Sequence[int]]`):
            The rows of each batch.
        steps (`Callable[[Sequence[int]], Iterator]`):
            Goes on with some rows from where they were left.

    Raises:
        torch.OutOfMemoryError: The memory does not hold a single row.
    """
    most: int | None = None
    waiting = [list(batch) for batch in batches]
    while waiting:
        batch = waiting.pop(0)
        if most is not None and len(batch) > most:
            half = len(batch) // 2
            waiting[:0] = [batch[:half], batch[half:]]
            continue
        try:
            yield from steps(batch)
            continue
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Not in the handler, where the traceback still holds the tensors of what was tried.
        if most is None:
            logger.warning("A batch of %d rows is too large for the memory; it is done in halves.", len(batch))
        most = (len(batch) + 1) // 2
        torch.cuda.empty_cache()
        waiting.insert(0, batch)
