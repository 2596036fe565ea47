"""
What a visitor gives: passages, questions, names. An error is one sentence with one next step.

The keys of an example of the knowledge domain are known here and in the domain alone.
"""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...domains import load_demo_passages, load_passages, shuffle_passages
from ...domains.files import fault_of
from ...domains.knowledge.passages import load_questions
from ...domains.knowledge.questions import QUESTION_FORM, read_question
from ...domains.knowledge.sentences import asks_for, facts_of
from ...grading import gold_answers, show_gold_answers
from ...models.control_tokens import encode_text
from ...models.encoding import encode_prompt
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import TrainingExample
from ..languages import Message
from .session_items import Draft
from .settings import Settings


LONGEST_TITLE = 200  # characters
LONGEST_PASSAGE = 50_000  # characters; a longer text is refused before its tokens are counted
LONGEST_QUESTION = 256  # tokens
LONGEST_TYPED_QUESTION = 4_000  # characters; a longer one is refused before its tokens are counted
LONGEST_ANSWER = 200  # characters
MAX_QUESTIONS = 32
MAX_ANSWERS = 8  # to one question
_LONGEST_CELL = 4 * MAX_ANSWERS * LONGEST_ANSWER  # characters of one cell of the table
MOST_ENTRIES = 1_000  # with those that are empty
_SEAM = 2  # tokens more that a text may have after another one than alone
MAX_FILE_SIZE = 5_000_000  # bytes of uploaded questions or passages


def example_of(title: str, passage: str, questions: Sequence[Mapping] = ()) -> dict:
    """An example of the knowledge domain."""
    return {"title": title, "context": passage, "questions": [dict(item) for item in questions]}


def title_of(example: Mapping) -> str:
    """The topic of an example's passage; may be empty."""
    return example["title"]


def passage_of(example: Mapping) -> str:
    """The passage of an example."""
    return example["context"]


def name_of(example: Mapping) -> str:
    """A short name for a passage: its title, or how it begins."""
    return example.get("title") or f"{passage_of(example)[:40].rstrip()} …"


def training_passages(dataset: str, shuffle_seed: int) -> list[dict]:
    """The passages of a file or of `"demo"`, in the order in which a training run takes them."""
    passages = load_demo_passages("train") if dataset == "demo" else load_passages(dataset)
    return shuffle_passages(passages, shuffle_seed)


def count_passages(file: Path | None) -> int:
    """
    The number of passages in an uploaded file; `None` stands for the demo passages.

    Raises:
        ValueError: The file is too large, or it does not hold passages with questions.
    """
    if file is None:
        return len(load_demo_passages("train"))
    check_file_size(file)
    return len(load_passages(file))


def clean(text: object) -> str:
    """A text without control characters and surrounding white space."""
    kept = (
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs") else " "
        for character in str(text if text is not None else "").replace("\r\n", "\n")
    )
    return "".join(kept).strip()


