"""Trains a bank whatever the memory holds: in halves where it does not fit, which come to the same adapters up to rounding."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from peft import LoraConfig
from torch import nn

from ..adapters.adapter import Adapter
from ..adapters.bank import AdapterBank
from ..adapters.layout import LoraLayout
from ..models.access import checkpointable_layers
from ..models.memory import activation_bytes_per_token, free_memory, release_memory
from .training import InnerResult, InnerStep, train
from .update import InnerUpdate


logger = logging.getLogger(__name__)

# What the activations of one adapter may take of the free memory; the rest is for its weights and the error of the estimate.
_MEMORY_SHARE = 0.8


class TrainedAdapter(NamedTuple):
    """
    An adapter after its training.

    Parameters:
        layout ([`LoraLayout`]):
            Where its matrices lie in the weights.
        weights (`torch.Tensor` of shape `(num_parameters,)`, fp32):
            Its weights: a view of its bank's; on the CPU where another bank had to be trained after it.
        result ([`InnerResult`]):
            How the training went.
    """

    layout: LoraLayout
    weights: torch.Tensor
    result: InnerResult


def train_within_memory(
    model: nn.Module,
    peft_config: LoraConfig,
    updates: Sequence[InnerUpdate],
    *,
    seed: int | Sequence[int] = 0,
    on_step: Callable[[InnerStep], None] | None = None,
    stop: threading.Event | None = None,
    gradient_checkpointing: bool = False,
    parents: Sequence[Adapter] | None = None,
) -> list[TrainedAdapter]:
    """
    Train one adapter per update from fresh weights, all in one bank, or in halves of it (and halves of those) one after the
    other where the device runs out of memory; a warning says so. Where a step of one adapter alone would take more than is
    free, it is known before the first one, and the layers' activations are computed again in the backward pass.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        peft_config (`LoraConfig`):
            Shape of the adapters.
        updates (`Sequence[InnerUpdate]`):
            What they train on; at least one.
        seed (`int` or `Sequence[int]`, *optional*, defaults to `0`):
            Seed of the initial weights and of the order: of all, or of each.
        on_step (`Callable[[InnerStep], None]`, *optional*):
            Called after every optimizer step. Adapters, steps, tokens and time are counted over all parts; the steps of a
            bank that did not fit are lost, and counted again.
        stop:
            As for [`train`].
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            As for [`train`]; where it is not set, it follows from the memory.
        parents (`Sequence[Adapter]`, *optional*):
            For each update an adapter that it is trained on top of, all of one layout. Its ranks stay as they are and are the first
            of what comes back.

    Returns:
        `list[TrainedAdapter]`: one per update.

    Raises:
        torch.OutOfMemoryError: An adapter does not fit alone; the error says what to do.
        ValueError: As for [`train`].
    """
    num_tokens = max(update.longest_step for update in updates)
    if not gradient_checkpointing and _outgrows_memory(model, updates, num_tokens):
        logger.warning(
            "A step of one adapter has %d tokens, whose activations do not fit into the free memory: they are computed again in "
            "the backward pass, which takes about a third more time.",
            num_tokens,
        )
        gradient_checkpointing = True
    trained: list[TrainedAdapter] = []
    done = _Done()
    seeds = [seed] * len(updates) if isinstance(seed, int) else seed
    waiting = [
        list(zip(updates, seeds, parents or [None] * len(updates), strict=True))
    ]  # the next part is the last one
    while waiting:
        part = waiting.pop()
        report = on_step and partial(_report, on_step, done, sum(map(_num_steps, waiting)))
        start = time.perf_counter()
        own, cause = _train(model, peft_config, part, report, stop, gradient_checkpointing)
        done.seconds += time.perf_counter() - start
        if cause is None:
            if waiting:  # the next part needs the memory
                own = [one._replace(weights=one.weights.to("cpu", copy=True)) for one in own]
            trained += own
            done.adapters += len(part)
            done.steps += _num_steps(part)
            done.tokens += sum(one.result.num_tokens for one in own)
            continue
        release_memory(model.get_input_embeddings().weight.device)
        if len(part) == 1:
            raise torch.OutOfMemoryError(_remedy(model, peft_config, part[0][0], gradient_checkpointing, cause))
        logger.warning("A bank of %d adapters is too large for the memory; it is trained in halves.", len(part))
        half = len(part) // 2
        waiting += [part[half:], part[:half]]
    return trained


@dataclass
class _Done:
    """The parts that are trained; their time and that of the tries that failed."""

    adapters: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def _report(on_step: Callable[[InnerStep], None], done: _Done, num_steps_left: int, step: InnerStep) -> None:
    """Pass on a step of one part as one of all parts."""
    on_step(
        replace(
            step,
            step=done.steps + step.step,
            num_steps=done.steps + step.num_steps + num_steps_left,
            losses={done.adapters + adapter: loss for adapter, loss in step.losses.items()},
            num_tokens=done.tokens + step.num_tokens,
            seconds=done.seconds + step.seconds,
            weights={done.adapters + adapter: weights for adapter, weights in step.weights.items()},
        )
    )


def _outgrows_memory(model: nn.Module, updates: Sequence[InnerUpdate], num_tokens: int) -> bool:
    """Whether the activations of so many tokens are more than is free, and the model's layers can do without them."""
    longest = max(len(sequence.input_ids) for update in updates for sequence in update.sequences)
    num_bytes = num_tokens * activation_bytes_per_token(model, length=longest)
    budget = free_memory(model.get_input_embeddings().weight.device) * _MEMORY_SHARE
    return num_bytes > budget and bool(checkpointable_layers(model))


def _num_steps(part: Sequence[tuple[InnerUpdate, int, Adapter | None]]) -> int:
    return max(update.num_steps for update, *_ in part)


def _train(
    model: nn.Module,
    peft_config: LoraConfig,
    part: Sequence[tuple[InnerUpdate, int, Adapter | None]],
    on_step: Callable[[InnerStep], None] | None,
    stop: threading.Event | None,
    gradient_checkpointing: bool,
) -> tuple[list[TrainedAdapter], str | None]:
    """The adapters of one bank, or none and the error's first line where the memory does not hold them."""
    updates, seeds, parents = zip(*part, strict=True)
    has_parents = parents[0] is not None
    try:
        bank = AdapterBank.initialize(model, peft_config, seeds, parents if has_parents else None)
        results = train(
            bank,
            updates,
            order_seed=seeds,
            on_step=on_step,
            stop=stop,
            gradient_checkpointing=gradient_checkpointing,
            num_frozen_ranks=parents[0].layout.r if has_parents else 0,
        )
    except torch.OutOfMemoryError as error:
        # No more than its text: the frames of the error hold the tensors that have to go.
        return [], (str(error).splitlines() or [""])[0]
    return [
        TrainedAdapter(bank.layout, weights, result) for weights, result in zip(bank.weights, results, strict=True)
    ], None


def _remedy(
    model: nn.Module, peft_config: LoraConfig, update: InnerUpdate, gradient_checkpointing: bool, cause: str
) -> str:
    num_tokens = update.longest_step
    checkpointing = "" if gradient_checkpointing else "set inner_gradient_checkpointing=True, "
    return (
        f"One adapter of rank {peft_config.r}, with {num_tokens} tokens in a step, does not fit into the free memory of "
        f"{model.get_input_embeddings().weight.device}: {checkpointing}shorten its sequences (InnerLoopConfig(max_length="
        f"...)), lower batch_size={update.config.batch_size} or the rank, or load the model with load_in_4bit=True. The "
        f"cause was: {cause}"
    )
