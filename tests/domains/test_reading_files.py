"""Files as people have them: read with the right values, or refused in one sentence with the file and the place."""

import codecs
import json
import logging
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_hf.domains import KnowledgeDomain, load_passages
from seal_hf.domains.files import FILE_TYPES, TEXT_FILE_TYPES, fault_of, read_rows, read_text
from seal_hf.domains.knowledge.passages import load_questions
from seal_hf.domains.knowledge.questions import is_question, read_question
from trainers.arguments import load_dataset_argument


PASSAGE = {"title": "Zürich", "context": "Ann keeps 蜂.", "questions": [{"question": "Who?", "answer": "Ann"}]}
ARTICLE = {
    "title": "Honey_bee",
    "paragraphs": [
        {
            "context": "Bees hum.",
            "qas": [
                {
                    "id": "1",
                    "question": "What hums?",
                    "is_impossible": False,
                    "answers": [{"text": "Bees", "answer_start": 0}, {"text": "bee", "answer_start": 0}],
                },
                {"id": "2", "question": "Who swims?", "is_impossible": True, "answers": [], "plausible_answers": []},
            ],
        },
        {"context": "Nobody asks.", "qas": []},
        {"context": "Bees fly.", "qas": [{"question": "What flies?", "answers": [{"text": "Bees"}]}]},
    ],
}
ARTICLE_READ = [
    {
        "title": "Honey bee",
        "context": "Bees hum.",
        "questions": [{"question": "What hums?", "answer": ["Bees", "bee"]}],
    },
    {"title": "Honey bee", "context": "Bees fly.", "questions": [{"question": "What flies?", "answer": "Bees"}]},
]
FLAT = [
    {"title": "a_b", "context": "Moths fly.", "question": "What flies?", "answer": "moths", "id": 7},
    {"context": "Ants dig.", "question": "Who digs?", "answers": ["ants", "an ant"]},
    {"title": "a_b", "context": "Moths fly.", "question": "How many?", "answer": 2},
]
FLAT_READ = [
    {
        "title": "a_b",
        "context": "Moths fly.",
        "questions": [{"question": "What flies?", "answer": "moths"}, {"question": "How many?", "answer": "2"}],
    },
    {"title": "", "context": "Ants dig.", "questions": [{"question": "Who digs?", "answer": ["ants", "an ant"]}]},
]
CSV = 'Title,Context,question , answer\nMoths,"Moths, at ""night"",\nfly.",What flies?,moths\n,,,\nMoths,"Moths, at ""night"",\nfly.",When?,night\n'
CSV_READ = [
    {
        "title": "Moths",
        "context": 'Moths, at "night",\nfly.',
        "questions": [{"question": "What flies?", "answer": "moths"}, {"question": "When?", "answer": "night"}],
    }
]
HALF = "x\ud83d"
AS_TEXT = json.dumps([PASSAGE], ensure_ascii=False)


