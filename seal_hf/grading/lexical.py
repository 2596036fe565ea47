"""A local grader that compares words."""

import re
from collections.abc import Sequence

from .golds import check_inputs
from .numbers import CALENDAR, is_number, write_out_dates
from .polarity import affirmed, asked_polarity, denies, excludes, has_negator, is_same_direction, said_polarity
from .quantities import read_quantities
from .statements import first_statement
from .words import Word, is_same_word, read_words


# Chosen on the first 25 passages of the paper's stored run `rank_iter0`.
MIN_RECALL = 0.5


class LexicalGrader:
    """
    Grades answers by the words they share with the gold answer: local, deterministic, without a key.

    An answer is what it says first (see [`first_statement`]): the gold answer somewhere in a longer text is only
    mentioned. What it says first is right if it has

    - every number of the gold answer, in the same unit, another one of the same size, or none;
    - the letter, Roman numeral or month that tells "Vitamin C", "Henry VIII" or "3 May" from others;
    - no denial of it, and no word that excludes one of its own, as "south" excludes "north";
    - words that make up more than half of its letters. Words that the question already says do not count (unless it says
      all of them), and one number with its unit is decided by the number alone.

    Words match if equal or forms of one word or name; in scripts without spaces a gold word matches anywhere. A gold yes
    or no is compared with the yes or no that is said. Of several gold answers any will do. Meaning is out of its sight: a
    synonym is wrong to it.
    """

    def grade(
        self, questions: Sequence[str], golds: Sequence[str | Sequence[str]], answers: Sequence[str]
    ) -> list[bool | None]:
        """
        Grade answers.

        Args:
            questions (`Sequence[str]`):
                The questions, in any language.
            golds (`Sequence[str | Sequence[str]]`):
                The gold answer to each question, or several of which each is right.
            answers (`Sequence[str]`):
                The answer to grade for each question. An empty one is wrong.

        Returns:
            `list[bool | None]`: One verdict per answer, here never `None`.

        Raises:
            ValueError: The three lengths differ, or a question has no gold answer or an empty one.

        Example:

        ```python
        >>> LexicalGrader().grade(["How many ships came?"] * 2, ["12 ships"] * 2, ["Twelve came.", "Only two."])
        [True, False]
        >>> LexicalGrader().grade(["Who kept the light?"], [["the keeper", "Edric Molloway"]], ["Molloway"])
        [True]

        ```
        """
        rows = check_inputs(questions, golds, answers)
        return [_is_right(question, accepted, first_statement(answer)) for question, accepted, answer in rows]

    def mentions(
        self, questions: Sequence[str], golds: Sequence[str | Sequence[str]], answers: Sequence[str]
    ) -> list[bool]:
        """
        Find out whether whole answers say the gold answer anywhere, as a recited passage does, whatever they say first.

        Args:
            questions, golds, answers:
                As in [`grade`].

        Returns:
            `list[bool]`: Whether each answer is right or only mentions the gold answer later.

        Raises:
            ValueError: As in [`grade`].

        Example:

        ```python
        >>> recited = "The skerry lies nine miles off the coast of Vennmark, on a reef that is black. The light was built by "
        >>> row = ["Who built it?"], ["Halda Tremmery"], [f"{recited}Halda Tremmery of green slate in 1874."]
        >>> LexicalGrader().grade(*row), LexicalGrader().mentions(*row)
        ([False], [True])

        ```
        """
        rows = check_inputs(questions, golds, answers)
        return [_is_right(question, accepted, answer) for question, accepted, answer in rows]


def _is_right(question: str, accepted: Sequence[str], statement: str) -> bool:
    statements = write_out_dates(statement)
    golds = [reading for gold in accepted for reading in write_out_dates(gold)]
    return any(_conveys(question, gold, said) for gold in golds for said in statements)


def _conveys(question: str, gold: str, statement: str) -> bool:
    """Whether a statement says what the gold answer says."""
    gold_words, all_words, question_words = read_words(gold), read_words(statement), read_words(question)
    if not gold_words:  # symbols only
        return gold.strip() in statement
    if (polarity := asked_polarity(gold_words)) is not None:
        return said_polarity(question, statement) is polarity
    is_denial = has_negator(gold_words)
    said = all_words if is_denial or has_negator(question_words) else affirmed(all_words)
    if (is_denial and not denies(all_words, gold_words)) or excludes(gold_words, said):
        return False
    wanted, offered = read_quantities(gold_words), read_quantities(said)
    if not all(any(one.is_met_by(other) for other in offered) for one in wanted):
        return False
    taken = {place for quantity in wanted for place in quantity.places}
    # One number with what it counts, as "5,000 men"; a capital letter makes it a name or a date.
    is_counted = re.fullmatch(r"\W*\d[\d.,]*\D*", gold) and gold == gold.lower()
    if wanted and (is_counted or len(taken) == len(gold_words)):
        return True
    deciding = [gold_words[place] for place in _deciding_places(gold_words) if place not in taken]
    if not all(any(_is_equal(word, other) for other in said) for word in deciding):
        return False
    if _is_acronym(gold_words, said) or _is_acronym(said, gold_words):
        return True
    words = [
        word for word in gold_words if not any(is_same_word(word, asked) for asked in question_words)
    ] or gold_words
    found = [word for word in words if any(is_same_word(word, one) or is_same_direction(word, one) for one in said)]
    if _is_pair(gold) and len(found) < len(words):
        return False
    return sum(len(word.text) for word in found) > MIN_RECALL * sum(len(word.text) for word in words)


def _deciding_places(gold: Sequence[Word]) -> list[int]:
    """Places of short words that decide: the letter of "Vitamin C" (not an initial), the month of a date."""
    places = []
    for place, word in enumerate(gold):
        following = gold[place + 1] if place + 1 < len(gold) else None
        is_letter = len(word.text) == 1 and word.surface.isascii() and word.surface.isupper()
        is_initial = following is not None and (following.is_capitalised or place == 0)
        is_month = word.text in CALENDAR and any(is_number(other.text) for other in gold)
        if (is_letter and not is_initial) or is_month:
            places.append(place)
    return places


def _is_equal(word: Word, other: Word) -> bool:
    """Whether two deciding words are the same; months and days have short forms."""
    return word.text == other.text or (word.text in CALENDAR and is_same_word(word, other))


def _is_pair(gold: str) -> bool:
    """Whether the gold answer is two words of which neither will do alone, as "rye and oats"."""
    return re.fullmatch(r"\W*\w+ (?:and|und|et|y|e|и|&) \w+\W*", gold) is not None


def _is_acronym(long: Sequence[Word], short: Sequence[Word]) -> bool:
    """Whether a text has the initials of a name, as "WHO" or, with one letter more, "USA"."""
    names = [word for word in long if word.is_capitalised]
    initials = "".join(word.surface[0] for word in names)
    if len(initials) < 2 or any(word.surface.isupper() and len(word.surface) > 1 for word in names):
        return False
    return any(word.surface in (initials, f"{initials}A") for word in short)
