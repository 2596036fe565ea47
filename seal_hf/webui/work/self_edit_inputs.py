"""Self-edits as a visitor gives them, who may have changed them on the page. An error is one sentence with one next step."""

from collections.abc import Mapping, Sequence

from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit, TrainingExample
from ..languages import Message
from .inputs import LONGEST_PASSAGE, LONGEST_TYPED_QUESTION, MOST_ENTRIES, check_length, clean, has_words
from .session_items import Draft


MAX_PAIRS = 100  # of one self-edit


def checked_self_edits(
    lm: SelfAdaptingLM, example: Mapping, drafts: Sequence[Draft], chosen: Sequence[int]
) -> list[SelfEdit]:
    """
    The chosen drafts as self-edits.

    Raises:
        ValueError: None is chosen, or one is empty, far too long or has too many questions.
    """
    if not chosen:
        raise ValueError(Message("inputs.none_chosen"))
    self_edits = []
    for number in chosen:
        if not 0 <= number < len(drafts):
            raise ValueError(Message("inputs.no_self_edit", number=number + 1, most=len(drafts)))
        draft, name = drafts[number], Message("common.self_edit", number=number + 1)
        check_length(name, draft.text, LONGEST_PASSAGE)
        text = clean(draft.text)
        if draft.pairs is None:
            self_edit = lm.domain.parse(text, example) if has_words(text) else None
        else:
            statements = lm.domain.statements(text) if has_words(text) else []
            self_edit = lm.domain.self_edit_of(_checked_pairs(name, draft.pairs), example, statements)
        if self_edit is None:
            raise ValueError(Message("inputs.empty_self_edit", name=name))
        _check_count(name, len(self_edit.calls))
        self_edits.append(self_edit)
    return self_edits


def _checked_pairs(name: str, rows: Sequence[Sequence[object]]) -> list[tuple[str, str]]:
    """The questions with their answers of a self-edit, without rows that are empty."""
    if len(rows) > MOST_ENTRIES:
        _check_count(name, len(rows))
    pairs = []
    for number, row in enumerate(rows, 1):
        for cell in row[:2]:
            check_length(Message("inputs.pair", name=name, number=number), cell, LONGEST_TYPED_QUESTION)
        question, answer = ([*map(clean, row[:2]), "", ""])[:2]
        if not question and not answer:
            continue
        if not has_words(question):
            raise ValueError(Message("inputs.pair_without_question", name=name, number=number))
        if not has_words(answer):
            raise ValueError(Message("inputs.pair_without_answer", name=name, number=number))
        pairs.append((" ".join(question.split()), " ".join(answer.split())))
    _check_count(name, len(pairs))
    return pairs


def _check_count(name: str, num_questions: int) -> None:
    if num_questions > MAX_PAIRS:
        raise ValueError(Message("inputs.many_pairs", name=name, count=num_questions, most=MAX_PAIRS))


def texts_of(self_edit: SelfEdit) -> list[str]:
    """The texts that a self-edit trains on. Questions that the model will answer are among them as they are."""
    return [*self_edit.calls, *map(_text_of, self_edit.examples)]


def _text_of(example: TrainingExample) -> str:
    """A training example as a text: what is asked, without the template of a chat, and what is answered."""
    if isinstance(example.prompt, str):
        return example.prompt + example.completion
    return "\n".join([*(message["content"] for message in example.prompt), example.completion])
