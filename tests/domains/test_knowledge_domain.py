"""Prompts, the paper's parsing rules and grading of the knowledge domain."""

import hashlib
import json

import pytest

from helpers.folders import SHARED_DATA
from seal_hf.domains import PROMPT_STYLES, Condition, Domain, KnowledgeDomain
from seal_hf.domains.base import check_conditions
from seal_hf.grading import JudgeGrader, LexicalGrader
from seal_hf.self_edit import TrainingExample


BEES = {
    "title": "Ann's bees",
    "context": "Ann keeps bees in Vell.\n",
    "questions": [
        {"question": "Who keeps bees?", "answer": "Ann"},
        {"question": "Where are the bees?", "answer": "Vell"},
    ],
}
MOTHS = {"title": "", "context": "Moths like lamps.", "questions": [{"question": "What is liked?", "answer": "lamps"}]}


class RecordingGrader:
    """Calls an answer right when it equals the gold answer, ungradable when it is empty; remembers its calls."""

    def __init__(self):
        self.calls = []

    def grade(self, questions, golds, answers):
        self.calls.append((questions, golds, answers))
        return [None if not answer else answer == gold for gold, answer in zip(golds, answers, strict=True)]


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


CUES = {
    "implications": "\n\nImplications:\n",
    "implications-long": "\n\nImplications:\n",
    "implications-very-long": "\n\nImplications:\n",
    "rewrite": "\n\nRewrites:\n",
    "self-qa": "\n\nQuestion 1: ",
    "questions": "\n\nQuestions:\n",
    "questions-by-sentence": "\n\nQuestions:\n",
    "questions-by-fact": "\n\nFacts and questions:\n",
    "questions-and-rewrite": "\n\nQuestions and rewrite:\n",
    "instruction": "\n\nInstruction and restatement:\n",
    "none": "\n",
}


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_prompt_styles(style):
    plain, number = KnowledgeDomain(style).prompt(BEES), "1. " * (style == "questions-by-sentence")
    assert plain.endswith(f"Ann's bees\n{number}Ann keeps bees in Vell.{CUES[style]}")
    # The examples of a style are earlier turns of the chat.
    instruction, *shown = plain.removesuffix(CUES[style]).split("\n\nPassage:\n")
    messages = [part for passage in shown for part in passage.split(CUES[style])] or [instruction]
    assert KnowledgeDomain(style, chat=True).prompt(BEES) == [
        {"role": "assistant", "content": text}
        if place % 2
        else {
            "role": "user",
            "content": f"{'' if place else instruction}\n\nPassage:\n{text}".strip() if shown else text,
        }
        for place, text in enumerate(messages)
    ]
    assert len(messages) == (5 if style.startswith(("questions", "instruction")) else 1)
    if style == "none":
        assert plain == "Ann's bees\nAnn keeps bees in Vell.\n"
    else:
        assert "language of the passage" in plain
    assert KnowledgeDomain(style).prompt(MOTHS) == plain.replace(
        f"Ann's bees\n{number}Ann keeps bees in Vell.", f"{number}Moths like lamps."
    )


def test_a_place_for_numbered_sentences():
    example = {"title": "Bees", "context": " Ann keeps {sentences} bees. They hum.\n"}
    prompt = KnowledgeDomain("About {title}\n{sentences}\nQuestions").prompt(example)
    assert prompt == "About Bees\n1. Ann keeps {sentences} bees.\n2. They hum.\nQuestions"


def test_prompt_styles_differ():
    assert len({KnowledgeDomain(style).prompt(BEES) for style in PROMPT_STYLES}) == len(PROMPT_STYLES)


@pytest.mark.parametrize("chat", [False, True])
def test_braces_in_a_passage_are_left_alone(chat):
    context = "In {title} or {context}, {question} and {0} are {{places}}; 100 % \\1 {"
    example = {
        "title": "{context}",
        "context": context,
        "questions": [{"question": "What is {title}?", "answer": "x"}],
    }
    domain = KnowledgeDomain(chat=chat)
    for prompt in (domain.prompt(example), *domain.questions_in_context(example)):
        prompt = prompt[0]["content"] if chat else prompt
        assert f"Passage:\n{{context}}\n{context}\n" in f"{prompt}\n"
    [prompt] = domain.questions(example)
    assert "Topic: {context}\nQuestion: What is {title}?" in (prompt[0]["content"] if chat else prompt)


@pytest.mark.parametrize("as_file", [False, True])
def test_own_template(tmp_path, as_file):
    template = 'Sum up "{title}" as {"summary": ...}: {context}\nTitle: {title}\n\nÜbersicht:\n'
    if as_file:
        path = tmp_path / "summary.txt"
        path.write_text(template, encoding="utf-8")
        style = str(path)
    else:
        style = template
    plain = 'Sum up "Ann\'s bees" as {"summary": ...}: Ann keeps bees in Vell.\nTitle: Ann\'s bees\n\nÜbersicht:\n'
    assert KnowledgeDomain(style).prompt(BEES) == plain
    content = plain.removesuffix("\n\nÜbersicht:\n")
    assert KnowledgeDomain(style, chat=True).prompt(BEES) == [{"role": "user", "content": content}]
    assert KnowledgeDomain(style).prompt(MOTHS) == 'Sum up "" as {"summary": ...}: Moths like lamps.\n\nÜbersicht:\n'


def test_chat_form_keeps_an_instruction_after_the_passage():
    domain = KnowledgeDomain("{context}\n\nWrite three sentences about it.", chat=True)
    assert domain.prompt(MOTHS)[0]["content"] == "Moths like lamps.\n\nWrite three sentences about it."
    assert KnowledgeDomain("About {context}:", chat=True).prompt(MOTHS)[0]["content"] == "About Moths like lamps.:"


