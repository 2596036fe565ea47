"""The paper's parsing rules in the knowledge domain, what its examples must have, and its form for a model."""

import hashlib
import json

import pytest

from helpers.folders import SHARED_DATA
from helpers.passages import BEES, MOTHS
from seal_hf.domains import Condition, Domain, KnowledgeDomain
from seal_hf.domains.base import check_conditions
from seal_hf.self_edit import TrainingExample


def texts_of(completion, split_newlines, example=BEES):
    self_edit = KnowledgeDomain(split_newlines=split_newlines).parse(completion, example)
    return [example.completion for example in self_edit.examples]


# Completion, its texts with split_newlines, its texts without.
RULES = {
    "one line": ("Bees hum.", ["Bees hum."], ["Bees hum."]),
    "lines, stripped, without the empty ones": (
        "  Bees hum. \n\n\tBees fly.\n",
        ["Bees hum.", "Bees fly."],
        ["Bees hum. \n\n\tBees fly."],
    ),
    "lines of segments": (
        "Bees hum.\nBees fly.\n---\nBees rest.",
        ["Bees hum.", "Bees fly.", "Bees rest."],
        ["Bees hum.\nBees fly.", "Bees rest."],
    ),
    "empty segments": ("---\nBees hum.\n---\n\n---\n", ["Bees hum."], ["Bees hum."]),
    "segments within a line": ("Bees hum.---Bees fly.", ["Bees hum.", "Bees fly."], ["Bees hum.", "Bees fly."]),
    "heading before a numbered list": (
        "Sure, here is a list:\n\n1. Bees hum.\n2. Bees fly.",
        ["1. Bees hum.", "2. Bees fly."],
        ["Sure, here is a list:\n\n1. Bees hum.\n2. Bees fly."],
    ),
    "numbered list without a heading": ("1. Bees hum.\n2. Bees fly.", ["1. Bees hum.", "2. Bees fly."], None),
    "heading before bullets stays": ("A list:\n- Bees hum.", ["A list:", "- Bees hum."], None),
    "list that starts later keeps its heading": (
        "A list\nof facts:\n1. Bees hum.",
        ["A list", "of facts:", "1. Bees hum."],
        None,
    ),
    "item 10 is not item 1.": ("9. Bees hum.\n10. Bees fly.", ["9. Bees hum.", "10. Bees fly."], None),
    "questions": (
        "Question 1: Who hums?\nAnswer: Bees\n\nQuestion 2: Who flies?\nAnswer: Bees\nand moths",
        ["Question 1: Who hums?\nAnswer: Bees\n", "Question 2: Who flies?\nAnswer: Bees\nand moths"],
        ["Question 1: Who hums?\nAnswer: Bees\n\nQuestion 2: Who flies?\nAnswer: Bees\nand moths"],
    ),
    "questions whose first label was in the prompt": (
        "Who hums?\nAnswer: Bees\nQuestion 2: Who flies?\nAnswer: Bees",
        ["Question 1: Who hums?\nAnswer: Bees", "Question 2: Who flies?\nAnswer: Bees"],
        ["Who hums?\nAnswer: Bees\nQuestion 2: Who flies?\nAnswer: Bees"],
    ),
    "questions are split at their lines only": (
        "Question 1: Is this Question 2: or not?\nAnswer: no\n---\nfor now\n Question 3: Still?\nAnswer : yes",
        ["Question 1: Is this Question 2: or not?\nAnswer: no\n---\nfor now\n Question 3: Still?\nAnswer : yes"],
        ["Question 1: Is this Question 2: or not?\nAnswer: no", "for now\n Question 3: Still?\nAnswer : yes"],
    ),
    "a question alone is no question with answer": (
        "Question 1: Who hums?\nQuestion 2: Who flies?",
        ["Question 1: Who hums?", "Question 2: Who flies?"],
        None,
    ),
    "an answer without a numbered question": ("Who hums?\nAnswer: Bees", ["Who hums?", "Answer: Bees"], None),
    "labels in another language": ("Frage 1: Wer?\nAntwort: Ann", ["Frage 1: Wer?", "Antwort: Ann"], None),
}


