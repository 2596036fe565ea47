"""Which self-edits the policy learns from (SEAL, section 3.1: rejection sampling, ReST-EM)."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..domains.base import Domain
from ..generation.parts import split_parts
from ..records.schema import ScoredSelfEdit, SelectedSelfEdit, rank, rounded
from ..rollout.writing import as_written


logger = logging.getLogger(__name__)


def select_self_edits(
    scored: Sequence[ScoredSelfEdit],
    *,
    keep_best: int | None = 1,
    min_reward: float | None = None,
    drop_zero_std: bool = False,
) -> list[SelectedSelfEdit]:
    """
    Keep each example's best self-edits.

    Args:
        scored (`Sequence[ScoredSelfEdit]`):
            A round's self-edits. Malformed ones, and those whose answers could not be graded, are never kept.
        keep_best (`int`, *optional*, defaults to `1`):
            How many per example; of equal rewards those that were not cut off, then the first. All where it is `None`.
        min_reward (`float`, *optional*):
            Least reward of one that is kept, among these best. Where it is `None`, nothing is kept of a round whose rewards
            are all 0: its best ones are no better than any other. With `0` they are kept.
        drop_zero_std (`bool`, *optional*, defaults to `False`):
            Whether an example whose rewards are all equal is left out.

    Returns:
        `list[SelectedSelfEdit]`: by example, the best first.
    """
    if min_reward is None and not _any_reward(scored):
        return []
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
            SelectedSelfEdit(
                edit.prompt,
                edit.completion,
                edit.example_id,
                edit.edit,
                edit.reward,
                edit.completion_ids,
                edit.unfinished_parts,
            )
            for edit in best
            if min_reward is None or rounded(edit.reward) >= rounded(min_reward)
        ]
    return selected


def _any_reward(scored: Iterable[ScoredSelfEdit]) -> bool:
    """Whether the reward of a self-edit that can be kept is above 0."""
    return any(edit.well_formed and edit.reward is not None and rounded(edit.reward) > 0 for edit in scored)


def demonstrations(
    selected: Sequence[SelectedSelfEdit],
    examples: Mapping[str, Mapping],
    domain: Domain,
    processing_class: PreTrainedTokenizerBase,
) -> list[SelectedSelfEdit]:
    """
    What the policy is shown of the self-edits that are kept: each as it is, or for every part of its example (see
    [`Domain.parts`]) what was written about it, in each draft, where that is anything. A text that was cut off has no end token.

    Args:
        selected (`Sequence[SelectedSelfEdit]`):
            Self-edits that are kept.
        examples (`Mapping[str, Mapping]`):
            The examples that they were written for, by their ids.
        domain ([`Domain`]):
            The domain.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.

    Raises:
        ValueError: A self-edit has not the same number of texts for each part of its example.
    """
    shown = []
    for edit in selected:
        parts = domain.parts(examples[edit.example_id])
        if len(parts) == 1:
            shown.append(edit)
            continue
        texts = split_parts(edit.completion)
        if len(texts) % len(parts):
            raise ValueError(
                f"Self-edit {edit.edit} of example {edit.example_id} has {len(texts)} texts about {len(parts)} parts; train with "
                "the domain that it was written for, or give another output_dir."
            )
        for place, text in enumerate(texts):
            if text:
                prompt = domain.prompt(parts[place % len(parts)])
                written = as_written(processing_class, text, prompt, place not in (edit.unfinished_parts or ()))
                ids = list(written.token_ids)
                shown.append(replace(edit, prompt=prompt, completion=text, completion_ids=ids, unfinished_parts=None))
    return shown


def warn_of_little(
    round_number: int, scored: Sequence[ScoredSelfEdit], selected: Sequence[SelectedSelfEdit], output_dir: Path
) -> None:
    """Warn of a round that teaches the policy nothing, or less than it could; rounds count from 1."""
    num_ungraded = sum(edit.reward is None for edit in scored)
    if not any(edit.well_formed for edit in scored):
        logger.warning(
            "Round %d: all %d self-edits are malformed, so nothing is learned; look at %s and change the domain's "
            "prompt, the temperature or max_completion_length.",
            round_number,
            len(scored),
            output_dir / "proposals",
        )
    elif num_ungraded < len(scored) and not _any_reward(scored):
        logger.warning(
            "Round %d: the rewards of all %d self-edits are 0, so %s; look at the answers in %s, and train the adapters longer "
            "(inner_num_train_epochs) or ask easier questions, or set min_reward to 0 to learn in any case.",
            round_number,
            len(scored) - num_ungraded,
            "chance decides what is learned" if selected else "nothing is learned",
            output_dir / "journal",
        )
    elif not selected:
        logger.warning(
            "Round %d: the selection keeps none of %d self-edits, so there is nothing new to learn; lower min_reward or "
            "turn drop_zero_std off to learn from more.",
            round_number,
            len(scored),
        )
    if num_ungraded:
        logger.warning(
            "Round %d: %d of %d self-edits could not be graded and are left out; look at what grades them. Remove the "
            "round's files in journal/ and selected/ before its policy is there to score it again.",
            round_number,
            num_ungraded,
            len(scored),
        )
