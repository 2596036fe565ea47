"""Completions that are written in several parts at once: how they are joined, split and shown."""

import pytest

from seal_hf.generation.base import Generation
from seal_hf.generation.parts import JoinedParts, joined_drafts, joined_parts, split_parts


def part(text, finished=True, ids=(1, 2)):
    return Generation(text, len(ids), finished, ids)


def test_parts_are_joined_in_their_order():
    whole = joined_parts([part("Who?\nWhere?\n"), part("", ids=(9,)), part(" When? ", ids=(5, 6, 9))])
    assert whole == Generation("Who?\nWhere?\n---\n\n---\nWhen?", 6, True, (1, 2, 9, 5, 6, 9))
    assert split_parts(whole.text) == ["Who?\nWhere?", "", "When?"]
    cut = joined_parts([part("a"), part("b", finished=False)])
    assert not cut.finished and cut.unfinished_parts == (1,)


def test_the_parts_of_a_draft_follow_those_of_the_one_before():
    first = joined_parts([part("a"), part("", finished=False)])
    second = joined_parts([part("c", finished=False), part("d", ids=(3,))])
    both = joined_drafts([first, second], 2)
    assert split_parts(both.text) == ["a", "", "c", "d"]
    assert (both.num_tokens, both.finished, both.unfinished_parts) == (7, False, (1, 2))
    assert joined_drafts([first], 2) is first
    assert joined_drafts([part(" a\n---\nb "), part("c")]).text == "a\n---\nb\n---\nc"


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
