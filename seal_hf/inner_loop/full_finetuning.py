"""
Full finetuning: a plain loop that trains all weights on what an inner update holds.

Sequences, their order, the loss, the learning rate's schedule, clipping and AdamW are those of the adapters' loop (see
[`seal_hf.inner_loop.training`]), and so is the precision: the model computes in its own dtype, while weights and moments are kept
in fp32 by the optimizer, of which bf16 weights are copies. In fp32 there is one copy of the weights.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..models.access import activation_dtype, evaluating, head_input_changed
from ..models.attention_kernels import without_cudnn
from ..models.fit import DoesNotFit
from ..models.memory import activation_bytes_per_token, free_memory
from ..models.transfers import to_device
from .checkpointing import checkpointable_layers, checkpointed_layers
from .optimizer import StepSize, adamw_step
from .passes import pass_tokens
from .training import NON_FINITE, InnerResult
from .update import InnerUpdate, TrainingSequence, learning_rate, training_order


logger = logging.getLogger(__name__)

# Logits of one pass, and the bytes of each besides itself: in fp32 and its gradient.
_LOGITS, _CUDA_LOGITS, _BYTES_PER_LOGIT = 2**25, 2**27, 8
# What is usual for adapters is far too much for all weights.
_HIGH_LEARNING_RATE = 1e-4


def check_finetunable(model: nn.Module) -> None:
    """
    Raises:
        ValueError: The model carries a policy, or its weights are quantized.
    """
    kind = None
    if isinstance(model, PeftModel):
        kind = "carries a policy adapter; load the base alone, and give policies as further conditions"
    elif getattr(model.config, "quantization_config", None) is not None:
        kind = "has quantized weights, which cannot be trained; load it with load_in_4bit=False"
    if kind is not None:
        raise ValueError(f"Full finetuning: the model {kind}.")


def finetune(
    model: PreTrainedModel,
    update: InnerUpdate,
    *,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
    gradient_checkpointing: bool = False,
) -> tuple[PreTrainedModel, InnerResult]:
    """
    Train all weights of a copy of a model.

    Args:
        model (`PreTrainedModel`):
            The model, which is not changed.
        update ([`InnerUpdate`]):
            What it trains on, and how.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of sequences (see [`training_order`]).
        on_step (`Callable[[int], None]`, *optional*):
            Called after every optimizer step with the tokens that were trained on so far.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the layers compute their activations again in the backward pass.

    Returns:
        `tuple[PreTrainedModel, InnerResult]`: the copy, frozen and in evaluation mode, and how its training went. Where a loss or a
        gradient is not finite, training ends with the last finite weights, and a warning says so.

    Raises:
        DoesNotFit: Weights, gradients, moments and activations are more than the memory that is free. Nothing was trained.
        ValueError: As [`check_finetunable`]; also an update without sequences, or a model without layers to checkpoint.
    """
    check_finetunable(model)
    if not update.sequences:
        raise ValueError("The update has no sequences to train on; give it at least one.")
    limits = _Limits.of(model)
    _check_memory(model, update, limits, gradient_checkpointing)
    config = update.config
    if config.learning_rate > _HIGH_LEARNING_RATE:
        logger.warning(
            "learning_rate=%g suits adapters; all weights are mostly trained with about 1e-5. Set a lower one.",
            config.learning_rate,
        )
    copied = deepcopy(model)
    trained = [parameter.requires_grad_() for parameter in copied.parameters() if parameter.is_floating_point()]
    weights = [parameter.data if parameter.dtype == torch.float32 else parameter.data.float() for parameter in trained]
    moments = [[torch.zeros_like(own) for own in weights] for _ in range(2)]
    num_steps = [torch.zeros((), device=own.device) for own in weights]
    result = InnerResult()
    layers = nullcontext()
    if gradient_checkpointing:
        layers = checkpointed_layers(copied, torch.zeros((), device=copied.device, requires_grad=True))
    with evaluating(copied), layers:
        for step, places in enumerate(training_order(update, seed)):
            batch = [update.sequences[place] for place in places]
            loss = _backward(copied, batch, limits)
            reached = [place for place, parameter in enumerate(trained) if parameter.grad is not None]
            norms = torch.stack(
                [torch.linalg.vector_norm(trained[place].grad, dtype=torch.float32) for place in reached]
            )
            loss, norm = torch.stack([loss, torch.linalg.vector_norm(norms)]).tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                result.stopped = NON_FINITE
                logger.warning(
                    "Full finetuning was stopped at step %d of %d: its loss or gradient is not finite (learning rate %g). The last "
                    "finite weights are kept.",
                    step + 1,
                    update.num_steps,
                    config.learning_rate,
                )
                break
            size = StepSize(learning_rate(step, update.num_steps, config), config.max_grad_norm)
            for place in reached:
                parameter = trained[place]
                gradient = parameter.grad.float().mul_(size.clipping(norm))
                parameter.grad = None
                first, second = (own[place] for own in moments)
                adamw_step([weights[place]], [gradient], [first], [second], [num_steps[place]], size.learning_rate)
                if parameter.dtype != torch.float32:
                    parameter.data.copy_(weights[place])
            result.losses.append(loss)
            result.num_tokens += sum(len(sequence.input_ids) for sequence in batch)
            if on_step is not None:
                on_step(result.num_tokens)
    for parameter in trained:
        parameter.grad = None
        parameter.requires_grad_(False)
    return copied.eval(), result


class _Limits(NamedTuple):
    """What a pass may hold: tokens, padding included, and labels, whose logits are all there at once."""

    tokens: int
    labels: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Limits":
        num_logits = _CUDA_LOGITS if model.device.type == "cuda" else _LOGITS
        return cls(pass_tokens(model.device), max(1, num_logits // model.config.get_text_config().vocab_size))


def _num_labels(sequence: TrainingSequence) -> int:
    return len(sequence.input_ids) - sequence.first_label


def _cut(batch: Sequence[TrainingSequence], limits: _Limits) -> list[list[TrainingSequence]]:
    """The sequences of a step, the longest first, in passes within the limits; one that is beyond them is alone."""
    passes: list[list[TrainingSequence]] = []
    num_labels = 0
    for sequence in sorted(batch, key=lambda one: -len(one.input_ids)):
        num_labels += _num_labels(sequence)
        fits = passes and (len(passes[-1]) + 1) * len(passes[-1][0].input_ids) <= limits.tokens
        if fits and num_labels <= limits.labels:
            passes[-1].append(sequence)
        else:
            passes.append([sequence])
            num_labels = _num_labels(sequence)
    return passes


def _backward(model: PreTrainedModel, batch: Sequence[TrainingSequence], limits: _Limits) -> torch.Tensor:
    """Add up the gradients of a step's loss, the mean over its labels, which is returned: `()`, fp32, in nats per token."""
    total, loss = sum(map(_num_labels, batch)), torch.zeros((), device=model.device)
    for own in _cut(batch, limits):
        length = len(own[0].input_ids)
        positions, labels = [], []
        for row, sequence in enumerate(own):
            # The token at t is predicted at t - 1. Padding is on the right, where no token sees it.
            positions += range(row * length + sequence.first_label - 1, row * length + len(sequence.input_ids) - 1)
            labels += sequence.input_ids[sequence.first_label :]
        padded = [[*one.input_ids, *[0] * (length - len(one.input_ids))] for one in own]
        input_ids = to_device(padded, model.device)  # (R, L)
        positions, labels = to_device([positions, labels], model.device)  # (M,)

        def select(states: torch.Tensor, positions: torch.Tensor = positions) -> torch.Tensor:
            return states.flatten(0, 1).index_select(0, positions)

        with torch.enable_grad(), without_cudnn(), head_input_changed(model, select):
            logits = model(input_ids=input_ids, use_cache=False).logits  # (M, V)
            part = F.cross_entropy(logits.float(), labels, reduction="sum") / total
            part.backward()
        loss += part.detach()
    return loss


