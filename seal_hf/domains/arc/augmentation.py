"""
Training data from the demonstrations of an ARC task, as test-time training makes it (Akyürek et al., arXiv 2411.07279, and
SEAL, section 4.1).

Each demonstration in turn becomes what is to be predicted from the others, with all of them and with one more left out. The
tools make further tasks of these, and every one comes again with other colours and another order of its demonstrations.

Deviations from the scripts of SEAL's authors: everything drawn follows from a seed and the task's id alone, so that all processes
draw the same; the tool that shifts grids shifts all grids of a task by the same; what is too long is told by its characters,
which are at least its tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .grids import MAX_SIDE, NUM_COLOURS, Grid
from .tasks import demonstrations
from .transforms import Transform, recolour, tools


MAX_TASKS, MAX_CHARACTERS = 250, 8192
NO_TOOL = "none"
Pair = tuple[Grid, Grid]


@dataclass(frozen=True)
class TrainingTask:
    """
    A task to train on.

    Parameters:
        demonstrations (`tuple[tuple[Grid, Grid], ...]`):
            What is shown: pairs of input and output.
        test (`tuple[Grid, Grid]`):
            The input that is asked for, and its output.
    """

    demonstrations: tuple[Pair, ...]
    test: Pair

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All its grids."""
        return tuple(chain.from_iterable((*self.demonstrations, self.test)))

    @property
    def num_characters(self) -> int:
        """Cells and ends of rows of all its grids."""
        return sum(len(grid) * (len(grid[0]) + 1) for grid in self.grids)

    def changed(self, transform: Transform) -> "TrainingTask":
        """The same task with every grid transformed."""
        *shown, test = ((transform(source), transform(target)) for source, target in (*self.demonstrations, self.test))
        return TrainingTask(tuple(shown), test)


@dataclass(frozen=True)
class Augmented:
    """
    What is made of the demonstrations of an ARC task.

    Parameters:
        by_tool (`dict[str, list[TrainingTask]]`):
            What each tool makes, by its name, before copies are made; without a tool by `"none"`. None of a tool whose grids are
            all too large.
        drawn (`list[TrainingTask]`):
            The training tasks.
    """

    by_tool: dict[str, list[TrainingTask]]
    drawn: list[TrainingTask]


def training_tasks(
    task: Mapping[str, Any], groups: Sequence[str], seed: int, max_tasks: int | None = MAX_TASKS
) -> list[TrainingTask]:
    """
    Make training tasks of the demonstrations of an ARC task.

    Args:
        task (`Mapping[str, Any]`):
            The task (see [`check_task`]); its test inputs are not looked at.
        groups (`Sequence[str]`):
            The tools to use: any of `"basic"`, `"size"`, `"chain"` and `"repeat"`.
        seed (`int`):
            Of all that is drawn, together with the task's id.
        max_tasks (`int`, *optional*, defaults to `250`):
            Most tasks; all where it is `None`.

    Returns:
        `list[TrainingTask]`: distinct ones, none with a grid of more than 30 x 30 cells or of 8192 characters and more, in an order
            that was drawn.
    """
    return augment(task, groups, seed, max_tasks).drawn


def augment(task: Mapping[str, Any], groups: Sequence[str], seed: int, max_tasks: int | None = MAX_TASKS) -> Augmented:
    """As [`training_tasks`], with what each tool has made."""
    generator = np.random.default_rng([seed, *str(task["id"]).encode()])
    by_tool = _by_tool(demonstrations(task), groups, generator)
    made = list(dict.fromkeys(chain.from_iterable(by_tool.values())))
    # Without a tool the authors' copies have the same colours.
    copies = [_reordered(_recoloured(one, generator) if groups else one, generator) for one in made]
    distinct = list(dict.fromkeys([*made, *copies]))
    order = generator.permutation(len(distinct))
    return Augmented(by_tool, [distinct[place] for place in order[:max_tasks]])


def _by_tool(
    pairs: Sequence[Pair], groups: Sequence[str], generator: np.random.Generator
) -> dict[str, list[TrainingTask]]:
    # No tool makes a grid smaller.
    own = [one for one in (*leave_one_out(pairs), *leave_two_out(pairs)) if _fits(one)]
    down, right = (int(value) for value in generator.integers(0, 4, size=2))
    by_group = tools(down, right)
    chosen = {name: tool for group in groups for name, tool in by_group[group].items()}
    made = {name: [changed for one in own if _fits(changed := one.changed(tool))] for name, tool in chosen.items()}
    return {NO_TOOL: own, **made}


def leave_one_out(pairs: Sequence[Pair]) -> list[TrainingTask]:
    """Each demonstration asked for, with the others shown."""
    return [TrainingTask((*pairs[:i], *pairs[i + 1 :]), pairs[i]) for i in range(len(pairs))]


def leave_two_out(pairs: Sequence[Pair]) -> list[TrainingTask]:
    """Each demonstration asked for, with all others but one shown; of two demonstrations none is shown."""
    return [
        TrainingTask(tuple(pair for k, pair in enumerate(pairs) if k not in (i, j)), pairs[i])
        for i in range(len(pairs))
        for j in range(len(pairs))
        if i != j
    ]


def colours_permuted(grids: Sequence[Grid], generator: np.random.Generator) -> dict[int, int]:
    """
    A permutation of the colours that occur, which keeps 0: each becomes one that does not occur, as far as there are any, and the
    rest change places.
    """
    used = sorted({cell for grid in grids for row in grid for cell in row} - {0})
    free = [int(colour) for colour in generator.permutation(NUM_COLOURS) if colour and colour not in used]
    shuffled = [used[place] for place in generator.permutation(len(used))]
    moved, left = shuffled[: len(free)], shuffled[len(free) :]
    return {**dict(zip(moved, free, strict=False)), **dict(zip(left, left[1:] + left[:1], strict=True))}


def _recoloured(task: TrainingTask, generator: np.random.Generator) -> TrainingTask:
    colours = colours_permuted(task.grids, generator)
    return task.changed(lambda grid: recolour(colours, grid))


def _reordered(task: TrainingTask, generator: np.random.Generator) -> TrainingTask:
    order = generator.permutation(len(task.demonstrations))
    return TrainingTask(tuple(task.demonstrations[place] for place in order), task.test)


def _fits(task: TrainingTask) -> bool:
    is_small = all(len(grid) <= MAX_SIDE and len(grid[0]) <= MAX_SIDE for grid in task.grids)
    return is_small and task.num_characters < MAX_CHARACTERS