def saved(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", AS_TEXT.encode("utf-8-sig"), [PASSAGE]),
        ("a.json", AS_TEXT.encode("utf-16"), [PASSAGE]),
        ("a.json", codecs.BOM_UTF16_BE + AS_TEXT.encode("utf-16-be"), [PASSAGE]),
        ("a.JSON", AS_TEXT, [PASSAGE]),
        ("a.JsonL", json.dumps(PASSAGE), [PASSAGE]),
        ("a.ndjson", f"{json.dumps(PASSAGE)}\r\n\r\n{json.dumps(PASSAGE)}\r\n", [PASSAGE, PASSAGE]),
        ("a.json", json.dumps({"version": "v2.0", "data": [ARTICLE]}), ARTICLE_READ),
        ("a.jsonl", json.dumps(ARTICLE), ARTICLE_READ),
        ("a.json", json.dumps({"data": [PASSAGE]}), [PASSAGE]),
        ("a.json", json.dumps(FLAT), FLAT_READ),
        ("a.csv", CSV, CSV_READ),
        ("a.CSV", codecs.BOM_UTF8 + CSV.replace("\n", "\r\n").encode(), CSV_READ),
        ("a.csv", CSV.replace(",", ";").replace(";\nfly", ",\nfly").encode("utf-16"), [{**CSV_READ[0], "context": 'Moths; at "night",\nfly.'}]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, name, content, expected):
    assert load_passages(saved(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"context": "Zürich"}]'.encode("latin-1"), ", line 1: not UTF-8 text; save the file as UTF-8."),
        ("a.json", AS_TEXT.encode("utf-32"), " is UTF-32 text; save the file as UTF-8."),
        ("a.json", "[]".encode("utf-16-le"), ", line 1: a NUL character, which no text has (UTF-16 needs a byte order mark);"),
        ("a.json", codecs.BOM_UTF16_LE + "[\n".encode("utf-16-le") + b"\x00\xd8\x00", ", line 2: damaged UTF-16 text;"),
        ("a.jsonl", f'{json.dumps(PASSAGE)}\n{{"context": {"[" * 3000}', ", line 2 has lists or objects that are nested more than 50 deep;"),
        ("a.json", '[\n{"a": "[[",\n "b": ' + "[" * 3000, ", line 3 has lists or objects that are nested more than 50 deep;"),
        ("a.json", "[" * 60 + "]" * 60, ", row 1 has lists or objects that are nested more than 50 deep;"),
        ("a.jsonl", f'{json.dumps(PASSAGE)}\n{{"context": "A", "questions": {"7" * 5000}}}', ', line 2 has a number in "questions" that is not finite or has more than 300 digits;'),
        ("a.json", '[{"x": Infinity}]', ', row 1 has a number in "x" that is not finite'),
        ("a.json", '[{"x": 1e999}]', ', row 1 has a number in "x" that is not finite'),
        *(
            ("a.jsonl", f"{json.dumps(PASSAGE)}\n{json.dumps(PASSAGE | {key: HALF})}", f', line 2 has half a character in "{key}" (a lone surrogate')
            for key in ("context", "title", "id")
        ),
        ("a.json", json.dumps([{"\udc1d": 1}]), ", row 1 has half a character (a lone surrogate"),
        ("a.json", json.dumps([{**PASSAGE, "questions": [{"question": "\ud83d", "answer": "A"}]}]), ', row 1 has half a character in "question"'),
        ("a.csv", "context,answer\nAnn,Ann,Ann\n", ", line 2: 3 cells where the first line names 2 columns; put a cell"),
        ("a.csv", 'context,question,answer\n"A\nB",Who?,Ann\n\n"C,Who?\n', ", line 5: malformed CSV ("),
        ("a.csv", "context,context\n", ", line 1: two columns are called 'context'; give each"),
        ("a.csv", "context,question,answer\n", " is empty; it should hold rows"),
        ("a.csv", "passage,question,answer\nA,Who?,Ann\n", ', line 2: no passage among its keys "passage", "question", "answer"; give "context"'),
        ("a.csv", "context,question,answer\nA,Who?,\n", ", line 2: no answer to the question; write"),
        ("a.json", json.dumps([{"context": "A", "question": "Q?", "answers": []}] * 2), ": no question of 2 has an answer, so that nothing can be graded; give"),
        ("a.json", json.dumps({"data": [{**ARTICLE, "paragraphs": [{"context": "A", "qas": ARTICLE["paragraphs"][0]["qas"][1:]}]}]}), ": no question of 1 has an answer"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, name, content, message):
    file = saved(tmp_path, name, content)
    with pytest.raises(ValueError) as refusal:
        load_passages(file)
    assert str(refusal.value).startswith(f"{file}{message}")


def test_questions_without_an_answer_are_left_out_and_it_is_said(tmp_path, caplog):
    file = saved(tmp_path, "a.json", json.dumps({"data": [ARTICLE]}))
    with caplog.at_level(logging.WARNING, "seal_hf.domains.knowledge.passages"):
        load_passages(file)
    assert caplog.messages == [
        f"{file}: 1 of 3 questions have no answer and are left out, and so are 0 passages without any other question."
    ]
    assert load_questions(file) == ([own for passage in ARTICLE_READ for own in passage["questions"]], 1)


def test_a_file_without_an_answer_is_refused_before_a_model_is_loaded(tmp_path):
    file = saved(tmp_path, "a.json", json.dumps([{"context": "A", "question": "Q?", "answers": {"text": []}}]))
    with pytest.raises(ValueError, match="a.json: no question of 1 has an answer"):
        load_dataset_argument(str(file), None, 1, 42)


def test_a_byte_order_mark_is_no_part_of_a_text_or_a_template(tmp_path):
    template = saved(tmp_path, "own.txt", "\ufeffRewrite.\r\n{context}\r\n")
    assert KnowledgeDomain(str(template), chat=False).prompt(PASSAGE) == "Rewrite.\nAnn keeps 蜂.\n"
    assert read_text(saved(tmp_path, "b.txt", "蜂\r\n\rz".encode("utf-16"))) == "蜂\n\nz"


@pytest.mark.parametrize("key", ["title", "context"])
def test_examples_that_come_from_no_file_are_checked_too(key):
    with pytest.raises(ValueError, match=f'has half a character in "{key}"'):
        KnowledgeDomain(chat=False).check({**PASSAGE, key: "x\ud83d"})


# Number of examples tried, over all tests below: 1,150.
TRIED = {"deadline": None, "derandomize": True, "database": None}
KEYS = ("context", "title", "id", "questions", "qas", "question", "answer", "answers", "text", "is_impossible", "q")
any_text = st.text(st.characters(exclude_categories=()), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | any_text | st.just("Ann"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | any_text, inner, max_size=4),
    max_leaves=8,
)
answers = values | st.lists(st.fixed_dictionaries({"text": values}), max_size=2)
questions = st.fixed_dictionaries(
    {}, optional={"question": st.just("Who?") | values, "answer": answers, "answers": answers}
)
question_lists = st.lists(questions | values, max_size=3) | values
passages = st.fixed_dictionaries(
    {"context": st.just("Ann.") | values},
    optional={"title": values, "questions": question_lists, "question": values, "answer": answers, "answers": answers},
)
paragraphs = st.lists(st.fixed_dictionaries({"context": st.just("Ann."), "qas": question_lists}) | values, max_size=2)
rows = st.lists(passages | questions | values | st.fixed_dictionaries({"paragraphs": paragraphs}), max_size=3)


def is_read_or_refused(name, content, read):
    """Whether a file is read as passages or questions that all else takes, or refused as the readers say."""
    with tempfile.TemporaryDirectory() as folder:
        file = saved(Path(folder), name, content)
        try:
            found = read(file)
        except ValueError as refusal:
            message = str(refusal)
            assert message.startswith(str(file)) and message.endswith(".") and "\n" not in message
            assert message.encode()
            whole = r"is empty|holds a JSON|not a readable parquet|is UTF-32|no question of \d+ has an answer"
            assert re.search(rf"(, (line|row) \d+)|{whole}", message[len(str(file)) :]), message
            return
    for passage in (
        found if read is load_passages else [{"context": "Ann.", "questions": found[0] or PASSAGE["questions"]}]
    ):
        KnowledgeDomain(chat=False).check(passage)


@settings(max_examples=300, **TRIED)
@given(st.sampled_from(FILE_TYPES), st.binary(max_size=30) | st.text('[]{}",:;\n\r\t\\ud8e1aN-.', max_size=30))
def test_no_bytes_give_another_error(suffix, content):
    is_read_or_refused(f"a{suffix}", content, load_passages)


@settings(max_examples=350, **TRIED)
@given(rows, st.sampled_from(("a.json", "a.jsonl", "data.json")), st.sampled_from((load_passages, load_questions)))
def test_no_rows_give_another_error(rows, name, read):
    if name == "a.jsonl":
        content = "\n".join(map(json.dumps, rows))
    else:
        content = json.dumps({"data": rows} if name == "data.json" else rows)
    is_read_or_refused(name, content, read)


@settings(max_examples=150, **TRIED)
@given(st.lists(st.lists(st.sampled_from(["Ann", "", '"', '"a,b"', ";", "\n", " "]), max_size=4), max_size=4))
def test_no_table_gives_another_error(cells):
    lines = ["context,question,answer", *map(",".join, cells)]
    is_read_or_refused("a.csv", "\n".join(lines), load_passages)


@settings(max_examples=250, **TRIED)
@given(questions | values)
def test_no_question_of_a_call_gives_another_error(item):
    if fault_of(item) is None:
        try:
            read = read_question("Entry 1", item)
        except ValueError as refusal:
            assert str(refusal).startswith("Entry 1: ") and str(refusal).endswith(".")
        else:
            assert read is None or is_question(read)


@settings(max_examples=100, **TRIED)
@given(
    st.lists(st.text(min_size=1, max_size=9).filter(lambda text: "\0" not in text), min_size=1, max_size=3),
    st.sampled_from(("utf-8", "utf-8-sig", "utf-16")),
    st.sampled_from(TEXT_FILE_TYPES[:3]),
)
def test_any_text_comes_back_in_any_encoding(texts, encoding, suffix):
    stored = [{"context": text, "completion": text[::-1]} for text in texts]
    lines = [json.dumps(row, ensure_ascii=False) for row in stored]
    content = f"[{', '.join(lines)}]" if suffix == ".json" else "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        file = saved(Path(folder), f"a{suffix}", content.encode(encoding))
        assert [row for _, row in read_rows(file, "rows")] == stored
