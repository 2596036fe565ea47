"""The sentences of a passage, and the names and numbers in them, without knowing its language."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .grounding import says


_ANSWERS_PER_SENTENCE = 4
# After a word of three letters, so that "Dr. Ann" stays together; marks that do nothing else end sentences without a blank.
_SENTENCE_END = re.compile(r"(?<=\w\w\w[.!?؟۔।])[\"'”’»)\]]*\s+|(?<=[。！？։።፧])|\n+")
# Of Latin, Chinese, Arabic and Ethiopic script, the reversed one, and the Greek one, which is mostly typed as a semicolon. The
# Armenian one stands in the word that asks, and Japanese may end a question in "か" without a mark.
_QUESTION_MARKS = "?？؟፧⸮\u037e"
_GREEK = re.compile(r"[\u0370-\u037d\u037f-\u03ff\u1f00-\u1fff]")
_ARMENIAN_MARK = "՞"
_QUESTION_END = re.compile(rf"(?<=[{_QUESTION_MARKS}])(?![{_QUESTION_MARKS}])|(?<=か[。｡])|(?<=։)")
_GREEK_QUESTION_END = re.compile(rf"{_QUESTION_END.pattern}|(?<=;)")
_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")


def split_sentences(passage: str) -> list[str]:
    """
    Split a passage into sentences.

    Example:

    ```python
    >>> split_sentences("Dr. Ann keeps bees. They hum.")
    ['Dr. Ann keeps bees.', 'They hum.']

    ```
    """
    return [sentence.strip() for sentence in _SENTENCE_END.split(passage) if re.search(r"\w", sentence)]


def is_asking(text: str) -> bool:
    """
    Whether a text ends as a question does, without knowing its language.

    Example:

    ```python
    >>> list(map(is_asking, ["Who keeps bees?", "Ποιος έχει μέλισσες;", "蜂を飼うのは誰ですか。", "Ո՞վ է եկել։", "ማን መጣ፧"]))
    [True, True, True, True, True]
    >>> list(map(is_asking, ["Ann keeps bees.", "Ann; Bob;", "蜂が飛ぶ。"]))
    [False, False, False]

    ```
    """
    text = text.rstrip()
    is_greek = text.endswith(";") and _GREEK.search(text) is not None
    return text.endswith((*_QUESTION_MARKS, "か。", "か｡")) or _ARMENIAN_MARK in text or is_greek


def questions_in(line: str) -> list[str]:
    """
    The questions of a line, each with what comes before it since the last one.

    Example:

    ```python
    >>> questions_in("Who keeps bees? Where?"), questions_in("誰が飼うか。いつからか。")
    (['Who keeps bees?', 'Where?'], ['誰が飼うか。', 'いつからか。'])

    ```
    """
    ends = _GREEK_QUESTION_END if _GREEK.search(line) else _QUESTION_END
    return [part.strip() for part in ends.split(line) if is_asking(part) and re.search(r"\w", part)]


def names_in(sentence: str) -> list[str]:
    """
    The names in a sentence: words with a capital, as far as they stand together, without the first word, which has one for
    another reason. None in scripts without upper case.
    """
    names: list[str] = []
    end = None  # of the name so far
    for place, word in enumerate(_WORD.finditer(sentence)):
        if not word.group()[0].isupper() or place == 0:
            end = None
        elif end is not None and sentence[end : word.start()] in (" ", " & "):
            names[-1] += sentence[end : word.end()]
            end = word.end()
        else:
            names.append(word.group())
            end = word.end()
    return names


def likely_answers(
    sentence: str,
    example: Mapping[str, Any],
    num_words: int = 1,
    num_answers: int | None = _ANSWERS_PER_SENTENCE,
    min_letters: int = 6,
) -> list[str]:
    """
    Parts of a sentence that a question may ask for, without knowing its language: numbers, names, long words.

    Args:
        sentence (`str`):
            One sentence of the passage.
        example (`Mapping[str, Any]`):
            The passage, whose title is no answer.
        num_words (`int`, *optional*, defaults to `1`):
            Most words in small letters, the longest.
        num_answers (`int`, *optional*, defaults to `4`):
            Most answers; all where it is `None`.
        min_letters (`int`, *optional*, defaults to `6`):
            Letters of the shortest of these words.

    Returns:
        `list[str]`: Answers; empty in scripts without upper case, where the sentence has no number.

    Example:

    ```python
    >>> likely_answers("In 1911 the teacher Edric Molloway found one.", {"context": ""})
    ['1911', 'Edric Molloway', 'teacher']

    ```
    """
    words = [word.group() for word in _WORD.finditer(sentence)]
    long_words = [word for word in words[1:] if word[0].islower() and len(word) >= min_letters]
    names = sorted(names_in(sentence), key=len, reverse=True)
    ordered = [*_NUMBER.findall(sentence), *names, *sorted(long_words, key=len)[max(0, len(long_words) - num_words) :]]
    found = [text for text in ordered if not says(example.get("title") or "", text)]
    return list(dict.fromkeys(found))[:num_answers]


def names_and_numbers(text: str) -> list[str]:
    """
    The names and numbers of a text, each once.

    Example:

    ```python
    >>> names_and_numbers("In 1911 Edric Molloway came to Vell. In Vell he stayed.")
    ['1911', 'Edric Molloway', 'Vell']

    ```
    """
    found = (fact for one in split_sentences(text) for fact in (*_NUMBER.findall(one), *names_in(one)))
    return list(dict.fromkeys(found))


def coverage(example: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> float | None:
    """
    The share of a passage's names and numbers, without those of its title, that some question asks for: its answer holds them,
    and the question does not. `None` where the passage has none.

    Example:

    ```python
    >>> bees = {"title": "Vell", "context": "In 1911 Ann Orr came to Vell. By 1950 Bob Lee had left."}
    >>> coverage(bees, [("Who came to Vell?", "Ann Orr"), ("Who was Bob Lee?", "Bob Lee left"), ("When?", "in 1911")])
    0.5

    ```
    """
    asked = [asks_for(fact, pairs) for fact in facts_of(example)]
    return sum(asked) / len(asked) if asked else None


def facts_of(example: Mapping[str, Any]) -> list[str]:
    """The names and numbers of a passage, without those of its title."""
    return [fact for fact in names_and_numbers(example["context"]) if not says(example.get("title") or "", fact)]


def asks_for(fact: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether some question asks for a fact: its answer holds it, and the question does not."""
    return any(says(answer, fact) and not says(question, fact) for question, answer in pairs)
