"""Retrieval as a condition: what a user would do without any training."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...self_edit import Prompt
from ..base import Condition
from .domain import KnowledgeDomain


RETRIEVAL = "retrieval"


def retrieval_condition(domain: KnowledgeDomain, passages: Sequence[Mapping[str, Any]]) -> Condition:
    """
    The base model with the passage in view that BM25 finds for each question among all of them.

    What is looked for are the topic and the question, which are in the closed-book prompt too. A question for which no passage
    has a word is asked closed-book.

    Args:
        domain ([`KnowledgeDomain`]):
            How questions are asked.
        passages (`Sequence[Mapping[str, Any]]`):
            What is searched: titles and texts.

    Returns:
        [`Condition`]: nothing is trained under it.
    """
    routes = domain.routes(passages)

    def questions(example: Mapping[str, Any]) -> list[Prompt]:
        return [
            domain.questions(one)[0]
            if place is None
            else domain.questions_in_context({**passages[place], "questions": one["questions"]})[0]
            for one, place in zip(_each(example), routes(example), strict=True)
        ]

    return Condition(RETRIEVAL, questions)


def _each(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An example for each of its questions."""
    return [{**example, "questions": [item]} for item in example["questions"]]
