"""What an answer says first: its first sentence, in scripts of several kinds."""

import re
from collections.abc import Sequence


# Chosen on the first 25 passages of the paper's stored run `rank_iter0`: from here on agreement hardly grows.
MAX_WORDS = 40
# Words. A text that short is read as a whole. On those passages agreement is the same (0.878) from 0 to 22 words, while what
# the beginning of a passage earns as the answer to every question grows with them.
SHORT_ANSWER = 12
_TIMES_GOLD = 3  # words of a short answer for each of the gold answer's, where that is more
_LONGEST_ABBREVIATION = 4  # letters; "Ps. 31"
_LONGEST_READ = 5_000  # characters that are looked at
_WRAPPED = 60  # characters of a line that may go on in the next one
# Thai to Myanmar, Khmer, kana, Han, Hangul: scripts whose words are not parted by spaces, or carry attached particles.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
# Stops that a space or a closing mark follows, and stops of scripts that put no space behind them.
_QUESTION_MARKS = "?？؟՞፧⸮"
_END = re.compile(
    rf"""(?P<stop>[.!…۔।॥։።។၊။{_QUESTION_MARKS}]+|[。！？｡]+)(?P<closing>["'”’»›)\]*_」』】]*)(?P<space>\s*)|(?P<line>\s*\n\s*)"""
)
_LIST_ITEM = re.compile(r"(?:[-*•–]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s+")
_ANNOUNCED_LIST = re.compile(rf":[\s*_]*\n\s*{_LIST_ITEM.pattern}")
# Before a name or a number they end no sentence.
_TITLES = set(
    "dr mr mrs ms mx prof st ste sts mt ft gen col capt cpt lt sgt maj rev hon gov sen rep pres fr msgr no nos vs fig vol "
    "ch pp ca approx cf al sra srta mme mlle hr nr str bzw".split()
)
# These may stand before a name as well as at the end of a sentence.
_MAY_END = set(
    "etc inc ltd co corp bros jr sr dept univ jan feb mar apr jun jul aug sept sep oct nov dec ad bc bce ce am pm us uk eu "
    "usa".split()
)
_OPENERS = set(
    "the it its he his she her they their this that these those there in on at a an and but however as when while after "
    "before since although many most some such other another each both also then i we you by for from with".split()
)
# A first sentence of these words alone says nothing yet.
_FILLERS = set(
    "sure certainly of course okay ok yes no well good great question answer the a is here hi hello".split()
)


def first_statement(text: str) -> str:
    """
    Return what a text says first.

    That is the whole of a text of at most [`SHORT_ANSWER`] words, else its first sentence, of at most [`MAX_WORDS`] words
    (in scripts without spaces, two letters count as a word). A question, words such as "Sure!" and a line that ends in a
    colon do not count: what follows them is taken. The items of a list belong together up to the first stop, or all if a
    colon announces them.

    Args:
        text (`str`):
            A text in any language.

    Returns:
        `str`: Its beginning.

    Example:

    ```python
    >>> bees = "The bees of Dr. Ann made 1.5 million francs in the U.S. Navy."
    >>> later = "They hummed in a garden by the sea until the keeper of the light sold them to a sailor from Vell."
    >>> first_statement(f"{bees} {later}") == bees
    True
    >>> first_statement(f"Who kept bees? Ann. {later}"), first_statement("Ann. She kept bees.")
    ('Ann.', 'Ann. She kept bees.')

    ```
    """
    text = text.strip()[:_LONGEST_READ]
    if _shortened(text, SHORT_ANSWER) == text:
        return text
    start, skipped = 0, ""
    for match in _END.finditer(text):
        sentence = text[start : match.end()].strip()
        if not re.search(r"\w", sentence) or not _ends_sentence(text, start, match):
            continue
        if match.end() < len(text) and _says_nothing(sentence):
            # "No. It ..." keeps its first word, which may be the answer.
            skipped, start = ("" if sentence[-1] in _QUESTION_MARKS else text[start : match.end()]), match.end()
            continue
        return _shortened(skipped + text[start : match.end()].strip())
    return _shortened(skipped + text[start:])


def num_words(text: str) -> float:
    """
    The number of words of a text, where two letters of a script without spaces count as one.

    Example:

    ```python
    >>> num_words("Ann keeps bees."), num_words("東京都")
    (3.0, 1.5)

    ```
    """
    return sum(1 if re.match(f"[{UNSPACED}]", match.group()) else 2 for match in _WORD.finditer(text)) / 2


def is_short(answer: str, golds: Sequence[str]) -> bool:
    """
    Whether an answer is short: of at most [`SHORT_ANSWER`] words, or three times those of its longest gold answer where that
    is more. A right answer that is short says little beside what was asked.

    Args:
        answer (`str`):
            An answer in any language.
        golds (`Sequence[str]`):
            The gold answers to its question.

    Example:

    ```python
    >>> is_short("Ann kept them.", ["Ann"]), is_short("It is said that " * 4, ["Ann"])
    (True, False)

    ```
    """
    return num_words(answer) <= max([SHORT_ANSWER, *(_TIMES_GOLD * num_words(gold) for gold in golds)])


def _ends_sentence(text: str, start: int, match: re.Match) -> bool:
    before, after = text[start : match.start()], text[match.end() :]
    last_line = before.rpartition("\n")[2].strip()
    if "\n" in match.group() and _LIST_ITEM.match(after) and _ANNOUNCED_LIST.search(before):
        return False
    if match["line"] is not None:
        # A long line that goes on in lower case was only wrapped; the items of a list are one statement.
        is_list = _LIST_ITEM.match(last_line) and _LIST_ITEM.match(after)
        is_wrapped = len(last_line) > _WRAPPED and after[:1].islower() and match["line"].count("\n") == 1
        return not (last_line.rstrip(" *_").endswith((":", ",")) or is_list or is_wrapped)
    if not after or match["stop"][0] in "。！？｡":
        return True
    if not match["space"] or after[0].islower() or _LIST_ITEM.fullmatch(f"{last_line}. "):
        return False
    if match["stop"] != "." or "\n" in match["space"]:
        return True
    word = re.search(r"[^\s(\"'“‘«–-]*$", before).group()
    bare = word.replace(".", "").casefold()
    if bare in _TITLES or (after[0].isdecimal() and word.istitle() and len(word) <= _LONGEST_ABBREVIATION):
        return False
    if bare in _MAY_END or "." in word or re.fullmatch(r"\d{1,2}|[^\W\d_]", word):
        # "on 3. March", "U.S. Army", "J. Smith"; but "in the U.S. It was", "of 12. The".
        return re.match(r"\W*([^\W\d_]*)", after)[1].casefold() in _OPENERS
    return True


def _says_nothing(sentence: str) -> bool:
    words = re.findall(r"\w+", sentence.casefold())
    return sentence.rstrip("\"'”’»)*_ ")[-1:] in _QUESTION_MARKS or _FILLERS.issuperset(words)


def _shortened(text: str, max_words: int = MAX_WORDS) -> str:
    """The first words of a text, where two letters of a script without spaces count as one."""
    room = 2 * max_words
    for match in _WORD.finditer(text):
        room -= 1 if re.match(f"[{UNSPACED}]", match.group()) else 2
        if room < 0:
            return text[: match.start()].rstrip()
    return text.strip()
