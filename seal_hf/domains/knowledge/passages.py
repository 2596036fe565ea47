"""
Passages with questions, read from a file, from the Hugging Face Hub or from the demo set that ships.

A passage is `{"title": str, "context": str, "questions": [{"question": str, "answer": str}]}`; the title may be absent and
further keys are kept. An answer may be a list of several, of which each is right. Read are also rows of one question each
with their passage, which are grouped by passage, and SQuAD's articles.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from ..files import FILE_TYPES, name_of_type, read_rows
from .questions import QUESTION_FORM, among_keys, is_text, read_question


logger = logging.getLogger(__name__)

_UNANSWERED = "radio"  # no passage that ships has this word
ROW_FORM = f'{{"title": ..., "context": ..., "questions": [{QUESTION_FORM}]}}'


def load_passages(path_or_id: str | Path, split: str | None = None, is_labelled: bool = True) -> list[dict[str, Any]]:
    """
    Load passages with their questions and check them before any work is done.

    Rows of one question each, such as those of `rajpurkar/squad`, are grouped by passage (see [`group_squad_rows`]).
    Questions that SQuAD marks as unanswerable are left out, with a warning, and so are passages that have no others.

    Args:
        path_or_id (`str` or `Path`):
            A file (`.json`, `.jsonl`, `.ndjson`, `.csv` or `.parquet`; see [`read_rows`]) or the id of a dataset on the
            Hugging Face Hub.
        split (`str`, *optional*):
            For a dataset on the Hub its split, `"train"` unless given. In a file, only the rows whose `"split"` is
            this one.
        is_labelled (`bool`, *optional*, defaults to `True`):
            Whether a passage needs questions with answers. Where it does not, for rewards that need no labels, rows may have
            no questions, and questions no answer.

    Returns:
        `list[dict[str, Any]]`: A dictionary for each passage, at least one, in the order of the source.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, malformed, in another encoding or of another type, a row lacks its passage or
            questions, or no question has an answer. The message names the file and the line or row.
        ConnectionError: The dataset is not on the Hub or the Hub cannot be reached.
    """
    path = Path(path_or_id)
    if path.suffix.lower() in FILE_TYPES or path.exists() or not _looks_like_hub_id(str(path_or_id)):
        located_rows = read_rows(path, ROW_FORM)
        if split is not None:
            located_rows = [(where, row) for where, row in located_rows if _is_of_split(row, split)]
            if not located_rows:
                raise ValueError(f'{path} has no rows of split {split!r}; check the "split" of its rows.')
    else:
        located_rows = _read_hub_dataset(str(path_or_id), split or "train")
    read = _passages_of(located_rows, is_labelled)
    if not read.passages:
        raise ValueError(
            f"{path_or_id}: no question of {read.num_questions} has an answer, so that nothing can be graded; give passages with "
            "questions that can be answered."
        )
    if read.num_unanswerable:
        logger.warning(
            "%s: %d of %d questions have no answer and are left out, and so are %d passages without any other question.",
            path_or_id,
            read.num_unanswerable,
            read.num_questions,
            read.num_dropped,
        )
    return read.passages


def load_questions(path: Path) -> tuple[list[dict[str, Any]], int]:
    """
    The questions of a file, with or without their passages.

    Args:
        path (`Path`):
            As for [`load_passages`]. Its rows may also be questions alone.

    Returns:
        `tuple[list[dict[str, Any]], int]`: The questions that have an answer, in the order of the file, and how many others
            there are, which SQuAD marks as unanswerable.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: As in [`load_passages`].
    """
    items: list[tuple[str, Any]] = []
    for place, row in _unfolded(read_rows(path, QUESTION_FORM)):
        items += _items_of(place, row) if "context" in row or "questions" in row else [(place, row)]
    questions = [read_question(place, item) for place, item in items]
    answered = [question for question in questions if question is not None]
    return answered, len(questions) - len(answered)


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
        return [row for _, row in read_rows(path, QUESTION_FORM)]


def unanswered_question(example: Mapping[str, Any]) -> str | None:
    """
    A question about the topic of a passage that the passage does not answer, to see whether a model claims to know what it does not;
    `None` where there is no topic, or the passage may answer it.
    """
    title = example.get("title")
    if not title or _UNANSWERED in example["context"].casefold():
        return None
    return f"Who presented the {_UNANSWERED} programme about {title}?"


def group_squad_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Group rows of one question each, such as those of `rajpurkar/squad`, by passage.

    Passages keep the order of their first appearance. Several different reference answers become a list; a question
    without any, as in SQuAD 2.0, or with blank ones alone is left out. Underscores in SQuAD's titles become spaces.

    Args:
        rows (`Iterable[Mapping[str, Any]]`):
            Rows `{"title": str, "context": str, "question": str, "answers": {"text": [str, ...]}}`.

    Returns:
        `list[dict[str, Any]]`: One example for each distinct title and context.

    Raises:
        ValueError: A row has another form.

    Example:

    ```python
    >>> row = {"title": "Honey_bee", "context": "Bees hum.", "question": "What hums?", "answers": {"text": ["Bees"]}}
    >>> group_squad_rows([row])
    [{'title': 'Honey bee', 'context': 'Bees hum.', 'questions': [{'question': 'What hums?', 'answer': 'Bees'}]}]

    ```
    """
    return _passages_of([(f"row {number}", row) for number, row in enumerate(rows, start=1)]).passages


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


