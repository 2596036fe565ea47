"""The outer SFT of one round: the policy learns to write the self-edits that were kept."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTTrainer

from ..domains.base import Domain
from ..models.access import unwrap
from ..models.attention_kernels import without_cudnn
from ..models.encoding import encode_prompt
from ..models.memory import release_memory, return_freed
from ..records.schema import SelectedSelfEdit
from .seal_config import SEALConfig


logger = logging.getLogger(__name__)

IGNORED_LABEL = -100


class PolicyNotFinite(ValueError):
    """An outer SFT came to values that are not finite."""


def fit_policy(
    model: PeftModel,
    processing_class: PreTrainedTokenizerBase,
    selected: Sequence[SelectedSelfEdit],
    args: SEALConfig,
    *,
    seed: int,
    output_dir: Path,
    on_step: Callable[[], bool],
    on_log: Callable[[dict[str, float]], None],
) -> bool:
    """
    Train the policy adapter with TRL's [`SFTTrainer`], from where it is, with a fresh optimizer and schedule.

    It trains on the tokens that were sampled after the prompt's own: a self-edit that the policy ended has its end token,
    one that was cut off has none. Only the adapter's values change, in the precision that they have, and all else that
    the trainer does to the model and the tokenizer is undone. The examples of every optimizer step depend on the seed
    alone and not on the number of processes.

    Args:
        model (`PeftModel`):
            The model with the policy adapter.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        selected (`Sequence[SelectedSelfEdit]`):
            What to learn; at least one.
        args ([`SEALConfig`]):
            The SFT's settings.
        seed (`int`):
            Seed of the order and of dropout.
        output_dir (`Path`):
            A folder for the trainer's own files. Nothing is written to it unless a callback of the environment does.
        on_step (`Callable[[], bool]`):
            Called after every optimizer step; returning `True` ends the fit.
        on_log (`Callable[[dict[str, float]], None]`):
            Called with the metrics of the steps.

    Returns:
        `bool`: whether the fit came to its end. Where it did not, the adapter is to be given the values it had before, as
            [`~seal_hf.outer_loop.policy.undone_on_error`] does.

    Raises:
        ValueError: No self-edit fits into `max_length`.
        PolicyNotFinite: The fit came to values that are not finite.
    """
    rows = training_rows(selected, processing_class, args)
    forward = ForwardingCallback(on_step, on_log)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = model.get_input_embeddings().weight.device
    return_freed(device)
    with _left_as_found(model, processing_class):
        train_policy(model, processing_class, rows, args, seed=seed, output_dir=output_dir, callback=forward)
    release_memory(device)
    if not forward.stopped:
        require_finite(parameters, args)
    return not forward.stopped


def training_rows(
    selected: Sequence[SelectedSelfEdit], processing_class: PreTrainedTokenizerBase, args: SEALConfig
) -> list[dict[str, list[int]]]:
    """
    What an SFT trains on: for each self-edit `input_ids` and `labels`, cut to `max_length` tokens; those that have no label
    left are left out.

    Raises:
        ValueError: No self-edit fits into `max_length`.
    """
    rows = [_training_row(edit, processing_class, args) for edit in selected]
    return _within_length(rows, args.max_length, args.truncation_mode)


def train_policy(
    model: PeftModel,
    processing_class: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    args: SEALConfig,
    *,
    seed: int,
    output_dir: Path,
    callback: TrainerCallback,
) -> None:
    """
    Train the policy adapter on rows of [`training_rows`], in whatever way the processes were launched to share the work; what
    the trainer does to the model besides is not undone. The other arguments are those of [`fit_policy`].
    """
    sft_args = _sft_arguments(args, seed, output_dir)
    per_step = sft_args.per_device_train_batch_size * sft_args.gradient_accumulation_steps * sft_args.world_size
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    with _without_progress_bars(), without_cudnn():
        trainer = SFTTrainer(
            model=model,
            args=sft_args,
            train_dataset=_arranged(rows, args, seed, per_step),
            processing_class=processing_class,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        for parameter, values in before:
            if parameter.dtype != values.dtype:
                # TRL casts the adapter of a quantized model to bf16, in which small updates are lost.
                parameter.data = values
        before.clear()
        trainer.train()
        trainer.accelerator.free_memory()


def require_finite(parameters: Iterable[torch.Tensor], args: SEALConfig) -> None:
    """
    Raises:
        PolicyNotFinite: Some of the policy's values are not finite.
    """
    if not torch.stack([values.isfinite().all() for values in parameters]).all():
        raise PolicyNotFinite(
            f"The outer SFT came to a policy with values that are not finite, at learning_rate={args.learning_rate:g}, "
            f"max_grad_norm={args.max_grad_norm:g}{' and in fp16' if args.fp16 else ''}. It was given its values from before; "
            "resume the run with a lower learning_rate or other settings of the SFT, all that was scored is kept."
        )


def require_end_token(processing_class: PreTrainedTokenizerBase, prompt: str | list[dict]) -> None:
    """
    Raises:
        ValueError: The tokenizer has no end-of-sequence token, without which no completion of a plain prompt ends.
    """
    if isinstance(prompt, str) and processing_class.eos_token is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token, which self-edits to plain prompts end in; set "
            "`tokenizer.eos_token`."
        )


def parts_per_example(domain: Domain, examples: Sequence[Mapping]) -> float:
    """Mean number of parts that are written about apart (see [`Domain.parts`])."""
    return sum(len(domain.parts(example)) for example in examples) / len(examples)


def optimizer_steps(examples_per_round: int, args: SEALConfig, parts: float = 1) -> list[int]:
    """Optimizer steps of each round's fit, if every example has its share of kept self-edits, of so many parts."""
    kept_of_each = min(args.keep_best or args.num_generations, args.num_generations)
    kept = round(examples_per_round * kept_of_each * parts)
    seen = [kept * (place + 1 if args.sft_on == "all" else 1) for place in range(args.num_rounds)]
    return [math.ceil(number / args.sft_batch_size) * int(args.num_train_epochs) for number in seen]


