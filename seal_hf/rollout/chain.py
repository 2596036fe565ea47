"""Adapters that stand on others: trained on top of them, or made of them."""

from collections.abc import Sequence
from typing import Protocol

from peft import PeftModel

from ..adapters.adapter import Adapter
from ..generation.vllm_generation import VLLMGenerator
from ..self_adapting_lm import SelfAdaptingLM


class Chain(Protocol):
    """What the banks of a protocol know of each other. It is asked in the process that runs a bank."""

    def parents(self, bank: int) -> Sequence[Adapter | None]:
        """
        For each trial of a bank the adapter, of the base model alone, that its own is trained on top of, and that is asked in
        place of its own where it trains nothing; `None` where that is the base. Those that train have parents of one layout.
        """

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Take the adapters of a bank, with the ranks of their parents, before what they said is recorded."""


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
