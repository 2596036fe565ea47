"""Starts the real vLLM for tests, in an environment that has vLLM (`make test-vllm`)."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from trainers.vllm_server import ServerArguments, server_command, server_environment


# Seconds in which the server is up, also on a busy machine.
_START_SECONDS = 1800
# Less memory and fewer texts at a time than a server has by itself: the tests have short ones.
_SMALL = ("--max-model-len", "512", "--max-num-seqs", "16")


def cpu_environment() -> dict[str, str]:
    """The environment variables of vLLM on one core with 1 GiB for its cache."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
    }


@contextmanager
def vllm_server(model: Path, name: str, log: Path, *, r: int, max_loras: int) -> Iterator[str]:
    """The URL of a server of this model on the CPU, in fp32, as `make vllm-server` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ServerArguments(str(model), dtype="float32", lora_r=0, inner_lora_r=r, max_loras=max_loras, port=port)
    command = server_command(arguments, False, ["--served-model-name", name, *_SMALL])
    environment = {**server_environment(False), **cpu_environment()}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START_SECONDS
        while not _is_up(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-5000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).is_success
    except httpx2.TransportError:
        return False
