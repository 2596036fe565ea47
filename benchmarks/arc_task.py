"""
One ARC task from its training data to its verdict, measured in a process of its own.

    python benchmarks/arc_task.py --task small

prints a JSON object: tokens and seconds of the training and of the predictions, and `peak_bytes`, the greatest resident size of
the process, beside `loaded_bytes`, that of before.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import peak_bytes
from transformers.utils import logging as transformers_logging
from ways import TARGETS, lora_config

from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import ArcDomain
from seal_hf.domains.arc.generated import generate_tasks
from seal_hf.domains.arc.tasks import Task, check_task
from seal_hf.inner_loop.update import tokenize_self_edit
from seal_hf.models.encoding import encode_prompt


# Of each task how much is done. The large one's training tasks have up to 7,600 tokens, and more than 8,192 characters none has.
NUM_TRAINING_TASKS, MOST_PREDICTIONS = {"small": 24, "large": 2}, {"small": 100, "large": 2}
# It draws two of the longest training tasks of the large one.
_SEED = 1
_LARGE_SIDE, _LARGE_DEMONSTRATIONS = 30, 4


def task_of(size: str) -> Task:
    """A generated task of 3 x 3 to 6 x 6 cells, or one of 30 x 30 whose grids are of random colours."""
    if size == "small":
        return generate_tasks(1)[0]
    generator = np.random.default_rng(0)
    grids = generator.integers(0, 10, size=(_LARGE_DEMONSTRATIONS + 1, _LARGE_SIDE, _LARGE_SIDE)).tolist()
    *shown, test = ({"input": grid, "output": grid[::-1]} for grid in grids)
    return check_task({"id": "large", "train": shown, "test": [test]})


def measure(lm: SelfAdaptingLM, task: Task, most_predictions: int) -> dict[str, float]:
    """
    Train an adapter on a task with all tools, for two epochs, and predict with it, under the first so many views.

    Returns:
        `dict[str, float]`: `training_tasks`, `longest_sequence` (tokens), `training_tokens`, `training_seconds`, `predictions`,
            `prediction_tokens` (of the prompts) and `prediction_seconds`.
    """
    self_edit, prompts = lm.domain.all_tools(task), lm.domain.questions(task)[:most_predictions]
    update = tokenize_self_edit(self_edit, lm.processing_class, lm.inner_config)
    lengths = [len(sequence.input_ids) for sequence in update.sequences]
    start = time.perf_counter()
    adapter = lm.adapt(update)
    trained = time.perf_counter()
    lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=lm.domain.max_answer_length(task))
    return {
        "training_tasks": len(lengths),
        "longest_sequence": max(lengths),
        "training_tokens": adapter.training["num_tokens"],
        "training_seconds": trained - start,
        "predictions": len(prompts),
        "prediction_tokens": sum(len(encode_prompt(lm.processing_class, prompt)) for prompt in prompts),
        "prediction_seconds": time.perf_counter() - trained,
    }


def arc_lm(lm: SelfAdaptingLM, size: str) -> SelfAdaptingLM:
    """A model with the domain and the inner loop of ARC: all linear layers, rank 32, two tasks a step."""
    return SelfAdaptingLM(
        lm.model,
        lm.processing_class,
        domain=ArcDomain(_SEED, max_tasks=NUM_TRAINING_TASKS[size]),
        peft_config=lora_config(TARGETS["all-linear"]),
        inner_config=InnerLoopConfig(batch_size=2, lr_scheduler_type="cosine", warmup_steps=11, max_length=8192),
        base_model_id=lm.base_model_id,
    )


def in_own_process(size: str) -> dict[str, float]:
    """Run this file on its own and return what it prints."""
    command = [sys.executable, str(Path(__file__)), "--task", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=NUM_TRAINING_TASKS, required=True)
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    lm = arc_lm(SelfAdaptingLM.from_pretrained("embedded-tiny"), args.task)
    loaded = peak_bytes()
    figures = measure(lm, task_of(args.task), MOST_PREDICTIONS[args.task])
    print(json.dumps({"task": args.task, **figures, "loaded_bytes": loaded, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
