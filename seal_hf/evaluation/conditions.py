"""What self-edits are compared with, and a model under another condition: with another policy, or something added to its adapters."""

import re
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.stacking import stacked_ranks
from ..domains.base import SELF_EDITS, Condition
from ..records.journal import Journal
from ..records.schema import Proposal
from ..self_adapting_lm import SelfAdaptingLM


@dataclass(frozen=True)
class ComparedCondition:
    """
    What a model's self-edits are compared with, beside the conditions of its domain: other self-edits, or another baseline.

    Parameters:
        name (`str`):
            Its name in records, tables and plots.
        lm ([`SelfAdaptingLM`]):
            The model that learns and answers, with the domain by which self-edits are asked for and read, and with the policy
            that writes them as its `writer` (see [`with_writer`]).
        writer ([`SelfAdaptingLM`], *optional*):
            Another model that writes the self-edits.
        self_edits (`Iterable[Mapping[str, Any]]`, *optional*):
            What somebody else wrote, as for [`single_passage`].
        shares_self_edits (`bool`, *optional*, defaults to `False`):
            Whether its self-edits are those of the evaluation's first row, which are written by then, with what their tools gave.
        baseline ([`Condition`], *optional*):
            What is asked in place of self-edits, of which there are none then.
        is_routed (`bool`, *optional*, defaults to `False`):
            Whether every question is answered by the adapter of the example that it is about by [`Domain.routes`], whichever example
            it is asked with. There is an adapter for each example.
        options (`Mapping[str, Any]`, *optional*, defaults to an empty mapping):
            Settings of the protocol for this condition alone, which are recorded with it.
    """

    name: str
    lm: SelfAdaptingLM
    writer: SelfAdaptingLM | None = None
    self_edits: Iterable[Mapping[str, Any]] | None = None
    shares_self_edits: bool = False
    baseline: Condition | None = None
    is_routed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def check_names(names: Iterable[str], taken: Iterable[str]) -> None:
    """
    Check that conditions have names and folders of their own.

    Args:
        names (`Iterable[str]`):
            The names of compared conditions.
        taken (`Iterable[str]`):
            Names that others have.

    Raises:
        ValueError: Two have one name, or names that differ in marks alone, or a name has no letter.
    """
    others = {folder_name(name): name for name in taken}
    for name in names:
        if not (folder := folder_name(name)):
            raise ValueError(f"The condition {name!r} has no letter in its name; give it one.")
        if folder in others:
            both = f"{name!r}" if others[folder] == name else f"{others[folder]!r} and {name!r}"
            raise ValueError(f"Two conditions are called {both}; give each a name of its own.")
        others[folder] = name


def folder_name(name: str) -> str:
    """The name of a condition's folder."""
    return re.sub(r"\W+", "-", name.casefold()).strip("-")


def written_in(output_dir: str | Path) -> list[Proposal]:
    """
    The self-edits of an evaluation, with what their tools gave.

    Raises:
        ValueError: Nothing has been written there yet.
    """
    proposals = Journal(Path(output_dir) / "evaluation").proposals(0)
    if proposals is None:
        raise ValueError(f"{output_dir} holds no self-edits of an evaluation yet; evaluate first.")
    return [proposal for proposal in proposals if proposal.condition == SELF_EDITS]


def with_writer(lm: SelfAdaptingLM, policy: Adapter) -> SelfAdaptingLM:
    """The same model, whose self-edits a policy adapter writes; what learns from them is as before."""
    other = copy(lm)
    other.writer = policy
    return other


def with_skill(
    lm: SelfAdaptingLM, skilled: Adapter, sft: Adapter | None = None, factor: float = 1.0
) -> SelfAdaptingLM:
    """
    The same model, to whose trained adapters a skill vector is added (in the manner of PaST, Tang et al. 2026,
    https://arxiv.org/abs/2601.11258, section 3).

    There the skill vector is what reinforcement learning changed in a model that had been finetuned on the texts of other
    passages: the weights after it minus those before it. It is added to a model that was finetuned on new passages. Here both
    are adapters of one base model, and their difference is one too. What differs from the paper: the adapter may be a policy of
    SEAL, trained to write self-edits rather than to answer; and nothing is refined over several rounds.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        skilled ([`Adapter`]):
            The adapter of the base model after the reinforcement learning, or after an outer loop.
        sft ([`Adapter`], *optional*):
            The adapter before it; nothing is taken away where it is absent, as where that was the base model.
        factor (`float`, *optional*, defaults to `1.0`):
            How much of the vector is added, the paper's lambda.
    """
    parts = [(skilled.on_base(), factor), *([(sft.on_base(), -factor)] if sft is not None else [])]
    layout, weights = stacked_ranks([(one.layout, one.weights, own) for one, own in parts])
    other = copy(lm)
    other.added = Adapter(layout, weights, lm.base_model_id)
    return other
