"""Ask a book: its adapter is loaded only where the base model is the one that it was learned on."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..adapters.adapter import Adapter
from ..models.identity import same_base, weights_fingerprint
from ..models.loading import base_facts
from ..self_adapting_lm import SelfAdaptingLM
from .book import Book, LearnedPassage


_WEIGHTS = "weights_fingerprint"
OTHER_BASE, CHANGED_BASE = "other", "changed"  # than a book was learned on


@dataclass(frozen=True)
class ShelfAnswer:
    """
    An answer, and who gave it.

    Parameters:
        text (`str`):
            The answer.
        book ([`Book`], *optional*), passage ([`LearnedPassage`], *optional*):
            Whose adapter answered; `None` for the base model.
    """

    text: str
    book: Book | None = None
    passage: LearnedPassage | None = None


def base_of(lm: SelfAdaptingLM) -> dict[str, str | None]:
    """Which base model a book is learned on: commit, dtype, quantization, and fingerprints of architecture and weights."""
    return {**base_facts(lm.model), _WEIGHTS: weights_fingerprint(lm.model)}


def base_difference(book: Book, base_model_id: str, base: Mapping[str, str | None]) -> str | None:
    """
    How a base model differs from the one that a book was learned on.

    Args:
        book ([`Book`]):
            The book.
        base_model_id (`str`):
            The base model's identity.
        base (`Mapping[str, str | None]`):
            Which base that is (see [`base_of`]).

    Returns:
        `str`, *optional*: [`OTHER_BASE`] or [`CHANGED_BASE`]; `None` where the book can be asked of it.
    """
    if not same_base(book.base_model_id, base_model_id):
        return OTHER_BASE
    # In another dtype or quantization the same weights have another fingerprint.
    is_alike = all(book.base.get(key) == base[key] for key in ("base_dtype", "quantization"))
    is_other = book.base.get("base_fingerprint") != base["base_fingerprint"]
    return CHANGED_BASE if is_other or (is_alike and book.base.get(_WEIGHTS) != base[_WEIGHTS]) else None


def load_passage(lm: SelfAdaptingLM, book: Book, passage: LearnedPassage) -> Adapter:
    """
    The adapter of a passage.

    Raises:
        ValueError: The book was learned on another base model, or on other weights of this one, or its adapter is damaged.
    """
    difference = base_difference(book, lm.base_model_id, base_of(lm))
    if difference == OTHER_BASE:
        raise ValueError(
            f"The book {book.id} was learned on {book.base_model_id}, but the loaded model is {lm.base_model_id}; ask with "
            f"--model {book.model}, or learn the text again on this one."
        )
    if difference == CHANGED_BASE:
        raise ValueError(
            f"The base model {book.base_model_id} has changed since the book {book.id} was learned on it; restore that model, "
            "or learn the text again."
        )
    return lm.load_adapter(book.adapter_folder(passage))


def ask(
    lm: SelfAdaptingLM,
    question: str,
    book: Book | None = None,
    passage: LearnedPassage | None = None,
    *,
    max_answer_length: int = 64,
) -> ShelfAnswer:
    """
    Ask a passage of a book, or the base model where none is given, without the text in view.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        question (`str`):
            The question.
        book ([`Book`], *optional*), passage ([`LearnedPassage`], *optional*):
            Who is asked, such as [`Shelf.route`] finds it.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.

    Raises:
        ValueError: An empty question, or what [`load_passage`] states.
    """
    if book is None or passage is None:
        return ShelfAnswer(lm.answer(question, max_answer_length=max_answer_length))
    adapter = load_passage(lm, book, passage)
    # The topic of a passage, which its adapter's file has in a form for strangers.
    text = lm.answer(question, adapter=adapter, title=passage.title, max_answer_length=max_answer_length)
    return ShelfAnswer(text, book, passage)
