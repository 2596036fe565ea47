"""What a training run has on disk, as the page shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ...adapters.sources import WEIGHTS_NAME
from ...domains import KnowledgeDomain
from ...domains.base import SELF_EDITS
from ...records.journal import Journal
from ...records.report import Evaluation
from ...records.round_metrics import kept_flags
from ...records.schema import TrialResult
from ...self_edit import TrainingExample
from ..languages import Message
from . import inputs
from .settings import SHUFFLE_SEED


CONFIG_NAME, LOG_NAME = "config.yaml", "log.txt"


@dataclass(frozen=True)
class Candidate:
    """
    One self-edit of a run.

    Parameters:
        round (`int`):
            Its round, from 1.
        passage (`str`):
            Name of the passage that it is about.
        number (`int`):
            Its number among the self-edits of that passage, from 1.
        text (`str`):
            What the model wrote.
        reward (`float`, *optional*):
            Its reward, once it is known.
        kept (`bool`, *optional*):
            Whether it was selected, once the round has selected.
    """

    round: int
    passage: str
    number: int
    text: str
    reward: float | None
    kept: bool | None


@dataclass(frozen=True)
class TrainingSnapshot:
    """
    The progress of a run.

    Parameters:
        state (`str`):
            `"running"`, `"done"`, `"stopped"` or `"failed"`.
        is_paused (`bool`):
            Whether it waits while a visitor's job uses the device.
        phase (`str`):
            What it is doing, in words.
        folder (`Path`):
            Where the run is.
        candidates (`list[Candidate]`):
            All self-edits so far.
        evaluations (`list[Evaluation]`):
            Evaluations of the policy on held-out passages.
        policies (`list[int]`):
            The rounds, from 1, after which there is a policy.
        error (`str`, *optional*):
            Why it failed or was ended.
        log (`str`):
            The last lines of its output.
    """

    state: str
    is_paused: bool
    phase: str
    folder: Path
    candidates: list[Candidate]
    evaluations: list[Evaluation]
    policies: list[int]
    error: str | None
    log: str


def candidates(journal: Journal, num_rounds: int, names: Sequence[str]) -> list[Candidate]:
    """
    All self-edits of a run so far.

    Args:
        journal ([`Journal`]):
            The run's journal.
        num_rounds (`int`):
            Number of rounds of the run.
        names (`Sequence[str]`):
            The name of each passage.
    """
    found = []
    for round_index in range(num_rounds):
        proposals = journal.proposals(round_index)
        if proposals is None:
            break
        scored = journal.scored(round_index)
        if scored is not None:
            rewards = {(edit.example, edit.edit): edit.reward for edit in scored}
            flags = kept_flags(scored, journal.selected(round_index))
            kept = {(edit.example, edit.edit): flag for edit, flag in zip(scored, flags, strict=True)}
        else:
            rewards = {(one.example, one.edit): one.reward for one in results_of(journal, round_index)}
            kept = {}
        found += [
            Candidate(
                round_index + 1,
                names[proposal.example],
                proposal.edit + 1,
                proposal.completion,
                rewards.get((proposal.example, proposal.edit)),
                kept.get((proposal.example, proposal.edit)),
            )
            for proposal in proposals
        ]
    return found


def policy_rounds(output_dir: Path) -> list[int]:
    """The rounds of a run, from 1, after which there is a policy."""
    files = (output_dir / "policy").glob(f"round_???/{WEIGHTS_NAME}")
    return sorted(int(file.parent.name.removeprefix("round_")) + 1 for file in files)


def _learned_pairs(
    journal: Journal, round_index: int, passages: Sequence[Mapping], config: Mapping[str, object], most: int
) -> list[list[tuple[str, str]]]:
    """
    The questions with their answers that the self-edits of a round train on.

    Args:
        journal ([`Journal`]):
            The run's journal, which has this round.
        round_index (`int`):
            The round, from 0.
        passages (`Sequence[Mapping]`):
            The run's passages, in its order.
        config (`Mapping[str, object]`):
            Content of the run's YAML file.
        most (`int`):
            How many self-edits, the first ones.

    Returns:
        `list[list[tuple[str, str]]]`: for each self-edit, in the order of the proposals. Empty for one without questions, such as
            a rewrite.
    """
    proposals = (journal.proposals(round_index) or [])[:most]
    if not proposals:
        return []
    domain = KnowledgeDomain(
        str(config["prompt_style"]),
        chat=not isinstance(proposals[0].prompt, str),
        training_format=str(config.get("training_format", "language_modeling")),
    )
    found = []
    for proposal in proposals:
        self_edit = domain.parse(proposal.completion, passages[proposal.example])
        if self_edit is not None and proposal.tool_examples is not None:
            self_edit = replace(self_edit, examples=tuple(TrainingExample(**one) for one in proposal.tool_examples))
        found.append([] if self_edit is None else domain.learned_pairs(self_edit))
    return found


def self_edits_of(
    snapshot: TrainingSnapshot, round_number: int = 0, most: int = 40
) -> list[tuple[Candidate, list[tuple[str, str]]]]:
    """
    Self-edits of one round of a run, with the questions and answers that each one trains on.

    Args:
        snapshot ([`TrainingSnapshot`]):
            The run.
        round_number (`int`, *optional*, defaults to `0`):
            The round, from 1; 0 for the newest.
        most (`int`, *optional*, defaults to `40`):
            How many self-edits at most, the first ones.

    Returns:
        `list[tuple[Candidate, list[tuple[str, str]]]]`: empty where there is no such round. Of a self-edit without questions the
            second is empty.
    """
    number = round_number or max((one.round for one in snapshot.candidates), default=0)
    of_round = [one for one in snapshot.candidates if one.round == number][:most]
    if not of_round:
        return []
    config = read_config(snapshot.folder)
    passages = inputs.training_passages(*dataset_of(config))
    pairs = _learned_pairs(Journal(snapshot.folder / "run"), number - 1, passages, config, most)
    return list(zip(of_round, pairs, strict=True))


def read_config(folder: Path) -> dict[str, object]:
    """
    Content of the YAML file of the run in a folder.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        config = yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or not {"num_rounds", "dataset_name"} <= set(config):
        raise ValueError(Message("runs.damaged", run=folder.name, file=CONFIG_NAME))
    return config


def dataset_of(config: Mapping[str, object]) -> tuple[str, int]:
    """The file of a run's passages, or `"demo"`, and the seed of their order."""
    return str(config["dataset_name"]), int(config.get("shuffle_seed", SHUFFLE_SEED))


def results_of(journal: Journal, round_index: int) -> list[TrialResult]:
    """The results of the self-edits in the finished banks of a round."""
    return [
        one for results in journal.banks(round_index).values() for one in results or () if one.condition == SELF_EDITS
    ]