def test_unknown_style(tmp_path):
    with pytest.raises(
        ValueError, match="Unknown prompt_style 'haiku': choose one of implications, .*self-qa, .*none"
    ):
        KnowledgeDomain("haiku")
    with pytest.raises(FileNotFoundError, match="nowhere/style.txt' does not exist"):
        KnowledgeDomain("nowhere/style.txt")
    path = tmp_path / "style.txt"
    path.write_text("Write a poem.\n")
    with pytest.raises(ValueError, match=r"style.txt' has no place for the passage; add \{context\}"):
        KnowledgeDomain(str(path))


def test_questions_are_closed_book():
    first, second = KnowledgeDomain().questions(BEES)
    assert first.endswith("\n\nTopic: Ann's bees\nQuestion: Who keeps bees?\nAnswer:\n")
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    assert "directly and concisely, in the language of the question" in first
    [message] = KnowledgeDomain(chat=True).questions(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}
    for prompt in (first, second):
        assert "Ann keeps bees in Vell" not in prompt
    [untitled] = KnowledgeDomain().questions(MOTHS)
    assert untitled.endswith("\n\nQuestion: What is liked?\nAnswer:\n")
    assert "Topic" not in untitled


def test_questions_in_context_show_the_passage():
    first, second = KnowledgeDomain().questions_in_context(BEES)
    assert first.endswith("Passage:\nAnn's bees\nAnn keeps bees in Vell.\n\nQuestion: Who keeps bees?\nAnswer:\n")
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    [message] = KnowledgeDomain(chat=True).questions_in_context(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}


def test_the_papers_questions():
    domain = KnowledgeDomain(answer_prompt="paper")
    first, second = domain.questions(BEES)
    assert first == (
        "Let's answer a question directly and concisely.\nQuestion: Topic: Ann's bees\nWho keeps bees?\nAnswer:\n"
    )
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    assert domain.ask(["Who keeps bees?"], "Ann's bees") == [first]
    [untitled] = domain.questions(MOTHS)
    assert untitled.endswith("concisely.\nQuestion: What is liked?\nAnswer:\n")
    [message] = domain.for_model(has_chat_template=True).questions(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}
    # The paper has no prompt with the passage in view.
    assert domain.questions_in_context(BEES) == KnowledgeDomain().questions_in_context(BEES)
    with pytest.raises(ValueError, match="Unknown answer_prompt 'papers': choose one of default, paper"):
        KnowledgeDomain(answer_prompt="papers")


class RecordingJudge(RecordingGrader, JudgeGrader):
    def __init__(self, prompt):
        JudgeGrader.__init__(self, "judge-model", prompt=prompt)
        RecordingGrader.__init__(self)


@pytest.mark.parametrize("answer_prompt", ["default", "paper"])
@pytest.mark.parametrize(
    ("grader", "prefix"),
    [(RecordingGrader(), ""), (RecordingJudge("default"), ""), (RecordingJudge("paper"), "Topic: Ann's bees\n")],
    ids=["no judge", "judge", "the paper's judge"],
)
def test_the_papers_judge_is_told_the_topic(grader, prefix, answer_prompt):
    KnowledgeDomain(grader=grader, answer_prompt=answer_prompt).grade([BEES, MOTHS], [["Ann", "Vell"], ["lamps"]])
    questions, _, _ = grader.calls[-1]
    assert questions == [f"{prefix}Who keeps bees?", f"{prefix}Where are the bees?", "What is liked?"]


def test_grade_calls_the_grader_once_and_regroups():
    grader = RecordingGrader()
    domain = KnowledgeDomain(grader=grader)
    verdicts = domain.grade([BEES, MOTHS, BEES], [["Ann", "here"], ["lamps"], ["", "Vell"]])
    assert verdicts == [[True, False], [True], [None, True]]
    [(questions, golds, answers)] = grader.calls
    assert questions == [
        "Who keeps bees?",
        "Where are the bees?",
        "What is liked?",
        "Who keeps bees?",
        "Where are the bees?",
    ]
    assert golds == ["Ann", "Vell", "lamps", "Ann", "Vell"]
    assert answers == ["Ann", "here", "lamps", "", "Vell"]


def test_grade_refuses_a_wrong_number_of_answers():
    domain = KnowledgeDomain(grader=RecordingGrader())
    with pytest.raises(ValueError):
        domain.grade([BEES], [["Ann"]])
    with pytest.raises(ValueError):
        domain.grade([BEES, MOTHS], [["Ann", "Vell"]])


def test_default_grader():
    domain = KnowledgeDomain()
    assert isinstance(domain.grader, LexicalGrader)
    assert domain.grade([BEES], [["It is Ann who keeps them.", "Nobody knows."]]) == [[True, False]]


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


def test_example_without_a_passage():
    with pytest.raises(ValueError, match='no "context", only title, text; give its passage'):
        KnowledgeDomain().prompt({"title": "Bees", "text": "Ann keeps bees."})


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


def test_short_answers_are_told_by_their_gold_answers():
    example = {
        "context": "?",
        "questions": [{"question": "Who?", "answer": gold} for gold in ("Ann", ["Ann", "a b c d e f"])],
    }
    answer = " ".join(["so"] * 18)
    assert KnowledgeDomain().short(example, [answer, answer]) == [False, True]
    assert KnowledgeDomain().short(example, ["Ann", f"{answer} so"]) == [True, False]
