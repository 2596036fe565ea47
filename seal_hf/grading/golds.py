"""Gold answers: one or several for a question."""

from collections.abc import Mapping, Sequence
from typing import Any


MOST_DIGITS = 300  # of a number; a float has no more


def gold_answers(answer: Any) -> tuple[str, ...] | None:
    """
    Read the gold answer of a question, or the several of which each is right.

    Args:
        answer (`Any`):
            A text, a number, or a list of texts or numbers, as it stands in a file or in a call; or SQuAD's
            `{"text": [...]}` or `[{"text": ...}]`, whose blank texts are left out.

    Returns:
        `tuple[str, ...]` or `None`: The texts without surrounding white space, each once, in their order. `None` where
        the value is nothing of the kind, such as NaN, or holds an empty text.

    Example:

    ```python
    >>> gold_answers("Ann"), gold_answers(["the keeper", "Ann", "Ann"]), gold_answers(7), gold_answers([])
    (('Ann',), ('the keeper', 'Ann'), ('7',), None)
    >>> gold_answers({"text": ["the keeper", "Ann"], "answer_start": [0, 12]})
    ('the keeper', 'Ann')

    ```
    """
    texts = [str(value).strip() if _is_number(value) or isinstance(value, str) else "" for value in _values(answer)]
    return tuple(dict.fromkeys(texts)) if texts and all(texts) else None


def _values(answer: Any) -> list[Any]:
    values = []
    for one in answer if isinstance(answer, list | tuple) else [answer]:
        if isinstance(one, Mapping):
            texts = one.get("text")
            texts = texts if isinstance(texts, list | tuple) else [texts]
            values += [text for text in texts if not isinstance(text, str) or text.strip()]
        else:
            values.append(one)
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def is_finite(number: int | float) -> bool:
    """Whether a number is neither infinite nor NaN and has at most 300 digits."""
    # By comparison, since no float holds some integers. It is False for NaN.
    return -(10**MOST_DIGITS) < number < 10**MOST_DIGITS


def show_gold_answers(answer: Any) -> str:
    """The gold answer as people read and write it in one line; several are parted by `" | "`."""
    return " | ".join(gold_answers(answer) or ())


def check_inputs(
    questions: Sequence[str], golds: Sequence[str | Sequence[str]], answers: Sequence[str]
) -> list[tuple[str, tuple[str, ...], str]]:
    """
    Check what a grader is given.

    Returns:
        `list[tuple[str, tuple[str, ...], str]]`: For each answer the question, its gold answers and the answer.

    Raises:
        ValueError: The three lengths differ, or a question has no gold answer or an empty one.
    """
    if not len(questions) == len(golds) == len(answers):
        raise ValueError(
            "`questions`, `golds` and `answers` must have the same length, but have "
            f"{len(questions)}, {len(golds)} and {len(answers)}."
        )
    rows = []
    for question, gold, answer in zip(questions, golds, answers, strict=True):
        if (accepted := gold_answers(gold)) is None:
            raise ValueError(f"The gold answer to {question!r} is empty; remove the question or fill in its answer.")
        rows.append((question, accepted, answer))
    return rows
