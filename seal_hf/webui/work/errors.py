"""What a visitor is told of an error. The app's log has the whole of it."""

import errno
import logging
import re

import torch

from ...hub.errors import HubError
from ..languages import Message, message_of


logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/:'\"]+/)+")


def explain(error: BaseException) -> str:
    """
    An error as one sentence for the visitor, which names no file of this machine; one that is unexpected goes to the log. What the
    app itself says is a [`Message`], what the library says is English.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return Message("errors.memory")
    if isinstance(error, ValueError | HubError):
        return without_folders(message_of(error))
    logger.error("Failed", exc_info=error)
    if not isinstance(error, OSError):
        return Message("errors.unexpected")
    if error.errno in _FULL:
        return Message("errors.disk")
    if error.errno is not None:
        return Message("errors.file")
    return without_folders(str(error))


def without_folders(text: str) -> str:
    """A text in which no file's name tells where on this machine it is. Web addresses stay, and so does what the app itself says."""
    return text if isinstance(text, Message) else _FOLDERS.sub("", text)
