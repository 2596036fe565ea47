"""The demo passages: their number, lengths and names, and that each question has one right answer to the grader."""

import re
from statistics import fmean

import pytest

from seal_hf.domains import load_demo_passages
from seal_hf.grading import LexicalGrader


SPLITS = ("train", "test", "other_languages")
DEMO_PASSAGES = [passage for split in SPLITS for passage in load_demo_passages(split)]
ENGLISH = [passage for passage in DEMO_PASSAGES if passage["language"] == "en"]
SHORT, LONG = range(80, 121), range(250, 401)  # words
# Parts of names that stand for nothing by themselves, and words that are written like names.
COMMON_WORDS = set(
    """
    January February March April May June July August September October November December Monday Tuesday Wednesday
    Thursday Friday Saturday Sunday Day The I No Mr Mrs Miss Dr Captain Saint Old Lake Bay Fell Mount Lantern
    """.split()
)
# What a person would only say with the passage in view.
POINTING = re.compile(r"\bthe (passage|text|article|author|man|woman|town|village|island|ship)\b", re.I)
# Older questions stand with the title of their passage, as "Topic: Pellarby Clock".
NEEDS_TITLE = {passage["title"] for split in ("train", "test") for passage in load_demo_passages(split)[:12]}


def num_words(passage):
    return len(passage["context"].split())


def names(passage):
    """The words with a capital letter that stand within a sentence, in the title or in an answer, without common ones."""
    within = re.findall(r"(?<=[^.!?\s][\s-])([A-Z][^\W\d_]*)", passage["context"])
    elsewhere = re.findall(r"\b[A-Z][^\W\d_]*", " ".join([passage["title"], *columns(passage)[1]]))
    return {*within, *elsewhere} - COMMON_WORDS


def capitalised(passage):
    return set(re.findall(r"\b[A-Z][^\W\d_]*", f"{passage['title']} {passage['context']}"))


def columns(passage):
    return [[item[key] for item in passage["questions"]] for key in ("question", "answer")]


def test_splits():
    train, test, others = (load_demo_passages(split) for split in SPLITS)
    assert (len(train), len(test), len(others)) == (36, 48, 2)
    assert {passage["language"] for passage in train + test} == {"en"}
    assert [passage["language"] for passage in others] == ["de", "ja"]
    for key in ("title", "context"):
        assert len({passage[key] for passage in DEMO_PASSAGES}) == 86
    assert load_demo_passages() == train
    with pytest.raises(ValueError, match="no rows of split 'validation'"):
        load_demo_passages("validation")


def test_short_and_long_passages():
    for split, num_short, num_long in (("train", 26, 10), ("test", 34, 14)):
        lengths = [num_words(passage) for passage in load_demo_passages(split)]
        assert sum(length in SHORT for length in lengths) == num_short
        assert sum(length in LONG for length in lengths) == num_long
        assert num_short + num_long == len(lengths)


@pytest.mark.parametrize("passage", DEMO_PASSAGES, ids=lambda passage: passage["title"])
def test_questions_and_answers(passage):
    context, (questions, golds) = passage["context"], columns(passage)
    if passage["language"] == "ja":
        assert 150 <= len(context) <= 300
    assert len(set(questions)) == len(set(golds)) == len(questions) == 5
    for question, gold in zip(questions, golds, strict=True):
        # As a whole word, and once only, so that the passage leaves no doubt.
        boundary = "" if passage["language"] == "ja" else r"\b"
        assert len(re.findall(f"{boundary}{re.escape(gold)}{boundary}", context)) == 1, gold
        assert len(gold.split()) <= 5
        assert gold.casefold() not in question.casefold()
        assert gold.casefold() not in passage["title"].casefold()


@pytest.mark.parametrize("passage", ENGLISH, ids=lambda passage: passage["title"])
def test_questions_stand_alone(passage):
    title = {word for word in re.findall(r"\w+", passage["title"].casefold()) if len(word) > 2 and word != "the"}
    for question in columns(passage)[0]:
        assert question.endswith("?")
        assert not POINTING.search(question) or passage["title"] in NEEDS_TITLE, question
        assert title & set(re.findall(r"\w+", question.casefold())) or passage["title"] in NEEDS_TITLE, question


@pytest.mark.parametrize("passage", ENGLISH, ids=lambda passage: passage["title"])
def test_answers_are_spread_over_the_passage(passage):
    parts = 4 if num_words(passage) in LONG else 2
    context = passage["context"]
    places = [re.search(rf"\b{re.escape(gold)}\b", context).start() / len(context) for gold in columns(passage)[1]]
    assert len({int(parts * place) for place in places}) >= min(3, parts), places


@pytest.mark.parametrize("passage", DEMO_PASSAGES, ids=lambda passage: passage["title"])
def test_only_the_answer_to_a_question_is_right(passage):
    questions, golds = columns(passage)
    for place, gold in enumerate(golds):
        verdicts = LexicalGrader().grade(questions, golds, [gold] * len(golds))
        assert verdicts == [other == place for other in range(len(golds))], gold


@pytest.mark.parametrize("num_recited", [12, 22, 48])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_beginning_of_a_passage_earns_little(split, num_recited):
    rewards = []
    for passage in load_demo_passages(split):
        questions, golds = columns(passage)
        recited = " ".join(passage["context"].split()[:num_recited])
        rewards.append(fmean(LexicalGrader().grade(questions, golds, [recited] * len(golds))))
    assert fmean(rewards) <= 0.25


def test_no_name_is_in_two_passages():
    words = [capitalised(passage) for passage in ENGLISH]
    shared = [
        (passage["title"], other["title"], common)
        for place, passage in enumerate(ENGLISH)
        for other_place, other in enumerate(ENGLISH)
        if place != other_place and (common := names(passage) & words[other_place])
    ]
    assert shared == []


def test_answers_with_names_are_not_in_other_passages():
    for passage in DEMO_PASSAGES:
        elsewhere = " ".join(other["context"] for other in DEMO_PASSAGES if other is not passage)
        for gold in columns(passage)[1]:
            # Numbers and common nouns recur; names must not.
            if re.search("[A-Z]", gold):
                assert gold not in elsewhere
