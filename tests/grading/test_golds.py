import pytest

from seal_hf.grading import LexicalGrader, gold_answers, show_gold_answers


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        ("Ann", ("Ann",)),
        (" Ann\n", ("Ann",)),
        (["the keeper", "Ann"], ("the keeper", "Ann")),
        (("Ann", "Ann ", "the keeper"), ("Ann", "the keeper")),
        (1874, ("1874",)),
        (1.5, ("1.5",)),
        ([1874, "in 1874"], ("1874", "in 1874")),
        ("", None),
        (" ", None),
        ([], None),
        (["Ann", " "], None),
        (["Ann", None], None),
        ([["Ann"]], None),
        (None, None),
        (True, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        ({"text": ["the keeper", "Ann"], "answer_start": [0, 12]}, ("the keeper", "Ann")),
        ({"text": ["", "Ann"]}, ("Ann",)),
        ({"text": "Ann"}, ("Ann",)),
        ([{"text": "the keeper", "answer_start": 0}, {"text": "Ann"}, {"text": " "}], ("the keeper", "Ann")),
        ({"text": []}, None),
        ({"text": [["Ann"]]}, None),
        ({"a": 1}, None),
    ],
)
def test_gold_answers(answer, golds):
    assert gold_answers(answer) == golds


def test_gold_answers_in_a_line():
    assert show_gold_answers("Ann") == "Ann"
    assert show_gold_answers(["the keeper", "Ann"]) == "the keeper | Ann"
    assert show_gold_answers(None) == ""


def test_any_of_squads_texts_is_right():
    golds = [{"text": ["the keeper", "Edric Molloway"]}] * 2
    assert LexicalGrader().grade(["Who lit it?"] * 2, golds, ["Edric Molloway", "The cook"]) == [True, False]


def test_any_of_several_gold_answers_is_right():
    golds = [["the keeper", "Edric Molloway"]] * 3 + ["Ann"]
    answers = ["Edric Molloway", "It was the keeper.", "The cook.", "Ann"]
    assert LexicalGrader().grade(["Who?"] * 4, golds, answers) == [True, True, False, True]


def test_words_of_two_gold_answers_do_not_add_up():
    assert LexicalGrader().grade(["Who?"], [["Edric Molloway", "Halda Tremmery"]], ["Edric and Halda"]) == [False]
