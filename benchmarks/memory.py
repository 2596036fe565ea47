"""
Peak memory of a bank, measured in a process of its own.

    python benchmarks/memory.py --adapters 8 --target_modules q,v --r 32

prints a JSON object with `peak_bytes`, the greatest resident size of the process, `loaded_bytes`, that of before, and of a
bank `num_parameters` of one adapter and `estimated_bytes`, by which its size would have been chosen.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from inputs import load_work, updates_of
from machine import peak_bytes
from transformers.utils import logging as transformers_logging
from ways import TARGETS, lora_config

from seal_hf import SelfAdaptingLM
from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate
from seal_hf.rollout.bank_schedule import bank_bytes, work_of


# Steps until every buffer and both moments of AdamW are there.
NUM_STEPS = 2


def peak_in_own_process(num_adapters: int, target_modules: str, r: int) -> dict[str, int]:
    """Run this file on its own and return what it prints."""
    command = [sys.executable, str(Path(__file__)), "--adapters", str(num_adapters)]
    command += ["--target_modules", target_modules, "--r", str(r)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def passage_updates(lm: SelfAdaptingLM, num_adapters: int) -> list[InnerUpdate]:
    """Updates of the passages alone, the longest sequences there are, so that every step has the greatest one's size."""
    updates = updates_of(load_work(lm.domain)[:num_adapters], lm.processing_class)
    config = InnerLoopConfig(num_train_epochs=NUM_STEPS)
    return [InnerUpdate(update.sequences[-1:], config) for update in updates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, required=True)
    parser.add_argument("--target_modules", choices=TARGETS, required=True)
    parser.add_argument("--r", type=int, default=32)
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny")
    loaded = peak_bytes()
    config = lora_config(TARGETS[args.target_modules], args.r)
    bank = AdapterBank.initialize(lm.model, config, [0] * args.adapters)
    updates = passage_updates(lm, args.adapters)
    train(bank, updates)
    longest = max(work_of(update).longest_step for update in updates)
    figures = {
        "num_parameters": bank.layout.num_parameters,
        "loaded_bytes": loaded,
        "estimated_bytes": bank_bytes(lm.model, bank.layout, args.adapters, longest),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
