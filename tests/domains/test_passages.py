"""Loading of passages and its one-sentence errors."""

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from helpers.folders import SHARED_DATA
from seal_hf.domains import KnowledgeDomain, group_squad_rows, load_demo_passages, load_passages, shuffle_passages
from seal_hf.self_edit import TrainingExample


ROWS = [
    {
        "title": "Ann's bees",
        "context": "Ann keeps bees in Vell.",
        "questions": [{"question": "Who keeps bees?", "answer": "Ann"}, {"question": "Where?", "answer": "Vell"}],
    },
    {
        "title": "Zürich\u2028蜂",
        "context": "Moths like lamps.",
        "questions": [{"question": "What is liked?", "answer": "lamps"}],
    },
]
SQUAD_ROWS = [
    {"title": "Honey_bee", "context": "Bees hum.", "question": "What hums?", "answers": {"text": ["Bees", "bee"]}},
    {"title": "Moth", "context": "Bees hum.", "question": "Who hums?", "answers": {"text": ["Bees", "Bees "]}},
    {"title": "Honey_bee", "context": "Bees fly.", "question": "What flies?", "answers": {"text": ["Bees"]}},
    {"title": "Honey_bee", "context": "Bees hum.", "question": "Who swims?", "answers": {"text": []}},
    {"title": "Honey_bee", "context": "Bees hum.", "question": "What hums?", "answers": {"text": ["They"]}},
]
GROUPED = [
    {
        "title": "Honey bee",
        "context": "Bees hum.",
        "questions": [
            {"question": "What hums?", "answer": ["Bees", "bee"]},
            {"question": "What hums?", "answer": "They"},
        ],
    },
    {"title": "Moth", "context": "Bees hum.", "questions": [{"question": "Who hums?", "answer": "Bees"}]},
    {"title": "Honey bee", "context": "Bees fly.", "questions": [{"question": "What flies?", "answer": "Bees"}]},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(("rows", "expected"), [(ROWS, ROWS), (SQUAD_ROWS, GROUPED)], ids=["passages", "squad"])
def test_file_types(tmp_path, name, rows, expected):
    path = write(tmp_path / name, rows)
    assert load_passages(path) == load_passages(str(path)) == expected


def test_byte_order_mark_absent_title_and_further_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"context": "Moths like lamps.", "questions": ROWS[1]["questions"], "completions": ["They do."]}
    path.write_text(json.dumps(row), encoding="utf-8-sig")
    assert load_passages(path) == [row]


def test_several_gold_answers_of_a_file(tmp_path):
    questions = [
        {"question": "Who?", "answer": ["the keeper", "Edric Molloway"]},
        {"question": "When?", "answer": 1874},
    ]
    [passage] = load_passages(write(tmp_path / "rows.json", [{"context": "Moths.", "questions": questions}]))
    assert passage["questions"] == [questions[0], {"question": "When?", "answer": "1874"}]
    KnowledgeDomain(chat=False).check(passage)
    assert KnowledgeDomain().grade([passage] * 2, [["Molloway", "in 1874"], ["The cook.", "1875"]]) == [
        [True, True],
        [False, False],
    ]


def test_split_of_a_file(tmp_path):
    path = write(tmp_path / "rows.json", [ROWS[0] | {"split": "train"}, ROWS[1] | {"split": "test"}])
    assert [row["title"] for row in load_passages(path, split="test")] == ["Zürich\u2028蜂"]
    with pytest.raises(ValueError, match="rows.json has no rows of split 'validation'"):
        load_passages(path, split="validation")


def test_group_squad_rows():
    assert group_squad_rows(SQUAD_ROWS) == GROUPED
    assert group_squad_rows([]) == []


def test_blank_reference_answers_are_left_out():
    row = {"title": "Bees", "context": "Bees hum.", "question": "What hums?"}
    (only,) = group_squad_rows([row | {"answers": {"text": texts}} for texts in (["", " "], ["bees", "", "Bees"])])
    assert only["questions"] == [{"question": "What hums?", "answer": ["bees", "Bees"]}]


def test_examples_may_come_from_a_dataset():
    [first, second] = datasets.Dataset.from_list(ROWS)
    assert KnowledgeDomain().questions(first) == KnowledgeDomain().questions(ROWS[0])
    assert KnowledgeDomain().grade([first, second], [["Ann", "Rome"], ["lamps"]]) == [[True, False], [True]]


def test_hub_dataset(monkeypatch):
    calls = []

    def load_dataset(dataset_id, split):
        calls.append((dataset_id, split))
        return datasets.Dataset.from_list(SQUAD_ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_passages("rajpurkar/squad") == GROUPED
    assert load_passages("rajpurkar/squad", split="validation") == GROUPED
    assert calls == [("rajpurkar/squad", "train"), ("rajpurkar/squad", "validation")]


@pytest.mark.parametrize("error", [ConnectionError("offline"), datasets.exceptions.DatasetNotFoundError("absent")])
def test_hub_dataset_out_of_reach(monkeypatch, error):
    def load_dataset(dataset_id, split):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match=r"'no/where' is not a file here.*check.*or use load_demo_passages\(\)"):
        load_passages("no/where")


