"""How the answers to the questions of passages are graded."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...grading import JudgeGrader, gold_answers
from .questions import question_about


class Grader(Protocol):
    """What [`KnowledgeDomain`] asks of a grader, such as [`LexicalGrader`] or [`JudgeGrader`]."""

    def grade(self, questions: list[str], golds: list[str | list[str]], answers: list[str]) -> list[bool | None]: ...


def grade_answers(
    grader: Grader, examples: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]
) -> list[list[bool | None]]:
    """
    Judge the answers to the questions of many passages with one call of the grader (see [`KnowledgeDomain.grade`]).

    Raises:
        ValueError: The number of answers differs from the number of questions.
    """
    names_topic = isinstance(grader, JudgeGrader) and grader.prompt == "paper"
    rows = [
        (question_about(example, item) if names_topic else item["question"], _gold(item["answer"]), answer)
        for example, example_answers in zip(examples, answers, strict=True)
        for item, answer in zip(example["questions"], example_answers, strict=True)
    ]
    verdicts = iter(
        grader.grade(
            [question for question, _, _ in rows], [gold for _, gold, _ in rows], [answer for *_, answer in rows]
        )
    )
    return [[next(verdicts) for _ in example_answers] for example_answers in answers]


def _gold(answer: Any) -> Any:
    """One gold answer as a text, several as a list; what is neither is the grader's to refuse."""
    accepted = gold_answers(answer)
    return answer if accepted is None else accepted[0] if len(accepted) == 1 else list(accepted)
