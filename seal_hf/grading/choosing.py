"""Choosing the best of several by noisy rewards, and scoring the choice by others."""

from collections.abc import Sequence
from statistics import fmean


def scored_apart(choosing: Sequence[Sequence[float]], scoring: Sequence[Sequence[float]]) -> list[float]:
    """
    For each repeat the reward that it gives to the candidate that all other repeats choose.

    Where the same noisy rewards choose and score, the best of several looks better by chance alone.

    Args:
        choosing (`Sequence[Sequence[float]]`):
            The rewards of each candidate, at least one, in two repeats or more. The greatest mean is chosen, of equals the
            first.
        scoring (`Sequence[Sequence[float]]`):
            The rewards that score, for the same candidates and repeats; often the same.

    Example:

    ```python
    >>> rewards = [[1.0, 0.0], [0.0, 1.0]]
    >>> scored_apart(rewards, rewards)
    [0.0, 0.0]

    ```
    """
    scores = []
    for repeat in range(len(choosing[0])):
        best = first_of_best([fmean([*own[:repeat], *own[repeat + 1 :]]) for own in choosing])
        scores.append(scoring[best][repeat])
    return scores


def first_of_best(values: Sequence[float]) -> int:
    """The place of the greatest value, of equals the first: means of rewards that add up to the same can differ by rounding."""
    rounded = [round(value, 9) for value in values]
    return rounded.index(max(rounded))
