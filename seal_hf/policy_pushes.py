"""Pushes of a run's state to the Hub while it goes on: one at a time, in the background, the latest state wins."""

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path


logger = logging.getLogger(__name__)


class BackgroundPushes:
    """
    Uploads of staged folders in a thread of their own. One that waits while another is under way gives way to a later one,
    which holds all that it has.

    The thread does not keep the program from ending.

    Parameters:
        upload (`Callable[[Path], object]`):
            Uploads one folder.

    Attributes:
        failure (`Exception`, *optional*):
            Why the last push failed; `None` where it arrived.
    """

    def __init__(self, upload: Callable[[Path], object]):
        self.failure: Exception | None = None
        self._upload = upload
        self._lock = threading.Lock()
        self._waiting: tuple[Path, Future] | None = None
        self._thread: threading.Thread | None = None

    def push(self, staged: Path) -> Future:
        """
        Upload a folder, which is removed afterwards, as soon as the push under way is done.

        Returns:
            `Future`: what the upload returns or raises; cancelled where a later push took its place.
        """
        future: Future = Future()
        with self._lock:
            superseded, self._waiting = self._waiting, (staged, future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push to the Hub", daemon=True)
                self._thread.start()
        if superseded is not None:
            shutil.rmtree(superseded[0], ignore_errors=True)
            superseded[1].cancel()
        return future

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all is uploaded or has failed, at most `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._thread = None
                    return
                (staged, future), self._waiting = self._waiting, None
            try:
                result = self._upload(staged)
            except (
                Exception
            ) as error:  # whatever it is, the run goes on; it is said, kept, and the push is tried again
                self.failure = error
                logger.warning("%s Training goes on, and it is tried again.", error)
                future.set_exception(error)
            else:
                self.failure = None
                future.set_result(result)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
