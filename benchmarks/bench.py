"""
Measure the inner loop and the answers side by side with the reference way and with plain PEFT.

    python benchmarks/bench.py            # the table in benchmarks/README.md, about 20 minutes on two CPU cores
    python benchmarks/bench.py --quick    # a part of it in about 2 minutes, kept apart in results-quick.json

Every way runs in this process on the same loaded model, in turns, so that a ratio compares the same minutes of the same
machine.
"""

import argparse
import datetime
import importlib.util
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import arc_task
import sections
from inputs import FOLDER, describe, even_bank, load_work, updates_of
from machine import SQUARE, describe_machine, gemm_rates, versions
from report import table, write_readme
from settings import QUICK, Settings
from transformers.utils import logging as transformers_logging

from seal_hf import SelfAdaptingLM


def measure(settings: Settings, progress: Callable[[str], None]) -> dict[str, object]:
    """All raw figures; `progress` is called with a line for each part."""
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny")
    work = load_work(lm.domain)
    config = lm.model.config
    shape = (720, config.hidden_size, config.intermediate_size)
    results: dict[str, object] = {
        "num_parameters": lm.model.num_parameters(),
        "inputs": describe(updates_of(work, lm.processing_class)),
        "gemm": {"square": [], "model": [], "square_shape": SQUARE, "model_shape": shape},
        "training": [],
        "operations": [],
        "answers": [],
    }

    def measure_gemm() -> None:
        results["gemm"]["square"] += gemm_rates(SQUARE, 3)
        results["gemm"]["model"] += gemm_rates(shape, 3)

    measure_gemm()
    for target in settings.targets:
        progress(f"reference way, {target}")
        step_seconds = sections.reference(lm, work, target, settings.reference_steps)
        for num_adapters in settings.adapters:
            progress(f"PEFT and bank of {num_adapters}, {target}")
            chosen = even_bank(work, lm.processing_class, num_adapters)
            row, adapters = sections.training(lm, chosen, target, settings)
            results["training"].append({**row, "reference_step_seconds": step_seconds})
            measure_gemm()
        if target == settings.targets[0]:
            progress(f"answers, {target}")
            results["answers"].append(sections.answers(lm, chosen, adapters, target, settings))
        progress(f"operations, {target}")
        results["operations"].append(sections.operations(lm, work, target))
    if settings.step_epochs:
        progress(f"{settings.step_epochs} epochs of an expectation step")
        results["step"] = sections.expectation_step(lm, work, settings)
        measure_gemm()
    del lm
    results["memory"] = []
    for target in settings.targets if settings.memory_adapters else ():
        progress(f"memory, {target}")
        results["memory"].append(sections.memory(target, settings.memory_adapters))
    if settings.process_passages:
        progress("one process and two")
        results["processes"] = sections.processes(settings.process_passages)
    results["arc"] = []
    for size in settings.arc_tasks:
        progress(f"{size} ARC task")
        results["arc"].append(arc_task.in_own_process(size))
    if settings.quantized and importlib.util.find_spec("bitsandbytes") is not None:
        progress("quantized base")
        results["quantized"] = sections.quantized()
    return results


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="A part of the measurements, in about 2 minutes.")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="Where the results are written.")
    return parser.parse_args(arguments)


def write_results(results: dict, output_dir: Path, quick: bool) -> Path:
    """The figures as JSON and, for a full run, the table in the folder's README; a quick one leaves those alone."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / ("results-quick.json" if quick else "results.json")
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not quick:
        write_readme(results, FOLDER / "README.template.md", output_dir / "README.md")
    return file


def main() -> None:
    args = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("seal_hf").setLevel(logging.ERROR)
    start = time.perf_counter()

    def progress(line: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {line}", file=sys.stderr, flush=True)

    settings = QUICK if args.quick else Settings()
    head = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": args.quick,
        "machine": describe_machine(),
        "versions": versions(),
        "settings": asdict(settings),
    }
    results = {**head, **measure(settings, progress), "seconds": time.perf_counter() - start}
    file = write_results(results, args.output_dir, args.quick)
    print(table(results))
    progress(f"done; the figures are in {file}")


if __name__ == "__main__":
    main()