class _Read(NamedTuple):
    """Passages, the number of all questions, of those without an answer, and of passages that have no other."""

    passages: list[dict[str, Any]]
    num_questions: int
    num_unanswerable: int
    num_dropped: int


def _passages_of(located_rows: Iterable[tuple[str, Any]], is_labelled: bool = True) -> _Read:
    found: list[dict[str, Any]] = []
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    num_questions = num_answered = 0
    for place, row in _unfolded(located_rows):
        if not is_text(row.get("context")):
            raise ValueError(
                f'{place}: no passage{among_keys(row, "context")}; give "context" a text that is not empty.'
            )
        if not isinstance(row.get("title") or "", str):
            raise ValueError(f'{place}: "title" is not a text; put it in quotes or leave it out.')
        has_none = not is_labelled and not row.get("questions") and not _is_one_question(row)
        items = [] if has_none else _items_of(place, row)
        if not items and is_labelled:
            raise ValueError(f'{place}: no questions; give "questions" a list of {QUESTION_FORM}.')
        asked = [read_question(where, item, is_labelled) for where, item in items]
        answered = [question for question in asked if question is not None]
        num_questions, num_answered = num_questions + len(asked), num_answered + len(answered)
        if not _is_one_question(row):
            found.append({**row, "questions": answered})
            continue
        title = row.get("title") or ""
        title = title.replace("_", " ") if isinstance(row.get("answers"), Mapping) else title
        key = title, row["context"]
        if key not in grouped:
            grouped[key] = {"title": title, "context": row["context"], "questions": []}
            found.append(grouped[key])
        grouped[key]["questions"] += [
            {name: own[name] for name in ("question", "answer") if name in own} for own in answered
        ]
    passages = [passage for passage in found if passage["questions"] or not is_labelled]
    return _Read(passages, num_questions, num_questions - num_answered, len(found) - len(passages))


def _unfolded(located_rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows, with each paragraph of SQuAD's articles that is asked about as a row of its own."""
    for where, row in located_rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: a {name_of_type(row)} instead of an object; write {ROW_FORM}.")
        if not isinstance(row.get("paragraphs"), list):
            yield where, row
            continue
        title = row.get("title")
        title = title.replace("_", " ") if isinstance(title, str) else title
        for number, paragraph in enumerate(row["paragraphs"], start=1):
            place = f"{where}, paragraph {number}"
            if not isinstance(paragraph, Mapping):
                raise ValueError(f"{place}: a {name_of_type(paragraph)} instead of an object; write {ROW_FORM}.")
            if paragraph.get("qas") == []:
                continue
            yield place, {"title": title, "context": paragraph.get("context"), "questions": paragraph.get("qas")}


def _is_one_question(row: Mapping[str, Any]) -> bool:
    return row.get("questions") is None and row.get("question") is not None


def _items_of(place: str, row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The questions of a row, with their places: the row itself where it is one. They are not checked."""
    if _is_one_question(row):
        return [(place, row)]
    questions = row.get("questions")
    if not isinstance(questions, list):
        among = among_keys(row, "questions", "question")
        raise ValueError(f'{place}: no questions{among}; give "questions" a list of {QUESTION_FORM}.')
    return [(f"{place}, question {number}", item) for number, item in enumerate(questions, start=1)]
