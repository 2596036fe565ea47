"""
Passages with questions, read from a file, from the Hugging Face Hub or from the demo set that ships.

A row is `{"title": str, "context": str, "questions": [{"question": str, "answer": str}]}`; the title may be absent and
further keys are kept. An answer may be a list of several, of which each is right.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from ...grading import gold_answers


FILE_TYPES = (".json", ".jsonl", ".parquet")
ROW_FORM = '{"title": ..., "context": ..., "questions": [{"question": ..., "answer": ...}]}'


def load_passages(path_or_id: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """
    Load passages with their questions and check them before any work is done.

    Rows in the form of `rajpurkar/squad`, one question each, are grouped by passage (see [`group_squad_rows`]).

    Args:
        path_or_id (`str` or `Path`):
            A `.json` file (an array of rows), a `.jsonl` file (a row per line), a `.parquet` file or the id of a
            dataset on the Hugging Face Hub.
        split (`str`, *optional*):
            For a dataset on the Hub its split, `"train"` unless given. In a file, only the rows whose `"split"` is
            this one.

    Returns:
        `list[dict[str, Any]]`: A dictionary for each passage, in the order of the source.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, malformed or of another type, or a row lacks its passage or questions. The
            message names the file and the line or row.
        ConnectionError: The dataset is not on the Hub or the Hub cannot be reached.
    """
    path = Path(path_or_id)
    if path.suffix in FILE_TYPES or path.exists() or not _looks_like_hub_id(str(path_or_id)):
        located_rows = read_rows(path)
        if split is not None:
            located_rows = [(where, row) for where, row in located_rows if _is_of_split(row, split)]
            if not located_rows:
                raise ValueError(f'{path} has no rows of split {split!r}; check the "split" of its rows.')
    else:
        located_rows = _read_hub_dataset(str(path_or_id), split or "train")
    first_row = located_rows[0][1]
    is_squad = isinstance(first_row, Mapping) and "question" in first_row and "answers" in first_row
    for where, row in located_rows:
        _check_row(where, row, is_squad)
    rows = [row for _, row in located_rows]
    return group_squad_rows(rows) if is_squad else rows


def load_demo_passages(split: str = "train") -> list[dict[str, Any]]:
    """
    Load the demo passages that ship with the package.

    They are about invented people, places and things, so that no model knows the answers before it has adapted.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` (36 passages), `"test"` (48 others of the same kind) or `"other_languages"` (one in German, one
            in Japanese).

    Returns:
        `list[dict[str, Any]]`: Passages with their questions.

    Raises:
        ValueError: There is no such split.
    """
    with resources.as_file(resources.files(__package__) / "data" / "demo_passages.jsonl") as path:
        return load_passages(path, split)


def load_retention_questions() -> list[dict[str, Any]]:
    """Load 20 general questions with short answers that ship with the package and that no passage is about."""
    with resources.as_file(resources.files(__package__) / "data" / "retention_questions.jsonl") as path:
        return [row for _, row in read_rows(path)]


def group_squad_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Group rows in the form of `rajpurkar/squad`, one question each, by passage.

    Passages keep the order of their first appearance. Several different reference answers become a list; a question
    without any, as in SQuAD 2.0, or with blank ones alone is left out. Underscores in titles become spaces.

    Args:
        rows (`Iterable[Mapping[str, Any]]`):
            Rows `{"title": str, "context": str, "question": str, "answers": {"text": [str, ...]}}`.

    Returns:
        `list[dict[str, Any]]`: One example for each distinct title and context.

    Example:

    ```python
    >>> row = {"title": "Honey_bee", "context": "Bees hum.", "question": "What hums?", "answers": {"text": ["Bees"]}}
    >>> group_squad_rows([row])
    [{'title': 'Honey bee', 'context': 'Bees hum.', 'questions': [{'question': 'What hums?', 'answer': 'Bees'}]}]

    ```
    """
    examples = {}
    for row in rows:
        accepted = gold_answers([text for text in row["answers"]["text"] if is_text(text)])
        if accepted is None:
            continue
        title = (row.get("title") or "").replace("_", " ")
        example = examples.setdefault(
            (title, row["context"]), {"title": title, "context": row["context"], "questions": []}
        )
        answer = list(accepted) if len(accepted) > 1 else accepted[0]
        example["questions"].append({"question": row["question"], "answer": answer})
    return list(examples.values())


def shuffle_passages(passages: Sequence[Mapping[str, Any]], seed: int) -> list[Mapping[str, Any]]:
    """
    Passages in random order, so that the first of them come from many articles, which files often keep together.

    With seed 42 the first 200 of SQuAD's validation passages are those that the paper evaluates on.

    Example:

    ```python
    >>> shuffle_passages([{"context": "Bees hum."}, {"context": "Moths fly."}, {"context": "Ants dig."}], seed=42)
    [{'context': 'Moths fly.'}, {'context': 'Bees hum.'}, {'context': 'Ants dig.'}]

    ```
    """
    shuffled = list(passages)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _looks_like_hub_id(name: str) -> bool:
    # "name" or "owner/name"; "./name" and longer paths can only be files.
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def read_rows(path: Path, row_form: str = ROW_FORM) -> list[tuple[str, Any]]:
    """
    The rows of a `.json`, `.jsonl` or `.parquet` file as they are, each with the name of its place for messages, which tell
    what a row should be by `row_form`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, malformed or of another type.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path, or give the id of a dataset on the Hub.")
    readers = {
        ".json": partial(_read_json, row_form=row_form),
        ".jsonl": partial(_read_jsonl, row_form=row_form),
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers or not path.is_file():
        raise ValueError(
            f"{path} is not a passage file; give a {', '.join(FILE_TYPES[:-1])} or {FILE_TYPES[-1]} file."
        )
    located_rows = readers[path.suffix](path)
    if not located_rows:
        raise ValueError(f"{path} is empty; it should hold rows of the form {row_form}.")
    return located_rows


def _read_json(path: Path, row_form: str) -> list[tuple[str, Any]]:
    text = _read_text(path)
    if not text.strip():
        return []
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: malformed JSON ({error.msg}); correct it, or name the file .jsonl if it "
            "holds a row per line."
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a JSON {type(rows).__name__}; it should hold an array of rows: [{row_form}].")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _read_jsonl(path: Path, row_form: str) -> list[tuple[str, Any]]:
    located_rows = []
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, unescaped.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                located_rows.append((f"{path}, line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: malformed JSON ({error.msg}); each line should hold one row of the form "
                    f"{row_form}."
                ) from error
    return located_rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file in that encoding.") from error


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file; write it again.") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _read_hub_dataset(dataset_id: str, split: str) -> list[tuple[str, Any]]:
    # Importing it takes a second, which nothing else here needs.
    import datasets

    try:
        dataset = datasets.load_dataset(dataset_id, split=split)
    except OSError as error:
        raise ConnectionError(
            f"{dataset_id!r} is not a file here, and no dataset of this id could be loaded from the Hugging Face Hub; "
            "check the name and the network, or use load_demo_passages(), which ships with seal_hf."
        ) from error
    if not len(dataset):
        raise ValueError(f"The split {split!r} of the dataset {dataset_id!r} is empty; choose another one.")
    return [(f"{dataset_id}, row {number}", row) for number, row in enumerate(dataset, start=1)]


def _is_of_split(row: Any, split: str) -> bool:
    return isinstance(row, Mapping) and row.get("split") == split


def _check_row(where: str, row: Any, is_squad: bool) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: a {type(row).__name__} instead of an object; write {ROW_FORM}.")
    if not is_text(row.get("context")):
        raise ValueError(f'{where}: no passage; give "context" a text that is not empty.')
    if not isinstance(row.get("title") or "", str):
        raise ValueError(f'{where}: "title" is not a text; put it in quotes or leave it out.')
    if is_squad:
        answers = row.get("answers")
        texts = answers.get("text") if isinstance(answers, Mapping) else None
        if not is_text(row.get("question")) or not isinstance(texts, list) or not all(map(is_text, texts)):
            raise ValueError(f'{where}: not a SQuAD row; write "question": ..., "answers": {{"text": [...]}}.')
        return
    questions = row.get("questions")
    if not isinstance(questions, list) or not questions:
        raise ValueError(f'{where}: no questions; give "questions" a list of {{"question": ..., "answer": ...}}.')
    for number, item in enumerate(questions, start=1):
        if not is_question(item):
            raise ValueError(
                f'{where}: question {number} lacks its question or its answer; write both as texts: {{"question": '
                '..., "answer": ...}, or the answer as a list of several that are right.'
            )


def is_question(item: Any) -> bool:
    """Whether a value is a question with one gold answer or several, as every reader of questions takes them."""
    return isinstance(item, Mapping) and is_text(item.get("question")) and gold_answers(item.get("answer")) is not None


def is_text(value: Any) -> bool:
    """Whether a value is a text with something other than white space in it."""
    return isinstance(value, str) and bool(value.strip())
