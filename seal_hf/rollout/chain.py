"""Adapters that stand on others: trained on top of them, or made of them."""

from collections.abc import Sequence
from typing import Protocol

from ..adapters.adapter import Adapter


class Chain(Protocol):
    """What the banks of a protocol know of each other. It is asked in the process that runs a bank."""

    def parents(self, bank: int) -> Sequence[Adapter | None]:
        """
        For each trial of a bank the adapter, of the base model alone, that its own is trained on top of, and that is asked in
        place of its own where it trains nothing; `None` where that is the base. Those that train have parents of one layout.
        """

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Take the adapters of a bank, with the ranks of their parents, before what they said is recorded."""
