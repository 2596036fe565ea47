"""From self-edits to adapters: what is trained on, with which seeds, and what an adapter tells of its training."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.policy import carried_policy
from ..models.access import context_length
from ..self_edit import SelfEdit
from .training import InnerResult, InnerStep
from .update import InnerLoopConfig, InnerUpdate, tokenize_self_edit
from .within_memory import train_within_memory


def inner_updates(
    self_edits: Sequence[SelfEdit | InnerUpdate],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: InnerLoopConfig,
) -> list[InnerUpdate]:
    """
    What self-edits train on, tokenized where they are not yet.

    Args:
        self_edits (`Sequence[SelfEdit | InnerUpdate]`):
            The self-edits.
        model (`PreTrainedModel` or `PeftModel`):
            The model that is trained.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        config ([`InnerLoopConfig`]):
            How those that are not tokenized are trained on.

    Raises:
        ValueError: A sequence that is longer than the model's context, or as for [`tokenize_self_edit`].
    """
    updates = [
        one if isinstance(one, InnerUpdate) else tokenize_self_edit(one, tokenizer, config) for one in self_edits
    ]
    longest = max(len(sequence.input_ids) for update in updates for sequence in update.sequences)
    context = context_length(model)
    if context is not None and longest > context:
        raise ValueError(
            f"A training sequence of {longest} tokens exceeds the model's context of {context} tokens; shorten the "
            "self-edit, or lower InnerLoopConfig(max_length=...)."
        )
    return updates


def inner_seeds(seed: int | Sequence[int], num_self_edits: int) -> list[int]:
    """
    The seed of each of so many self-edits.

    Raises:
        ValueError: A negative seed, or seeds that are not one for each.
    """
    seeds = [seed] * num_self_edits if isinstance(seed, int) else list(seed)
    if len(seeds) != num_self_edits:
        raise ValueError(f"{len(seeds)} seeds were given for {num_self_edits} self-edits; give one, or one for each.")
    if min(seeds) < 0:
        raise ValueError(f"seed={seed} must be 0 or more.")
    return seeds


def train_adapters(
    model: nn.Module,
    base_model_id: str,
    peft_config: LoraConfig,
    updates: Sequence[InnerUpdate],
    facts: Sequence[Mapping[str, object]],
    seeds: Sequence[int],
    *,
    on_step: Callable[[InnerStep], None] | None = None,
    stop: threading.Event | None = None,
    gradient_checkpointing: bool = False,
    parents: Sequence[Adapter] | None = None,
) -> list[Adapter]:
    """
    Train one adapter per update, on top of the policy that the model carries (see [`train_within_memory`]).

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        base_model_id (`str`):
            Identity of the base model, which the adapters record.
        peft_config (`LoraConfig`):
            Shape of the adapters.
        updates (`Sequence[InnerUpdate]`):
            What they train on; at least one.
        facts (`Sequence[Mapping[str, object]]`):
            For each what is recorded with how it was trained (see [`training_record`]).
        seeds (`Sequence[int]`):
            For each the seed of its initial weights and order.
        on_step, stop, gradient_checkpointing, parents:
            As for [`train_within_memory`].

    Returns:
        `list[Adapter]`: one per update, on the device.

    Raises:
        torch.OutOfMemoryError: An adapter does not fit alone; the error says what to do.
    """
    policy = carried_policy(model, base_model_id)
    trained = train_within_memory(
        model,
        peft_config,
        updates,
        seed=seeds,
        on_step=on_step,
        stop=stop,
        gradient_checkpointing=gradient_checkpointing,
        parents=parents,
    )
    return [
        Adapter(
            layout=layout,
            device_weights=weights,
            base_model_id=base_model_id,
            policy=policy,
            training=training_record(update, own_facts, seed, result),
        )
        for update, own_facts, seed, (layout, weights, result) in zip(updates, facts, seeds, trained, strict=True)
    ]


def training_record(
    update: InnerUpdate, facts: Mapping[str, object], seed: int, result: InnerResult
) -> dict[str, object]:
    """
    How something was trained, as `training` of an [`Adapter`]: the hyperparameters of its update, the facts about model and
    self-edit that are given, the seed, and how it went.
    """
    return {
        **asdict(update.config),
        **facts,
        "seed": seed,
        "num_steps": len(result.losses),
        "num_tokens": result.num_tokens,
        "losses": tuple(result.losses),
        "stopped": result.stopped,
    }
