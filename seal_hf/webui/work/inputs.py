"""What a visitor gives, checked: an error is one sentence with one next step."""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...domains.knowledge.passages import read_rows
from ...models.access import context_length
from ...models.encoding import encode_prompt
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit
from .sessions import Draft
from .settings import Settings


LONGEST_TITLE = 200  # characters
LONGEST_PASSAGE = 50_000  # characters, before anything counts tokens
LONGEST_QUESTION = 256  # tokens
LONGEST_ANSWER = 200  # characters
MOST_QUESTIONS = 32
LARGEST_FILE = 5_000_000  # bytes of uploaded questions or passages


def clean(text: object) -> str:
    """A text without control characters and surrounding white space."""
    kept = (
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs") else " "
        for character in str(text if text is not None else "").replace("\r\n", "\n")
    )
    return "".join(kept).strip()


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit, of any script."""
    return any(character.isalnum() for character in text)


def count_tokens(lm: SelfAdaptingLM, text: str) -> int:
    """Tokens of a text, without special ones."""
    return len(lm.processing_class(text, add_special_tokens=False)["input_ids"])


def most_tokens(lm: SelfAdaptingLM, title: str, settings: Settings) -> int:
    """The longest passage, in tokens, that this model can write about and be trained on."""
    around = len(encode_prompt(lm.processing_class, lm.domain.prompt({"title": title, "context": "."})))
    room = (context_length(lm.model) or sys.maxsize) - around - settings.max_completion_length
    return max(0, min(room, lm.inner_config.max_length - count_tokens(lm, title) - 8))


def checked_example(
    lm: SelfAdaptingLM, title: object, passage: object, questions: Sequence[Mapping], settings: Settings
) -> dict:
    """
    The passage as an example of the knowledge domain.

    Raises:
        ValueError: A passage without words, one that is too long, or a title that is.
    """
    title, context = " ".join(clean(title).split()), clean(passage)
    if not context:
        raise ValueError("There is no passage yet: paste a text to learn, or take an example.")
    if not has_words(context):
        raise ValueError("The passage has no words: paste a text of whole sentences.")
    if len(title) > LONGEST_TITLE:
        raise ValueError(f"The title has {len(title)} characters: shorten it to {LONGEST_TITLE}.")
    if len(context) > LONGEST_PASSAGE:
        raise ValueError(
            f"The passage has {len(context):,} characters, more than this page takes: shorten it to a few pages."
        )
    num_tokens, most = count_tokens(lm, context), most_tokens(lm, title, settings)
    if num_tokens > most:
        raise ValueError(
            f"The passage has {num_tokens:,} tokens, but this model can learn at most {most:,} at a time: shorten it."
        )
    return {"title": title, "context": context, "questions": [dict(item) for item in questions]}


def checked_questions(rows: Sequence[Sequence[object]]) -> list[dict]:
    """
    Questions and answers from the rows of a table; rows without anything are left out.

    Raises:
        ValueError: A question without an answer or an answer without a question, one that is too long, or too many.
    """
    questions = []
    for number, row in enumerate(rows, 1):
        question, answer = (clean(cell) for cell in (*row, "", "")[:2])
        if not question and not answer:
            continue
        if not has_words(question):
            raise ValueError(f"Row {number} has an answer but no question: write one, or clear the row.")
        if not has_words(answer):
            raise ValueError(f"The question in row {number} has no answer: write the right one, or clear the row.")
        if len(question) > 4 * LONGEST_ANSWER or len(answer) > LONGEST_ANSWER:
            raise ValueError(
                f"Row {number} is too long: keep the question below {4 * LONGEST_ANSWER} characters and the answer "
                f"below {LONGEST_ANSWER}."
            )
        questions.append({"question": question, "answer": answer})
    if len(questions) > MOST_QUESTIONS:
        raise ValueError(f"There are {len(questions)} questions: keep {MOST_QUESTIONS} at most.")
    return questions


def check_file_size(file: Path) -> None:
    """
    Raises:
        ValueError: An uploaded text file that is far too large.
    """
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"{file.name} has {file.stat().st_size / 1e6:,.0f} MB: keep it below {LARGEST_FILE / 1e6:.0f} MB."
        )


def questions_from_file(file: Path) -> list[dict]:
    """
    The questions of an uploaded file: rows with `question` and `answer`, or passages with `questions`.

    Raises:
        ValueError: Not JSON or JSONL, or rows of another form.
    """
    pairs = []
    check_file_size(file)
    try:
        for where, row in read_rows(file):
            items = row.get("questions", [row]) if isinstance(row, Mapping) else None
            if not isinstance(items, list) or not all(map(_is_pair, items)):
                raise ValueError(f'{where}: no question; write {{"question": "...", "answer": "..."}}.')
            pairs += [(item.get("question"), item.get("answer")) for item in items]
    except RecursionError as error:
        raise ValueError(
            f'{file.name} is nested too deeply: write rows of {{"question": "...", "answer": "..."}}.'
        ) from error
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error  # its folder says nothing to a visitor
    if not (questions := checked_questions(pairs)):
        raise ValueError(f'{file.name} has no questions: write rows of {{"question": "...", "answer": "..."}}.')
    return questions


def _is_pair(item: object) -> bool:
    """Whether question and answer, where they are there, are no lists or objects."""
    return isinstance(item, Mapping) and not any(
        isinstance(item.get(key), list | Mapping) for key in ("question", "answer")
    )


def checked_question(lm: SelfAdaptingLM, question: object) -> str:
    """
    Raises:
        ValueError: A question without words, or one that is too long.
    """
    question = " ".join(clean(question).split())
    if not has_words(question):
        raise ValueError("There is no question yet: type one.")
    if (num_tokens := count_tokens(lm, question)) > LONGEST_QUESTION:
        raise ValueError(f"The question has {num_tokens} tokens: shorten it to {LONGEST_QUESTION}.")
    return question


def checked_self_edits(
    lm: SelfAdaptingLM, example: Mapping, drafts: Sequence[Draft], chosen: Sequence[int]
) -> list[SelfEdit]:
    """
    The chosen drafts as self-edits.

    Raises:
        ValueError: None is chosen, or one has no text or far too much.
    """
    if not chosen:
        raise ValueError("No self-edit is chosen: tick “Use it” on at least one.")
    self_edits = []
    for number in chosen:
        if not 0 <= number < len(drafts):
            raise ValueError(f"There is no self-edit {number + 1}: choose from 1 to {len(drafts)}.")
        text = clean(drafts[number].text)
        if len(text) > LONGEST_PASSAGE:
            raise ValueError(f"Self-edit {number + 1} has {len(text):,} characters: shorten it to a few pages.")
        self_edit = lm.domain.parse(text, example) if has_words(text) else None
        if self_edit is None:
            raise ValueError(f"Self-edit {number + 1} is empty: write something into it, or drop it.")
        self_edits.append(self_edit)
    return self_edits


def checked_repo_name(name: object) -> str:
    """
    The name of a repository in the visitor's own account.

    Raises:
        ValueError: Not a valid one.
    """
    name = clean(name)
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not name or "/" in name:
        raise ValueError(
            "Give a name of letters, digits, '-', '_' and '.', such as lighthouse-adapter, without the account."
        )
    return name
