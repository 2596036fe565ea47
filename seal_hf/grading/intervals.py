"""Accuracy over passages, and differences between two runs, with intervals by resampling passages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """
    A mean over passages with its interval.

    Parameters:
        value (`float`):
            The mean over passages; a share from 0 to 1, or a difference of two from -1 to 1.
        low, high (`float`):
            Bounds of the interval.
        num_questions (`int`):
            Number of questions.
        num_passages (`int`):
            Number of passages.
    """

    value: float
    low: float
    high: float
    num_questions: int
    num_passages: int


class Accuracy(Estimate):
    """Share of right answers; formats as `41.7 % [33.3, 50.0]`."""

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Difference(Estimate):
    """Difference between two accuracies on the same questions; formats as `+12.5 points [+4.2, +20.8]`."""

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def accuracy(
    verdicts_per_passage: Sequence[Sequence[float | None]],
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Accuracy:
    """
    Accuracy as the paper states it, the mean over passages of the share of right answers, each passage with the same
    weight whatever its number of questions. The interval is the percentile bootstrap over passages (Efron and
    Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13), since the questions of one passage share what
    the model knows about it.

    Args:
        verdicts_per_passage (`Sequence[Sequence[float | None]]`):
            The verdicts on the answers to each passage's questions; for answers given several times, the share that
            was right.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the resamples inside the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Returns:
        [`Accuracy`]: The value, its interval and the counts.

    Raises:
        ValueError: There is no passage, a passage has no question, a verdict is `None`, or an option is out of
            range.

    Example:

    ```python
    >>> print(accuracy([[True, True, False, False], [True], [False], [True, False]]))
    50.0 % [12.5, 87.5]

    ```
    """
    means = _passage_means("verdicts_per_passage", verdicts_per_passage)
    low, high = _interval(means, confidence, num_resamples, seed)
    return Accuracy(float(means.mean()), low, high, sum(map(len, verdicts_per_passage)), len(means))


def paired_difference(
    verdicts_a: Sequence[Sequence[float | None]],
    verdicts_b: Sequence[Sequence[float | None]],
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """
    Difference in accuracy, `b` minus `a`, of two runs over the same questions: the mean over passages of each
    passage's difference, with the percentile bootstrap over passages. Each resample draws the same passages of both.

    Args:
        verdicts_a (`Sequence[Sequence[float | None]]`):
            The first run's verdicts on the answers to each passage's questions.
        verdicts_b (`Sequence[Sequence[float | None]]`):
            The second run's verdicts, for the same passages and questions in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the resamples inside the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Returns:
        [`Difference`]: The value, its interval and the counts.

    Raises:
        ValueError: The two runs differ in passages or questions, there is no passage, a passage has no question,
            a verdict is `None`, or an option is out of range.

    Example:

    ```python
    >>> print(paired_difference([[False, False], [False, True]], [[True, False], [True, True]]))
    +50.0 points [+50.0, +50.0]

    ```
    """
    if len(verdicts_a) != len(verdicts_b):
        raise ValueError(
            f"`verdicts_a` and `verdicts_b` must cover the same passages, but have {len(verdicts_a)} and "
            f"{len(verdicts_b)}."
        )
    for index, (a, b) in enumerate(zip(verdicts_a, verdicts_b, strict=True)):
        if len(a) != len(b):
            raise ValueError(
                f"`verdicts_a` and `verdicts_b` must cover the same questions, but have {len(a)} and {len(b)} for "
                f"passage {index}."
            )
    differences = _passage_means("verdicts_b", verdicts_b) - _passage_means("verdicts_a", verdicts_a)
    low, high = _interval(differences, confidence, num_resamples, seed)
    return Difference(float(differences.mean()), low, high, sum(map(len, verdicts_a)), len(differences))


def _passage_means(name: str, verdicts_per_passage: Sequence[Sequence[float | None]]) -> np.ndarray:
    if len(verdicts_per_passage) == 0:
        raise ValueError(f"`{name}` is empty; give the verdicts of at least one passage.")
    for index, verdicts in enumerate(verdicts_per_passage):
        if len(verdicts) == 0:
            raise ValueError(f"`{name}` has no verdict for passage {index}; leave out passages without questions.")
        if any(verdict is None for verdict in verdicts):
            raise ValueError(
                f"`{name}` has an answer to passage {index} that could not be graded (None); grade it again or leave "
                "out its question."
            )
    return np.array([np.mean(verdicts) for verdicts in verdicts_per_passage])  # (P,)


def _interval(values: np.ndarray, confidence: float, num_resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, float64 of shape (P,), by resampling its entries."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, but is {confidence}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, but is {num_resamples}.")
    draws = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
