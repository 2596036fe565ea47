"""What is asked about an ARC task, and how the predictions vote."""

import pytest

from seal_hf.domains.arc.prediction import Question, attempts, is_solved, questions_of
from seal_hf.domains.arc.tasks import check_task
from seal_hf.domains.arc.transforms import VIEWS, flip_left_right


GRIDS = [[[i, 0, 1], [2, 3, i]] for i in range(4, 10)]
RIGHT, WRONG, OTHER = (tuple(map(tuple, grid)) for grid in GRIDS[:3])


def task(number=3, num_tests=1, **changes):
    pairs = [{"input": grid, "output": grid[::-1]} for grid in GRIDS]
    return check_task({"id": "t", "train": pairs[:number], "test": pairs[number : number + num_tests], **changes})


@pytest.mark.parametrize(
    ("number", "least", "most"), [(1, 1 + 5, 1 + 5), (2, 2 + 5, 2 + 5), (3, 3 + 5, 9 + 5), (5, 10 + 5, 15 + 5)]
)
def test_the_contexts_of_a_test_input(number, least, most):
    own = task(number)
    questions = questions_of(own, 0)
    assert least <= len(questions) <= most and len(set(questions)) == len(questions)
    pairs = {(pair["input"], pair["output"]) for pair in own["train"]}
    plain = [one for one in questions if one.view == "identity"]
    assert all(one.grid == own["test"][0]["input"] and set(one.demonstrations) <= pairs for one in plain)
    assert {len(one.demonstrations) for one in plain} == {max(1, number - 1)}
    # Every demonstration is left out once.
    assert len({frozenset(one.demonstrations) for one in plain}) == (number if number > 1 else 1)
    for one in questions:
        back = VIEWS[one.view][1]
        assert one.turned_back(one.grid) == own["test"][0]["input"]
        assert {(back(source), back(target)) for source, target in one.demonstrations} <= pairs
    assert [one.view for one in questions[-5:]] == [
        "transpose",
        "flip_up_down",
        "flip_left_right",
        "rotate_90",
        "rotate_180",
    ]


def test_the_task_and_the_seed_decide_what_is_drawn():
    assert questions_of(task(4), 0) == questions_of(task(4), 0)
    assert questions_of(task(4), 0) != questions_of(task(4), 1)
    assert questions_of(task(4), 0) != questions_of(task(4, id="u"), 0)


def test_every_test_input_is_asked_for():
    questions = questions_of(task(3, 2), 0)
    assert [one.test for one in questions] == sorted(one.test for one in questions) and {
        one.test for one in questions
    } == {0, 1}


def asked(*views, test=0):
    return [Question(test, view, (), ((0,),)) for view in views]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([RIGHT, RIGHT, WRONG], [RIGHT, WRONG]),
        ([WRONG, RIGHT, OTHER, RIGHT], [RIGHT, WRONG]),
        ([None, RIGHT, None], [RIGHT]),
        ([None, None], []),
    ],
)
def test_the_most_frequent_win(outputs, expected):
    assert attempts(asked(*["identity"] * len(outputs)), outputs) == [expected]


def test_views_are_turned_back_and_have_one_vote_each():
    questions = asked("flip_left_right", "flip_left_right", "identity", "identity", "identity")
    turned = flip_left_right(WRONG)
    assert attempts(questions, [turned, turned, RIGHT, RIGHT, RIGHT]) == [[RIGHT, WRONG]]
    # Of a tie the one that was predicted without a view.
    assert attempts(asked("flip_left_right", "identity"), [turned, RIGHT]) == [[RIGHT, WRONG]]


def test_test_inputs_vote_apart():
    questions = asked("identity", test=1) + asked("identity", test=0)
    assert attempts(questions, [RIGHT, WRONG]) == [[WRONG], [RIGHT]]


def test_a_task_is_solved_by_one_right_attempt_at_every_test_input():
    own = task(3, 2)
    first, second = (pair["output"] for pair in own["test"])
    assert is_solved(own, [[WRONG, first], [second]])
    assert not is_solved(own, [[first], [WRONG, OTHER]]) and not is_solved(own, [[first], []])
    with pytest.raises(ValueError, match="Task t has no output of test input 2, so that it cannot be graded"):
        is_solved({**own, "test": [own["test"][0], {"input": RIGHT}]}, [[first], [second]])
