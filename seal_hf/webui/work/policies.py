"""Which policy writes a session's self-edits: one that a training run of the session has trained, or none."""

import secrets
import shutil
from dataclasses import replace

from ...adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from ...records.run_folder import link_tree
from . import quota
from .sessions import Policy, Session
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
    found = runs.policy(session.id, round_number)
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


def _remove(writer: Policy | None) -> None:
    if writer is not None:
        shutil.rmtree(writer.folder, ignore_errors=True)