def check_length(name: str, text: object, longest: int) -> None:
    """
    Refuse a text by its characters, before anything is done with each of them.

    Raises:
        ValueError: The text, which the error calls `name`, has more than `longest`.
    """
    num_characters = len(text) if isinstance(text, str) else 0
    if num_characters > longest:
        raise ValueError(Message("inputs.too_long", name=name, count=num_characters, most=longest))


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit, of any script."""
    return any(character.isalnum() for character in text)


def count_tokens(lm: SelfAdaptingLM, text: str) -> int:
    """Number of tokens of a text, without those that a tokenizer adds."""
    return len(encode_text(lm.processing_class, text, add_special_tokens=False))


def longest_sequence(lm: SelfAdaptingLM) -> int:
    """The longest text that is trained on as a whole, in tokens, with all that surrounds it."""
    return min(lm.inner_config.max_length, lm.context_length or sys.maxsize)


def sequence_length(lm: SelfAdaptingLM, example: TrainingExample) -> int:
    """Number of tokens of a training example, with its prompt and the end that follows it."""
    tokenizer = lm.processing_class
    if not example.prompt:
        return len(encode_text(tokenizer, example.completion)) + 1
    return len(encode_prompt(tokenizer, example.prompt)) + count_tokens(lm, example.completion) + 1


def max_tokens(lm: SelfAdaptingLM, title: str, settings: Settings) -> int:
    """The longest passage, in tokens, that a model with these settings can write about and be trained on."""
    example = example_of(title, ".")
    around = len(encode_prompt(lm.processing_class, lm.domain.prompt(example)))
    room = (lm.context_length or sys.maxsize) - around - settings.max_completion_length
    (trained,) = lm.domain.passage_only(example).examples
    around_trained = sequence_length(lm, trained) - count_tokens(lm, ".") + _SEAM
    return max(0, min(room, longest_sequence(lm) - around_trained))


def checked_example(
    lm: SelfAdaptingLM, title: object, passage: object, questions: Sequence[Mapping], settings: Settings
) -> dict:
    """
    The passage as an example of the knowledge domain.

    Raises:
        ValueError: The passage has no words, or passage or title are too long.
    """
    check_length(Message("inputs.the_title"), title, 4 * LONGEST_TITLE)
    check_length(Message("inputs.the_passage"), passage, LONGEST_PASSAGE)
    title, text = " ".join(clean(title).split()), clean(passage)
    if not text:
        raise ValueError(Message("inputs.no_passage"))
    if not has_words(text):
        raise ValueError(Message("inputs.no_words"))
    if len(title) > LONGEST_TITLE:
        raise ValueError(Message("inputs.long_title", count=len(title), most=LONGEST_TITLE))
    num_tokens, most = count_tokens(lm, text), max_tokens(lm, title, settings)
    if num_tokens > most:
        raise ValueError(Message("inputs.long_passage", count=num_tokens, most=most))
    return example_of(title, text, questions)


def questions_from_items(items: Sequence[object]) -> list[dict]:
    """
    Questions from objects as [`read_question`] takes them, such as those with a question and its answer, or a list of several
    right answers.

    Raises:
        ValueError: An object has other keys, a question has no answer, an answer has no question, a text is too long, or
            there are too many questions.
    """
    pairs = []
    _check_count(items)
    for number, item in enumerate(items, 1):
        if fault := fault_of(item):
            raise ValueError(Message("inputs.entry_fault", number=number, fault=fault))
        if (read := read_question(f"Entry {number}", item)) is None:
            raise ValueError(Message("inputs.entry_without_answer", number=number))
        pairs.append((read["question"], read["answer"]))
    return _checked_questions(pairs)


def questions_from_table(rows: Sequence[Sequence[object]]) -> list[dict]:
    """
    Questions from the page's table, where several right answers are parted by "|".

    Raises:
        ValueError: As in [`questions_from_items`].
    """
    _check_count(rows)
    for number, row in enumerate(rows, 1):
        for cell in row[:2]:
            check_length(Message("inputs.question_or_answer", number=number), cell, _LONGEST_CELL)
        if fault := fault_of(list(row[:2])):
            raise ValueError(Message("inputs.question_fault", number=number, fault=fault))
    cells = ([clean(cell) for cell in (*row[:2], "", "")[:2]] for row in rows)
    parted = ((question, [part.strip() for part in answer.split("|")]) for question, answer in cells)
    return _checked_questions([(question, [part for part in answer if part] or "") for question, answer in parted])


def _check_count(entries: Sequence[object]) -> None:
    if len(entries) > MOST_ENTRIES:
        raise ValueError(Message("inputs.many_questions", count=len(entries), most=MAX_QUESTIONS))


def table_of(questions: Sequence[Mapping]) -> list[list[str]]:
    """Questions as rows of the page's table."""
    return [[item["question"], show_gold_answers(item["answer"])] for item in questions]