@pytest.mark.parametrize("name", ["absent.json", "absent.jsonl", "absent.parquet", "a/b/absent", "./absent"])
def test_missing_file(name):
    with pytest.raises(FileNotFoundError, match=f"{Path(name)} does not exist; check the path"):
        load_passages(name)


QUESTION = {"question": "Who?", "answer": "Ann"}
BAD_TEXTS = {
    "empty json": ("bad.json", " \n", "bad.json is empty; it should hold rows"),
    "empty array": ("bad.json", "[]", "bad.json is empty; it should hold rows"),
    "empty jsonl": ("bad.jsonl", "\n\n", "bad.jsonl is empty; it should hold rows"),
    "malformed json": ("bad.json", '[\n{"title": "A",\n "context" "B"}]', "bad.json, line 3: malformed JSON"),
    "rows without array": ("bad.json", '{"title": "A"}\n{"title": "B"}', "bad.json, line 2: .* name the file .jsonl"),
    "malformed jsonl": ("bad.jsonl", json.dumps(ROWS[0]) + '\n\n{"title": \n', "bad.jsonl, line 3: malformed JSON"),
    "object": ("bad.json", '{"rows": []}', "bad.json holds a JSON object; it should hold an array"),
    "number": ("bad.json", "7", "bad.json holds a JSON number; it should hold an array"),
    "empty data": ("bad.json", '{"data": []}', "bad.json is empty; it should hold rows"),
    "other type": (
        "bad.tsv",
        "title\tcontext\n",
        "bad.tsv is not a passage file; give a .json, .jsonl, .ndjson, .csv or .parquet file",
    ),
    "not parquet": ("bad.parquet", "title", "bad.parquet is not a readable parquet file"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_bad_file(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_passages(path)


def test_directory_and_encoding(tmp_path):
    with pytest.raises(ValueError, match="is not a passage file"):
        load_passages(tmp_path)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + "\n{'title': 'Zürich'}".encode("latin-1"))
    with pytest.raises(ValueError, match="bad.jsonl, line 2: not UTF-8 text"):
        load_passages(path)


BAD_ROWS = {
    "no object": ("Ann", "a text instead of an object"),
    "no context": ({"title": "A", "questions": [QUESTION]}, 'no passage among its keys "title", "questions"; give'),
    "blank context": ({"title": "A", "context": " \n", "questions": [QUESTION]}, 'no passage; give "context" a text'),
    "context of another type": ({"context": ["A"], "questions": [QUESTION]}, "no passage; give"),
    "title of another type": ({"title": 7, "context": "A", "questions": [QUESTION]}, '"title" is not a text'),
    "absent questions": ({"context": "A"}, 'no questions among its keys "context"; give "questions" a list'),
    "misspelt questions": ({"context": "A", "qestions": [QUESTION]}, 'no questions among its keys "context", "qestio'),
    "null questions": ({"context": "A", "questions": None}, 'no questions; give "questions" a list'),
    "empty questions": ({"context": "A", "questions": []}, "no questions; give"),
    "questions of another type": ({"context": "A", "questions": "Who?"}, "no questions; give"),
    "question as text": ({"context": "A", "questions": ["Who?"]}, "question 1: a text instead of an object"),
    "misspelt question": ({"context": "A", "questions": [{"q": 1}]}, 'question 1: no question among its keys "q"'),
    "no answer": (
        {"context": "A", "questions": [QUESTION, {"question": "Who?"}]},
        'question 2: no answer to the question among its keys "question"; write',
    ),
    "blank question": (
        {"context": "A", "questions": [{"question": " ", "answer": "Ann"}]},
        "question 1: no question;",
    ),
    "truth as answer": ({"context": "A", "questions": [{"question": "Q?", "answer": True}]}, "question 1: no answer"),
    "no answer in a list": (
        {"context": "A", "questions": [{"question": "Q?", "answer": []}]},
        "question 1: no answer",
    ),
    "blank answer in a list": (
        {"context": "A", "questions": [{"question": "Q?", "answer": ["Ann", " "]}]},
        "question 1: no answer to the question; write .* or several that are right as a list, or remove the question",
    ),
    "squad's texts of another type": ({"context": "A", "question": "Q?", "answers": {"text": [[]]}}, "no answer"),
    "squad's blank question": ({"context": "A", "question": "", "answers": {"text": ["B"]}}, "no question;"),
    "a paragraph that is a text": ({"title": "A", "paragraphs": ["B"]}, "paragraph 1: a text instead of an object"),
    "a paragraph without a passage": (
        {"title": "A", "paragraphs": [{"context": "B", "qas": [QUESTION]}, {"qas": [QUESTION]}]},
        "paragraph 2: no passage;",
    ),
    "a paragraph without questions": ({"paragraphs": [{"context": "B"}]}, "paragraph 1: no questions;"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3[:,] .*{message}"):
        load_passages(write(tmp_path / "bad.jsonl", [ROWS[0], row]))
    with pytest.raises(ValueError, match=f"bad.json, row 2[:,] .*{message}"):
        load_passages(write(tmp_path / "bad.json", [ROWS[0], row]))


def test_bad_row_in_parquet(tmp_path):
    with pytest.raises(ValueError, match="bad.parquet, row 2: no questions"):
        load_passages(write(tmp_path / "bad.parquet", [ROWS[0], {"title": "A", "context": "B", "questions": []}]))


def test_other_languages_survive_prompts_and_files(tmp_path):
    german, japanese = load_demo_passages("other_languages")
    assert "Düne" in german["context"]
    assert "größte Röhre" in german["questions"][4]["question"]
    assert japanese["title"] == "潮見ヶ原の紙灯台"
    for passage in (german, japanese):
        domain = KnowledgeDomain()
        assert f"{passage['title']}\n{passage['context']}" in domain.prompt(passage)
        assert domain.passage_only(passage).examples == (
            TrainingExample("", f"{passage['title']}\n{passage['context']}"),
        )
        for prompt, item in zip(domain.questions(passage), passage["questions"], strict=True):
            assert f"Topic: {passage['title']}\nQuestion: {item['question']}\n" in prompt
        for name in ("rows.jsonl", "rows.json", "rows.parquet"):
            assert load_passages(write(tmp_path / name, [passage])) == [passage]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the paper authors' stored runs are absent")
def test_stored_passages():
    passages = load_passages(SHARED_DATA / "squad_val.json")
    assert len(passages) == 2067
    assert sum(len(passage["questions"]) for passage in passages) == 10570
    assert {len(load_passages(SHARED_DATA / f"{name}.json")) for name in ("base_val", "gpt4_1_val")} == {200}


def test_shuffled_passages_are_drawn_from_the_seed():
    passages = [{"title": f"Article {i // 5}", "context": f"Passage {i}."} for i in range(50)]
    before = list(passages)
    shuffled = shuffle_passages(passages, 42)
    assert passages == before
    assert shuffled != passages and sorted(shuffled, key=str) == sorted(passages, key=str)
    assert shuffle_passages(passages, 42) == shuffled != shuffle_passages(passages, 43)
    # The first few of a file are of one article, not so after shuffling.
    assert len({row["title"] for row in passages[:5]}) == 1 < len({row["title"] for row in shuffled[:5]})


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the paper authors' stored runs are absent")
def test_the_papers_evaluation_passages_are_the_first_of_the_shuffled_split():
    passages = shuffle_passages(load_passages(SHARED_DATA / "squad_val.json"), 42)[:200]
    stored = load_passages(SHARED_DATA / "base_val.json")
    for name in ("title", "context", "questions"):
        assert [row[name] for row in passages] == [row[name] for row in stored]
    assert len({row["title"] for row in passages}) == 47


def test_passages_need_no_questions_where_no_label_is_looked_at(tmp_path):
    asked = {"title": "Bees", "context": "Bees hum.", "questions": [{"question": "What?", "answer": "bees"}]}
    path = write(tmp_path / "rows.json", [{"context": "Moths fly."}, asked, {"context": "Ants.", "questions": []}])
    found = load_passages(path, is_labelled=False)
    assert [(row["context"], row["questions"]) for row in found] == [
        ("Moths fly.", []),
        ("Bees hum.", asked["questions"]),
        ("Ants.", []),
    ]
    with pytest.raises(ValueError, match="row 1: no questions"):
        load_passages(path)


def test_questions_need_no_answers_where_no_label_is_looked_at(tmp_path):
    without = [
        {"question": "Who hums?"},
        {"question": "Who flies?", "answers": []},
        {"question": "Why?", "answer": ""},
    ]
    rows = [
        {"context": "Bees hum.", "questions": [*without, {"question": "What?", "answer": "bees"}]},
        {"context": "Ants.", "question": "Where?", "answers": {"text": [], "answer_start": []}},
    ]
    path = write(tmp_path / "rows.json", rows)
    bees, ants = load_passages(path, is_labelled=False)
    assert bees["questions"] == [
        *({"question": text} for text in ("Who hums?", "Who flies?", "Why?")),
        {"question": "What?", "answer": "bees"},
    ]
    assert ants == {"title": "", "context": "Ants.", "questions": [{"question": "Where?"}]}
    KnowledgeDomain("rewrite").check_unlabelled(bees)
    with pytest.raises(ValueError, match="row 1, question 1: no answer to the question"):
        load_passages(path)