class ForwardingCallback(TrainerCallback):
    """Passes on the SFT's steps and metrics."""

    def __init__(self, on_step: Callable[[], bool], on_log: Callable[[dict[str, float]], None]):
        self._on_step, self._on_log, self.stopped = on_step, on_log, False

    def on_step_end(self, args, state, control, **kwargs):
        if self._on_step():
            self.stopped = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        # Not the summary at the end; entropy and accuracy would count rows without labels.
        if "loss" in logs:
            self._on_log({name: logs[name] for name in ("loss", "grad_norm", "learning_rate")})


def _training_row(
    edit: SelectedSelfEdit, processing_class: PreTrainedTokenizerBase, args: SEALConfig
) -> dict[str, list[int]]:
    """The prompt's tokens, as when the self-edit was sampled, and those that were sampled."""
    prompt = encode_prompt(processing_class, edit.prompt)
    unlearned = prompt if args.completion_only_loss is False else [IGNORED_LABEL] * len(prompt)
    return {"input_ids": prompt + edit.completion_ids, "labels": unlearned + edit.completion_ids}


def _sft_arguments(args: SEALConfig, seed: int, output_dir: Path) -> SEALConfig:
    """The run's arguments for one fit: it neither saves, evaluates nor reports by itself."""
    args = copy.copy(args)
    accumulation = math.ceil(args.sft_batch_size / (args.world_size * args.per_device_train_batch_size))
    changes = {
        "output_dir": str(output_dir),
        "seed": seed % 2**32,
        # The order of the examples holds all epochs (see `_arranged`).
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": math.ceil(args.sft_batch_size / (args.world_size * accumulation)),
        # The rows are tokenized, cut and arranged.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "model_init_kwargs": None,
        "eval_on_start": False,
        "auto_find_batch_size": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": [],
        "push_to_hub": False,
        "disable_tqdm": True,
    }
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def _arranged(rows: Sequence[dict[str, list[int]]], args: SEALConfig, seed: int, slots_per_step: int) -> Dataset:
    """
    The rows in the order of training, `slots_per_step` for each optimizer step.

    A step takes `sft_batch_size` rows of a fresh permutation (the last of an epoch fewer). The remaining slots are
    filled with rows without labels, whose loss is zero: so every process has its share in every step, and nothing is
    seen twice.
    """
    filler = {"input_ids": rows[0]["input_ids"][:2], "labels": [IGNORED_LABEL] * 2}
    slots = []
    for epoch in range(int(args.num_train_epochs)):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows)).tolist()
        for first in range(0, len(rows), args.sft_batch_size):
            step = [rows[i] for i in order[first : first + args.sft_batch_size]]
            slots += step + [filler] * (slots_per_step - len(step))
    return Dataset.from_dict({name: [row[name] for row in slots] for name in ("input_ids", "labels")})


def _within_length(
    rows: Sequence[dict[str, list[int]]], max_length: int | None, truncation_mode: str
) -> Sequence[dict[str, list[int]]]:
    """
    The rows cut to `max_length` tokens as TRL does, without those that have no label left; a warning counts both.
    """
    if max_length is None:
        return rows
    part = slice(-max_length, None) if truncation_mode == "keep_end" else slice(None, max_length)
    num_cut = sum(len(row["input_ids"]) > max_length for row in rows)
    cut = [{name: row[name][part] for name in ("input_ids", "labels")} for row in rows]
    kept = [row for row in cut if any(label != IGNORED_LABEL for label in row["labels"])]
    if not kept:
        raise ValueError(
            f"None of the {len(rows)} kept self-edits fits into max_length={max_length} tokens with its prompt; raise "
            "max_length."
        )
    if num_cut:
        logger.warning(
            "max_length=%d cuts %d of %d kept self-edits and leaves out %d; raise it to learn them in full.",
            max_length,
            num_cut - (len(rows) - len(kept)),
            len(rows),
            len(rows) - len(kept),
        )
    return kept


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """No bars of `datasets` for the few rows of a fit."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def _left_as_found(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """
    Undo what a trainer does to a model and a tokenizer, except for the parameters' values.

    TRL 1.16 and transformers 5.19 leave training mode, gradient checkpointing, hooks on the embeddings, `use_cache=False`
    and two wrapped forwards, and add another layer of each with every fit. Every module's attributes, dictionaries
    in place, are put back as they were, whatever it was that changed them.
    """
    modules = [(module, _snapshot(vars(module))) for module in model.modules()]
    base = unwrap(model)
    configs = [base.config, base.config.get_text_config(), base.generation_config]
    configs = [(config, _snapshot(vars(config))) for config in configs]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    pad_token = tokenizer.pad_token
    try:
        yield
    finally:
        for owner, snapshot in (*modules, *configs):
            _restore(vars(owner), snapshot)
        for parameter, requires_grad in flags:
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
        tokenizer.pad_token = pad_token


def _snapshot(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a copy of its contents where it is a dictionary."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in attributes.items()}


def _restore(attributes: dict[str, Any], snapshot: dict[str, tuple[Any, Any]]) -> None:
    for name in set(attributes) - set(snapshot):
        del attributes[name]
    for name, (value, contents) in snapshot.items():
        attributes[name] = value
        if contents is not None:
            value.clear()
            value.update(contents)
