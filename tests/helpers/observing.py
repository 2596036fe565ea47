"""Small runs of a trainer, what happens in them and what they leave on disk, to compare."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from trl import SFTTrainer

from helpers.outer_loop import HashGrader, tiny_trainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.outer_loop import outer_sft, seal_trainer


BASE_ID = "someone/tiny-llama"
SMALL = {"num_train": 2, "num_eval": 2, "num_generations": 2, "num_repeats": 1, "adapters_per_bank": 2}
PROMPT = torch.arange(4, 40)[None]


def small_trainer(output_dir, **options):
    return tiny_trainer(output_dir, **{**SMALL, **options})


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def policy_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def saved_policy(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    return {name.replace(".weight", ".default.weight"): value for name, value in weights.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def records(output_dir):
    """All that a run leaves on disk, by file, except for times."""
    found = {}
    for path in output_dir.rglob("*"):
        name = path.relative_to(output_dir).as_posix()
        if path.suffix == ".jsonl":
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in read(path)]
        elif path.suffix == ".safetensors":
            found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        elif path.name == "trainer_state.json":
            found[name] = json.loads(path.read_text())
            for entry in found[name]["log_history"]:
                entry.pop("inner/tokens_per_second", None)
        elif path.name == "run.json":
            found[name] = json.loads(path.read_text())
        elif path.is_file():
            found[name] = "there"
    return found


class Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


class Recorder(TrainerCallback):
    """Notes every event with the step count, and what a forward pass is like whenever nothing else is under way."""

    def __init__(self):
        self.events, self.passes, self.metrics = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self._note("train_begin", state, kwargs["model"])

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._note("epoch_begin", state)

    def on_substep_end(self, args, state, control, **kwargs):
        self._note("substep_end", state)

    def on_step_end(self, args, state, control, **kwargs):
        self._note("step_end", state)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(metrics)
        self._note("evaluate", state, kwargs["model"])

    def on_save(self, args, state, control, **kwargs):
        self._note("save", state, kwargs["model"])

    def on_epoch_end(self, args, state, control, **kwargs):
        self._note("epoch_end", state)

    def on_train_end(self, args, state, control, **kwargs):
        self._note("train_end", state)

    def _note(self, event, state, model=None):
        self.events.append((event, state.global_step))
        if model is None:
            return
        with torch.no_grad():
            with Operations() as with_policy:
                model(PROMPT)
            with model.disable_adapter(), Operations() as without:
                logits = model(PROMPT).logits
        self.passes.append((logits, with_policy.number, without.number))

    def count(self, event):
        return sum(name == event for name, _ in self.events)


class Act(TrainerCallback):
    """Calls `action(control)` at the `number`-th of one kind of event, once."""

    def __init__(self, event, number, action):
        self.left = number

        def on_event(args, state, control, **kwargs):
            self.left -= 1
            if self.left == 0:
                action(control)

        setattr(self, event, on_event)


def stop(control):
    control.should_training_stop = True


def interrupt(control):
    raise KeyboardInterrupt


class GradingDomain(KnowledgeDomain):
    """Verdicts by example: `verdict(title, place of the question, answer)`."""

    def __init__(self, verdict):
        super().__init__("{title}: {context}", chat=False)
        self._verdict = verdict

    def grade(self, examples, answers):
        return [
            [self._verdict(example["title"], place, answer) for place, answer in enumerate(own)]
            for example, own in zip(examples, answers, strict=True)
        ]


def hashed(answer):
    return HashGrader().grade(None, None, [answer])[0]


def observed(trainer):
    """Train, and note the policy before and after each fit and the token ids that the SFT gets, each row once."""
    fits, rows = [], []

    class ObservedSFTTrainer(SFTTrainer):
        def __init__(self, *args, train_dataset, **kwargs):
            with_labels = [row["input_ids"] for row in train_dataset if set(row["labels"]) != {-100}]
            rows.append(sorted({tuple(ids) for ids in with_labels}))
            super().__init__(*args, train_dataset=train_dataset, **kwargs)

    def fit_policy(model, *args, **kwargs):
        before = policy_of(model)
        result = outer_sft.fit_policy(model, *args, **kwargs)
        fits.append((before, policy_of(model)))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer_sft, "SFTTrainer", ObservedSFTTrainer)
        patch.setattr(seal_trainer, "fit_policy", fit_policy)
        output = trainer.train()
    return fits, rows, output


def warnings_of(caplog, module="outer_loop.selection"):
    return [record.getMessage() for record in caplog.records if record.name == f"seal_hf.{module}"]


class AlwaysWrong:
    def grade(self, questions, golds, answers):
        return [False] * len(answers)
