"""Yes and no, negation, and words that exclude each other."""

import re
from collections.abc import Sequence
from itertools import pairwise

from .numbers import MONTHS
from .words import Word, read_words


_YES = {"yes", "yeah", "yep", "yup"}
_NO = {"no", "nope", "nah"}
_DENIALS = set("not never nicht pas jamais nunca".split())  # what follows does not hold
_NEGATORS = _DENIALS | set("no without neither nor nobody nothing none kein keine keinen".split())
# Behind "not" they say that something does hold: "not only", "not until 1950", "no later than".
_NOT_NEGATING = set("only just merely until but than because later less fewer earlier more longer far".split())
_DISTANCE = 2  # words between a denial and what it denies
_NEGATIVE_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non")
_LEADING = re.compile(
    r"\W*(\w+)\b\s*(?:[^\w\s]|$|(?:it|he|she|they|there|this|that|these|those|i|we|you|not)\b)", re.I
)
_BARE = set(
    "it he she they there we i this that is was are were do does did can could has have had will would indeed true".split()
)
# "No one knows" answers nothing.
_UNKNOWN = re.compile(
    r"\b(?:no ?one|nobody)\s+knows\b|\b(?:unknown|unclear|unsure|uncertain|not (?:sure|known|clear))\b", re.I
)

# Words of a group exclude each other: a text that has one of them instead of another says something else.
_EXCLUSIVE = [
    set(line.split())
    for line in (
        "north south east west",
        "northern southern eastern western",
        "left right",
        "upper lower",
        "top bottom",
        "maximum minimum",
        "higher lower",
        "positive negative",
        "male female",
        "odd even",
        "summer winter spring autumn",
        "red blue green yellow black white brown orange purple pink grey gray violet",
        "monday tuesday wednesday thursday friday saturday sunday",
        " ".join(MONTHS),
    )
]


def asked_polarity(gold: Sequence[Word]) -> bool | None:
    """`True` for a gold yes, `False` for a gold no, `None` for any other gold answer."""
    texts = {word.text for word in gold}
    return True if texts == {"yes"} else False if texts == {"no"} else None


def said_polarity(question: str, answer: str) -> bool | None:
    """
    Whether an answer says yes or no; `None` where it says neither.

    Example:

    ```python
    >>> [said_polarity("Is it edible?", text) for text in ("Yeah, it is.", "It is not edible.", "No one knows.")]
    [True, False, None]

    ```
    """
    words = [word.text for word in read_words(answer)]
    leading = _LEADING.match(answer)
    if leading and (word := leading[1].casefold()) in _YES | _NO:
        return word in _YES
    if _UNKNOWN.search(answer):
        return None
    if _YES.intersection(words) and not _NO.intersection(words):
        return True
    if _NEGATORS.intersection(words):
        return False
    asked = {word.text for word in read_words(question)}
    asked = {word for word in asked if len(word) > 3} or asked
    is_bare = bool(words) and _BARE.issuperset(words)
    return True if is_bare or (asked and asked <= set(words)) else None


def affirmed(words: Sequence[Word]) -> list[Word]:
    """The words of a text that it does not deny: "London" in "not Paris but London"."""
    return [word for place, word in enumerate(words) if not _is_negated(words, place)]


def _is_negated(words: Sequence[Word], place: int) -> bool:
    for distance, word in enumerate(reversed(words[:place])):
        if word.text in _NOT_NEGATING or distance > _DISTANCE:
            return False
        if word.text in _DENIALS:
            return True
    return False


def has_negator(words: Sequence[Word]) -> bool:
    """Whether a text denies something."""
    return any(word.text in _NEGATORS for word in words)


def denies(words: Sequence[Word], gold: Sequence[Word]) -> bool:
    """Whether a text denies something as the gold answer does: "not legal", or "illegal" for a gold "not legal"."""
    negative = {prefix + word.text for prefix in _NEGATIVE_PREFIXES for word in gold}
    return has_negator(words) or any(word.text in negative for word in words)


# Of these, any word says the same as another of its group and the opposite of one of the other group.
_DIRECTIONS = {
    word: direction
    for direction, words in enumerate(
        (
            "increase increases increased increasing rise rises rose risen rising grow grows grew grown growing growth",
            "decrease decreases decreased decreasing decline declines declined declining drop drops dropped dropping fall "
            "falls fell fallen falling reduce reduces reduced reducing reduction diminish diminished shrink shrank shrinking",
        )
    )
    for word in words.split()
}
_PREPOSITIONS = [
    {"before", "after"},
    {"over", "under"},
    {"above", "below"},
    {"inside", "outside"},
    {"with", "without"},
]


def _directions(words: Sequence[Word]) -> set[int]:
    return {_DIRECTIONS[word.surface] for word in words if word.surface in _DIRECTIONS}


def is_same_direction(word: Word, other: Word) -> bool:
    """Whether both words say that something grew, or both that it fell."""
    return bool(_directions([word]) & _directions([other]))


def excludes(gold: Sequence[Word], said: Sequence[Word]) -> bool:
    """Whether a text says "blue" where the gold answer says "red"."""
    gold_texts, texts = {word.text for word in gold}, {word.text for word in said}
    if any(group & gold_texts - texts and group & texts - gold_texts for group in _EXCLUSIVE):
        return True
    directions, other_directions = _directions(gold), _directions(said)
    if directions and other_directions and not directions & other_directions:
        return True
    pairs = {(word.text, following.text) for word, following in pairwise(said)}
    return any(
        (other, following.text) in pairs and (word.text, following.text) not in pairs
        for word, following in pairwise(gold)
        for group in _PREPOSITIONS
        if word.text in group
        for other in group - {word.text}
    )
