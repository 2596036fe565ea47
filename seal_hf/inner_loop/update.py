"""
What one adapter of the inner loop has to do: its hyperparameters, its tokenized sequences and their order.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..models.chat_template import end_of_turn
from ..models.control_tokens import encode_text
from ..models.encoding import encode_prompt
from ..self_edit import SelfEdit


logger = logging.getLogger(__name__)

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class InnerLoopConfig:
    """
    How a self-edit is turned into an adapter. The defaults are the paper's (knowledge incorporation, appendix B).

    Parameters:
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            AdamW's initial learning rate (no weight decay).
        num_train_epochs (`int`, *optional*, defaults to `10`):
            Passes over the self-edit's sequences.
        batch_size (`int`, *optional*, defaults to `1`):
            Sequences per optimizer step.
        lr_scheduler_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"` (to zero), `"cosine"` (to zero) or `"constant"`.
        warmup_steps (`int` or `float`, *optional*, defaults to `0`):
            Number of steps in which the learning rate rises linearly from zero; below 1 the share of all steps, as in
            `transformers.TrainingArguments`.
        max_grad_norm (`float`, *optional*, defaults to `1.0`):
            Greatest gradient norm of one adapter; 0 turns clipping off.
        max_length (`int`, *optional*, defaults to `2048`):
            Longest training sequence, in tokens. Longer ones are cut, with a warning.
        add_eos_token (`bool`, *optional*, defaults to `True`):
            Whether a text without a prompt ends in the end-of-sequence token too, so that the adapted model learns to
            stop. A completion of a prompt always does.

    Raises:
        ValueError: A value out of its range.
    """

    learning_rate: float = 1e-3
    num_train_epochs: int = 10
    batch_size: int = 1
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    add_eos_token: bool = True

    def __post_init__(self):
        for name, least in (("num_train_epochs", 1), ("batch_size", 1), ("max_length", 2)):
            if not is_whole(value := getattr(self, name), least):
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
        # AdamW moves a weight by up to 3.2 learning rates a step; no number of steps gets from 1e30 out of fp32's range.
        if not (_is_number(self.learning_rate) and 0 < self.learning_rate <= 1e30):
            raise ValueError(f"learning_rate={self.learning_rate!r} must be a number above 0 and at most 1e30.")
        if not (
            _is_number(self.warmup_steps)
            and (0 <= self.warmup_steps < 1 or 0 < self.warmup_steps == int(self.warmup_steps))
        ):
            raise ValueError(
                f"warmup_steps={self.warmup_steps!r} must be a whole number, or a share from 0 to below 1."
            )
        if not (_is_number(self.max_grad_norm) and self.max_grad_norm >= 0):
            raise ValueError(f"max_grad_norm={self.max_grad_norm!r} must be 0 (no clipping) or more.")
        if not isinstance(self.add_eos_token, bool):
            raise ValueError(f"add_eos_token={self.add_eos_token!r} must be True or False.")
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type={self.lr_scheduler_type!r} must be one of {', '.join(SCHEDULES)}.")

    def override(self, overrides: Mapping[str, object]) -> "InnerLoopConfig":
        """
        The configuration with the values that a self-edit chose itself.

        Raises:
            ValueError: An unknown name, or a value out of its range.
        """
        known = [option.name for option in fields(self)]
        if unknown := sorted(set(overrides) - set(known)):
            raise ValueError(f"A self-edit sets {unknown[0]!r}, which is not one of {', '.join(known)}.")
        return replace(self, **overrides)


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    # By comparison, since a self-edit may name an integer that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


@dataclass(frozen=True)
class TrainingSequence:
    """
    One tokenized training example.

    Parameters:
        input_ids (`tuple[int, ...]`):
            Token ids of the whole sequence.
        prompt_length (`int`):
            Number of leading tokens without loss.
    """

    input_ids: tuple[int, ...]
    prompt_length: int = 0

    @property
    def first_label(self) -> int:
        """Position of the first token with a loss; the very first token has nothing to be predicted from."""
        return max(self.prompt_length, 1)


@dataclass(frozen=True)
class InnerUpdate:
    """The work of one adapter: what it trains on, and how."""

    sequences: tuple[TrainingSequence, ...]
    config: InnerLoopConfig = InnerLoopConfig()

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.sequences) / self.config.batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.num_train_epochs

    @property
    def longest_step(self) -> int:
        """Most tokens of one step."""
        lengths = sorted((len(sequence.input_ids) for sequence in self.sequences), reverse=True)
        return sum(lengths[: self.config.batch_size])


def tokenize_self_edit(
    self_edit: SelfEdit, tokenizer: PreTrainedTokenizerBase, config: InnerLoopConfig
) -> InnerUpdate:
    """
    Tokenize a self-edit's examples and apply its overrides, which cannot raise `max_length`.

    An example with an empty prompt is trained on every token, and so is one that says so. An end follows every completion, so
    that the model learns where to stop: the end-of-sequence token, or in a chat the token with which the template ends a turn.
    A text without a prompt has it only where `add_eos_token` is set, and none that is cut. Prompt and completion are tokenized
    apart, as when the model is asked, and begin with one beginning-of-sequence token at most.

    Raises:
        ValueError: An invalid override, no example of at least two tokens, calls of a tool that are not carried out, or a
            chat prompt for a tokenizer without a chat template.
    """
    if self_edit.calls:
        raise ValueError(
            f"A self-edit calls a tool ({self_edit.calls[0]!r}); let SelfAdaptingLM.carry_out() do what it asks first."
        )
    longest = config.max_length
    config = config.override(self_edit.overrides)
    # A self-edit may shorten its sequences, but not beyond what fits the model.
    config = replace(config, max_length=min(config.max_length, longest))
    sequences, num_cut, turn_end = [], 0, end_of_turn(tokenizer)
    for example in self_edit.examples:
        if example.prompt:
            prompt_ids = encode_prompt(tokenizer, example.prompt)
            ids = prompt_ids + encode_text(tokenizer, example.completion, add_special_tokens=False)
        else:
            prompt_ids, ids = [], encode_text(tokenizer, example.completion)
        # A text of one token teaches nothing, with or without an end.
        ends = bool(example.prompt) or (config.add_eos_token and len(ids) > 1)
        end = tokenizer.eos_token_id if isinstance(example.prompt, str) else turn_end
        if ends and end is not None:
            ids = [*ids, end]
        num_cut += len(ids) > config.max_length
        prompt_length = 0 if example.trains_on_prompt else len(prompt_ids)
        sequence = TrainingSequence(tuple(ids[: config.max_length]), prompt_length)
        if sequence.first_label < len(sequence.input_ids):
            sequences.append(sequence)
    if num_cut:
        logger.warning("%d training sequences were cut to max_length=%d tokens.", num_cut, config.max_length)
    if not sequences:
        raise ValueError("A self-edit has no sequence of at least two tokens to train on; give it some text.")
    return InnerUpdate(tuple(sequences), config)


def training_order(update: InnerUpdate, order_seed: int) -> list[list[int]]:
    """
    The sequences of every step: `num_steps` lists of at most `batch_size` indices.

    Within each epoch this is a uniformly random permutation, drawn from `order_seed` and the lengths alone.
    """
    num_sequences, batch_size = len(update.sequences), update.config.batch_size
    by_length = sorted(range(num_sequences), key=lambda i: (len(update.sequences[i].input_ids), i))
    # One stream per place in the batch keeps the numbers of a step the same for every batch size: (batch_size, steps)
    streams = np.stack([np.random.default_rng([order_seed, i]).random(update.num_steps) for i in range(batch_size)])
    steps = []
    for epoch in range(update.config.num_train_epochs):
        first = epoch * update.steps_per_epoch
        numbers = streams[:, first : first + update.steps_per_epoch].T.reshape(-1)[:num_sequences]
        order = [by_length[rank] for rank in np.argsort(np.argsort(numbers))]
        steps += [order[i : i + batch_size] for i in range(0, num_sequences, batch_size)]
    return steps


def learning_rate(step: int, num_steps: int, config: InnerLoopConfig) -> float:
    """
    The learning rate of optimizer step `step` (from 0), by the formulas of `transformers.get_scheduler`.

    >>> [round(learning_rate(step, 4, InnerLoopConfig(learning_rate=1.0)), 2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup_steps = config.warmup_steps if config.warmup_steps >= 1 else math.ceil(num_steps * config.warmup_steps)
    if step < warmup_steps:
        return config.learning_rate * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1.0 - progress)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate
