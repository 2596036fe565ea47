"""Scripts as a user runs them, in the test's own process: an interpreter with torch takes seconds to start."""

import contextlib
import io
import logging
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock


def run_main(path: Path, *arguments: object) -> SimpleNamespace:
    """What a script comes to that is called with these arguments: `returncode`, `stdout` and `stderr`."""
    out, err, returncode = io.StringIO(), io.StringIO(), 0
    ours = logging.getLogger("seal_hf")
    handlers, level, on_signal = list(ours.handlers), ours.level, signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        returncode = ended.code if isinstance(ended.code, int) else 1
        err.write(f"{ended.code}\n" if isinstance(ended.code, str) else "")
    finally:
        ours.handlers[:] = handlers
        ours.setLevel(level)
        signal.signal(signal.SIGTERM, on_signal)
    return SimpleNamespace(returncode=returncode, stdout=out.getvalue(), stderr=err.getvalue())
