"""What a visitor gives: accepted as it is, or refused in a sentence that names it and the next step."""

from dataclasses import replace

import pytest

from helpers.web_page import QUICK
from seal_hf.inner_loop.update import tokenize_self_edit
from seal_hf.webui.work import inputs
from seal_hf.webui.work.errors import explain


@pytest.mark.parametrize(
    "text", ["灯台は1874年に完成した。", "اكتملت المنارة عام 1874.", "ɑ̃ e\u0301té 🦭 x", "<b>Ann</b> & {title}"]
)
def test_texts_of_any_script_stay_as_they_are(lm, text):
    assert inputs.checked_example(lm, text, f" {text}\n", [], QUICK)["context"] == text


def test_control_characters_go(lm):
    example = inputs.checked_example(lm, "a\tb\nc", "Ann\x00 keeps\x1b bees\tin\nOslo", [], QUICK)
    assert example == {"title": "a b c", "context": "Ann  keeps  bees\tin\nOslo", "questions": []}


def test_a_passage_is_counted_before_it_is_refused(lm):
    most = inputs.max_tokens(lm, "", QUICK)
    assert inputs.checked_example(lm, "", "x" * most, [], QUICK)
    with pytest.raises(ValueError, match=f"{most + 1:,} tokens, but this model can learn at most {most:,}"):
        inputs.checked_example(lm, "", "x" * (most + 1), [], QUICK)
    # The library takes what the page does.
    QUICK.lm(lm).write_batch([{"title": "", "context": "x" * most}], 1, **QUICK.sampling())


@pytest.mark.parametrize("training_format", ["language_modeling", "prompt_completion"])
def test_a_passage_that_is_accepted_is_trained_on_whole(lm, training_format):
    settings = replace(QUICK, training_format=training_format)
    adapting = settings.lm(lm)
    adapting.inner_config = replace(adapting.inner_config, max_length=200)
    most = inputs.max_tokens(adapting, "Bees", settings)
    passage = ("Ann keeps bees in Vell. " * 20)[: most - 1] + "x"
    edit = adapting.domain.passage_only(inputs.checked_example(adapting, "Bees", passage, [], settings))
    (whole,) = tokenize_self_edit(edit, lm.processing_class, replace(adapting.inner_config, max_length=2048)).sequences
    assert 190 < len(whole.input_ids) <= 200
    assert inputs.sequence_length(adapting, edit.examples[0]) == len(whole.input_ids)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"question": "Who?", "answer": "Ann"}\n', [{"question": "Who?", "answer": "Ann"}]),
        ("a.json", '[{"context": "x", "questions": [{"question": "Who?", "answer": "Ann"}]}]', [{"question": "Who?", "answer": "Ann"}]),
        ("a.json", '[{"question": "Wie viele?", "answer": 212}]', [{"question": "Wie viele?", "answer": "212"}]),
        ("a.json", '[{"question": "Who?", "answer": ["Ann", "the keeper", "Ann"]}]', [{"question": "Who?", "answer": ["Ann", "the keeper"]}]),
        ("a.csv", "Question;Answer\nWho?;Ann\n", [{"question": "Who?", "answer": "Ann"}]),
        ("a.json", '[{"question": "Who?", "answers": {"text": ["Ann", "A"]}}]', [{"question": "Who?", "answer": ["Ann", "A"]}]),
        ("a.json", '[{"question": "Who?", "answer": NaN}]', 'a.json, row 1 has a number in "answer" that is not finite'),
        ("a.json", '[{"question": "Who?", "answer": {"a": 1}}]', "a.json, row 1: no answer to the question"),
        ("a.json", '[{"question": "Who?", "answer": ["Ann", ""]}]', "a.json, row 1: no answer to the question"),
        ("a.json", '[{"question": ["Who?"], "answer": "Ann"}]', "a.json, row 1: no question; write"),
        ("a.json", '[{"q": 1}]', 'a.json, row 1: no question among its keys "q"; write'),
        ("a.json", '[{"context": "x", "questions": [{"q": "Who?"}]}]', 'a.json, row 1, question 1: no question among its keys "q"'),
        ("a.json", "{", "a.json, line 1: malformed JSON"),
        ("a.json", "[1]", "a.json, row 1: a number instead of an object"),
        ("a.json", "[]", "a.json is empty"),
        ("a.json", '[{"questions": []}]', "a.json has no questions with answers: write"),
        ("a.json", '[{"question": "Who?", "answers": []}]', "a.json has no questions with answers, and 1 without an answer"),
        ("a.json", '[{"question": "Who?"}]', 'a.json, row 1: no answer to the question among its keys "question"'),
        ("a.json", '[{"question": "...", "answer": "Ann"}]', "Answer 1 has no question"),
        ("a.json", "[" * 3000, "a.json, line 1 has lists or objects that are nested"),
        ("a.jsonl", "\udcff", "not UTF-8"),
        ("a.txt", "Who?", "not a passage file"),
    ],
)  # fmt: skip
def test_question_files(tmp_path, name, content, expected):
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    if isinstance(expected, list):
        assert inputs.questions_from_file(file) == (expected, 0)
        return
    with pytest.raises(ValueError) as refusal:
        inputs.questions_from_file(file)
    assert expected in explain(refusal.value)
    assert str(tmp_path) not in explain(refusal.value)


