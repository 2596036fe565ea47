"""What the benchmark runs on, the memory that it takes, and how fast the machine multiplies matrices."""

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F


PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "seal-hf")
# Rows, inputs and outputs of the matrix product that utilisation is measured against.
SQUARE = (2048, 2048, 2048)


def describe_machine() -> dict[str, object]:
    """Processor, threads that torch uses, and memory in bytes."""
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if names := [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Installed versions; `None` where a package is missing."""
    installed = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    return {name: metadata.version(name) if name in installed else None for name in PACKAGES}


def peak_bytes() -> int:
    """Greatest resident size of this process so far."""
    if sys.platform == "linux":
        # Not getrusage: there a process begins with the peak of the one that started it.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def gemm_rates(
    shape: Sequence[int], repetitions: int, seconds: float = 0.2, device: torch.device | str = "cpu"
) -> list[float]:
    """
    Rates of the bf16 product `F.linear` of `(rows, inputs)` with `(outputs, inputs)`, in FLOP/s.

    Args:
        shape (`Sequence[int]`):
            Rows, inputs, outputs.
        repetitions (`int`):
            Measurements, after one that is not counted.
        seconds (`float`, *optional*, defaults to `0.2`):
            Least time of one measurement.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            What multiplies.
    """
    rows, inputs, outputs = shape
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inputs, generator=generator, device=device).bfloat16()
    right = torch.randn(outputs, inputs, generator=generator, device=device).bfloat16()
    # A GPU is waited for after several products, so that it never waits for the next.
    at_once = 20 if device.type == "cuda" else 1
    rates = []
    with torch.no_grad():
        for _ in range(repetitions + 1):
            products, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds or not products:
                for _ in range(at_once):
                    F.linear(left, right)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                products += at_once
            rates.append(2 * rows * inputs * outputs * products / elapsed)
    return rates[1:]


def training_flops(num_parameters: int, num_tokens: int) -> int:
    """
    FLOPs of forward and backward passes over a frozen model: 2 a parameter and token forward, 2 for the gradient of the
    activations. Attention and the adapters' own products are not counted, so that utilisation is rather too low.

    >>> training_flops(num_parameters=10, num_tokens=3)
    120
    """
    return 4 * num_parameters * num_tokens
