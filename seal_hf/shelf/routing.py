"""
Which passage a question is about: BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) over titles,
passages and learned questions.

The passages that ship are in the index too, with their questions, and are never chosen. So a word that any text has counts for
little on a shelf of one book as well. A score of 1 is what a word counts that one passage alone has; this makes the scores of
shelves of different sizes alike. The threshold was chosen on the training passages (docs/shelf.md).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log1p

import numpy as np

from ..domains import load_demo_passages
from ..grading.statements import UNSPACED
from .book import Book, LearnedPassage


THRESHOLD = 0.8
# The beginning of a word stands for its forms.
_LONGEST_WORD = 6  # letters
# Of a question, words of fewer letters count only as names or numbers: most languages have their "what is the" among them.
_SHORTEST_WORD = 4
_TITLE_COUNTS = 2
_WORD = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_KANA = re.compile("[\u3040-\u309f]")  # hiragana, in which Japanese writes endings and particles


@dataclass(frozen=True)
class Route:
    """
    Where a question goes.

    Parameters:
        book ([`Book`]), passage ([`LearnedPassage`]):
            What the question fits best.
        score (`float`):
            How well it fits.
        threshold (`float`):
            The least score with which it is asked of the adapter.
    """

    book: Book
    passage: LearnedPassage
    score: float
    threshold: float = THRESHOLD

    @property
    def fits(self) -> bool:
        """Whether the adapter of the passage is to answer, rather than the base model."""
        return self.score >= self.threshold

    @property
    def number(self) -> int:
        """The number of the passage in its book, from 1."""
        return self.book.passages.index(self.passage) + 1


class Router:
    """
    The index of a shelf.

    Parameters:
        books (`Sequence[Book]`):
            The books. Of equal passages the first one is chosen.
    """

    def __init__(self, books: Sequence[Book]):
        import bm25s  # takes longer to import than anything that lists the books

        self._places = [(book, passage) for book in books for passage in book.passages]
        own = (_words_of(one.title, one.text, one.pairs) for _, one in self._places)
        documents = [*own, *_other_documents()]
        self._unique = log1p((len(documents) - 0.5) / 1.5)  # what a word of one document counts
        self._index = bm25s.BM25()
        self._index.index(documents, show_progress=False)

    def route(self, question: str) -> Route | None:
        """
        The passage that a question fits best; `None` where there is no book.

        Args:
            question (`str`):
                The question, in the language of the passage.
        """
        if not self._places:
            return None
        words = [word for word in dict.fromkeys(_telling_words(question)) if word in self._index.vocab_dict]
        if not words:
            return Route(*self._places[0], 0.0)
        scores = self._index.get_scores(words)[: len(self._places)] / self._unique
        best = int(np.argmax(scores))
        return Route(*self._places[best], float(scores[best]))


@lru_cache(maxsize=1)
def _other_documents() -> list[list[str]]:
    passages = load_demo_passages("train")
    return [
        _words_of(one["title"], one["context"], [(item["question"], item["answer"]) for item in one["questions"]])
        for one in passages
    ]


def _words_of(title: str, text: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    told = "\n".join(f"{question} {answer}" for question, answer in pairs)
    return [*_words(title) * _TITLE_COUNTS, *_words(text), *_words(told)]


def _words(text: str) -> list[str]:
    """Beginnings of words; of scripts without spaces each two letters that stand together."""
    return [part for word in _WORD.findall(text) for part in _parts(word)]


def _telling_words(question: str) -> list[str]:
    """The words of a question without those that most questions have."""
    found: list[str] = []
    for place, word in enumerate(_WORD.findall(question)):
        if _UNSPACED.match(word):
            found += [part for part in _parts(word) if not _KANA.search(part)]
        elif len(word) >= _SHORTEST_WORD or any(letter.isdigit() or (place and letter.isupper()) for letter in word):
            found += _parts(word)
    return found


def _parts(word: str) -> list[str]:
    word = word.casefold()
    if _UNSPACED.match(word):
        return [word[place : place + 2] for place in range(max(1, len(word) - 1))]
    return [word[:_LONGEST_WORD]]
