"""What the options of a [`KnowledgeDomain`] and its examples must have."""

from collections.abc import Mapping
from typing import Any

from ..files import fault_of
from .questions import is_question, is_text, items_of
from .training_formats import TRAINING_FORMATS


def check_options(
    training_format: str,
    num_passages: int,
    num_left_out_words: int,
    *,
    is_by_fact: bool,
    lacks_facts: bool,
    sets_training: bool,
) -> None:
    """
    Find out whether options of a [`KnowledgeDomain`] go together.

    Args:
        training_format (`str`), num_passages (`int`), num_left_out_words (`int`), sets_training (`bool`):
            As for [`KnowledgeDomain`].
        is_by_fact (`bool`):
            Whether the style is `"questions-by-fact"`.
        lacks_facts (`bool`):
            Whether the model is to be asked for the facts that are left out, in a style in which there are none.

    Raises:
        ValueError: They do not, or a value is out of its range.
    """
    if training_format not in TRAINING_FORMATS:
        raise ValueError(f"Unknown training_format {training_format!r}: choose one of {', '.join(TRAINING_FORMATS)}.")
    if num_passages < 0 or (num_passages != 1 and training_format == "language_modeling"):
        raise ValueError(
            f"num_passages={num_passages} must be 0 or more, and 1 in the format language_modeling; set "
            "training_format='prompt_completion', or leave it out."
        )
    if is_by_fact and sets_training:
        raise ValueError(
            "The style 'questions-by-fact' writes about each sentence apart, so that no line can set the training of all; "
            "choose another style, or leave sets_training out."
        )
    if lacks_facts:
        raise ValueError(
            "asks_for_left_out=True needs the style 'questions-by-fact', whose questions the model answers; choose "
            "that, or leave it out."
        )
    if num_left_out_words < 0:
        raise ValueError(f"num_left_out_words={num_left_out_words} must be 0 or more.")


def check_passage(example: Mapping[str, Any]) -> None:
    """
    Find out whether an example has a passage. Questions that it has are texts, and need no answers.

    Raises:
        ValueError: Something is missing (see [`Domain.check`]).
    """
    if not is_text(example.get("context")):
        raise ValueError('has no passage; give "context" a text that is not empty, or drop the example.')
    if not isinstance(example.get("title") or "", str):
        raise ValueError('has a "title" that is not a text; put it in quotes, or leave it out.')
    for item in items_of(example):
        if not isinstance(item, Mapping) or not is_text(item.get("question")):
            raise ValueError('has a question without a text; write {"question": ..., "answer": ...}, or drop it.')
    if fault := fault_of({key: example.get(key) for key in ("title", "context", "questions")}):
        raise ValueError(f"has {fault}.")


def check_answers(example: Mapping[str, Any]) -> None:
    """
    Find out whether all questions of an example have answers.

    Raises:
        ValueError: One has none (see [`Domain.check`]).
    """
    for item in example["questions"]:
        if not is_question(item):
            raise ValueError(
                f'has no answer to {item["question"]!r}, so that nothing can be graded; add it as "answer", a text or '
                "a list of several that are right, or drop the question."
            )
