"""Pushes of a run's state to the Hub while it goes on: one at a time, in the background, the latest state wins."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path


class BackgroundPushes:
    """
    Uploads of staged folders in a thread of their own. One that waits while another is under way gives way to a later one,
    which holds all that it has.

    The thread does not keep the program from ending.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._waiting: tuple[Path, Callable[[Path], object], Future] | None = None
        self._thread: threading.Thread | None = None

    def push(self, staged: Path, upload: Callable[[Path], object]) -> Future:
        """
        Upload a folder, which is removed afterwards, as soon as the push under way is done.

        Parameters:
            staged (`Path`):
                The folder.
            upload (`Callable[[Path], object]`):
                Uploads it.

        Returns:
            `Future`: what the upload returns or raises; cancelled where a later push took its place.
        """
        future: Future = Future()
        with self._lock:
            superseded, self._waiting = self._waiting, (staged, upload, future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push to the Hub", daemon=True)
                self._thread.start()
        if superseded is not None:
            shutil.rmtree(superseded[0], ignore_errors=True)
            superseded[-1].cancel()
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
                (staged, upload, future), self._waiting = self._waiting, None
            if not future.set_running_or_notify_cancel():
                shutil.rmtree(staged, ignore_errors=True)
                continue
            try:
                try:
                    result = upload(staged)
                finally:  # before those who wait for the result go on
                    shutil.rmtree(staged, ignore_errors=True)
            except BaseException as error:  # whatever it is: it is kept, and who asked for the push says it
                future.set_exception(error)
            else:
                future.set_result(result)
