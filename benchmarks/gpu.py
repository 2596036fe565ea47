"""
Is the CUDA path right, and how fast is it? One command for any CUDA machine, which needs no download.

    python benchmarks/gpu.py                       # all parts, 4 minutes on an H100
    python benchmarks/gpu.py --parts packed gemm training-7B
    python benchmarks/gpu.py --device cpu          # tiny models, about a minute: that everything runs

Models with random weights in the shapes of Qwen2.5 are made on the device. Every part stands alone: one that fails is
recorded with its traceback, and the others go on. The figures so far are written after each part as JSON, the tables beside
it as Markdown, and printed at the end. The exit code is 1 where a comparison or a part failed.
"""

import argparse
import datetime
import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gpu_checks as checks
import gpu_speed as speed
import torch
from gpu_models import Bench, Skipped
from gpu_report import table
from machine import describe_machine, versions
from transformers.utils import is_bitsandbytes_available
from transformers.utils import logging as transformers_logging


@dataclass(frozen=True)
class Part:
    """
    One part of the benchmark.

    Parameters:
        kind (`str`):
            Its table (see `gpu_report.SECTIONS`).
        seconds (`int`):
            What it is expected to take on an H100.
        run (`Callable[[Bench], list[dict]]`):
            Returns its rows.
    """

    kind: str
    seconds: int
    run: Callable[[Bench], list[dict]]


def quantized(bench: Bench, name: str) -> list[dict]:
    """The speed of training on an NF4 base."""
    if not is_bitsandbytes_available():
        raise Skipped("bitsandbytes is not installed")
    return speed.training(bench, name, quantized=True)


# In the order in which they run: the most valuable first, since what does not fit the time is left out.
PARTS = {
    "packed": Part("check", 5, checks.packed),
    "attention": Part("check", 1, checks.attention),
    "grouped": Part("check", 1, checks.grouped),
    "peft": Part("check", 2, checks.peft),
    "padding": Part("check", 2, checks.padding),
    "greedy": Part("check", 4, checks.greedy),
    "lengths": Part("check", 3, checks.lengths),
    "checkpointing": Part("check", 1, checks.checkpointing),
    "gemm": Part("gemm", 2, speed.gemm),
    "training-0.5B": Part("training", 18, partial(speed.training, name="0.5B")),
    "training-7B": Part("training", 25, partial(speed.training, name="7B")),
    "launches": Part("launches", 26, partial(speed.launches, name="0.5B")),
    "answers": Part("answers", 25, partial(speed.answers, name="0.5B")),
    "host-0.5B": Part("host", 5, partial(speed.host, name="0.5B")),
    "memory-0.5B": Part("memory", 6, partial(speed.memory, name="0.5B")),
    "host-7B": Part("host", 8, partial(speed.host, name="7B")),
    "memory-7B": Part("memory", 7, partial(speed.memory, name="7B")),
    "training-1.5B": Part("training", 27, partial(speed.training, name="1.5B")),
    "nf4-7B": Part("training", 40, partial(quantized, name="7B")),
    "nf4-0.5B": Part("training", 35, partial(quantized, name="0.5B")),
}
BUDGET = 440  # seconds, so that a part that has begun then still ends within 8 minutes


def run_part(part: Part, bench: Bench) -> dict[str, object]:
    """The rows of a part, or why there are none: `status` is `"done"`, `"failed"` or `"skipped"`."""
    start = time.perf_counter()
    try:
        rows = part.run(bench)
        failed = any(row.get("verdict") == "FAIL" for row in rows)
        found = {"status": "failed" if failed else "done", "rows": rows}
    except Skipped as reason:
        found = {"status": "skipped", "reason": str(reason)}
    except Exception:
        bench.free()
        found = {"status": "failed", "error": traceback.format_exc()}
    return {"kind": part.kind, **found, "seconds": time.perf_counter() - start, "expected_seconds": part.seconds}


def lost_device(bench: Bench) -> str | None:
    """Why the device can do nothing more in this process, as after an illegal access to memory."""
    try:
        bench.synchronize()
    except Exception as error:
        return f"the device was lost: {str(error).splitlines()[0]}; run the others again with --parts"
    return None


def measure(names: list[str], bench: Bench, head: dict, output: Path, progress: Callable[[str], None]) -> dict:
    """Run parts in their order; the results so far are written after each."""
    start, lost = time.perf_counter(), None
    results: dict = {**head, "parts": {}, "seconds": 0.0}
    for name, part in PARTS.items():
        if name not in names:
            continue
        lost = lost or lost_device(bench)
        if lost or bench.out_of_time:
            found = {"kind": part.kind, "status": "skipped", "reason": lost or "out of time; raise --budget"}
        else:
            progress(f"{name}, about {part.seconds} s on an H100")
            found = run_part(part, bench)
        progress(f"{name}: {found['status']}")
        results["parts"][name] = found
        results["seconds"] = time.perf_counter() - start
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    return results


def describe_device(device: torch.device) -> dict[str, object]:
    """Name, memory in bytes and driver of what is measured."""
    machine = describe_machine()
    found = {"name": machine["processor"], "memory_bytes": machine["memory_bytes"], "driver": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = {"name": properties.name, "memory_bytes": properties.total_memory, "driver": _driver()}
        found["capability"] = torch.cuda.get_device_capability(device)
    return {**found, "python": machine["python"], "cores": machine["cores"]}


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip().partition("\n")[0] or None


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for tiny models.")
    parser.add_argument("--budget", type=float, default=BUDGET, help="Seconds after which nothing more is begun.")
    parser.add_argument("--output", type=Path, default=Path("results-gpu.json"), help="Where the figures are written.")
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device} needs a CUDA device, and torch finds none; use --device cpu.")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    torch.set_float32_matmul_precision("highest")  # what is compared in fp32 is computed in it
    start, device = time.perf_counter(), torch.device(args.device)

    def progress(line: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {line}", file=sys.stderr, flush=True)

    bench = Bench(device, deadline=start + args.budget)
    head = {
        "command": shlex.join(["python", *sys.argv] if arguments is None else ["gpu.py", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tiny": device.type == "cpu",
        "device": describe_device(device),
        "versions": versions(),
    }
    results = measure(args.parts, bench, head, args.output, progress)
    print(table(results))
    return int(any(part["status"] == "failed" for part in results["parts"].values()))


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("seal_hf").setLevel(logging.ERROR)
    sys.exit(main())
