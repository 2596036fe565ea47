"""
How the adapted model predicts the outputs of an ARC task's test inputs, and how its predictions are put together.

Each test input is asked for under several contexts: with all demonstrations but one, in their own order and in two others that are
drawn, and one of these contexts under five views, whose outputs are turned back. All of them vote for two attempts.

Deviations from the scripts of SEAL's authors: every prediction has one vote, while there the candidates of each view vote again as a
view, so that a single view counts three times; and the contexts that are drawn follow from a seed and the task's id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .augmentation import Pair, TrainingTask, leave_one_out
from .grids import Grid, as_grid
from .tasks import demonstrations
from .transforms import VIEWS


NUM_ATTEMPTS = 2
_NUM_ORDERS = 2
_TURNED_VIEWS = ("transpose", "flip_up_down", "flip_left_right", "rotate_90", "rotate_180")


@dataclass(frozen=True)
class Question:
    """
    One prediction that is asked for.

    Parameters:
        test (`int`):
            Which test input, from 0.
        view (`str`):
            One of [`VIEWS`].
        demonstrations (`tuple[tuple[Grid, Grid], ...]`):
            What is shown, under that view.
        grid (`Grid`):
            The test input, under that view.
    """

    test: int
    view: str
    demonstrations: tuple[Pair, ...]
    grid: Grid

    def turned_back(self, output: Grid) -> Grid:
        """A predicted output as it would be without the view."""
        return VIEWS[self.view][1](output)


def questions_of(task: Mapping[str, Any], seed: int) -> list[Question]:
    """
    What is asked about an ARC task.

    Args:
        task (`Mapping[str, Any]`):
            The task; solutions of its test inputs are not looked at.
        seed (`int`):
            Of what is drawn, together with the task's id.

    Returns:
        `list[Question]`: distinct ones, those about the first test input first.
    """
    generator = np.random.default_rng([seed, *str(task["id"]).encode()])
    pairs = demonstrations(task)
    contexts = [one.demonstrations for one in leave_one_out(pairs)] if len(pairs) > 1 else [pairs]
    found = []
    for number, pair in enumerate(task["test"]):
        grid = as_grid(pair["input"])
        drawn = [
            tuple(context[place] for place in generator.permutation(len(context)))
            for context in contexts
            for _ in range(_NUM_ORDERS)
        ]
        found += [Question(number, "identity", context, grid) for context in (*contexts, *drawn)]
        turned = TrainingTask(contexts[generator.integers(len(contexts))], (grid, grid))
        for view in _TURNED_VIEWS:
            changed = turned.changed(VIEWS[view][0])
            found.append(Question(number, view, changed.demonstrations, changed.test[0]))
    return list(dict.fromkeys(found))


def attempts(questions: Sequence[Question], outputs: Sequence[Grid | None]) -> list[list[Grid]]:
    """
    Let predictions vote.

    Args:
        questions (`Sequence[Question]`):
            What was asked.
        outputs (`Sequence[Grid | None]`):
            What was predicted for each, under its view; `None` where it is no grid.

    Returns:
        `list[list[Grid]]`: for each test input the two grids that were predicted most often, ties by how often without a view, then
            by what came first; fewer where fewer were predicted.
    """
    votes: dict[int, Counter[Grid]] = {}
    plain: dict[int, Counter[Grid]] = {}
    for question, output in zip(questions, outputs, strict=True):
        votes.setdefault(question.test, Counter())
        plain.setdefault(question.test, Counter())
        if output is not None:
            grid = question.turned_back(output)
            votes[question.test][grid] += 1
            plain[question.test][grid] += question.view == "identity"
    return [
        sorted(own, key=lambda grid, test=test, own=own: (-own[grid], -plain[test][grid]))[:NUM_ATTEMPTS]
        for test, own in sorted(votes.items())
    ]


def is_solved(task: Mapping[str, Any], predicted: Sequence[Sequence[Grid]]) -> bool:
    """
    Whether one of the attempts at each test input is right.

    Raises:
        ValueError: A test input has no solution.
    """
    solutions = [pair.get("output") for pair in task["test"]]
    if None in solutions:
        raise ValueError(
            f"Task {task['id']} has no output of test input {solutions.index(None) + 1}, so that it cannot be graded; add the "
            "solutions."
        )
    return all(as_grid(solution) in own for solution, own in zip(solutions, predicted, strict=True))
