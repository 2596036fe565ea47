"""The words that the lexical grader compares, in any language."""

import re
import unicodedata
from functools import lru_cache
from os.path import commonprefix
from typing import NamedTuple

from .numbers import (
    MINUS,
    MULTIPLIERS,
    NUMBER_WORDS,
    SHORT_FORMS,
    canonical,
    is_number,
    write_out_numbers,
    write_out_roman,
)
from .statements import UNSPACED


MIN_SHARED_PREFIX = 0.6
MIN_PREFIX_LENGTH = 4
ARTICLES = {"a", "an", "the"}

# Letters with digits behind them stay together ("H2O"), digits with letters behind them do not ("5km").
_TOKEN = re.compile(
    rf"{MINUS}?\d+(?:[.:]\d+)*|[{UNSPACED}]+|[^\s\d.:{MINUS}{UNSPACED}]+(?:\d[^\s.:{MINUS}{UNSPACED}]*)?"
)
_SYMBOLS = {"%": "percent", "°C": "celsius", "°F": "fahrenheit", "°": "degrees", "€": "euros", "£": "sterling"}
_SYMBOLS |= {"US$": "dollars", "$": "dollars", "¥": "yen", "₹": "rupees"}
_MARKS = {"++": "plusplus", "+": "plus", "-": "minus", "#": "sharp"}
# Endings of English words that may differ behind a shorter common beginning.
_ENDINGS = set(
    " s es e d ed ing ings y ies ied ier er ers or ors al als ly ion ions ation ations ment ments ity ities ance ence ant ent "
    "ist ists ism ic ive able ize ized izing ise ised ising sm ze zed se sed ure ous ful ness age ary ory ur r re ter".split(
        " "
    )
)
MIN_SHARED_WITH_ENDINGS = 0.5
# Endings that tell one substance from another: "ethane" is no "ethanol".
_SUBSTANCES = ("ane", "ene", "yne", "ol", "one", "ide", "ite", "ate", "ose", "ine", "ium", "yl")
# Endings that two forms of one name may have: "Japan", "Japanese", "Russia's"; not "Paul", "Paula".
_NAME_ENDINGS = {"", "s", "es", "ese", "ish", "ian", "ians", "ic", "ism", "ist", "ists"}
_LONG_NAME_ENDINGS = (_ENDINGS | _NAME_ENDINGS | {"n", "ns", "an", "ans", "en"}) - {"d", "re", "r", "ur", "ie"}
_MIN_NAME_PREFIX = 6


class Word(NamedTuple):
    """
    A word of a text.

    Parameters:
        text (`str`):
            As it is compared: without case, accents and separators; numbers in digits.
        surface (`str`):
            With its case. Of a number, as `text`.
    """

    text: str
    surface: str

    @property
    def is_capitalised(self) -> bool:
        return self.surface[0].isupper()


def normalize(text: str) -> tuple[str, ...]:
    """
    Split a text into the tokens that the lexical grader compares.

    Case, Latin and Greek accents, punctuation, possessives and English articles go. Numbers in digits or English words,
    cardinal or ordinal, with their sign, become digits without separators; so do Roman numerals behind names. Units'
    symbols become words. Other scripts keep every letter and mark.

    Args:
        text (`str`):
            Any text, in any language.

    Returns:
        `tuple[str, ...]`: The tokens, one per number.

    Example:

    ```python
    >>> normalize("The café's Twenty-first: 1.5 million (42%)")
    ('cafe', '21', '1500000', '42', 'percent')
    >>> normalize("Köln, 1949年")
    ('koln', '1949', '年')

    ```
    """
    return tuple(word.text for word in read_words(text))


