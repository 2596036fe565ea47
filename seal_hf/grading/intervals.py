"""
Accuracy over passages, and differences between two runs, with intervals for other passages of the same kind.

The passages are the sample: the questions of one passage share what the model knows about it, so that they count for less
than as many questions about different passages. What one passage scores holds its own draws, too: its self-edits, the
inner runs and the answers. They differ from passage to passage, hence are part of how passages vary, and an interval over
passages includes them, whatever the number of self-edits and repeats that a passage's verdicts are averages of. It does
not include what all passages share: the policy, its training run, the prompts and the grader.

The interval is Wilson's (1927, *Journal of the American Statistical Association* 22, 209-212), with an effective number of
answers and Student's quantile in place of the normal one (Korn and Graubard, 1998, *Survey Methodology* 24, 193-201; Dean
and Pagano, 2015, *Journal of Survey Statistics and Methodology* 3, 484-503). A few passages tell little about how much
passages vary, and nothing where all score alike; so half a passage of a supposed variation is added to those that were
measured. docs/evaluation.md says how often the interval covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


# The supposed variation, as in passages whose questions correlate by a half, and its weight, in passages.
_PRIOR_CORRELATION = 0.5
_PRIOR_WEIGHT = 0.5


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


@dataclass(frozen=True)
class Accuracy(Estimate):
    """
    Share of right answers; formats as `41.7 % [33.3, 50.0]`, the mean over passages and its interval.

    Parameters:
        per_question (`float`):
            The mean over all questions, in which passages with more questions count for more. The paper states its
            figures for continued pretraining so, and those for one passage at a time as means over passages.
    """

    per_question: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Difference(Estimate):
    """Difference between two accuracies on the same questions; formats as `+12.5 points [+4.2, +20.8]`."""

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def accuracy(verdicts_per_passage: Sequence[Sequence[float | None]], confidence: float = 0.95) -> Accuracy:
    """
    Accuracy as the paper states it for one passage at a time, the mean over passages of the share of right answers, each
    passage with the same weight whatever its number of questions; and besides the mean per question, without an interval.

    Args:
        verdicts_per_passage (`Sequence[Sequence[float | None]]`):
            The verdicts on the answers to each passage's questions; for answers given several times, by several
            self-edits or repeats, the share that was right.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often such intervals cover the accuracy over all passages of this kind.

    Returns:
        [`Accuracy`]: The value, its interval within 0 and 1 and the counts. One passage says nothing about others: its
            interval is everything from 0 to 1.

    Raises:
        ValueError: There is no passage, a passage has no question, a verdict is `None`, or `confidence` is out of
            range.

    Example:

    ```python
    >>> print(accuracy([[True, True, False], [True, False, True], [False, False], [True, False]] * 3))
    45.8 % [28.6, 64.1]
    >>> print(accuracy([[True] * 5] * 12))  # all right, yet no certainty
    100.0 % [80.5, 100.0]

    ```
    """
    shares = _shares("verdicts_per_passage", verdicts_per_passage)
    low, high = _interval(shares, _supposed_variation(verdicts_per_passage), confidence)
    num_questions = sum(map(len, verdicts_per_passage))
    right = float(sum(map(sum, verdicts_per_passage)))
    return Accuracy(float(shares.mean()), low, high, num_questions, len(shares), right / num_questions)


def paired_difference(
    verdicts_a: Sequence[Sequence[float | None]],
    verdicts_b: Sequence[Sequence[float | None]],
    confidence: float = 0.95,
) -> Difference:
    """
    Difference in accuracy, `b` minus `a`, of two runs over the same questions: the mean over passages of each
    passage's difference. What both runs know of a passage cancels out.

    Args:
        verdicts_a (`Sequence[Sequence[float | None]]`):
            The first run's verdicts on the answers to each passage's questions.
        verdicts_b (`Sequence[Sequence[float | None]]`):
            The second run's verdicts, for the same passages and questions in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often such intervals cover the difference over all passages of this kind.

    Returns:
        [`Difference`]: The value, its interval within -1 and 1 and the counts. With one passage the interval is
            everything from -1 to 1.

    Raises:
        ValueError: The two runs differ in passages or questions, there is no passage, a passage has no question,
            a verdict is `None`, or `confidence` is out of range.

    Example:

    ```python
    >>> print(paired_difference([[False, False], [False, True]] * 6, [[True, False], [True, True]] * 6))
    +50.0 points [+34.4, +62.9]

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
    differences = _shares("verdicts_b", verdicts_b) - _shares("verdicts_a", verdicts_a)
    # On a scale from 0 to 1, where two runs that have nothing in common vary at most half as much as one does.
    low, high = _interval((1 + differences) / 2, _supposed_variation(verdicts_a) / 2, confidence)
    value = float(differences.mean())
    return Difference(
        value, min(value, 2 * low - 1), max(value, 2 * high - 1), sum(map(len, verdicts_a)), len(differences)
    )


def _shares(name: str, verdicts_per_passage: Sequence[Sequence[float | None]]) -> np.ndarray:
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


def _supposed_variation(verdicts_per_passage: Sequence[Sequence[float | None]]) -> float:
    """The variance between passages of mean accuracy p, in units of p * (1 - p), where questions correlate as supposed."""
    independent = np.mean([1 / len(verdicts) for verdicts in verdicts_per_passage])
    return _PRIOR_CORRELATION + (1 - _PRIOR_CORRELATION) * float(independent)


def _interval(shares: np.ndarray, supposed_variation: float, confidence: float) -> tuple[float, float]:
    """Interval for the mean that `shares`, float64 of shape (P,) from 0 to 1, are a sample of."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, but is {confidence}.")
    num_passages = len(shares)
    if num_passages == 1:
        return 0.0, 1.0
    mean = float(shares.mean())
    greatest = mean * (1 - mean)  # the variance where a passage is all right or all wrong
    squares = float(np.square(shares - mean).sum()) + _PRIOR_WEIGHT * supposed_variation
    variation = squares / (num_passages * greatest + _PRIOR_WEIGHT)  # 1 in such passages, less in all others
    num_effective = num_passages / variation
    quantile = student_quantile(confidence, num_passages - 1)
    shrinkage = 1 + quantile**2 / num_effective
    center = (mean + quantile**2 / (2 * num_effective)) / shrinkage
    half = quantile / shrinkage * (greatest / num_effective + quantile**2 / (4 * num_effective**2)) ** 0.5
    return min(mean, max(0.0, center - half)), max(mean, min(1.0, center + half))  # rounding at the ends


@lru_cache(maxsize=64)
def student_quantile(confidence: float, degrees: int) -> float:
    """Bound t of |T| < t with probability `confidence`, T of Student's distribution with `degrees` of freedom."""
    # With T = sqrt(degrees) * tan(angle) the density of the angle is proportional to cos(angle) ** (degrees - 1).
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(degrees**0.5 * np.tan(np.interp(confidence * area[-1], area, angles)))
