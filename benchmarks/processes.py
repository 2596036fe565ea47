"""
One expectation step (writing, inner updates, answers, grading) by one process with one thread, and by two.

    python benchmarks/processes.py --output_dir /tmp/step

does it in as many processes as started this file (`torchrun`; one without), and the first prints a JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import PartialState
from inputs import LIST_PROMPT
from transformers.utils import logging as transformers_logging

from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.records.journal import Journal
from seal_hf.rollout.examples import ExampleSet
from seal_hf.rollout.processes import Processes
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig, Stage


# Prompts of 8 passages with 8 self-edits fill one batch of generation, of which each process has as many.
NUM_GENERATIONS = 8


def in_processes(num_processes: int, num_passages: int, model: str = "embedded-tiny") -> dict[str, object]:
    """Do the step in so many processes, and return what the first prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command += [str(num_processes), __file__, "--output_dir", folder]
        command += ["--num_passages", str(num_passages), "--model_name_or_path", model]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def step(lm: SelfAdaptingLM, num_passages: int, folder: Path) -> dict[str, object]:
    """
    The step in this process and those beside it, which share the folder.

    Returns:
        `dict[str, object]`: wall time until the slowest was done, in seconds, of it `writing_seconds`; the number of
        `banks`, `tokens` trained on, and the `rewards`, which tell that the work was the same.

    Raises:
        ValueError: The folder holds a step that was done; what is read from it takes no time.
    """
    processes = Processes(folder)
    if processes.any(Journal(folder).proposals(0) is not None):
        raise ValueError(f"{folder} holds a step that was done before; name another folder.")
    examples = ExampleSet.of(load_demo_passages("train")[:num_passages], "passages")
    stage = Stage("step", Journal(folder), 0, examples, 0, (0,), NUM_GENERATIONS, baselines=())
    config = RolloutConfig(max_completion_length=48, max_answer_length=16, adapters_per_bank=8, disable_tqdm=True)
    rollout = Rollout(lm, config, processes)
    processes.gather(None)  # all begin together
    start = time.perf_counter()
    proposals = rollout.propose(stage)
    written = time.perf_counter()
    scored = rollout.score(stage, proposals)
    return {
        "processes": processes.count,
        "seconds": time.perf_counter() - start,
        "writing_seconds": written - start,
        "banks": len({bank for proposal in proposals for bank in proposal.banks}),
        "tokens": sum(edit.tokens for edit in scored),
        "rewards": [edit.reward for edit in scored],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_passages", type=int, default=16)
    parser.add_argument("--model_name_or_path", default="embedded-tiny")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    domain = KnowledgeDomain(LIST_PROMPT.read_text(encoding="utf-8").rstrip(), chat=False)
    config = InnerLoopConfig(num_train_epochs=1)
    lm = SelfAdaptingLM.from_pretrained(args.model_name_or_path, device="cpu", domain=domain, inner_config=config)
    try:
        figures = step(lm, args.num_passages, args.output_dir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if state.is_main_process:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