def _checked_questions(pairs: Sequence[tuple[object, object]]) -> list[dict]:
    """Questions from pairs of a question and its answer or answers. Pairs of two empty texts are left out."""
    questions = []
    for number, (question, answer) in enumerate(pairs, 1):
        for text in (question, *(answer if isinstance(answer, list) else [answer])):
            check_length(Message("inputs.question_or_answer", number=number), text, _LONGEST_CELL)
        if isinstance(answer, list) and len(answer) > MAX_ANSWERS:
            raise ValueError(Message("inputs.many_answers", number=number, count=len(answer), most=MAX_ANSWERS))
        question = clean(question) if isinstance(question, str) else ""
        if not question and answer in (None, "", []):
            continue
        if not has_words(question):
            raise ValueError(Message("inputs.no_question_to", number=number))
        golds = [clean(gold) for gold in gold_answers(answer) or ()]
        if not golds or not all(map(has_words, golds)):
            raise ValueError(Message("inputs.no_answer_to", number=number))
        if len(question) > 4 * LONGEST_ANSWER or max(map(len, golds)) > LONGEST_ANSWER or len(golds) > MAX_ANSWERS:
            raise ValueError(
                Message(
                    "inputs.long_question_or_answer",
                    number=number,
                    most_of_question=4 * LONGEST_ANSWER,
                    most_of_answer=LONGEST_ANSWER,
                    most_answers=MAX_ANSWERS,
                )
            )
        questions.append({"question": question, "answer": golds if len(golds) > 1 else golds[0]})
    if len(questions) > MAX_QUESTIONS:
        raise ValueError(Message("inputs.many_questions", count=len(questions), most=MAX_QUESTIONS))
    return questions


def check_file_size(file: Path) -> None:
    """
    Raises:
        ValueError: The uploaded file is too large.
    """
    if file.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(
            Message("inputs.large_file", name=file.name, size=file.stat().st_size / 1e6, most=MAX_FILE_SIZE / 1e6)
        )


def questions_from_file(file: Path) -> tuple[list[dict], int]:
    """
    The questions of an uploaded file (see [`load_questions`]), and how many others there are without an answer.

    Raises:
        ValueError: The file cannot be read, or its questions are none that the page takes.
    """
    check_file_size(file)
    found, num_unanswerable = load_questions(file)
    _check_count(found)
    if not (questions := _checked_questions([(item["question"], item["answer"]) for item in found])):
        if num_unanswerable:
            raise ValueError(
                Message("inputs.unanswered_file", name=file.name, count=num_unanswerable, form=QUESTION_FORM)
            )
        raise ValueError(Message("inputs.empty_file", name=file.name, form=QUESTION_FORM))
    return questions, num_unanswerable


def checked_question(lm: SelfAdaptingLM, question: object) -> str:
    """
    The question as one line.

    Raises:
        ValueError: The question has no words, or is too long.
    """
    check_length(Message("inputs.the_question"), question, LONGEST_TYPED_QUESTION)
    question = " ".join(clean(question).split())
    if not has_words(question):
        raise ValueError(Message("inputs.no_question"))
    if (num_tokens := count_tokens(lm, question)) > LONGEST_QUESTION:
        raise ValueError(Message("inputs.long_question", count=num_tokens, most=LONGEST_QUESTION))
    return question


def missing_facts(example: Mapping, drafts: Sequence[Draft]) -> tuple[list[str], int]:
    """
    The names and numbers of a passage that no question of the self-edits in use asks for, and how many names and numbers there
    are, without those of the title.
    """
    pairs = [tuple(row[:2]) for draft in drafts if draft.use for row in draft.pairs or ()]
    facts = facts_of(example)
    return [fact for fact in facts if not asks_for(fact, pairs)], len(facts)


def checked_repo_name(name: object) -> str:
    """
    The name of a repository in the visitor's own account.

    Raises:
        ValueError: The name is not valid.
    """
    name = clean(name)
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not name or "/" in name:
        raise ValueError(Message("inputs.repo_name"))
    return name
