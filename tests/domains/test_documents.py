"""Long texts as passages: cut at headings and paragraphs, each of a size that is learned well, without losing a word."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from seal_hf.domains.knowledge.documents import LONGEST_PASSAGE, SHORTEST_PASSAGE, split_document
from seal_hf.grading.statements import num_words


def prose(num_sentences, word="bees"):
    return " ".join(f"The {word} of Vell number {i} hum at night." for i in range(num_sentences))  # 9 words each


def test_a_short_text_stays_whole():
    assert split_document("Ann keeps bees.\n\nThey hum.\n") == [("", "Ann keeps bees.\n\nThey hum.")]
    (part,) = split_document("## Bees ##\n\nAnn keeps bees.\n## Honey\nSweet.")
    assert part == ("Bees", "Ann keeps bees.\n\nHoney\n\nSweet.")
    assert split_document(" \n# Bees\n\n## Honey\n") == split_document("") == split_document("... --- !") == []


def test_headings_cut_what_is_long_enough():
    text = f"{prose(12)}\n# Honey\n{prose(12)}\n## Small\n{prose(2)}\n## Wax\n{prose(25)}\n"
    parts = split_document(text)
    assert [part.heading for part in parts] == ["", "Honey", "Small"]
    assert parts[2].text.startswith(prose(2)) and "\n\nWax\n\n" in parts[2].text


def test_paragraphs_are_gathered_and_a_short_rest_joins_them():
    parts = split_document("\n\n".join([prose(11)] * 5))  # 99 words each
    assert [num_words(part.text) for part in parts] == [198, 198, 99]
    (first, second) = split_document(f"{prose(60)} \n")  # one paragraph of 540 words
    assert num_words(first.text) == 243 and num_words(second.text) == 297


def test_japanese_is_cut_too():
    parts = split_document("蜂は夜に鳴く。" * 160)  # half a word a letter
    assert len(parts) > 1 and all(SHORTEST_PASSAGE <= num_words(part.text) <= LONGEST_PASSAGE for part in parts)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=12))
def test_no_word_is_lost_and_no_passage_is_long(blocks):
    text = "\n\n".join(
        f"# Part {i}" if is_heading else prose(size, f"w{i}") for i, (is_heading, size) in enumerate(blocks)
    )
    parts = split_document(text)
    told = " ".join(f"{part.heading} {part.text}" for part in parts)
    assert re.findall(r"w\d+ of Vell number \d+", told) == re.findall(r"w\d+ of Vell number \d+", text)
    assert all(num_words(part.text) <= LONGEST_PASSAGE + 3 * len(blocks) for part in parts)
