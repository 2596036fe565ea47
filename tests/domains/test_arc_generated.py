"""The generated family of small ARC-like tasks."""

import re
from collections import Counter

import pytest

from seal_hf.domains.arc.augmentation import training_tasks
from seal_hf.domains.arc.generated import RULES, generate_tasks
from seal_hf.domains.arc.tasks import demonstrations


TASKS = generate_tasks(120, seed=3)


def of(rule):
    return [task for task in TASKS if task["rule"] == rule]


def pairs_of(task):
    return [*demonstrations(task), *((pair["input"], pair["output"]) for pair in task["test"])]


def test_each_rule_gives_as_many_tasks():
    assert Counter(task["rule"] for task in TASKS) == dict.fromkeys(RULES, 20)
    assert len({task["id"] for task in TASKS}) == len({repr(pairs_of(task)) for task in TASKS}) == 120
    for task in TASKS:
        pairs = pairs_of(task)
        assert len(pairs) == len(set(pairs)) == 4 and all(source != target for source, target in pairs)
        assert all(3 <= len(grid) <= 6 and 3 <= len(grid[0]) <= 6 for grid, _ in pairs)


def test_the_seed_decides_and_the_first_ones_do_not_depend_on_the_number():
    assert generate_tasks(6, seed=3) == TASKS[:6] and generate_tasks(6, seed=4) != TASKS[:6]
    assert [task["rule"] for task in generate_tasks(3, rules=("fill", "count"))] == ["fill", "count", "fill"]


@pytest.mark.parametrize(
    ("number", "rules", "message"),
    [(0, RULES, "number=0"), (1, ("spin",), "no rule 'spin'"), (1, (), "no rule 'nothing'")],
)
def test_what_cannot_be_generated(number, rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate_tasks(number, rules=rules)


@pytest.mark.parametrize("task", of("recolour"), ids=lambda task: task["id"])
def test_a_recolouring_is_one_for_the_whole_task(task):
    seen = {}
    for source, target in pairs_of(task):
        for row, other in zip(source, target, strict=True):
            for cell, new in zip(row, other, strict=True):
                assert seen.setdefault(cell, new) == new


@pytest.mark.parametrize("task", [*of("flip"), *of("shift")], ids=lambda task: task["id"])
def test_cells_move_and_stay_what_they_are(task):
    for source, target in pairs_of(task):
        assert sorted(sum(source, ())) == sorted(sum(target, ()))


@pytest.mark.parametrize("task", of("fill"), ids=lambda task: task["id"])
def test_a_filling_gives_lines_one_colour(task):
    def is_filled(source, target):
        return all(
            len(set(after)) == 1 and after[0] == next((cell for cell in before if cell), 0)
            for before, after in zip(source, target, strict=True)
        )

    columns = [tuple(tuple(zip(*grid, strict=True)) for grid in pair) for pair in pairs_of(task)]
    assert all(is_filled(*pair) for pair in pairs_of(task)) or all(is_filled(*pair) for pair in columns)


@pytest.mark.parametrize("task", of("count"), ids=lambda task: task["id"])
def test_a_count_is_a_row_of_the_cells(task):
    for source, (row,) in pairs_of(task):
        cells = [cell for line in source for cell in line if cell]
        assert list(row) == (cells or [0])


def test_the_tools_make_training_tasks_of_them():
    made = training_tasks(TASKS[0], ("basic",), 0)
    assert len(made) > 100 and max(one.num_characters for one in made) < 1000
