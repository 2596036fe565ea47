"""The process of an engine of vLLM: what it is started with, and that it ends with the trainer's."""

import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch


# Ends the processes with these ids once the one that writes to it is gone.
_WATCH = """
import sys, psutil
processes = [psutil.Process(number) for number in map(int, sys.argv[1:]) if psutil.pid_exists(number)]
sys.stdin.read()
for process in processes:
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        pass
"""


def end_with(owner: object, processes: Iterable[psutil.Process]) -> None:
    """
    Have processes end when an object or this process has ended.

    vLLM 0.32 does not see to it where this process is killed: its engine would keep the memory.

    Args:
        owner (`object`):
            The object.
        processes (`Iterable[psutil.Process]`):
            What is sent SIGTERM.
    """
    command = [sys.executable, "-c", _WATCH, *(str(process.pid) for process in processes)]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    weakref.finalize(owner, watch.communicate)  # closes its input


@contextmanager
def engine_environment(device: torch.device) -> Iterator[None]:
    """
    The environment variables that an engine is started with, inside the block.

    It has a process of its own, and sees one GPU: without tensor parallelism it takes the first that it sees.
    """
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        variables["CUDA_VISIBLE_DEVICES"] = cards[device.index or 0]
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
