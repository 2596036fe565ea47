"""The rubric: what is asked, how replies are read, and what the scores come to."""

import json

import pytest

from seal_hf.grading import JudgeRefused, RubricJudge
from seal_hf.grading.rubric import parse_scores, rubric_prompt, rubric_reward


ALL_FOUR = "Length: 4\nDiversity: 2\nQuality: 3\nCorrectness: 5"


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        (ALL_FOUR, [4, 2, 3, 5]),
        ("**Length** (1 to 5): 4/5, **Diversity**: 2/5; quality = 3.5 and correctness 5", [4, 2, 3.5, 5]),
        ('{"length": 1, "diversity": 1, "quality": 1, "correctness": 1}', [1, 1, 1, 1]),
        (f"<think>Length: 1, Diversity: 1, Quality: 1, Correctness: 1</think>{ALL_FOUR}", [4, 2, 3, 5]),
        ("Length: 4\nDiversity: 2\nQuality: 3", None),
        ("Length: 0\nDiversity: 2\nQuality: 3\nCorrectness: 5", None),
        ("Length: 10\nDiversity: 2\nQuality: 3\nCorrectness: 5", None),
        ("They are good.", None),
        ("", None),
    ],
)
def test_scores_of_a_reply(reply, scores):
    names = ("length", "diversity", "quality", "correctness")
    assert parse_scores(reply) == (scores and dict(zip(names, scores, strict=True)))


def test_the_reward_is_the_sum_of_the_scores_from_0_to_1():
    names = ("length", "diversity", "quality", "correctness")
    for scores, reward in (([1] * 4, 0), ([5] * 4, 1), ([4, 2, 3, 5], 10 / 16)):
        assert rubric_reward(dict(zip(names, scores, strict=True))) == pytest.approx(reward)


def test_places_that_texts_name_are_not_filled():
    prompt = rubric_prompt("A {notes} text. ", "Some {text}.")
    assert "Text:\nA {notes} text.\n\nNotes:\nSome {text}.\n" in prompt


def judge(server):
    return RubricJudge("judge-model", base_url=server.url, api_key="k", initial_wait=0.01, timeout=10.0)


def test_a_judge_scores_self_edits(serve, caplog):
    def respond(prompt, attempt):
        if "bad" in prompt:
            return 200, "no idea"
        return (500, b"{}") if attempt == 1 else (200, ALL_FOUR)

    server = serve(respond)
    scores = judge(server).score(["Bees."] * 3, ["good", "bad", "good"])
    assert scores == [parse_scores(ALL_FOUR), None, parse_scores(ALL_FOUR)]
    assert len(server.attempts) == 2  # equal ones once
    assert "1 of 3 self-edits could not be scored; the last: the reply 'no idea' is not in the form" in caplog.text
    assert {request["temperature"] for *_, request in server.requests} == {0.0}


def test_a_judge_that_refuses_ends_the_scoring(serve):
    server = serve(lambda prompt, attempt: (401, json.dumps({"error": "no"}).encode()))
    with pytest.raises(JudgeRefused, match="The judge 'judge-model'"):
        judge(server).score(["Bees."], ["good"])
