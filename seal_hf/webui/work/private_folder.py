"""
The one folder for all files of the app: sessions, uploads, whatever a library writes for a moment. Only the user who started
the app can open it, and it is removed when the app ends, or at the next start where it was killed.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


logger = logging.getLogger(__name__)

_PREFIX = "seal-hf-app-"
_LOCK_NAME = "lock"
_YOUNG = 10  # seconds in which a new folder has certainly been locked
# What people, shells and service managers end a process with: the watchdog of systemd uses SIGABRT, and batch systems warn
# with the last three. A fault, such as SIGSEGV, leaves no interpreter that could remove files.
_ENDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGABRT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
# Gradio puts uploads there and serves every file in it to whoever knows the file's address.
_GRADIO_FOLDER = "GRADIO_TEMP_DIR"


def exit_on_signals() -> None:
    """
    From now on the signals that ask a process to end raise `SystemExit`, so that files are removed. Later signals do not
    interrupt that.
    """
    # A signal that `nohup` or a shell has set to be ignored stays ignored.
    numbers = [getattr(signal, name) for name in _ENDS if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    for number in numbers:
        signal.signal(number, end)


@contextmanager
def private_folder() -> Iterator[Path]:
    """
    Inside the block, Gradio and `tempfile` write into a new folder, which is removed after it. First the folders that killed
    apps have left are removed. All of them are where `tempfile` puts files, such as `TMPDIR`.

    Returns:
        `Iterator[Path]`: A folder in it for the sessions. Gradio serves its files as they are, without a copy, so that an
        address ends with its file.
    """
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
    lock = FileLock(folder / _LOCK_NAME)
    lock.acquire()
    before, temporary = os.environ.get(_GRADIO_FOLDER), tempfile.tempdir
    try:
        for name in ("tmp", "files"):
            (folder / name).mkdir()
        os.environ[_GRADIO_FOLDER] = str(folder / "files")
        tempfile.tempdir = str(folder / "tmp")
        yield folder / "files" / "sessions"
    finally:
        lock.release()
        _remove(folder)
        tempfile.tempdir = temporary
        if before is None:
            os.environ.pop(_GRADIO_FOLDER, None)
        else:
            os.environ[_GRADIO_FOLDER] = before


def remove_abandoned() -> None:
    """Remove the folders of apps that were killed. One whose app still runs is locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(Timeout, OSError):
            if _is_own(folder) and time.time() - folder.stat().st_mtime > _YOUNG:
                with FileLock(folder / _LOCK_NAME, timeout=0):
                    _remove(folder)


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user. Everybody may put links and folders of any name beside it."""
    is_mine = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
    return is_mine and folder.is_dir() and not folder.is_symlink()


def _remove(folder: Path) -> None:
    for _ in range(20):  # a thread that has not ended yet may write into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    logger.warning("%s could not be removed; the next start of the app will try again.", folder)
