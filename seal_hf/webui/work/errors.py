"""What a visitor is told of an error. The app's log has the whole of it."""

import errno
import logging
import re

import torch

from ...hub.errors import HubError


logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/:'\"]+/)+")


def explain(error: BaseException) -> str:
    """An error as one sentence for the visitor, which names no file of this machine; one that is unexpected goes to the log."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return (
            "The device is out of memory. Nothing of yours is lost: use fewer self-edits, a shorter passage or a lower "
            "LoRA rank, and try again."
        )
    if isinstance(error, ValueError | HubError):
        return str(error)
    logger.error("Failed", exc_info=error)
    if not isinstance(error, OSError):
        return "Something went wrong on our side: try again. If it fails again, look at the app's log."
    if error.errno in _FULL:
        return "The app's disk is full: delete some adapters under Adapters or books under Shelf, or try again later."
    if error.errno is not None:
        return "The app could not read or write a file: try again. If it fails again, look at the app's log."
    return without_folders(str(error))


def without_folders(text: str) -> str:
    """A text in which no file's name tells where on this machine it is. Web addresses stay."""
    return _FOLDERS.sub("", text)
