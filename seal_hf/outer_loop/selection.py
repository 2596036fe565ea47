"""Which self-edits the policy learns from (SEAL, section 3.1: rejection sampling, ReST-EM)."""

from collections import defaultdict
from collections.abc import Sequence

from ..records.journal import ScoredSelfEdit, SelectedSelfEdit, rank, rounded


def select_self_edits(
    scored: Sequence[ScoredSelfEdit],
    *,
    keep_best: int | None = 1,
    min_reward: float | None = None,
    drop_zero_std: bool = False,
) -> list[SelectedSelfEdit]:
    """
    Keep each example's best self-edits.

    Parameters:
        scored (`Sequence[ScoredSelfEdit]`):
            A round's self-edits. Malformed ones, and those whose answers could not be graded, are never kept.
        keep_best (`int`, *optional*, defaults to `1`):
            How many per example; of equals the first. All where it is `None`.
        min_reward (`float`, *optional*):
            Least reward of one that is kept, among these best.
        drop_zero_std (`bool`, *optional*, defaults to `False`):
            Whether an example whose rewards are all equal is left out.

    Returns:
        `list[SelectedSelfEdit]`: by example, the best first.
    """
    by_example: dict[int, list[ScoredSelfEdit]] = defaultdict(list)
    for edit in scored:
        by_example[edit.example].append(edit)
    selected = []
    for example in sorted(by_example):
        edits = [edit for edit in by_example[example] if edit.reward is not None]
        if drop_zero_std and len({rounded(edit.reward) for edit in edits}) <= 1:
            continue
        best = sorted((edit for edit in edits if edit.well_formed), key=rank)[:keep_best]
        selected += [
            SelectedSelfEdit(edit.prompt, edit.completion, edit.example_id, edit.edit, edit.reward)
            for edit in best
            if min_reward is None or rounded(edit.reward) >= rounded(min_reward)
        ]
    return selected