def test_several_right_answers_in_the_table_and_back():
    rows = [["Who?", "Ann | the keeper"], ["When?", "1874"], ["", ""], [None, None], ["Where?", "Vell |"]]
    questions = [
        {"question": "Who?", "answer": ["Ann", "the keeper"]},
        {"question": "When?", "answer": "1874"},
        {"question": "Where?", "answer": "Vell"},
    ]
    assert inputs.questions_from_table(rows) == questions
    assert inputs.table_of(questions) == [["Who?", "Ann | the keeper"], ["When?", "1874"], ["Where?", "Vell"]]
    with pytest.raises(
        ValueError, match="Question 1 has no answer: write the right one as a text, or several as a list"
    ):
        inputs.questions_from_table([["Who?", " | "]])
    for row in (["Who\ud83d?", "Ann"], ["Who?", float("nan")]):
        with pytest.raises(ValueError, match="Question 1 has (half a character|a number that is not finite)"):
            inputs.questions_from_table([row])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["Who?"], "Entry 1: a text instead of an object; write"),
        ([{"question": "Who?", "answer": "Ann"}, {"q": "Who?"}], 'Entry 2: no question among its keys "q"; write'),
        (
            [{"question": "Who?", "anwser": "Ann"}],
            'Entry 1: no answer to the question among its keys "question", "anwser"',
        ),
        ([{"question": "Who?", "answer": float("nan")}], 'Entry 1 has a number in "answer" that is not finite'),
        ([{"question": "Who?", "answer": 10**400}], 'Entry 1 has a number in "answer" .* more than 300 digits'),
        ([{"question": "Who\ud83d?", "answer": "Ann"}], 'Entry 1 has half a character in "question"'),
        ([{"question": "Who?", "answer": ["\ud83d"]}], 'Entry 1 has half a character in "answer"'),
        ([{"question": "Who?", "answers": []}], "Entry 1 has a question without an answer: add"),
        ([{"question": "Who?", "answer": ["x" * 201, "Ann"]}], "Question 1 or its answer is too long"),
        ([{"question": "Who?", "answer": [str(number) for number in range(9)]}], "8 answers at most"),
    ],
)
def test_questions_of_a_call_are_checked(items, message):
    with pytest.raises(ValueError, match=message):
        inputs.questions_from_items(items)


def test_questions_of_a_call():
    items = [{"question": "Who?", "answer": ["a", "b"]}, {"question": "When?", "answer": "1874"}]
    assert inputs.questions_from_items(items) == items
    squad = [{"question": "Who?", "answers": {"text": ["a", "b"], "answer_start": [0, 3]}}]
    assert inputs.questions_from_items(squad) == items[:1]
