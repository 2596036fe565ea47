"""A small outer loop on a tiny random model, run in this process or as a command for tests that kill or share it."""

import argparse
import atexit
import gc
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SEALConfig, SEALTrainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.records.files import read_records
from seal_hf.records.journal import Journal
from seal_hf.records.run_folder import STATE_FILE
from seal_hf.self_edit import TrainingExample


class HashGrader:
    """Verdicts that depend on every character of an answer, so that a random model's rewards differ."""

    def grade(self, questions, golds, answers):
        return [hashlib.sha256(answer.encode()).digest()[0] % 2 == 0 for answer in answers]


class AskingDomain(KnowledgeDomain):
    """
    Every second self-edit, by its text, asks a tool, which lets the model continue its first characters.

    Some of what comes back leaves nothing to train on. `asked` notes what each call of the tool was given.
    """

    def __init__(self):
        super().__init__("{title}: {context}", grader=HashGrader(), chat=False)
        self.asked: list[list[tuple[str, str]]] = []

    def parse(self, completion, example):
        self_edit = super().parse(completion, example)
        return self_edit and replace(self_edit, calls=(completion[:4],) if _bit(completion, 0) else ())

    def carry_out(self, self_edits, examples, ask):
        self.asked.append(
            [(example["title"], edit.completion) for edit, example in zip(self_edits, examples, strict=True)]
        )
        answers = [answer.text for answer in ask([f"{edit.calls[0]}?" for edit in self_edits], 5)]
        return [
            replace(
                edit,
                calls=(),
                examples=(TrainingExample([{"role": "user", "content": "é"}], answer), *edit.examples)
                if _bit(edit.completion, 1)
                else (),
                metrics={"answers": 1.0, "coverage": len(answer) / 5},
            )
            for edit, answer in zip(self_edits, answers, strict=True)
        ]


def _bit(text: str, place: int) -> int:
    return hashlib.sha256(text.encode()).digest()[place] % 2


def tiny_examples(number: int, first: int = 0) -> list[dict]:
    return [
        {
            "title": f"T{i}",
            "context": f"The {i} cats sat {'very ' * (i % 3)}still.",
            "questions": [{"question": f"What {j}?", "answer": "cats"} for j in range(3)],
        }
        for i in range(first, first + number)
    ]


def tiny_config(output_dir, **overrides) -> SEALConfig:
    options = {
        "num_generations": 3,
        "temperature": 1.5,
        "max_completion_length": 12,
        "inner_num_train_epochs": 2,
        "inner_lora_r": 2,
        "inner_target_modules": ["all-linear"],
        "inner_learning_rate": 1e-2,
        "adapters_per_bank": 4,
        "num_repeats": 2,
        "examples_per_round": 0,
        "max_answer_length": 6,
        "learning_rate": 1e-2,
        "sft_batch_size": 2,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": [],
        "seed": 3,
    }
    return SEALConfig(str(output_dir), **{**options, **overrides})


def tiny_trainer(
    output_dir,
    *,
    model=None,
    domain=None,
    with_tool=False,
    num_train=4,
    num_eval=3,
    train_dataset=None,
    callbacks=None,
    eval_domain=None,
    rubric_judge=None,
    **overrides,
):
    if domain is None:
        plain = KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False)
        domain = AskingDomain() if with_tool else plain
    return SEALTrainer(
        model=model or tiny_llama(),
        args=tiny_config(output_dir, **overrides),
        domain=domain,
        train_dataset=train_dataset or tiny_examples(num_train),
        eval_dataset=tiny_examples(num_eval, first=100) if num_eval else None,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        callbacks=callbacks,
        eval_domain=eval_domain,
        rubric_judge=rubric_judge,
    )


# The smallest run that has all there is: two rounds, repeats, several banks in a stage, baselines with and without adapter.
SMALLEST = {"num_train": 3, "num_eval": 2, "num_generations": 2, "adapters_per_bank": 2}


