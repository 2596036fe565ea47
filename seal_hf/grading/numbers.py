"""
How numbers are written: in digits with separators, signs and powers, in words, in Roman numerals, as dates.

The readers here turn one writing into another, in a text that keeps its case, before it is split into words; what may be
read in two ways is left to [`values`].
"""

import re
import unicodedata


MINUS = "\ue000"  # stands for the sign of a number while other hyphens part words
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
MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# Zero to twenty, a hundred and a thousand in German, French, Spanish, Portuguese, Italian, Dutch and Russian. "_" stands
# for what is another word in English: "elf", "sept", "once", "due", "cent".
_FOREIGN = """
null eins zwei drei vier fünf sechs sieben acht neun zehn _ zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn
neunzehn zwanzig hundert tausend
zéro _ deux trois quatre cinq six _ huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf vingt
_ mille
cero _ dos tres cuatro cinco seis siete ocho nueve diez _ doce trece catorce quince dieciséis diecisiete dieciocho
diecinueve veinte cien mil
zero _ dois três quatro cinco seis sete oito nove dez onze doze treze catorze quinze dezesseis dezessete dezoito dezenove
vinte cem mil
zero _ _ tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette diciotto
diciannove venti cento mille
nul een twee drie vier vijf zes zeven _ negen tien _ twaalf dertien veertien vijftien zestien zeventien achttien negentien
twintig honderd duizend
ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать четырнадцать пятнадцать
шестнадцать семнадцать восемнадцать девятнадцать двадцать сто тысяча
""".split()
_FOREIGN_VALUES = [*range(21), 100, 1000]

MONTHS = ("january february march april may june july august september october november december").split()
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
CALENDAR = {*MONTHS, *_WEEKDAYS}
SHORT_FORMS = {word[:3]: word for word in (*MONTHS, *_WEEKDAYS)}
SHORT_FORMS |= {"sept": "september", "tues": "tuesday", "thur": "thursday", "thurs": "thursday"}

_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50}
_MAY_BE_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_PARTS = "half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"


def write_out_numbers(text: str) -> str:
    """
    Write powers, fractions, signs and separators of a text as plain numbers in digits.

    Args:
        text (`str`):
            A text in its own case, before compatibility folding, which would turn "10³" into "103".

    Returns:
        `str`: The text; [`MINUS`] stands before negative numbers.

    Example:

    ```python
    >>> write_out_numbers("1,000 and 1 000 000; 10³; 1e6; two thirds")
    '1000 and 1000000; 1000; 1000000;  66.67 percent '

    ```
    """
    text = re.sub(r"[\u2010\u2011\u2212]", "-", text)
    text = re.sub(r"(?<![\d.,])([1-9]\d{0,2})((?:[ \u00a0\u202f]\d{3})+)(?![\d.,]?\d)", _without_spaces, text)
    text = re.sub(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    # Powers: "10³", "10^3", "1e6", "5 × 10^3".
    text = re.sub(r"(?<=\d)⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda match: f"^{match.group().translate(_SUPERSCRIPTS)}", text)
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,2})(?!\w)", r"\1*10^\2", text)
    text = re.sub(r"(?<![\w.])(?:(\d+(?:\.\d+)?)\s?[*x×·]\s?)?(?<![\w.])(\d{1,4})\^(-?\d{1,2})(?!\d)", _power, text)
    # Fractions: "½", "2½", "1/2", "two thirds".
    text = re.sub(r"(\d{0,9}) ?([¼-¾⅐-⅞])", _vulgar_fraction, text)
    text = re.sub(r"(?<![\w/.])([1-9])[/⁄]([2-9]|10)(?![\w/])", lambda m: _share(int(m[1]), int(m[2])), text)
    text = re.sub(rf"\b({'|'.join(_CARDINALS[1:11])})[ -]({_PARTS})\b", _spelled_fraction, text, flags=re.I)
    text = re.sub(r"\b(?:a )?(third|quarter)\b(?= of\b)", _spelled_fraction, text, flags=re.I)
    text = re.sub(r"\b(1\d)00['’]?s\b", lambda match: f"{int(match[1]) + 1}th century", text)
    # Signs. "−5", "-$300", "minus 5"; not "1918-1938", "9 -11", "F-16".
    text = re.sub(r"(?<![\w.)])(?<!\d )[-–]([$€£¥]?)(?=\d)", rf"\1{MINUS}", text)
    text = re.sub(r"\b(?:minus|negative) ([$€£¥]?)(?=\d)", rf"\1{MINUS}", text, flags=re.I)
    return re.sub(r"\b[Nn]o\.? ?(?=\d)", "number ", text)


def _without_spaces(match: re.Match) -> str:
    return match[1] + re.sub(r"\s", "", match[2])


def _power(match: re.Match) -> str:
    base, exponent = int(match[2]), int(match[3])
    if base == 0 or abs(exponent) > 60:
        return match.group()
    return f"{float(match[1] or 1) * float(base) ** exponent:.15g}"


def _share(part: int, whole: int) -> str:
    return f" {100 * part / whole:.4g} percent "


def _vulgar_fraction(match: re.Match) -> str:
    value = unicodedata.numeric(match[2])
    return f"{int(match[1]) + value:.6g}" if match[1] else f" {100 * value:.4g} percent "


def _spelled_fraction(match: re.Match) -> str:
    *number, part = match.groups()
    part = part.casefold().removesuffix("s")
    special = {"half": 2, "halve": 2, "quarter": 4}
    return _share(NUMBER_WORDS[number[0].casefold()] if number else 1, special.get(part) or NUMBER_WORDS[part])


