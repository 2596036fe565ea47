"""What a visitor gives: taken as it is, or refused in a sentence that names it and the next step."""

import pytest
from helpers.folders import TRAINERS
from helpers.web_page import QUICK, tiny_lm

from seal_hf.webui.work import inputs as checks
from seal_hf.webui.work.settings import PAPER, SMALL_MODEL, Settings


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.mark.parametrize(
    "text", ["灯台は1874年に完成した。", "اكتملت المنارة عام 1874.", "ɑ̃ e\u0301té 🦭 x", "<b>Ann</b> & {title}"]
)
def test_texts_of_any_script_stay_as_they_are(lm, text):
    assert checks.checked_example(lm, text, f" {text}\n", [], QUICK)["context"] == text


def test_control_characters_go(lm):
    example = checks.checked_example(lm, "a\tb\nc", "Ann\x00 keeps\x1b bees\tin\nOslo", [], QUICK)
    assert example == {"title": "a b c", "context": "Ann  keeps  bees\tin\nOslo", "questions": []}


def test_a_passage_is_counted_before_it_is_refused(lm):
    most = checks.most_tokens(lm, "", QUICK)
    assert checks.checked_example(lm, "", "x" * most, [], QUICK)
    with pytest.raises(ValueError, match=f"{most + 1:,} tokens, but this model can learn at most {most:,}"):
        checks.checked_example(lm, "", "x" * (most + 1), [], QUICK)
    # The library takes what the page does.
    QUICK.lm(lm).write_batch([{"title": "", "context": "x" * most}], 1, **QUICK.sampling())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"question": "Who?", "answer": "Ann"}\n', [{"question": "Who?", "answer": "Ann"}]),
        ("a.json", '[{"context": "x", "questions": [{"question": "Who?", "answer": "Ann"}]}]', [{"question": "Who?", "answer": "Ann"}]),
        ("a.json", '[{"question": "Wie viele?", "answer": 212}]', [{"question": "Wie viele?", "answer": "212"}]),
        ("a.json", "{", "a.json, line 1: malformed JSON"),
        ("a.json", "[1]", "a.json, row 1: no question; write"),
        ("a.json", "[]", "a.json is empty"),
        ("a.json", '[{"questions": []}]', "a.json has no questions"),
        ("a.json", '[{"question": "Who?"}]', "The question in row 1 has no answer"),
        ("a.jsonl", "\udcff", "not UTF-8"),
        ("a.txt", "Who?", "not a passage file"),
    ],
)  # fmt: skip
def test_question_files(tmp_path, name, content, expected):
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    if isinstance(expected, list):
        assert checks.questions_from_file(file) == expected
        return
    with pytest.raises(ValueError, match=expected) as refusal:
        checks.questions_from_file(file)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 0}, "LoRA rank: 0 is out of range; choose from 1 to 128"),
        ({"num_train_epochs": 2.5}, "Epochs: 2.5 is not a whole number"),
        ({"learning_rate": None}, "Learning rate: None is out of range"),
        ({"temperature": True}, "Temperature: True"),
    ],
)
def test_settings_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(**{**vars(PAPER), **values})


def test_the_presets_are_the_papers_and_the_demos(monkeypatch):
    from seal_hf import InnerLoopConfig

    inner = InnerLoopConfig()
    assert (PAPER.learning_rate, PAPER.num_train_epochs) == (inner.learning_rate, inner.num_train_epochs)
    assert (PAPER.lora_r, PAPER.lora_alpha, PAPER.temperature) == (32, 64, 1.0)
    monkeypatch.syspath_prepend(TRAINERS)
    from arguments import AdaptationArguments

    demo = AdaptationArguments()
    names = ("prompt_style", "temperature", "top_p", "max_completion_length", "target_modules", "lora_r", "lora_alpha")
    for name in (*names, "learning_rate", "num_train_epochs", "num_generations", "seed"):
        assert getattr(SMALL_MODEL, name) == getattr(demo, name), name