def run(
    output_dir, *, resume=False, record=None, die_rank=0, die_after_banks=None, die_after_steps=None, options=None
) -> None:
    """
    Train on `SMALLEST`, changed by `options`, in this process.

    Every bank's trials are noted in `record`, a line when they begin and one when they are on disk. The process
    `die_rank` kills itself in the middle of the bank after `die_after_banks`, or after so many steps of the outer SFT.
    """
    torch.set_num_threads(1)
    trainer = tiny_trainer(output_dir, **{**SMALLEST, **(options or {})})
    rollout, processes = trainer._rollout, trainer._processes
    run_bank, examine, on_bank = rollout._run_bank, rollout._examine, rollout.on_bank
    after_sft_step = trainer._after_sft_step
    under_way, num_finished, num_steps = [], 0, 0

    def note(event):
        if record is not None:
            line = {"event": event, "rank": processes.index, "world_size": processes.count, "trials": under_way[-1]}
            with open(record, "a") as file:
                file.write(json.dumps(line) + "\n")

    def noted_run_bank(stage, trials, *others):
        kind = "evaluation" if stage.is_evaluation else "training"
        under_way.append([[kind, stage.round, *key] for trial in trials for key in trial.keys])
        note("begun")
        return run_bank(stage, trials, *others)

    def noted_on_bank():
        nonlocal num_finished
        num_finished += 1
        note("finished")
        return on_bank()

    def mortal_examine(*args):
        die_if(num_finished == die_after_banks)
        return examine(*args)

    def mortal_after_sft_step():
        nonlocal num_steps
        num_steps += 1
        die_if(num_steps == die_after_steps)
        return after_sft_step()

    def die_if(condition):
        if condition and processes.index == die_rank:
            os.kill(os.getpid(), signal.SIGKILL)

    rollout._run_bank, rollout.on_bank = noted_run_bank, noted_on_bank
    rollout._examine = mortal_examine
    trainer._after_sft_step = mortal_after_sft_step
    trainer.train(resume_from_checkpoint=resume)


# Children start within milliseconds from a process that has everything imported.
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["helpers.outer_loop", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def in_child(log: Path, function, *args, **kwargs) -> int:
    """Exit code of a new process that calls the function; what it prints is added to `log`."""
    process = new_child(log, function, *args, **kwargs)
    process.join()
    return process.exitcode


def new_child(log: Path, function, *args, **kwargs) -> multiprocessing.Process:
    """A new process that calls the function; what it prints is added to `log`."""
    with mock.patch.dict(os.environ, child_environment()):
        process = _children.Process(target=_logged, args=(log, function, args, kwargs))
        process.start()
    return process


def child_environment() -> dict[str, str]:
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": path}


def _logged(log, function, args, kwargs):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    gc.freeze()  # what is imported need not be searched for garbage by every child
    function(*args, **kwargs)


def noted_trials(record: Path, event: str = "begun", **which) -> list[tuple]:
    """The trials noted in a record, of the lines whose `rank` (or other fields) are as given, in order."""
    return [tuple(trial) for line in noted(record, event, **which) for trial in line["trials"]]


def noted(record: Path, event: str = "begun", **which) -> list[dict]:
    lines = map(json.loads, record.read_text().splitlines()) if record.exists() else ()
    return [line for line in lines if line["event"] == event and all(line[name] == which[name] for name in which)]


def unscored(output_dir: Path, trials: list[tuple]) -> list[tuple]:
    """Those of the trials whose results are not on disk."""
    journals = {"training": Journal(output_dir), "evaluation": Journal(output_dir / "evaluation")}

    def is_scored(trial):
        kind, number, *place = trial
        if journals[kind].scored(number) is not None:
            return True
        banks = journals[kind].banks(number).values()
        return any([r.condition, r.example, r.edit, r.repeat] == place for results in banks for r in results)

    return [trial for trial in trials if not is_scored(trial)]


def results(output_dir: Path) -> dict[str, object]:
    """All that a run has come to, by file: records without their times, weights, and the names of the other files."""
    found = {}
    for file in sorted(output_dir.rglob("*.*")):
        name = str(file.relative_to(output_dir))
        if file.name.startswith("bank_"):
            continue
        if file.suffix == ".jsonl":
            found[name] = [_without(record, "seconds") for record in read_records(file)]
        elif file.name == STATE_FILE:
            state = json.loads(file.read_text())
            found[name] = [_without(entry, "inner/tokens_per_second") for entry in state.pop("log_history")] + [state]
        elif file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.is_file():
            found[name] = None
    return found


def _without(record: dict, name: str) -> dict:
    return {key: value for key, value in record.items() if key != name}


def note_exit() -> None:
    """Print the names of this process's threads."""
    print("exit with", *(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")))


if __name__ == "__main__":
    atexit.register(note_exit)  # called after what is registered later
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resume", nargs="?", const=True, default=False)
    parser.add_argument("--record")
    parser.add_argument("--die_rank", type=int, default=0)
    parser.add_argument("--die_after_banks", type=int)
    parser.add_argument("--die_after_steps", type=int)
    parser.add_argument("--options", type=json.loads)
    run(**vars(parser.parse_args()))
