"""A local grader that compares words."""

import re
import unicodedata
from collections.abc import Sequence
from os.path import commonprefix


# Chosen on the first 25 passages of the paper's stored run `rank_iter0`.
MIN_RECALL = 0.5
MIN_SHARED_PREFIX = 0.6
MIN_PREFIX_LENGTH = 4

ARTICLES = {"a", "an", "the"}
_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: value for words in (_CARDINALS, _ORDINALS) for value, word in enumerate(words)}
NUMBER_WORDS |= {form: 10 * tens for tens, word in enumerate(_TENS, 2) for form in (word, f"{word[:-1]}ieth")}
MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# Thai to Myanmar, Khmer, kana, Han, Hangul: scripts whose words are not parted by spaces, or carry attached particles.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]+|[^\s\d.{_UNSPACED}]+")


def check_inputs(questions: Sequence[str], golds: Sequence[str], answers: Sequence[str]) -> None:
    if not len(questions) == len(golds) == len(answers):
        raise ValueError(
            "`questions`, `golds` and `answers` must have the same length, but have "
            f"{len(questions)}, {len(golds)} and {len(answers)}."
        )
    for question, gold in zip(questions, golds, strict=True):
        if not gold.strip():
            raise ValueError(f"The gold answer to {question!r} is empty; remove the question or fill in its answer.")


def normalize(text: str) -> tuple[str, ...]:
    """
    Split a text into the tokens that the lexical grader compares.

    Case, Latin and Greek accents, punctuation, possessives and English articles go. Numbers in digits or English words,
    cardinal or ordinal, become digits without separators. Other scripts keep every letter and mark.

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
    # Before compatibility folding, which turns the no-break spaces of "1 000 000" into plain ones.
    text = re.sub(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))", "", text.casefold())
    text = re.sub(r"([a-zα-ω])[\u0300-\u036f]+", r"\1", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    text = re.sub(r"%|\bper cent\b", " percent ", text)
    text = re.sub(r"['’]s\b|(?<=\d)(?:st|nd|rd|th|s)\b", "", text)
    # "u.s." becomes "us."; a stop then stays only inside a decimal number.
    text = re.sub(r"\b([^\W\d_])\.(?=[^\W\d_]\b)", r"\1", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = "".join(c if c == "." or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = _join_numbers(_TOKEN.findall(text))
    return tuple(word for word in words if word not in ARTICLES) or tuple(words)


def _join_numbers(words: list[str]) -> list[str]:
    """Write numbers in digits, and as one number what several words spell: `["two", "hundred", "and", "five"]`."""
    tokens: list[str] = []
    number: float | None = None  # the number that ends `tokens`, if one does
    room = 0  # a spelled number below it still belongs to `number`: 10 after "twenty", 100 after "hundred"
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value, multiplier = NUMBER_WORDS.get(word), MULTIPLIERS.get(word)
        if word == "and" and room == 100 and following in NUMBER_WORDS:
            continue
        if number is not None and (multiplier or (value and value < room)):
            # As a float, which has an infinity for a model that writes "million million million ...".
            number = float(number * multiplier if multiplier else number + value)
            tokens.pop()
        else:
            number = float(word) if word[0].isdecimal() else value if value is not None else multiplier
        room = 100 if word == "hundred" else 10 if value and value >= 20 else 0
        tokens.append(word if number is None else f"{number:.15g}")
    return tokens


def _same_word(gold_word: str, word: str) -> bool:
    """Whether two tokens are equal, inflections of one stem, or (unspaced scripts) the first is part of the second."""
    if gold_word == word:
        return True
    if gold_word[0].isdigit() or word[0].isdigit():
        return False
    if re.match(f"[{_UNSPACED}]", gold_word):
        return gold_word in word
    shared = len(commonprefix([gold_word, word]))
    return shared >= max(MIN_PREFIX_LENGTH, MIN_SHARED_PREFIX * max(len(gold_word), len(word)))


class LexicalGrader:
    """
    Grades answers by the words they share with the gold answer: local, deterministic, without a key.

    An answer is right if it holds every number of the gold answer and words that make up more than half of its letters.
    Words that the question already says do not count (unless it says all of them), and one number with its unit is
    decided by the number alone. Words match if equal, or if they share a beginning of at least four letters and 60 % of
    the longer one ("similarity", "similarities"); in scripts without spaces a gold word matches anywhere. A gold yes or
    no is compared with the first yes or no of the answer. Meaning is out of its sight: a synonym is wrong to it, a gold
    answer mentioned in passing right.
    """

    def grade(self, questions: Sequence[str], golds: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
        """
        Grade answers.

        Args:
            questions (`Sequence[str]`):
                The questions, in any language.
            golds (`Sequence[str]`):
                The gold answer to each question.
            answers (`Sequence[str]`):
                The answer to grade for each question. An empty one is wrong.

        Returns:
            `list[bool | None]`: One verdict per answer, here never `None`.

        Raises:
            ValueError: The three lengths differ or a gold answer is empty.

        Example:

        ```python
        >>> LexicalGrader().grade(["How many ships came?"] * 2, ["12 ships"] * 2, ["Twelve came.", "Only two."])
        [True, False]

        ```
        """
        check_inputs(questions, golds, answers)
        return [self._is_right(*row) for row in zip(questions, golds, answers, strict=True)]

    def _is_right(self, question: str, gold: str, answer: str) -> bool:
        gold_words, answer_words = normalize(gold), normalize(answer)
        if not gold_words:  # symbols only
            return gold.strip() in answer
        if gold_words in (("yes",), ("no",)):
            return next((word for word in answer_words if word in ("yes", "no")), None) == gold_words[0]
        if not {word for word in gold_words if word[0].isdigit()} <= set(answer_words):
            return False
        # One number with its unit, as "5,000 men" or "€45"; a capital letter makes it a name or a date.
        if re.fullmatch(r"\W*\d[\d.,]*\D*", gold) and gold == gold.lower():
            return True
        question_words = normalize(question)
        new_words = [word for word in gold_words if not any(_same_word(word, asked) for asked in question_words)]
        words = new_words or gold_words
        found = [word for word in words if any(_same_word(word, said) for said in answer_words)]
        return sum(map(len, found)) > MIN_RECALL * sum(map(len, words))
