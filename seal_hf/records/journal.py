"""
What a run leaves on disk, so that nothing it has computed is computed twice.

    run.json                            the settings that define the run
    proposals/round_000.jsonl           every self-edit of the round, before its first bank, with the banks it belongs to
    rubric/round_000.jsonl              how a judge scored each of them, where the rubric is a reward
    reward_questions/round_000.jsonl    what adapters are asked besides, for rewards without labels
    writing/round_000.jsonl             how long the writing of an evaluation's self-edits took
    journal/round_000/bank_0000.jsonl   rewards of one finished bank, while the round is being scored
    journal/round_000.jsonl             one scored self-edit a line, once all are
    trials/round_000.jsonl              what every adapter said about every example, where it is asked about several
    selected/round_000.jsonl            what is kept of them, for the outer SFT
    evaluation/                         the same folders for the evaluation sets

Files appear whole: each is written beside its place, synced and renamed. Every record names its schema version; a last
line without its end, as a copy that was cut off has it, is dropped on reading.
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from .files import RESUME, read_records, remedy_of, write_records
from .schema import Proposal, RewardQuestions, RubricScores, ScoredSelfEdit, SelectedSelfEdit, TrialResult


Record = TypeVar("Record")


class Journal:
    """
    The records of one run's rounds (or of its evaluations) in a folder.

    Parameters:
        directory (`Path`):
            The run's output directory, or a folder in it.
        resume (`str`, *optional*):
            How the run is gone on with, for the remedy of a failed write. Defaults to how a trainer's is.

    Every reading method returns `None` (banks: an empty dictionary) for what is not there yet, and raises `ValueError`
    for a file that a newer version wrote or that is damaged. Every writing method raises `OSError` with the remedy when
    the disk is full or closed to it.
    """

    def __init__(self, directory: Path, resume: str = RESUME):
        self.directory, self._resume = Path(directory), resume

    def proposals(self, round_index: int) -> list[Proposal] | None:
        return _read(self._file("proposals", round_index), Proposal)

    def write_proposals(self, round_index: int, proposals: Sequence[Proposal]) -> None:
        self._write(self._file("proposals", round_index), map(asdict, proposals))

    def writing_seconds(self, round_index: int) -> float | None:
        """How long the writing of a round's self-edits took, with what their tools let the model write."""
        records = read_records(self._file("writing", round_index))
        return records[0]["seconds"] if records else None

    def write_writing_seconds(self, round_index: int, seconds: float) -> None:
        self._write(self._file("writing", round_index), [{"seconds": seconds}])

    def rubric(self, round_index: int) -> list[RubricScores] | None:
        return _read(self._file("rubric", round_index), RubricScores)

    def write_rubric(self, round_index: int, scores: Sequence[RubricScores]) -> None:
        self._write(self._file("rubric", round_index), map(asdict, scores))

    def reward_questions(self, round_index: int) -> list[RewardQuestions] | None:
        return _read(self._file("reward_questions", round_index), RewardQuestions)

    def write_reward_questions(self, round_index: int, questions: Sequence[RewardQuestions]) -> None:
        self._write(self._file("reward_questions", round_index), map(asdict, questions))

    def banks(self, round_index: int) -> dict[int, list[TrialResult]]:
        """The results of every bank of a round that is being scored, by the bank's number."""
        folder = self._bank_folder(round_index)
        files = {int(match.group(1)): match.string for match in map(_BANK_FILE.fullmatch, _names(folder)) if match}
        return {bank: _read(folder / files[bank], TrialResult) for bank in sorted(files)}

    def write_bank(self, round_index: int, bank: int, results: Sequence[TrialResult]) -> None:
        self._write(self._bank_folder(round_index) / f"bank_{bank:04d}.jsonl", map(asdict, results))

    def scored(self, round_index: int) -> list[ScoredSelfEdit] | None:
        return _read(self._file("journal", round_index), ScoredSelfEdit)

    def trials(self, round_index: int) -> list[TrialResult] | None:
        return _read(self._file("trials", round_index), TrialResult)

    def write_trials(self, round_index: int, results: Sequence[TrialResult]) -> None:
        self._write(self._file("trials", round_index), map(asdict, results))

    def forget_banks(self, round_index: int) -> None:
        """Remove the files of a round's banks."""
        shutil.rmtree(self._bank_folder(round_index), ignore_errors=True)

    def write_scored(self, round_index: int, scored: Sequence[ScoredSelfEdit]) -> None:
        """Write a round's journal."""
        self._write(self._file("journal", round_index), map(asdict, scored))

    def scored_rounds(self) -> list[list[ScoredSelfEdit]]:
        """All rounds that are scored, from 0 on."""
        rounds: list[list[ScoredSelfEdit]] = []
        while (scored := self.scored(len(rounds))) is not None:
            rounds.append(scored)
        return rounds

    def selected(self, round_index: int) -> list[SelectedSelfEdit] | None:
        return _read(self._file("selected", round_index), SelectedSelfEdit)

    def write_selected(self, round_index: int, selected: Sequence[SelectedSelfEdit]) -> None:
        self._write(self._file("selected", round_index), map(asdict, selected))

    def _write(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        write_records(path, records, remedy_of(self._resume))

    def _file(self, kind: str, round_index: int) -> Path:
        return self.directory / kind / f"round_{round_index:03d}.jsonl"

    def _bank_folder(self, round_index: int) -> Path:
        return self.directory / "journal" / f"round_{round_index:03d}"


_BANK_FILE = re.compile(r"bank_(\d+)\.jsonl")


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _read(path: Path, record_class: type[Record]) -> list[Record] | None:
    records = read_records(path)
    if records is None:
        return None
    try:
        return [record_class(**record) for record in records]
    except TypeError as error:
        raise ValueError(f"{path} does not hold records of seal-hf ({error}); restore it.") from error
