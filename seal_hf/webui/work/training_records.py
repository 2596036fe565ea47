"""What a run of the outer loop has on disk, as the page shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...domains import load_demo_passages, load_passages
from ...domains.base import SELF_EDITS
from ...records.journal import Journal, TrialResult
from ...records.report import kept_flags


@dataclass(frozen=True)
class Candidate:
    """One self-edit of a run: its round (from 1), passage, number (from 1), text, reward, and whether it was kept."""

    round: int
    passage: str
    number: int
    text: str
    reward: float | None
    kept: bool | None


def titles(config: Mapping[str, object]) -> list[str]:
    name = str(config["dataset_name"])
    passages = load_demo_passages("train") if name == "demo" else load_passages(name)
    return [row.get("title") or f"{row['context'][:40]} …" for row in passages]


def candidates(journal: Journal, config: Mapping[str, object], titles: list[str]) -> list[Candidate]:
    """All self-edits of a run's rounds, with what is known of each."""
    found = []
    for round_index in range(int(config["num_rounds"])):
        proposals = journal.proposals(round_index)
        if proposals is None:
            break
        scored = journal.scored(round_index)
        if scored is not None:
            rewards = {(edit.example, edit.edit): edit.reward for edit in scored}
            flags = kept_flags(scored, journal.selected(round_index))
            kept = {(edit.example, edit.edit): flag for edit, flag in zip(scored, flags, strict=True)}
        else:
            rewards = {(one.example, one.edit): one.reward for one in _results(journal, round_index)}
            kept = {}
        found += [
            Candidate(
                round_index + 1,
                titles[proposal.example],
                proposal.edit + 1,
                proposal.completion,
                rewards.get((proposal.example, proposal.edit)),
                kept.get((proposal.example, proposal.edit)),
            )
            for proposal in proposals
        ]
    return found


def _results(journal: Journal, round_index: int) -> list[TrialResult]:
    """What the finished banks of a round have found of its self-edits."""
    return [
        one for results in journal.banks(round_index).values() for one in results or () if one.condition == SELF_EDITS
    ]


def phase(config: Mapping[str, object], output_dir: Path, num_evaluations: int) -> str:
    """What a run is at, by what it has on disk."""
    num_rounds, evaluates = int(config["num_rounds"]), "num_eval_passages" in config
    training, evaluation = Journal(output_dir), Journal(output_dir / "evaluation")
    for round_index in range(num_rounds + 1):
        if evaluates and num_evaluations <= round_index:
            when = f"after round {round_index}" if round_index else "before the first round"
            return f"Evaluating {when}: {_progress(evaluation, round_index)}"
        if round_index == num_rounds:
            break
        if training.scored(round_index) is None:
            return f"Round {round_index + 1} of {num_rounds}: {_progress(training, round_index)}"
        if not (output_dir / "policy" / f"round_{round_index:03d}").is_dir():
            return f"Round {round_index + 1} of {num_rounds}: learning to write like the kept self-edits"
    return f"All {num_rounds} rounds are done" if num_rounds > 1 else "The round is done"


def _progress(journal: Journal, round_index: int) -> str:
    proposals = journal.proposals(round_index)
    if proposals is None:
        return "writing self-edits"
    count = sum(proposal.condition == SELF_EDITS for proposal in proposals)
    return f"{len(_results(journal, round_index))} of {count} self-edits trained and scored"
