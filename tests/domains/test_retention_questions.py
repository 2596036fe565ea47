"""The general questions that ship: each has a short answer that the grader takes, and no passage gives it away."""

import pytest

from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.domains.knowledge.passages import load_retention_questions
from seal_hf.domains.knowledge.questions import is_question
from seal_hf.grading import gold_answers, is_short


QUESTIONS = load_retention_questions()


def test_there_are_twenty():
    assert len({item["question"] for item in QUESTIONS}) == len(QUESTIONS) == 20
    assert all(map(is_question, QUESTIONS))
    assert {"What is the capital of France?", "What is 7 times 8?"} < {item["question"] for item in QUESTIONS}


@pytest.mark.parametrize("chat", [True, False])
def test_they_are_asked_without_a_topic_and_graded(chat):
    domain = KnowledgeDomain(chat=chat)
    example = domain.retention_example()
    prompts = domain.questions(example)
    assert prompts == domain.ask([item["question"] for item in QUESTIONS])
    assert not any("Topic" in str(prompt) for prompt in prompts)
    for place in range(2):
        right = [gold_answers(item["answer"])[place:] or gold_answers(item["answer"]) for item in QUESTIONS]
        assert domain.grade([example], [[accepted[0] for accepted in right]]) == [[True] * 20]
    assert domain.grade([example], [["I do not know."] * 20]) == [[False] * 20]
    assert all(is_short(text, ()) for item in QUESTIONS for text in gold_answers(item["answer"]))


def test_no_passage_is_about_one_of_them():
    asked = [item["question"] for item in QUESTIONS]
    for passage in [one for split in ("train", "test") for one in load_demo_passages(split)]:
        answers = [text for item in QUESTIONS for text in gold_answers(item["answer"]) if text[0].isupper()]
        assert not [answer for answer in answers if answer in passage["context"] and answer != "January"]
        assert not {item["question"] for item in passage["questions"]} & set(asked)
