"""Completions that are written in several parts at once: how they are joined, split and shown."""

import pytest

from seal_hf.generation.base import Generation
from seal_hf.generation.parts import JoinedParts, joined_parts, split_parts


def part(text, finished=True, ids=(1, 2)):
    return Generation(text, len(ids), finished, ids)


def test_parts_are_joined_in_their_order():
    whole = joined_parts([part("Who?\nWhere?\n"), part("", ids=(9,)), part(" When? ", ids=(5, 6, 9))])
    assert whole == Generation("Who?\nWhere?\n---\n\n---\nWhen?", 6, True, (1, 2, 9, 5, 6, 9))
    assert split_parts(whole.text) == ["Who?\nWhere?", "", "When?"]
    assert not joined_parts([part("a"), part("b", finished=False)]).finished


def test_a_part_stays_one_part_whatever_is_in_it():
    whole = joined_parts([part("Who?\n---\nWhere?\n ----- \nWhy?\n---"), part("---"), part("a---b")])
    assert split_parts(whole.text) == ["Who?\nWhere?\nWhy?", "", "a---b"]


def test_one_part_is_left_as_it_is():
    one = part(" Who?\n---\nWhere?\n")
    assert joined_parts([one]) is one


def test_lines_of_parts_are_shown_when_they_are_whole():
    shown = []
    joined = JoinedParts([2, 1], lambda texts: shown.append(texts))
    for new_texts in (["Wh", "Whe", "a"], ["o?\nWhy", "re?", "b\n"], ["?", "\nHow?\n", ""]):
        joined.on_text(new_texts)
    assert shown == [["", "a"], ["Who?\n", "b\n"], ["Where?\nHow?\n", ""]]
    whole = joined.join([part("Who?\nWhy?"), part("Where?\nHow?\n"), part("ab\n")])
    assert shown[3:] == [["Why?\n", ""]]
    assert [one.text for one in whole] == ["Who?\nWhy?\n---\nWhere?\nHow?", "ab\n"]


@pytest.mark.parametrize("answer", [True, None])
def test_what_the_caller_returns_is_passed_on(answer):
    assert JoinedParts([2], lambda texts: answer).on_text(["a", "b"]) is answer
