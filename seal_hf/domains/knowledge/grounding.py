"""
Whether a text supports a question and its answer, as far as words can tell, in any language.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...grading.words import normalize


MAX_ANSWER_WORDS, MAX_ANSWER_CHARACTERS = 12, 100
# Share of a question's longer words that the passage must have; the rest is "which", "year" and other wording.
MIN_SHARED_WORDS = 0.5
# Where nobody sees the passage, a question must not point at it.
_POINTERS = (
    "passage text note paragraph article excerpt Textes Notiz Absatz Abschnitt Artikel texto pasaje nota párrafo "
    "artículo texte extrait brano testo paragrafo articolo tekst 文章 本文 短文 段落 テキスト 지문 본문"
)


def is_about(question: str, example: Mapping[str, Any]) -> bool:
    """
    Whether a question is about a passage, in words that make sense to somebody who does not see it.

    Args:
        question (`str`):
            A question in any language.
        example (`Mapping[str, Any]`):
            The passage; its questions are not looked at.

    Returns:
        `bool`: `True` if the passage or its title has every number and half of the longer words of the question, which
        does not point at "the text".

    Example:

    ```python
    >>> bees = {"title": "Bees", "context": "Ann keeps brown bees in Vell."}
    >>> is_about("Who keeps brown bees?", bees), is_about("What does the text say about bees?", bees)
    (True, False)

    ```
    """
    asked, known = normalize(question), normalize(f"{example.get('title') or ''}\n{example['context']}")
    if any(_occurs(word, asked, whole=True) and not _occurs(word, known) for word in normalize(_POINTERS)):
        return False
    pieces = list(_pieces(asked))
    shared = [piece for piece in pieces if _occurs(piece, known)]
    numbers_known = all(word in known for word in asked if word[0].isdigit())
    return numbers_known and bool(shared) and len(shared) >= MIN_SHARED_WORDS * len(pieces)


def is_grounded(question: str, answer: str, example: Mapping[str, Any]) -> bool:
    """
    Whether an answer stands in the passage and is an answer to the question, as far as words can tell.

    Args:
        question (`str`):
            A question in any language.
        answer (`str`):
            Its answer.
        example (`Mapping[str, Any]`):
            The passage; its questions are not looked at.

    Returns:
        `bool`: `True` if the answer is short, the passage has all its words, and neither the question nor the title,
        which is named with the question, has them all.

    Example:

    ```python
    >>> bees = {"title": "Bees", "context": "Ann keeps brown bees in Vell."}
    >>> [is_grounded("Who keeps brown bees?", answer, bees) for answer in ("Ann", "Bob", "bees")]
    [True, False, False]

    ```
    """
    words = normalize(answer)
    is_short = 0 < len(words) <= MAX_ANSWER_WORDS and len(answer) <= MAX_ANSWER_CHARACTERS
    told = f"{example.get('title') or ''}\n{question}"
    # Without "of" and the like, which make no difference.
    content = " ".join(word for word in words if len(word) > 2 or not word.isalpha() or _has_no_case(word))
    return is_short and says(example["context"], answer) and not says(told, content or answer)


def news(told: str, answer: str) -> str:
    """
    The words of an answer that are not told before. Of one that is longer than four words, those of at most four small letters
    are left out, such as "are" and "from", unless there are no others.

    Args:
        told (`str`):
            The question with its topic.
        answer (`str`):
            Its answer.

    Example:

    ```python
    >>> news("Who keeps the bees of Vell?", "The bees of Vell are kept by Ann Orr.")
    'ann orr'

    ```
    """
    known, words = normalize(told), normalize(answer)
    new = [word for word in words if not _occurs(word, known)]
    if len(words) > 4:
        small = {word for part in answer.split() if part.islower() for word in normalize(part) if word.isalpha()}
        new = [word for word in new if word not in small or len(word) > 4] or new
    return " ".join(new)


def nearest_sentence(question: str, sentences: Sequence[str], title: str = "") -> int:
    """
    The place of the sentence that has most of a question's longer words, of which those count more that fewer sentences have,
    and those of the title not at all: often one sentence alone names the topic.

    Example:

    ```python
    >>> nearest_sentence("What do the bees make?", ["Ann keeps bees.", "The bees make honey.", "Bees hum."])
    1

    ```
    """
    topic, known = normalize(title), [normalize(sentence) for sentence in sentences]
    pieces = [piece for piece in _pieces(normalize(question)) if not _occurs(piece, topic)]
    having = [[_occurs(piece, words) for words in known] for piece in pieces]
    weights = [sum(found[place] / sum(found) for found in having if any(found)) for place in range(len(sentences))]
    return max(range(len(sentences)), key=weights.__getitem__)


def says(text: str, answer: str) -> bool:
    """
    Whether a text has all words of an answer.

    Words are compared by their beginning, in scripts without upper and lower case as a part of the text.

    Example:

    ```python
    >>> says("Ann's brown beetles hum.", "brown beetle"), says("蜜蜂住在维尔。", "维尔")
    (True, True)

    ```
    """
    answer_words, words = normalize(answer), normalize(text)
    return bool(answer_words) and all(_occurs(word, words) for word in answer_words)


def _pieces(words: tuple[str, ...]) -> Iterator[str]:
    """What a question is compared by: words of at least four letters; pairs of characters in scripts without case."""
    for word in words:
        if _has_no_case(word):
            yield from (word[start : start + 2] for start in range(max(1, len(word) - 1)))
        elif len(word) > 3 or word[0].isdigit():
            yield word


def _has_no_case(word: str) -> bool:
    return word[0].isalpha() and word.upper() == word.lower()


def _occurs(word: str, words: tuple[str, ...], whole: bool = False) -> bool:
    if _has_no_case(word):
        return any(word in other for other in words)
    if whole or word[0].isdigit() or len(word) < 4:
        return word in words
    stem = word[: max(4, math.ceil(0.7 * len(word)))]
    return any(other.startswith(stem) for other in words)
