"""Numbers with what they count: units, times of day, eras, centuries, directions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import is_number, values
from .words import Word


# Dimension, size in the dimension's smallest common measure, names.
_TABLE = """
length 0.001 mm millimetre millimeter
length 0.01 cm centimetre centimeter
length 1 m metre meter
length 1000 km kilometre kilometer
length 0.0254 inch inches
length 0.3048 ft foot feet
length 0.9144 yd yard
length 1609.344 mi mile
mass 0.001 mg milligram
mass 1 g gram gramme
mass 1000 kg kilo kilogram kilogramme
mass 1000000 tonne
mass 28.3495 oz ounce
mass 453.592 lb lbs
volume 0.001 ml millilitre milliliter
volume 1 l litre liter
volume 3.78541 gallon
volume 0.473176 pint
area 1 m2 sqm
area 10000 ha hectare
area 4046.86 acre
area 1000000 km2
speed 1 kmh kph
speed 1.609344 mph
time 0.001 ms millisecond
time 1 sec seconds
time 60 min minute
time 3600 hr hour
time 86400 day
time 604800 week
time 2629800 month
time 31557600 year
time 315576000 decade
time 3155760000 centuries
century 1 century
power 1 w watt
power 1000 kw kilowatt
frequency 1 hz hertz
frequency 1000 khz kilohertz
share 1 percent
celsius 1 celsius c
fahrenheit 1 fahrenheit f
kelvin 1 kelvin
dollar 1 dollar usd buck
euro 1 euro eur
sterling 1 sterling gbp
yen 1 yen jpy
rupee 1 rupee inr
cent 1 cent
franc 1 franc
mark 1 mark
before 1 bc bce
since 1 ad ce
morning 1 am
afternoon 1 pm
north 1 n north
south 1 s south
east 1 e east
west 1 w west
"""
_UNITS: dict[str, tuple[str, float]] = {}
for _line in _TABLE.split("\n")[1:-1]:
    _dimension, _size, *_names = _line.split()
    for _name in _names:
        _UNITS[_name] = (_dimension, float(_size))
        if len(_name) > 3:
            _UNITS.setdefault(f"{_name}s", (_dimension, float(_size)))
_CURRENCIES = {"dollars", "euros", "sterling", "yen", "rupees"}  # the words of symbols, which stand before the number
_ABBREVIATED_MILLIONS = {"k": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "b": 1e9, "bn": 1e9, "tn": 1e12}
_NO_UNITS = {"n", "s", "e", "w", "c", "f"}  # letters that are units behind degrees alone
_CONVERSION_TOLERANCE = 0.01
# Before a number that may be rounded, by so much at most.
_HEDGES = set("about approximately around roughly nearly almost some circa ca".split())
_ROUNDING_TOLERANCE = 0.05


@dataclass(frozen=True)
class Quantity:
    """
    A number of a text with its unit.

    Parameters:
        text (`str`):
            The number as a word.
        readings (`frozenset`):
            What it may be: pairs of a number and its unit, `(dimension, size)` or `None`.
        places (`range`):
            The places of the words that it takes.
        is_rounded (`bool`, *optional*, defaults to `False`):
            Whether the text says "about", "nearly" or the like.
    """

    text: str
    readings: frozenset[tuple[float, tuple[str, float] | None]]
    places: range
    is_rounded: bool = False

    def is_met_by(self, other: "Quantity") -> bool:
        """Whether another quantity is the same: in another unit, or without one, but not with a unit of another kind."""
        if not self.readings and not other.readings:
            return self.text == other.text
        may_round = self.is_rounded or other.is_rounded
        return any(_is_same(*one, *another, may_round) for one in self.readings for another in other.readings)


def _is_same(
    value: float,
    unit: tuple[str, float] | None,
    other_value: float,
    other_unit: tuple[str, float] | None,
    may_round: bool,
) -> bool:
    if unit is None or other_unit is None or unit == other_unit:
        return value == other_value or (may_round and _is_rounding(value, other_value))
    if unit[0] != other_unit[0]:
        return False
    size, other_size = value * unit[1], other_value * other_unit[1]
    return abs(size - other_size) <= _CONVERSION_TOLERANCE * abs(size)


def _is_rounding(one: float, other: float) -> bool:
    """Whether one of two numbers is the other with fewer digits, as 9,400 is of 9,430."""
    is_near = 0 < abs(one - other) <= _ROUNDING_TOLERANCE * abs(one)
    return is_near and any(
        f"{a:.{digits}g}" == f"{b:.{digits}g}" == f"{b:.15g}" or float(f"{a:.{digits}g}") == b
        for a, b in ((one, other), (other, one))
        for digits in (1, 2, 3)
    )


def read_quantities(words: Sequence[Word]) -> list[Quantity]:
    """
    The numbers among the words of a text, each with its unit, in their order.

    Args:
        words (`Sequence[Word]`):
            The words of a text, as `read_words` gives them.

    Example:

    ```python
    >>> from seal_hf.grading.words import read_words
    >>> gold, *others = (read_quantities(read_words(text))[0] for text in ("5 km", "5000 m", "5", "5 miles"))
    >>> [gold.is_met_by(other) for other in others]
    [True, True, False]

    ```
    """
    quantities: list[Quantity] = []
    for place, word in enumerate(words):
        if numbers := values(word.text):
            quantities.append(_quantity(words, place, numbers))
        elif word.text == "half":
            quantities.append(Quantity(word.text, frozenset({(50.0, _UNITS["percent"])}), range(place, place + 1)))
        elif is_number(word.text):
            quantities.append(_time_of_day(words, place))
    return quantities


def _quantity(words: Sequence[Word], place: int, numbers: frozenset[float]) -> Quantity:
    following = [word.text for word in words[place + 1 : place + 4]] + [""] * 3
    before = words[place - 1].text if place else ""
    unit, length = _unit(following)
    start = place
    if unit is None and before in _CURRENCIES | {"ad", "bc"}:
        unit, start = _UNITS[before], place - 1
    readings = {(number, unit) for number in numbers}
    is_amount = is_number(words[place].text) and (following[0] != "b" or before in _CURRENCIES)
    if is_amount and (multiplier := _ABBREVIATED_MILLIONS.get(following[0])):
        money, length = (_UNITS[before] if before in _CURRENCIES else None), max(length, 1)
        readings |= {(number * multiplier, money) for number in numbers}
    if following[length : length + 2] in (["below", "0"], ["below", "freezing"]) or following[:2] == ["below", "0"]:
        readings = {(-number, unit) for number, unit in readings}
    number = min(numbers)
    if unit and unit[0] in ("morning", "afternoon") and 1 <= number <= 12:
        readings |= {(60.0 * (number % 12), unit)}
    return Quantity(words[place].text, frozenset(readings), range(start, place + 1 + length), before in _HEDGES)


def _unit(following: list[str]) -> tuple[tuple[str, float] | None, int]:
    """The unit that words behind a number name, and how many words it takes."""
    if following[0] == "square" and following[1] in _UNITS and _UNITS[following[1]][0] == "length":
        return ("area", _UNITS[following[1]][1] ** 2), 2
    if following[0] == "century" and following[1] in ("bc", "bce"):
        return ("century before", 1.0), 2
    if following[0] in ("degree", "degrees"):
        if following[1] in _UNITS and _UNITS[following[1]][0] in _DEGREES:
            return _UNITS[following[1]], 2
        return None, 1
    if following[0] in _UNITS and following[0] not in _NO_UNITS:
        return _UNITS[following[0]], 1
    return None, 0


_DEGREES = {"celsius", "fahrenheit", "kelvin", "north", "south", "east", "west"}


def _time_of_day(words: Sequence[Word], place: int) -> Quantity:
    """A time such as "7:30 pm" in minutes of its half of the day; a ratio or a version has no readings."""
    text = words[place].text
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", text)
    if not match or int(match[1]) > 24 or int(match[2]) > 59:
        return Quantity(text, frozenset(), range(place, place + 1))
    hour, minute = int(match[1]), int(match[2])
    following = words[place + 1].text if place + 1 < len(words) else ""
    unit = _UNITS[following] if following in ("am", "pm") else _UNITS["pm"] if hour > 12 else None
    return Quantity(
        text, frozenset({(60.0 * (hour % 12) + minute, unit)}), range(place, place + 1 + (following in ("am", "pm")))
    )
