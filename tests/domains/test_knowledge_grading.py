"""How the knowledge domain has answers graded."""

import pytest

from helpers.passages import BEES, MOTHS
from seal_hf.domains import KnowledgeDomain
from seal_hf.grading import JudgeGrader, LexicalGrader


class RecordingGrader:
    """Calls an answer right when it equals the gold answer, ungradable when it is empty; remembers its calls."""

    def __init__(self):
        self.calls = []

    def grade(self, questions, golds, answers):
        self.calls.append((questions, golds, answers))
        return [None if not answer else answer == gold for gold, answer in zip(golds, answers, strict=True)]


class RecordingJudge(RecordingGrader, JudgeGrader):
    def __init__(self, prompt):
        JudgeGrader.__init__(self, "judge-model", prompt=prompt)
        RecordingGrader.__init__(self)


@pytest.mark.parametrize("answer_prompt", ["default", "paper"])
@pytest.mark.parametrize(
    ("grader", "prefix"),
    [(RecordingGrader(), ""), (RecordingJudge("default"), ""), (RecordingJudge("paper"), "Topic: Ann's bees\n")],
    ids=["no judge", "judge", "the paper's judge"],
)
def test_the_papers_judge_is_told_the_topic(grader, prefix, answer_prompt):
    KnowledgeDomain(grader=grader, answer_prompt=answer_prompt).grade([BEES, MOTHS], [["Ann", "Vell"], ["lamps"]])
    questions, _, _ = grader.calls[-1]
    assert questions == [f"{prefix}Who keeps bees?", f"{prefix}Where are the bees?", "What is liked?"]


def test_grade_calls_the_grader_once_and_regroups():
    grader = RecordingGrader()
    domain = KnowledgeDomain(grader=grader)
    verdicts = domain.grade([BEES, MOTHS, BEES], [["Ann", "here"], ["lamps"], ["", "Vell"]])
    assert verdicts == [[True, False], [True], [None, True]]
    [(questions, golds, answers)] = grader.calls
    assert questions == [
        "Who keeps bees?",
        "Where are the bees?",
        "What is liked?",
        "Who keeps bees?",
        "Where are the bees?",
    ]
    assert golds == ["Ann", "Vell", "lamps", "Ann", "Vell"]
    assert answers == ["Ann", "here", "lamps", "", "Vell"]


def test_grade_refuses_a_wrong_number_of_answers():
    domain = KnowledgeDomain(grader=RecordingGrader())
    with pytest.raises(ValueError):
        domain.grade([BEES], [["Ann"]])
    with pytest.raises(ValueError):
        domain.grade([BEES, MOTHS], [["Ann", "Vell"]])


def test_default_grader():
    domain = KnowledgeDomain()
    assert isinstance(domain.grader, LexicalGrader)
    assert domain.grade([BEES], [["It is Ann who keeps them.", "Nobody knows."]]) == [[True, False]]


def test_short_answers_are_told_by_their_gold_answers():
    example = {
        "context": "?",
        "questions": [{"question": "Who?", "answer": gold} for gold in ("Ann", ["Ann", "a b c d e f"])],
    }
    answer = " ".join(["so"] * 18)
    assert KnowledgeDomain().short(example, [answer, answer]) == [False, True]
    assert KnowledgeDomain().short(example, ["Ann", f"{answer} so"]) == [True, False]
