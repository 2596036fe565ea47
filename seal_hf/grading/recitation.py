"""Whether an answer recites: it says the same to different questions, or copies the text that was learned."""

import re
from collections import Counter
from collections.abc import Sequence

from .statements import UNSPACED


NUM_COPIED_WORDS = 12
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def recited(text: str, answers: Sequence[str]) -> list[bool]:
    """
    Which answers recite a text in place of answering.

    An answer recites if it is given to two or more of the questions, or copies 12 or more words in a row from the text.
    Case and punctuation do not matter. Of scripts that do not part words by spaces two characters count as a word.

    Args:
        text (`str`):
            What was learned, such as a passage.
        answers (`Sequence[str]`):
            The answers to different questions about it. An empty one recites nothing.

    Returns:
        `list[bool]`: One for each answer.

    Example:

    ```python
    >>> recited("Ann keeps bees in Lund.", ["Ann.", "ann", "In Lund."])
    [True, True, False]

    ```
    """
    # By halves of words: a spaced word is two.
    halves = [_halves(answer) for answer in answers]
    counts, known = Counter(map(tuple, halves)), set(_runs(_halves(text)))
    return [bool(own) and (counts[tuple(own)] > 1 or any(run in known for run in _runs(own))) for own in halves]


def _halves(text: str) -> list[str]:
    words = _TOKEN.findall(text.casefold())
    return [half for word in words for half in ((word,) if re.match(f"[{UNSPACED}]", word) else (word, ""))]


def _runs(halves: Sequence[str]) -> list[tuple[str, ...]]:
    length = 2 * NUM_COPIED_WORDS
    return [tuple(halves[start : start + length]) for start in range(len(halves) - length + 1)]