def _check_memory(model: PreTrainedModel, update: InnerUpdate, limits: _Limits, gradient_checkpointing: bool) -> None:
    num_weights = sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())
    dtype = activation_dtype(model)
    # The copy and its gradients, two moments in fp32, and the optimizer's own weights where they are not fp32.
    per_weight = 2 * dtype.itemsize + 8 + (4 if dtype.itemsize < 4 else 0)
    longest = max(len(sequence.input_ids) for sequence in update.sequences)
    in_step = sum(sorted((len(one.input_ids) for one in update.sequences), reverse=True)[: update.config.batch_size])
    num_tokens = min(max(longest, limits.tokens), in_step)
    num_labels = min(max(longest, limits.labels), in_step)
    vocabulary = model.config.get_text_config().vocab_size
    activations = num_tokens * activation_bytes_per_token(model, gradient_checkpointing, longest)
    logits = num_labels * vocabulary * (dtype.itemsize + _BYTES_PER_LOGIT)
    needed, free = num_weights * per_weight + activations + logits, free_memory(model.device)
    if needed > free:
        checkpoints = not gradient_checkpointing and bool(checkpointable_layers(model))
        remedy = "inner_gradient_checkpointing=True, " if checkpoints else ""
        raise DoesNotFit(
            f"Full finetuning of {num_weights / 1e9:.2g}B parameters takes about {needed / 1e9:.1f} GB besides the model "
            f"({num_weights * per_weight / 1e9:.1f} GB of it for weights, gradients and moments), but {model.device} has "
            f"{free / 1e9:.1f} GB free; train adapters (full_finetuning=False), or try {remedy}a smaller model or a larger device."
        )
