"""How a reward ranks self-edits, compared with the labelled reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from .choosing import scored_apart
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
    gain = labelled_gain = share = bounds = None
    if chosen:
        blind = [[fmean(column) for column in zip(*labels, strict=True)] for _, labels in chosen]
        by_reward = [scored_apart(own, labels) for own, labels in chosen]
        by_labels = [scored_apart(labels, labels) for _, labels in chosen]
        gain, labelled_gain = paired_difference(blind, by_reward), paired_difference(blind, by_labels)
        gains = [
            np.array([fmean(one) - fmean(other) for one, other in zip(own, blind, strict=True)])
            for own in (by_reward, by_labels)
        ]
        if labelled_gain.value > 0:
            share = round(gain.value / labelled_gain.value, 12) + 0.0  # no -0
            bounds = _jackknife(*gains)
    return Ranking(
        # A correlation is a number from -1 to 1, as a difference of two shares is.
        correlation=paired_difference([[0.0]] * len(correlations), [[rho] for rho in correlations])
        if correlations
        else None,
        gain=gain,
        labelled_gain=labelled_gain,
        share=share,
        share_low=bounds and bounds[0],
        share_high=bounds and bounds[1],
    )


def _jackknife(own: np.ndarray, whole: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the ratio of two sums, both float64 of shape (N,), with one example left out at a time."""
    number = len(own)
    rest = whole.sum() - whole
    if number < 2 or not (rest > 1e-12).all():
        return None
    ratios = (own.sum() - own) / rest
    error = np.sqrt((number - 1) / number * np.square(ratios - ratios.mean()).sum())
    value, half = own.sum() / whole.sum(), student_quantile(0.95, number - 1) * error
    return float(value - half), float(value + half)
