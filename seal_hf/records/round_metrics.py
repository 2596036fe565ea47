"""What the records of a training round say: its metrics, and what is told of each of its self-edits."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev

from ..grading.choosing import scored_apart
from ..grading.diversity import distinct_ngrams
from ..grading.intervals import Accuracy, accuracy
from .schema import ScoredSelfEdit, SelectedSelfEdit, rank, rounded


def round_metrics(scored: Sequence[ScoredSelfEdit], selected: Sequence[SelectedSelfEdit]) -> dict[str, float]:
    """
    A training round as flat numbers to log, under the names that TRL's GRPO gives them.

    Args:
        scored (`Sequence[ScoredSelfEdit]`):
            The round's self-edits.
        selected (`Sequence[SelectedSelfEdit]`):
            The self-edits of the round that are kept.

    Returns:
        `dict[str, float]`: without the names that there is no value for. `reward/best` is what choosing is worth (see
            [`best_of_k`]). What is told of the self-edits is there as `self_edits/coverage` and so on, how much those about one
            example differ as `self_edits/distinct_1` and so on (see [`diversity`]), and each reward, where the labelled one is
            not the only one, as `rewards/rubric/mean` and so on.
    """
    rewards = [[edit.reward for edit in own] for own in _graded(scored).values()]
    best = best_of_k(scored)
    losses = [repeat["loss"] for edit in scored for repeat in edit.repeats]
    values = {
        "reward": [reward for own in rewards for reward in own],
        "reward_std": [pstdev(own) for own in rewards],
        "frac_reward_zero_std": [len(set(map(rounded, own))) == 1 for own in rewards],
        "reward/best": [] if best is None else [best.value],
        "completions/mean_length": [edit.completion_tokens for edit in scored],
        "completions/clipped_ratio": [not edit.finished for edit in scored if edit.finished is not None],
        "self_edits/valid_ratio": [edit.well_formed for edit in scored],
        "self_edits/kept_ratio": kept_flags(scored, selected),
        "inner/loss": [loss for loss in losses if loss is not None and math.isfinite(loss)],
        "inner/gain": [gain for gain in map(gain_of, scored) if gain is not None],
    }
    result = {name: fmean(numbers) for name, numbers in values.items() if numbers}
    if scored:
        lengths = values["completions/mean_length"]
        result |= {"completions/min_length": min(lengths), "completions/max_length": max(lengths)}
    if seconds := sum(edit.seconds for edit in scored):
        result["inner/tokens_per_second"] = sum(edit.tokens for edit in scored) / seconds
    result |= {
        f"self_edits/{name}": value for name, value in (*diversity(scored).items(), *self_edit_metrics(scored).items())
    }
    result |= _each_reward(scored)
    return result | {"num_examples": len({edit.example for edit in scored})}


def _each_reward(scored: Sequence[ScoredSelfEdit]) -> dict[str, float]:
    """Mean and standard deviation of each reward over the self-edits, under TRL's names, and the means of the rubric's scores."""
    result = {}
    for name in reward_names(scored):
        values = [edit.rewards[name] for edit in scored if edit.rewards[name] is not None]
        if values:
            result |= {f"rewards/{name}/mean": fmean(values), f"rewards/{name}/std": pstdev(values)}
    scores = defaultdict(list)
    for edit in scored:
        for criterion, score in (edit.rubric or {}).items():
            scores[criterion].append(score)
    return result | {f"rubric/{criterion}": fmean(own) for criterion, own in scores.items()}


def reward_names(scored: Iterable[ScoredSelfEdit]) -> list[str]:
    """The names of a round's rewards where the labelled one is not the only one; else none."""
    return list(next((edit.rewards for edit in scored if edit.rewards is not None), ()))


def diversity(scored: Iterable[ScoredSelfEdit]) -> dict[str, float]:
    """
    How much the self-edits about one example differ from each other and within themselves: `distinct_1`, `distinct_2` and
    `distinct_3`, the share of distinct n-grams in all n-grams of its well-formed self-edits together (see [`distinct_ngrams`]),
    the mean over the examples. The best of k is the less worth, the more alike they are.
    """
    texts = defaultdict(list)
    for edit in scored:
        if edit.well_formed:
            texts[edit.example].append(edit.completion)
    result = {}
    for n in (1, 2, 3):
        shares = [share for own in texts.values() if (share := distinct_ngrams(own, n)) is not None]
        if shares:
            result[f"distinct_{n}"] = fmean(shares)
    return result


def self_edit_metrics(scored: Iterable[ScoredSelfEdit]) -> dict[str, float]:
    """What is told of self-edits (the `metrics` of [`SelfEdit`]), each the mean over those that it is known of."""
    values = defaultdict(list)
    for edit in scored:
        for name, value in (edit.metrics or {}).items():
            values[name].append(value)
    return {name: fmean(numbers) for name, numbers in values.items()}


def mean_reward(scored: Iterable[ScoredSelfEdit]) -> Accuracy | None:
    """The mean over a round's examples of the mean reward of their self-edits, with its interval over the examples."""
    rewards = [[edit.reward for edit in own] for own in _graded(scored).values()]
    return accuracy(rewards) if rewards else None


def best_of_k(scored: Iterable[ScoredSelfEdit]) -> Accuracy | None:
    """
    The reward of each example's best self-edit, scored by repeats that did not choose it.

    Each repeat in turn scores the self-edit that [`rank`] puts first by the mean of all others (see
    [`seal_hf.grading.choosing`]). An example without a well-formed self-edit earns nothing.

    Returns:
        `Accuracy`: the mean over the examples whose repeats are all graded; `None` where there are none, or not two repeats.
    """
    by_example = _graded(scored).values()
    num_repeats = max((len(edit.repeats) for own in by_example for edit in own), default=0)
    values = []
    for own in by_example if num_repeats > 1 else ():
        # In the order in which equals are chosen.
        edits = sorted((edit for edit in own if edit.well_formed), key=lambda edit: rank(edit)[1:])
        rewards = [[repeat["reward"] for repeat in edit.repeats] for edit in edits]
        if not any(None in one for one in rewards):
            values.append(scored_apart(rewards, rewards) if rewards else [0.0] * num_repeats)
    return accuracy(values) if values else None


def _graded(scored: Iterable[ScoredSelfEdit]) -> dict[int, list[ScoredSelfEdit]]:
    """The self-edits of each example that have a reward."""
    by_example = defaultdict(list)
    for edit in scored:
        if edit.reward is not None:
            by_example[edit.example].append(edit)
    return by_example


def base_reward(scored: Iterable[ScoredSelfEdit]) -> float | None:
    known = {edit.example: edit.base_reward for edit in scored if edit.base_reward is not None}
    return fmean(known.values()) if known else None


def gain_of(edit: ScoredSelfEdit) -> float | None:
    """What a self-edit gains over the base model, by the labelled reward."""
    return None if edit.accuracy is None or edit.base_reward is None else edit.accuracy - edit.base_reward


def kept_flags(scored: Iterable[ScoredSelfEdit], selected: Iterable[SelectedSelfEdit] | None) -> list[bool | None]:
    """Whether each of a round's self-edits was selected; `None` while the selection is not on disk."""
    if selected is None:
        return [None for _ in scored]
    kept = {(edit.example_id, edit.edit) for edit in selected}
    return [(edit.example_id, edit.edit) in kept for edit in scored]
