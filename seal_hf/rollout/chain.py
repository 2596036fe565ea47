"""Adapters that are trained one on top of another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Protocol

from peft import PeftModel

from ..adapters.adapter import Adapter
from ..generation.transformers_generation import TransformersGenerator
from ..generation.vllm_generation import VLLMGenerator
from ..models.access import policy_in_activation_dtype
from ..self_adapting_lm import SelfAdaptingLM


class Chain(Protocol):
    """What the banks of a protocol know of each other. It is asked in the process that runs a bank."""

    def parent(self, bank: int) -> Adapter | None:
        """The adapter, of the base model alone, that those of a bank are trained on top of; `None` where that is the base."""

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Take the adapters of a bank, before what they said is recorded."""


def check_stackable(lm: SelfAdaptingLM) -> None:
    """
    Raises:
        ValueError: The model carries a policy, has its texts written by a vLLM server, or has something added to its adapters.
    """
    kind = None
    if isinstance(lm.model, PeftModel):
        kind = "carries a policy"
    elif isinstance(lm.generator, VLLMGenerator):
        kind = "has its texts written by a vLLM server"
    elif lm.added is not None:
        kind = "has a skill vector added to its adapters"
    if kind is not None:
        raise ValueError(
            f"The model {kind}, so that no adapter can be trained on top of another; load the base model alone, and give "
            "policies as further conditions."
        )


@contextmanager
def on_top_of(lm: SelfAdaptingLM, parent: Adapter | None) -> Iterator[SelfAdaptingLM]:
    """
    The model with an adapter that stays as it is, below those that are trained in the block; the model is as before after it.

    What is trained has the adapter as its `policy`, so that [`Adapter.on_base`] puts the ranks of both next to each other.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        parent ([`Adapter`], *optional*):
            The adapter; where absent the block has the model itself.

    Raises:
        ValueError: As [`check_stackable`].
    """
    if parent is None:
        yield lm
        return
    check_stackable(lm)
    trainable = [(parameter, parameter.requires_grad) for parameter in lm.model.parameters()]
    model = parent.as_policy(lm.model)
    try:
        with policy_in_activation_dtype(model):
            other = copy(lm)
            other.model, other.student = model, "policy"
            other.generator = TransformersGenerator(model, lm.processing_class, lm.base_model_id)
            yield other
    finally:
        model.unload()
        for parameter, is_trainable in trainable:
            parameter.requires_grad_(is_trainable)
