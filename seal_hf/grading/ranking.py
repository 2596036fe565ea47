"""How a reward ranks self-edits, compared with the labelled reward, and how the labelled one agrees with itself over repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from statistics import fmean

import numpy as np

from .choosing import first_of_best, scored_apart
from .intervals import Difference, paired_difference, student_quantile


# By example, self-edit and repeat.
Values = Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Ranking:
    """
    What a reward says of the order of self-edits, and what choosing by it earns in labelled reward.

    Parameters:
        correlation ([`Difference`], *optional*):
            Spearman's rank correlation between the means over the repeats of both rewards, over the self-edits of each example:
            the mean over the examples in which neither is constant, with its interval. `None` where there is no such example.
        gain, labelled_gain ([`Difference`], *optional*):
            The labelled reward of the self-edit that is chosen by this reward, and by the labelled one, minus the mean of all
            self-edits of the example; each repeat scores what all others choose (see [`seal_hf.grading.choosing`]). `None`
            without two repeats and two self-edits of an example.
        share (`float`, *optional*):
            `gain` divided by `labelled_gain`; `None` where choosing by labels gains nothing.
        share_low, share_high (`float`, *optional*):
            Its 95 % interval over examples, by the jackknife. `None` where the gain by labels without one of the examples is
            nothing, so that the share can be anything.
    """

    correlation: Difference | None
    gain: Difference | None
    labelled_gain: Difference | None
    share: float | None
    share_low: float | None
    share_high: float | None


@dataclass(frozen=True)
class RepeatAgreement:
    """
    How a reward agrees with itself over repeats of the same self-edits.

    Parameters:
        num_repeats (`int`):
            Most repeats of a self-edit.
        correlation ([`Difference`], *optional*):
            Spearman's rank correlation between two repeats over the self-edits of each example, the mean over its pairs of repeats
            in which neither is constant: the mean over the examples that have one, with its interval. `None` where none has.
        gain_when_chosen, gain_kept ([`Difference`], *optional*):
            The reward of the self-edit that one repeat chooses, of equals the first, minus the mean of all self-edits of the
            example: in the repeat that chose it, and in another one, the mean over all pairs. `None` without two repeats and two
            self-edits of an example.
        share_kept (`float`, *optional*):
            `gain_kept` divided by `gain_when_chosen`; `None` where all self-edits are equal in every repeat.
        share_low, share_high (`float`, *optional*):
            Its 95 % interval over examples, by the jackknife. `None` where the gain of all examples but one is nothing.
    """

    num_repeats: int
    correlation: Difference | None
    gain_when_chosen: Difference | None
    gain_kept: Difference | None
    share_kept: float | None
    share_low: float | None
    share_high: float | None


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """
    Spearman's rank correlation; equal values have the mean of their ranks. `None` where one of both is constant.

    Example:

    ```python
    >>> spearman([0.1, 0.5, 0.9], [2, 7, 3]), spearman([1, 1], [2, 3])
    (0.5, None)

    ```
    """
    ranks = [_ranks(values) for values in (first, second)]
    one, other = (values - values.mean() for values in ranks)
    if not one.any() or not other.any():
        return None
    return round(float(one @ other / np.sqrt((one @ one) * (other @ other))), 12)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """The mean rank of each value, float64 of shape (N,); values that differ by rounding alone are equal."""
    array = np.round(np.asarray(values, dtype=float), 9)
    return ((array[:, None] > array).sum(1) + (array[:, None] >= array).sum(1)) / 2


def compare_rankings(values: Values, labelled: Values) -> Ranking:
    """
    Compare how a reward and the labelled reward rank the self-edits of each example.

    Args:
        values (`Sequence[Sequence[Sequence[float]]]`):
            The reward, from 0 to 1, by example, self-edit and repeat.
        labelled (`Sequence[Sequence[Sequence[float]]]`):
            The labelled reward of the same.

    Returns:
        [`Ranking`]: Its `num_passages` are the examples that count.
    """
    correlations = [
        rho
        for own, labels in zip(values, labelled, strict=True)
        if (rho := spearman([fmean(one) for one in own], [fmean(one) for one in labels])) is not None
    ]
    chosen = [
        (own, labels)
        for own, labels in zip(values, labelled, strict=True)
        if len(labels) > 1 and min(map(len, labels)) > 1
    ]
    gain = labelled_gain = None
    share, bounds = None, (None, None)
    if chosen:
        blind = [[fmean(column) for column in zip(*labels, strict=True)] for _, labels in chosen]
        by_reward = [scored_apart(own, labels) for own, labels in chosen]
        by_labels = [scored_apart(labels, labels) for _, labels in chosen]
        gain, labelled_gain = paired_difference(blind, by_reward), paired_difference(blind, by_labels)
        gains = [
            np.array([fmean(one) - fmean(other) for one, other in zip(own, blind, strict=True)])
            for own in (by_reward, by_labels)
        ]
        share, bounds = _share(*gains)
    return Ranking(_mean_correlation(correlations), gain, labelled_gain, share, *bounds)


def agreement_of_repeats(values: Values) -> RepeatAgreement:
    """
    Compare how the repeats of a reward rank the self-edits of each example: what its own noise leaves of an order, and of the gain
    of choosing by a single repeat.

    Args:
        values (`Sequence[Sequence[Sequence[float]]]`):
            The reward, from 0 to 1, by example, self-edit and repeat; as many repeats of all self-edits of an example.

    Returns:
        [`RepeatAgreement`]: Its `num_passages` are the examples that count.

    Example:

    ```python
    >>> found = agreement_of_repeats([[[0.2, 0.4], [0.8, 0.6]], [[0.5, 0.1], [0.3, 0.7]]])
    >>> found.correlation.value, found.share_kept  # one example keeps its order, the other turns it round
    (0.0, 0.0)

    ```
    """
    correlations, blind, own_choice, other_choice = [], [], [], []
    for example in values:
        repeats = list(zip(*example, strict=True))
        found = [spearman(one, other) for one, other in combinations(repeats, 2)]
        if known := [rho for rho in found if rho is not None]:
            correlations.append(fmean(known))
        pairs = list(permutations(repeats, 2)) if len(example) > 1 else []
        if pairs:
            chosen = [first_of_best(choosing) for choosing, _ in pairs]
            blind.append([fmean(one) for one in repeats])
            own_choice.append([fmean(choosing[best] for (choosing, _), best in zip(pairs, chosen, strict=True))])
            other_choice.append([fmean(scoring[best] for (_, scoring), best in zip(pairs, chosen, strict=True))])
    whole = kept = share = None
    bounds = (None, None)
    if blind:
        means = [[fmean(own)] for own in blind]
        whole, kept = paired_difference(means, own_choice), paired_difference(means, other_choice)
        gains = [np.array(own)[:, 0] - np.array(means)[:, 0] for own in (other_choice, own_choice)]
        share, bounds = _share(*gains)
    num_repeats = max((len(edit) for example in values for edit in example), default=0)
    return RepeatAgreement(num_repeats, _mean_correlation(correlations), whole, kept, share, *bounds)


def _mean_correlation(correlations: Sequence[float]) -> Difference | None:
    """The mean of a correlation of each example; a number from -1 to 1, as a difference of two shares is."""
    if not correlations:
        return None
    return paired_difference([[0.0]] * len(correlations), [[rho] for rho in correlations])


def _share(own: np.ndarray, whole: np.ndarray) -> tuple[float | None, tuple[float | None, float | None]]:
    """The share that one sum is of another, both float64 of shape (N,), and its interval; `None` where it is not known."""
    if not whole.sum() > 1e-12:
        return None, (None, None)
    return round(float(own.sum() / whole.sum()), 12) + 0.0, _jackknife(own, whole)  # no -0


def _jackknife(own: np.ndarray, whole: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of the ratio of two sums, both float64 of shape (N,), with one example left out at a time."""
    number = len(own)
    rest = whole.sum() - whole
    if number < 2 or not (rest > 1e-12).all():
        return None, None
    ratios = (own.sum() - own) / rest
    error = np.sqrt((number - 1) / number * np.square(ratios - ratios.mean()).sum())
    value, half = own.sum() / whole.sum(), student_quantile(0.95, number - 1) * error
    return float(value - half), float(value + half)
