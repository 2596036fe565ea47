"""
The inner loop of SEAL: every self-edit finetunes a LoRA adapter of its own, all of them together.

One step of a bank is one forward and one backward pass over the tokens of all adapters, so the
frozen model is read once for all of them (see [`seal_hf.inner_loop.forward`]). Three things keep it exact and lean:

- Adapters share the order of length ranks. One stream of uniform numbers per order seed is read by every adapter: in each
  of its epochs it takes its sequences by the ranks of that epoch's numbers, a uniformly random permutation that depends
  on nothing but the seed and the adapter's own sequences. Adapters that read the same number take sequences of about the
  same length quantile, so long meets long and little is padding.
- What the sequences of an adapter's step begin with is computed once (see [`seal_hf.inner_loop.blocks`]).
- Each adapter has its own AdamW state, learning rate, schedule and gradient norm, and leaves the batch when it is done.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..adapters.bank import AdapterBank
from ..adapters.layout import LoraLayout
from ..models.access import activation_dtype, evaluating, is_packed_for_inference
from .forward import TrainingForward
from .lora import LoraParameters
from .norm import frozen_norms
from .optimizer import BankOptimizer, StepSize
from .rotary import written_out_rotary
from .update import InnerUpdate, learning_rate, training_order


logger = logging.getLogger(__name__)


# Why the training of an adapter ended early.
NON_FINITE, STOP = "non-finite", "stop"


@dataclass(frozen=True)
class InnerStep:
    """
    Progress of a bank after one optimizer step.

    Parameters:
        step (`int`):
            Steps done, from 1.
        num_steps (`int`):
            Steps of the adapter that has the most.
        losses (`dict[int, float]`):
            The loss of each adapter that took part, in nats per token, before the step.
        num_tokens (`int`):
            Real tokens trained on so far, all adapters together, padding not counted. Those of a prefix that is computed
            once count for each sequence that begins with it.
        seconds (`float`):
            Time since the start.
        layout ([`LoraLayout`]):
            Where the matrices of each adapter lie in its weights.
        weights (`dict[int, torch.Tensor]`, each of shape `(num_parameters,)`, fp32):
            The weights after the step of each adapter that took part, as views that the next step changes.
    """

    step: int
    num_steps: int
    losses: dict[int, float]
    num_tokens: int
    seconds: float
    layout: LoraLayout
    weights: dict[int, torch.Tensor]


@dataclass
class InnerResult:
    """
    How the training of one adapter went.

    Parameters:
        losses (`list[float]`):
            Loss at every step, in nats per token.
        num_tokens (`int`):
            Real tokens trained on, counted as in [`InnerStep`].
        stopped (`str`, *optional*):
            Why it ended early: [`NON_FINITE`] (its last finite weights are kept) or [`STOP`]; `None` when it was trained to the
            end.
    """

    losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    stopped: str | None = None


def train(
    bank: AdapterBank,
    updates: Sequence[InnerUpdate],
    *,
    order_seed: int | Sequence[int] = 0,
    on_step: Callable[[InnerStep], None] | None = None,
    stop: threading.Event | None = None,
    gradient_checkpointing: bool = False,
    num_frozen_ranks: int = 0,
) -> list[InnerResult]:
    """
    Train all adapters of a bank, each on its own update. The bank's weights are changed in place.

    Args:
        bank (`AdapterBank`):
            The adapters, with their initial weights.
        updates (`Sequence[InnerUpdate]`):
            One per adapter.
        order_seed (`int` or `Sequence[int]`, *optional*, defaults to `0`):
            Seed of the order of sequences (see [`training_order`]): of all adapters, or of each. Adapters of different seeds
            meet in less equal lengths, which costs some padding.
        on_step (`Callable[[InnerStep], None]`, *optional*):
            Called after every optimizer step.
        stop (`threading.Event`, *optional*):
            Checked before every step; once set, training ends and the adapters keep the weights they have.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Let the model's layers compute their activations again in the backward pass: the same adapters from less memory,
            in about a third more time.
        num_frozen_ranks (`int`, *optional*, defaults to `0`):
            How many of the first ranks of every adapter take part and stay as they are.

    Returns:
        `list[InnerResult]`: one per adapter. An adapter whose loss or gradient is not finite is stopped with its last
        finite weights and named in a warning; the others are trained as if it had not been there.

    Raises:
        ValueError: The number of updates differs from the number of adapters, an update has no sequences, the model's
            4-bit weights are packed for inference (see [`keep_trainable`]), or it has no layers to checkpoint.
    """
    if len(updates) != len(bank):
        raise ValueError(f"{len(updates)} updates were given for a bank of {len(bank)} adapters; give one for each.")
    for adapter, update in enumerate(updates):
        if not update.sequences:
            raise ValueError(f"The update of adapter {adapter} has no sequences to train on; give it at least one.")
    if is_packed_for_inference(bank.model):
        raise ValueError(
            "bitsandbytes packed this model's 4-bit weights for CPU inference, and that form has no backward pass; load "
            "the model again and call keep_trainable(model) before the first forward pass."
        )
    seeds = [order_seed] * len(updates) if isinstance(order_seed, int) else order_seed
    orders = [training_order(update, seed) for update, seed in zip(updates, seeds, strict=True)]
    results = [InnerResult() for _ in updates]
    num_steps = max(update.num_steps for update in updates)
    start = time.perf_counter()
    with _frozen(bank.model), frozen_norms(bank.model), written_out_rotary(bank.model):
        parameters = LoraParameters(bank.layout, activation_dtype(bank.model), bank.weights.device, len(bank))
        trained = _later_ranks(bank.layout, num_frozen_ranks).to(bank.weights.device) if num_frozen_ranks else None
        optimizer = BankOptimizer(bank.weights, parameters.grads, trained)
        forward = TrainingForward(bank.model, bank.layout, gradient_checkpointing)
        for step in range(num_steps):
            batches = {
                adapter: [update.sequences[i] for i in orders[adapter][step]]
                for adapter, update in enumerate(updates)
                if step < update.num_steps and results[adapter].stopped is None
            }
            if stop is not None and stop.is_set():
                for adapter in batches:
                    results[adapter].stopped = STOP
                break
            if not batches:
                break
            passes = forward.plan.cut(batches)
            order = [adapter for blocks in passes for adapters in blocks for adapter in adapters]
            parameters.weights.write([bank.weights[adapter] for adapter in order])
            found: list[torch.Tensor] = []
            for blocks in passes:
                own = [[batches[adapter] for adapter in adapters] for adapters in blocks]
                found.append(forward.backward(parameters, own, first=sum(map(len, found))))
            sizes = [_step_size(updates[adapter], step) for adapter in order]
            values, finite = optimizer.step(order, sizes, torch.cat(found))
            losses = dict(zip(order, values, strict=True))
            for adapter, took_part in zip(order, finite, strict=True):
                update, result = updates[adapter], results[adapter]
                if took_part:
                    result.losses.append(losses[adapter])
                    result.num_tokens += sum(len(sequence.input_ids) for sequence in batches[adapter])
                else:
                    result.stopped = NON_FINITE
                    logger.warning(
                        "Adapter %d was stopped at step %d of %d: its loss or gradient is not finite (learning rate %g). "
                        "Its last finite weights are kept.",
                        adapter,
                        step + 1,
                        update.num_steps,
                        update.config.learning_rate,
                    )
            if on_step is not None:
                num_tokens = sum(result.num_tokens for result in results)
                seconds = time.perf_counter() - start
                weights = {adapter: bank.weights[adapter] for adapter in order}
                on_step(InnerStep(step + 1, num_steps, losses, num_tokens, seconds, bank.layout, weights))
    return results


def _later_ranks(layout: LoraLayout, first: int) -> torch.Tensor:
    """1 for the weights of ranks from the first one on, else 0: `(num_parameters,)`, fp32."""
    mask = torch.ones(layout.num_parameters)
    for lora_a, lora_b in layout.views(mask).values():
        lora_a[:first] = 0
        lora_b[:, :first] = 0
    return mask


def _step_size(update: InnerUpdate, step: int) -> StepSize:
    return StepSize(learning_rate(step, update.num_steps, update.config), update.config.max_grad_norm)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the model's own parameters inside the block; both restored after it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