@pytest.mark.parametrize(("completion", "split", "unsplit"), RULES.values(), ids=RULES.keys())
def test_rules(completion, split, unsplit):
    passage = "Ann's bees\nAnn keeps bees in Vell."
    assert texts_of(completion, True) == [*(f"Ann's bees\n{text}" for text in split), passage]
    unsplit = [completion.strip()] if unsplit is None else unsplit
    assert texts_of(completion, False) == [*(f"Ann's bees\n{text}" for text in unsplit), passage]


@pytest.mark.parametrize(
    "example", [MOTHS, {"context": "Moths like lamps."}, {"title": None, "context": MOTHS["context"]}]
)
def test_without_a_title_sequences_have_no_prefix(example):
    assert texts_of("Moths fly.\nMoths rest.", True, example) == ["Moths fly.", "Moths rest.", "Moths like lamps."]


@pytest.mark.parametrize("completion", ["", " \n\t", "---", "\n---\n\n------\n"])
@pytest.mark.parametrize("split_newlines", [True, False])
def test_completion_without_text_is_malformed(completion, split_newlines):
    assert KnowledgeDomain(split_newlines=split_newlines).parse(completion, BEES) is None


def test_parse_keeps_prompt_and_completion_and_trains_on_every_token():
    domain = KnowledgeDomain("rewrite", chat=True)
    example = {"title": "Ann's bees", "context": "Ann keeps bees in Vell."}
    self_edit = domain.parse("Bees hum.\n", example)
    assert self_edit.prompt == domain.prompt(example)
    assert self_edit.completion == "Bees hum.\n"
    assert self_edit.examples == (
        TrainingExample("", "Ann's bees\nBees hum."),
        TrainingExample("", "Ann's bees\nAnn keeps bees in Vell."),
    )
    assert self_edit.overrides == {}


def test_passage_only():
    self_edit = KnowledgeDomain().passage_only(BEES)
    assert self_edit.examples == (TrainingExample("", "Ann's bees\nAnn keeps bees in Vell."),)
    assert (self_edit.prompt, self_edit.completion) == ("", "")


def test_domain_is_abstract():
    for call in (
        lambda d: d.prompt(BEES),
        lambda d: d.parse("", BEES),
        lambda d: d.questions(BEES),
        lambda d: d.grade([], []),
    ):
        with pytest.raises(NotImplementedError):
            call(Domain())


