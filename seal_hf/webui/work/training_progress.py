"""How far a training run has come, by its process and by the files that it has written."""

import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...adapters.sources import WEIGHTS_NAME
from ...domains.base import SELF_EDITS
from ...records.journal import Journal
from ...records.report import evaluations
from ..languages import Message
from . import inputs
from .errors import without_folders
from .jobs import DONE, FAILED, RUNNING, STOPPED
from .limits import Limits, minutes
from .training_process import TrainingProcess
from .training_records import (
    LOG_NAME,
    TrainingSnapshot,
    candidates,
    dataset_of,
    policy_rounds,
    read_config,
    results_of,
)


_LOG_LINES = 30
_READS = 5  # attempts to read a run's files, some of which may disappear meanwhile


def read_snapshot(folder: Path, run: TrainingProcess | None, limits: Limits) -> TrainingSnapshot:
    """
    The progress of a run.

    Args:
        folder (`Path`):
            Where the run is.
        run ([`TrainingProcess`], *optional*):
            Its process; `None` where it was started before the app was.
        limits ([`Limits`]):
            The limits of its visitor.
    """
    for _ in range(_READS):
        # The trainer removes the files of a round's banks when it writes the file of the whole round.
        with suppress(FileNotFoundError):
            return _read(folder, run, limits)
    return _read(folder, run, limits)


def _read(folder: Path, run: TrainingProcess | None, limits: Limits) -> TrainingSnapshot:
    config = read_config(folder)
    output_dir = folder / "run"
    state = _state(run, output_dir)
    log = (folder / LOG_NAME).read_bytes() if (folder / LOG_NAME).is_file() else b""
    found = evaluations(Journal(output_dir / "evaluation"))
    names = [inputs.name_of(example) for example in inputs.training_passages(*dataset_of(config))]
    error = _failure(run.process.returncode, _decode(log[run.log_start :])) if state == FAILED else None
    if state == STOPPED and run is not None and run.is_overdue:
        error = Message("runs.overdue", time=minutes(limits.run_seconds))
    last_lines = "\n".join(_decode(log).splitlines()[-_LOG_LINES:])
    if limits.is_shared:
        error, last_lines = error and without_folders(error), without_folders(last_lines)
    return TrainingSnapshot(
        state=state,
        is_paused=run is not None and run.is_paused,
        phase=_phase(config, output_dir, len(found)),
        folder=folder,
        candidates=candidates(Journal(output_dir), int(config["num_rounds"]), names),
        evaluations=found,
        policies=policy_rounds(output_dir),
        error=error,
        log=last_lines,
    )


def _state(run: TrainingProcess | None, output_dir: Path) -> str:
    if run is None:  # started before the app was; the file that a run saves last tells whether it is done
        return DONE if (output_dir / WEIGHTS_NAME).is_file() else STOPPED
    code = run.process.poll()
    if code is None:
        return RUNNING
    if code == 0:  # also where the request to stop came too late
        return DONE
    return STOPPED if run.is_stopped else FAILED


def _phase(config: Mapping[str, object], output_dir: Path, num_evaluations: int) -> Message:
    """
    What a run is doing, by the files that it has written.

    Args:
        config (`Mapping[str, object]`):
            Content of the run's YAML file.
        output_dir (`Path`):
            The run's output folder.
        num_evaluations (`int`):
            Number of finished evaluations.
    """
    num_rounds, evaluates = int(config["num_rounds"]), "num_eval_passages" in config
    training, evaluation = Journal(output_dir), Journal(output_dir / "evaluation")
    for round_index in range(num_rounds + 1):
        if evaluates and num_evaluations <= round_index:
            progress = _progress(evaluation, round_index)
            if not round_index:
                return Message("runs.evaluating_first", progress=progress)
            return Message("runs.evaluating", round=round_index, progress=progress)
        if round_index == num_rounds:
            break
        if training.scored(round_index) is None:
            progress = _progress(training, round_index)
            return Message("runs.round", round=round_index + 1, num_rounds=num_rounds, progress=progress)
        if not (output_dir / "policy" / f"round_{round_index:03d}").is_dir():
            learning = Message("runs.learning")
            return Message("runs.round", round=round_index + 1, num_rounds=num_rounds, progress=learning)
    return Message("runs.done", count=num_rounds)


def _progress(journal: Journal, round_index: int) -> Message:
    proposals = journal.proposals(round_index)
    if proposals is None:
        return Message("runs.writing")
    count = sum(proposal.condition == SELF_EDITS for proposal in proposals)
    return Message("runs.scored", number=len(results_of(journal, round_index)), all=count)


def _failure(code: int, log: str) -> str:
    """Why a run failed, by its exit code and its output."""
    lines = [line for line in log.splitlines() if line.strip()]
    if said := next((line for line in reversed(lines) if line.startswith("error: ")), None):
        return said.removeprefix("error: ")
    if code == -signal.SIGKILL:
        return Message("runs.killed")
    if code < 0:
        return Message("runs.ended_by", signal=signal.strsignal(-code) or f"signal {-code}")
    return lines[-1] if lines else Message("runs.no_output")


def _decode(log: bytes) -> str:
    return log.decode("utf-8", errors="replace")  # the last character may be cut