def write_out_dates(text: str) -> list[str]:
    """
    Write dates in digits with the name of their month, and the time of day in digits.

    Args:
        text (`str`):
            A text in its own case.

    Returns:
        `list[str]`: The text; where day and month of a date may be either, one text for each reading.

    Example:

    ```python
    >>> write_out_dates("1874-03-05, half past ten"), write_out_dates("5/3/1874")
    (['5 march 1874, 10:30'], ['5 march 1874', '3 may 1874'])

    ```
    """
    text = re.sub(r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: _date(m[3], m[2], m[1]) or m.group(), text)
    text = re.sub(r"\b(?:half|quarter) (?:past|to) (\w+)\b", _spelled_time, text, flags=re.I)
    text = re.sub(r"\b(\w+) o['’]clock\b", _spelled_time, text, flags=re.I)
    numeric = re.compile(r"\b(\d{1,2})([/.])(\d{1,2})\2(\d{4})\b")
    day_first = numeric.sub(lambda m: _date(m[1], m[3], m[4]) or _date(m[3], m[1], m[4]) or m.group(), text)
    month_first = numeric.sub(lambda m: _date(m[3], m[1], m[4]) or _date(m[1], m[3], m[4]) or m.group(), text)
    return list(dict.fromkeys((day_first, month_first)))


def _date(day: str, month: str, year: str) -> str | None:
    is_date = 1 <= int(day) <= 31 and 1 <= int(month) <= 12
    return f"{int(day)} {MONTHS[int(month) - 1]} {year}" if is_date else None


def _spelled_time(match: re.Match) -> str:
    word = match[1].casefold()
    hour = int(word) if word.isdecimal() else NUMBER_WORDS.get(word, 0)
    if not 1 <= hour <= 12:
        return match.group()
    how = match.group().casefold()
    if how.startswith("half"):
        return f"{hour}:30"
    if how.startswith("quarter"):
        return f"{hour}:15" if " past " in how else f"{(hour - 2) % 12 + 1}:45"
    return f"{hour}:00"


def write_out_roman(text: str) -> str:
    """
    Write Roman numerals up to 89 in digits: of two letters and more (those with an L in capitals), and I, V and X behind a name or a word such as "war".

    Example:

    ```python
    >>> write_out_roman("Henry VIII in World War I, chapter V"), write_out_roman("I am X")
    ('Henry 8 in World War 1, chapter 5', 'I am X')

    ```
    """
    text = re.sub(r"\bWW ?(?=I{1,2}\b|[12]\b)", "World War ", text)
    before = r"(?:(?!The )\b[A-Z][\w'’-]+|\b(?:war|act|part|chapter|volume|book|type|phase|class|grade|stage|level)) "
    text = re.sub(
        rf"({before})([IVX])\b(?!['’&-])(?!\.\s*[A-Z])", lambda match: match[1] + str(_ROMAN[match[2]]), text
    )
    text = re.sub(r"\b(?:XL|LX{0,3})(?:IX|IV|V?I{0,3})\b(?!['’])", _roman_value, text)
    return re.sub(r"\bX{0,3}(?:IX|IV|V?I{0,3})\b(?!['’])", _roman_value, text, flags=re.I)


def _roman_value(match: re.Match) -> str:
    numeral = match.group().upper()
    if len(numeral) < 2:
        return match.group()
    digits = [_ROMAN[letter] for letter in numeral]
    return str(sum(-one if one < after else one for one, after in zip(digits, [*digits[1:], 0], strict=True)))


def is_number(word: str) -> bool:
    """Whether a word of [`normalize`] is a number, possibly negative."""
    return word.lstrip("-")[:1].isdigit()


def canonical(word: str) -> str:
    """A number in digits as it is compared: `"007"`, `"3.1.2"` and `"3:1"` as they stand, others without idle zeros."""
    digits = word.lstrip(MINUS)
    sign = "-" if digits != word else ""
    if ":" in digits or (len(digits) > 1 and unicodedata.digit(digits[0]) == 0 and digits[1] != "."):
        return sign + "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in digits)
    if digits.count(".") > 1:
        return sign + (digits.replace(".", "") if re.fullmatch(r"\d{1,3}(?:\.\d{3})+", digits) else digits)
    # "12.500" may be twelve thousand and keeps its zeros.
    return sign + (digits if _MAY_BE_THOUSANDS.fullmatch(digits) and digits.isascii() else f"{float(digits):.15g}")


def values(word: str) -> frozenset[float]:
    """
    The numbers that a word may stand for. Three digits behind one dot may be thousands; number words of some languages are
    read as well.

    Example:

    ```python
    >>> sorted(values("1.234")), values("zwolf"), values("bees")
    ([1.234, 1234.0], frozenset({12}), frozenset())

    ```
    """
    if not is_number(word):
        return _FOREIGN_WORDS.get(word, frozenset())
    try:
        found = {float(word)}
    except ValueError:  # "3.1.2", "3:1"
        return frozenset()
    if len(word.lstrip("-")) > 1 and word.lstrip("-")[0] == "0" and word.lstrip("-")[1] != ".":
        return frozenset()
    if _MAY_BE_THOUSANDS.fullmatch(word.lstrip("-")):
        found.add(float(word.replace(".", "")))
    return frozenset(found)


def _fold(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if ord(c) not in range(0x300, 0x370))


_FOREIGN_WORDS: dict[str, frozenset[float]] = {}
for _place, _word in enumerate(_FOREIGN):
    if _word != "_":
        _value = _FOREIGN_VALUES[_place % len(_FOREIGN_VALUES)]
        _key = _word if "а" <= _word[0] <= "я" else _fold(_word)
        _FOREIGN_WORDS[_key] = _FOREIGN_WORDS.get(_key, frozenset()) | {_value}
