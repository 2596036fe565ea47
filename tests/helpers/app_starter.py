"""
Runs `app.py` in forks of this process, one at a time. It has imported what takes most of a start.

An order is a line of JSON on the standard input: `folder`, where the app runs and writes its log, `arguments` and
`environment`. The answer is the id of the process and, when it has ended, its exit code.
"""

import gc
import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

import app


def next_order() -> dict:
    """The next order, in the fork that carries it out."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":  # the doctests of this folder import every file
    order = next_order()
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_DFL
        )  # a shell or nohup that runs the tests in the background has them ignored
    gc.freeze()  # what is imported need not be searched for garbage
    os.chdir(order["folder"])
    for target, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, "log", os.O_WRONLY | os.O_CREAT),
        (2, "log", os.O_WRONLY),
    ):
        os.dup2(os.open(name, flags | (os.O_APPEND if target else 0), 0o600), target)
    os.environ.clear()
    os.environ.update(order["environment"])
    tempfile.tempdir = None
    sys.argv = ["app.py", *order["arguments"]]
    runpy.run_path(str(Path(app.__file__)), run_name="__main__")