# File, split_newlines, completions, sequences, characters of all sequences, sha256 of the sequences joined by NUL. The
# sequences were compared one by one with those of the authors' build_train_sequences; none of them differed.
STORED = [
    ("iter0_train", True, 1000, 8993, 1929167, "adc8e94599c4a3b2b6c2d03960b93eba6c9de1560cb0ab023f3f1454365c5c9f"),
    ("iter0_train", False, 1000, 2000, 1839764, "4382756b2c56429e8dc88bfe65cc81ae2ba702c32dd18f5d5b44f93290816fab"),
    ("iter1_train", True, 250, 2063, 419377, "9f1d822f1652502a13e8285af7647e4c7d657f3959b1fa4d78f15db1fc420b3b"),
    ("iter1_train", False, 250, 500, 400492, "8bb5383ebe474df57fc5ee20dbde6c09ee22ad7f1265711800d5381f3d3b3a2f"),
    ("base_val", True, 1000, 8418, 1842328, "dbfd0eda0246fffe1d26a3d02c07ae4c10a6ab09491187efa08702a06ce729d4"),
    ("base_val", False, 1000, 2000, 1747179, "8b89ada44d361ce8533c1d8579f7f229bb06dd71e25578bc26182b70760f9638"),
    ("gpt4_1_val", True, 1000, 15023, 3019454, "37e95a05fd92e49715a5b08d77a2fc7f6988fcd80c0b96513d9e5db1546e00cd"),
    ("gpt4_1_val", False, 1000, 2082, 2885801, "a1737a15a90d056bb449087e637929c4e4be6ebf6b4bb20d251ffdcefcc5f409"),
    ("rank_iter0", True, 250, 2183, 486208, "94859e65f303ceabffe5c2e079f290a35d22bd8f2ab49aa36127cf41627cd8f5"),
    ("rank_iter0", False, 250, 500, 464786, "959d8b1dc3e418b726395de8c66897b5024d990b5b433180a5139e5f2ca81939"),
    ("rank_iter1", True, 250, 2063, 419377, "9f1d822f1652502a13e8285af7647e4c7d657f3959b1fa4d78f15db1fc420b3b"),
    ("rank_iter1", False, 250, 500, 400492, "8bb5383ebe474df57fc5ee20dbde6c09ee22ad7f1265711800d5381f3d3b3a2f"),
    ("eval_base", True, 200, 1714, 373230, "e7a1654b8bad49d543f7a19e4466f8a1f74f55d8efba3621be5e38dfecee7a52"),
    ("eval_base", False, 200, 400, 353022, "ec08bc0acf98a9589ee00171c222e8b076de1a000f770f61bf4e90563a18410c"),
]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the paper authors' stored runs are absent")
@pytest.mark.parametrize(("name", "split_newlines", "completions", "sequences", "characters", "sha256"), STORED)
def test_stored_completions(name, split_newlines, completions, sequences, characters, sha256):
    rows = json.loads((SHARED_DATA / f"{name}.json").read_text(encoding="utf-8"))
    rows = rows["articles"] if isinstance(rows, dict) else rows
    pairs = [
        (completion["text"] if isinstance(completion, dict) else completion, row)
        for row in rows
        for completion in row["completions"]
    ]
    domain = KnowledgeDomain(split_newlines=split_newlines)
    texts = [one.completion for completion, row in pairs for one in domain.parse(completion, row).examples]
    assert (len(pairs), len(texts), sum(map(len, texts))) == (completions, sequences, characters)
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest() == sha256


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"title": "Bees"}, '^has no passage; give "context" a text'),
        ({"context": " \n"}, '^has no passage; give "context" a text'),
        ({"context": None}, '^has no passage; give "context" a text'),
        ({"context": "Bees hum.", "title": 7}, '^has a "title" that is not a text'),
        ({"context": "Bees hum."}, "^has no question, so that nothing can be rewarded"),
        ({"context": "Bees hum.", "questions": []}, "^has no question, so that nothing can be rewarded"),
        ({"context": "Bees hum.", "questions": ["What?"]}, "^has a question without a text"),
        ({"context": "Bees hum.", "questions": [{"question": " ", "answer": "x"}]}, "^has a question without a text"),
        (
            {"context": "Bees hum.", "questions": [{"question": "What?"}]},
            "^has no answer to 'What[?]', so that nothing",
        ),
    ],
)
def test_what_an_example_lacks_is_named(example, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDomain(chat=False).check(example)
    KnowledgeDomain(chat=False).check({"context": "Bees hum.", "questions": [{"question": "What?", "answer": "bees"}]})


def test_a_domain_is_not_changed_by_the_models_that_use_it():
    domain = KnowledgeDomain("rewrite")
    example = {"title": "Bees", "context": "Bees hum.", "questions": []}
    chat, plain = domain.for_model(True), domain.for_model(False)
    assert domain.chat is None and (chat.chat, plain.chat) == (True, False)
    assert isinstance(chat.prompt(example), list) and isinstance(plain.prompt(example), str)
    assert chat.for_model(True) is chat and chat.grader is domain.grader
    with pytest.raises(ValueError, match="The tokenizer has no chat template, which a domain in chat form needs"):
        chat.for_model(False)


@pytest.mark.parametrize(
    "names", [[], ["passage only"], ["base", "base"], ["base", "self-edits"], ["other", "base"]], ids=str
)
def test_conditions_that_cannot_be_told_apart_are_refused(names):
    class Other(KnowledgeDomain):
        @property
        def conditions(self):
            return tuple(Condition(name, self.questions) for name in names)

    with pytest.raises(ValueError, match="Other.conditions has the names .*; begin with 'base', which trains nothing"):
        check_conditions(Other())
    check_conditions(KnowledgeDomain())
