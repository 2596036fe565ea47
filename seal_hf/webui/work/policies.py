"""Which policy writes a session's self-edits: one that a training run of the session has trained, or none."""

import secrets
import shutil
from dataclasses import replace
from pathlib import Path

from ...adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from ...records.run_folder import link_tree
from ..languages import Message
from . import quota
from .jobs import JobRefused
from .session_items import Policy
from .sessions import Session
from .training_folders import run_number
from .training_records import policy_rounds, read_config
from .training_runs import TrainingRuns


def use_policy(runs: TrainingRuns, session: Session, round_number: int = 0) -> Policy:
    """
    Let a policy of the session's training run write its self-edits from now on. Nothing else changes: the base model learns and
    answers, and other sessions have their own writers.

    Args:
        runs ([`TrainingRuns`]):
            The runs.
        session ([`Session`]):
            The session.
        round_number (`int`, *optional*, defaults to `0`):
            The round, from 1, after which the policy is taken; 0 for the last one that has a policy.

    Returns:
        [`Policy`]: the policy, in a folder of the session. It stays when the run goes.

    Raises:
        JobRefused: There is no such policy, it fits another model or another student than the app's, or there is no room for it.
    """
    found = trained_policy(runs, session.id, round_number)
    files = [found.folder / name for name in (CONFIG_NAME, WEIGHTS_NAME)]
    # A new name each time, since an adapter stays in memory under the name of its folder.
    folder = session.folder / "policies" / secrets.token_hex(4)
    with quota.room(session.folder, sum(file.stat().st_size for file in files)):
        for file in files:
            link_tree(file, folder / file.name)
    earlier, session.writer = session.writer, replace(found, folder=folder)
    _remove(earlier)
    return session.writer


def use_base_model(session: Session) -> None:
    """Let the base model write the session's self-edits again."""
    earlier, session.writer = session.writer, None
    _remove(earlier)


def trained_policy(runs: TrainingRuns, owner: str, round_number: int = 0) -> Policy:
    """
    A policy that a session's run has trained, for the app's own model.

    Args:
        runs ([`TrainingRuns`]):
            The runs.
        owner (`str`):
            The session.
        round_number (`int`, *optional*, defaults to `0`):
            The round, from 1, after which it is taken; 0 for the last one that has a policy.

    Raises:
        JobRefused: There is none, or it was trained for another model or for another student than the app has.
    """
    folders = runs.folders.runs(owner)
    rounds = policy_rounds(folders[-1] / "run") if folders else []
    if not rounds:
        raise JobRefused(Message("runs.no_policy"))
    number = round_number or rounds[-1]
    if number not in rounds:
        raise JobRefused(Message("runs.no_policy_after", round=number, rounds=", ".join(map(str, rounds))))
    config = read_config(folders[-1])
    if (model := config["model_name_or_path"]) != runs.model_name_or_path:
        own = _shown(runs.model_name_or_path)
        raise JobRefused(Message("runs.other_model", trained=_shown(model), model=own))
    if (student := config.get("student", "policy")) != "base":
        raise JobRefused(Message("runs.other_student", student=student))
    folder = folders[-1] / "run" / "policy" / f"round_{number - 1:03d}"
    return Policy(run_number(folders[-1]), number, str(config["prompt_style"]), folder)


def _remove(writer: Policy | None) -> None:
    if writer is not None:
        shutil.rmtree(writer.folder, ignore_errors=True)


def _shown(model: str) -> str:
    """A model's name without the folder that it may be in."""
    return Path(model).name if Path(model).is_absolute() else model
