"""An archive of the instructions that self-edits were written under, and of what they paid."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from ..grading.words import normalize
from .files import read_records, write_records
from .journal import Journal
from .schema import ScoredSelfEdit, rounded


@dataclass(frozen=True)
class ArchivedInstruction:
    """
    What an instruction paid.

    Parameters:
        instruction (`str`):
            As it was written first.
        mean_reward (`float`):
            The mean reward of the self-edits that were written under it, from 0 to 1.
        mean_gain (`float`):
            The mean over them of their reward minus the mean reward of all self-edits of the same example and round, so that
            an easy example does not count for the instruction.
        n (`int`):
            How many they are.
    """

    instruction: str
    mean_reward: float
    mean_gain: float
    n: int

    @property
    def worth(self) -> float:
        """The mean gain, drawn towards 0 as by one more self-edit that gains nothing: one that gained once may have been lucky."""
        return rounded(self.mean_gain * self.n / (self.n + 1))


def archive_instructions(
    rounds: Sequence[Sequence[ScoredSelfEdit]], instruction_of: Callable[[str], str | None]
) -> list[ArchivedInstruction]:
    """
    Sum up what the instructions of some rounds paid. It follows from the records alone.

    Args:
        rounds (`Sequence[Sequence[ScoredSelfEdit]]`):
            The scored self-edits of each round.
        instruction_of (`Callable[[str], str | None]`):
            Returns the instruction of a completion (see [`Domain.instruction`]).

    Returns:
        `list[ArchivedInstruction]`: the best first, by their `worth`, of equals the one that was written first. Those that
            differ in case and marks alone are one. A self-edit that is malformed or has no reward does not count.
    """
    found: dict[tuple[str, ...], tuple[str, list[float], list[float]]] = {}
    for scored in rounds:
        by_example: dict[int, list[float]] = {}
        for edit in scored:
            if edit.reward is not None:
                by_example.setdefault(edit.example, []).append(edit.reward)
        for edit in scored:
            text = instruction_of(edit.completion) if edit.well_formed and edit.reward is not None else None
            if text is not None and (words := normalize(text)):
                _, rewards, gains = found.setdefault(words, (text, [], []))
                rewards.append(edit.reward)
                gains.append(edit.reward - fmean(by_example[edit.example]))
    archive = [
        ArchivedInstruction(text, rounded(fmean(rewards)), rounded(fmean(gains)), len(rewards))
        for text, rewards, gains in found.values()
    ]
    return sorted(archive, key=lambda one: -one.worth)


def best_instructions(archive: Sequence[ArchivedInstruction], number: int) -> list[str]:
    """At most so many instructions of an archive, the best first; none that gained nothing."""
    return [one.instruction for one in archive if one.worth > 0][:number]


def read_archive(output_dir: Path, round_index: int) -> list[ArchivedInstruction] | None:
    """The archive of the rounds up to one, `instructions/round_000.jsonl`; `None` where it is not on disk."""
    records = read_records(_file(output_dir, round_index))
    return None if records is None else [ArchivedInstruction(**record) for record in records]


def write_archive(output_dir: Path, round_index: int, archive: Sequence[ArchivedInstruction]) -> None:
    """
    Write the archive of the rounds up to one.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    write_records(_file(output_dir, round_index), map(asdict, archive))


def archive_up_to(
    journal: Journal, round_index: int, instruction_of: Callable[[str], str | None], anew: bool = False
) -> list[ArchivedInstruction]:
    """
    The archive of the rounds up to one: as it is on disk, or else from the journals of these rounds, and written.

    Args:
        journal ([`Journal`]):
            The run's.
        round_index (`int`):
            The last round, from 0.
        instruction_of (`Callable[[str], str | None]`):
            Returns the instruction of a completion (see [`Domain.instruction`]).
        anew (`bool`, *optional*, defaults to `False`):
            Whether it is written again where it is on disk.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    archive = read_archive(journal.directory, round_index)
    if archive is None or anew:
        archive = archive_instructions(list(map(journal.scored, range(round_index + 1))), instruction_of)
        write_archive(journal.directory, round_index, archive)
    return archive


def _file(output_dir: Path, round_index: int) -> Path:
    return output_dir / "instructions" / f"round_{round_index:03d}.jsonl"
