"""
Ends a training run whose app was killed: `python run_guard.py APP RUN GRACE`, with the ids of both processes, and the seconds
between the request to end and the kill.

It is a process of its own, since a run that is paused cannot look after itself, and uses no package, so that it is small.
"""

import os
import signal
import sys
import time


def guard(app: int, run: int, grace: float) -> None:
    """Wait until the app, which has started this process, is gone; then end the processes of the run."""
    while os.getppid() == app:
        time.sleep(1)
    try:
        os.killpg(run, signal.SIGTERM)
        end = time.monotonic() + grace
        while time.monotonic() < end:
            os.killpg(run, signal.SIGCONT)  # a paused process gets no other signal until it continues
            time.sleep(0.5)
        os.killpg(run, signal.SIGKILL)
    except ProcessLookupError:  # it has ended
        return


if __name__ == "__main__":
    guard(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