@lru_cache(maxsize=4096)
def read_words(text: str) -> tuple[Word, ...]:
    """The words of a text, with the case they have in it; see [`normalize`]."""
    text = write_out_roman(write_out_numbers(text))
    # "C++", "B-", "F#"; a hyphen in front of a word is another thing.
    text = re.sub(r"(?<![\w+#-])([A-Za-z]{1,2})(\+\+|[+#]|-(?=[\s.,;:!?)]|$))", lambda m: m[1] + _MARKS[m[2]], text)
    text = re.sub("|".join(map(re.escape, _SYMBOLS)), lambda match: f" {_SYMBOLS[match.group()]} ", text)
    text = re.sub(r"([a-zα-ω])[\u0300-\u036f]+", r"\1", unicodedata.normalize("NFKD", text), flags=re.I)
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\bper cent\b", "percent", text, flags=re.I)
    text = re.sub(r"['’]s\b|(?<=\d)(?:st|nd|rd|th|s)\b", "", text, flags=re.I)
    text = re.sub(r"\b(can)(?:not|['’]t)\b|(?<=\w)n['’]t\b", r"\1 not", text, flags=re.I)
    # "u.s." becomes "us.", "F-16" "F16", "V&A" "VA"; a stop or a colon then stays only inside a number.
    text = re.sub(r"\b([^\W\d_])\.(?=[^\W\d_]\b)", r"\1", text)
    text = re.sub(r"\b([A-Z]{1,3})-(?=\d)|\b([A-Z])&(?=[A-Z]\b)", r"\1\2", text)
    text = re.sub(r"(?<!\d)[.:]|[.:](?!\d)", " ", text)
    text = "".join(c if c in f".:{MINUS}" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = _join_numbers([Word(token.casefold(), token) for token in _TOKEN.findall(text)])
    return tuple(word for place, word in enumerate(words) if not _is_article(words, place)) or tuple(words)


def _is_article(words: list[Word], place: int) -> bool:
    """Whether a word is an article, not the letter of "Vitamin A" or "A is right"."""
    text, surface = words[place]
    following = words[place + 1].text if place + 1 < len(words) else None
    if text != "a":
        return text in ARTICLES
    return following not in (None, "is", "was") and (surface == "a" or place == 0)


def _join_numbers(words: list[Word]) -> list[Word]:
    """Write numbers in digits, and as one number what several words spell: "two hundred and five", "minus five"."""
    tokens: list[Word] = []
    number: float | None = None  # the number that ends `tokens`, if one does
    room = 0  # a spelled number below it still belongs to `number`: 10 after "twenty", 100 after "hundred"
    sign = 1
    for word, following in zip(words, [*words[1:], None], strict=False):
        value, multiplier = NUMBER_WORDS.get(word.text), MULTIPLIERS.get(word.text)
        if word.text == "and" and room == 100 and following and following.text in NUMBER_WORDS:
            continue
        if number is not None and (multiplier or (value and value < room)):
            # As a float, which has an infinity for a model that writes "million million million ...".
            number = float(number * multiplier if multiplier else number + sign * value)
            tokens.pop()
        elif value is not None or multiplier:
            sign = -1 if tokens and tokens[-1].text in ("minus", "negative") else 1
            if sign < 0:
                tokens.pop()
            number = sign * float(multiplier or value)
        else:
            text = canonical(word.text) if word.text.lstrip(MINUS)[0].isdecimal() else word.text
            number = float(text) if is_number(text) and re.fullmatch(r"-?\d+(\.\d+)?", text) else None
            tokens.append(Word(text, word.surface) if text == word.text else Word(text, text))
            room, sign = 0, -1 if text.startswith("-") else 1
            continue
        room = 100 if word.text == "hundred" else 10 if value and value >= 20 else 0
        text = f"{number:.15g}"
        tokens.append(Word(text, text))
    return tokens


def is_same_word(gold: Word, word: Word) -> bool:
    """Whether two words are equal, forms of one word or name, or (unspaced scripts) the first is part of the second."""
    if gold.text == word.text:
        return True
    if any(text[0].isdigit() or is_number(text) for text in (gold.text, word.text)):
        return False
    if re.match(f"[{UNSPACED}]", gold.text):
        return gold.text in word.text
    if SHORT_FORMS.get(gold.text, gold.text) == SHORT_FORMS.get(word.text, word.text):
        return True
    shared = len(commonprefix([gold.text, word.text]))
    endings = gold.text[shared:], word.text[shared:]
    share = shared / max(len(gold.text), len(word.text))
    if shared < MIN_PREFIX_LENGTH or share < MIN_SHARED_WITH_ENDINGS:
        return False
    if gold.is_capitalised and word.is_capitalised and (gold.text + word.text).isascii():
        known = _LONG_NAME_ENDINGS if shared >= _MIN_NAME_PREFIX else _NAME_ENDINGS
        return known.issuperset(endings) and not {"", "e"}.issuperset(endings)
    if _ENDINGS.issuperset(endings):
        return True
    substances = [next((end for end in _SUBSTANCES if text.endswith(end)), None) for text in (gold.text, word.text)]
    return share >= MIN_SHARED_PREFIX and (None in substances or substances[0] == substances[1])
