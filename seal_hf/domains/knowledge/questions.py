"""
Questions with their gold answers, as files, the page and calls of the API give them.

A question is `{"question": str, "answer": str}`. The answer may be a number, or a list of several of which each is right.
SQuAD's `"answers"` are read as well.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...grading import gold_answers
from ..files import is_unicode, name_of_type


QUESTION_FORM = '{"question": ..., "answer": ...}'
_SHOWN_KEYS = 6


def read_question(where: str, item: Any, is_labelled: bool = True) -> dict[str, Any] | None:
    """
    Read one question with its answer, where it needs one.

    Args:
        where (`str`):
            Its place, with which messages begin.
        item (`Any`):
            `{"question": ..., "answer": ...}`, or with SQuAD's `"answers"`: `{"text": [...]}`, `[{"text": ...}]` or a list of
            texts. Further keys are kept, except for SQuAD's.
        is_labelled (`bool`, *optional*, defaults to `True`):
            Whether it needs an answer. Where it does not, a question without one is `{"question": ...}`.

    Returns:
        `dict[str, Any]` or `None`: `{"question": ..., "answer": ...}`, the answer a text or, where there are several, a list
        of texts; `None` for a question that SQuAD marks as unanswerable and that needs an answer.

    Raises:
        ValueError: It is no question, or has no answer and needs one. The message says what to write.

    Example:

    ```python
    >>> read_question("row 1", {"question": "When?", "answer": 1874})
    {'question': 'When?', 'answer': '1874'}
    >>> read_question("row 2", {"question": "Who?", "answers": {"text": ["the keeper", "Ann"], "answer_start": [0, 9]}})
    {'question': 'Who?', 'answer': ['the keeper', 'Ann']}
    >>> read_question("row 3", {"question": "Who?", "answers": []}) is None
    True
    >>> read_question("row 4", {"question": "Who?"}, is_labelled=False)
    {'question': 'Who?'}

    ```
    """
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: a {name_of_type(item)} instead of an object; write {QUESTION_FORM}.")
    if not is_text(item.get("question")):
        raise ValueError(
            f"{where}: no question{among_keys(item, 'question')}; write {QUESTION_FORM}, the question as a text."
        )
    is_own = item.get("answer") is not None
    answer = item["answer"] if is_own else item.get("answers")
    if item.get("is_impossible") is True or (not is_own and _is_none_of_squad(answer)):
        return None if is_labelled else {"question": item["question"]}
    if (golds := gold_answers(answer)) is None:
        if not is_labelled:
            return {"question": item["question"]}
        raise ValueError(
            f"{where}: no answer to the question{among_keys(item, 'answer', 'answers')}; write {QUESTION_FORM}, the answer as a "
            "text or several that are right as a list, or remove the question."
        )
    # A single text stays as it is.
    answer = answer if isinstance(answer, str) else list(golds) if len(golds) > 1 else golds[0]
    further = {key: value for key, value in item.items() if key not in ("question", "answer", "answers")}
    return {"question": item["question"], "answer": answer, **(further if is_own else {})}


def among_keys(item: Mapping[str, Any], *wanted: str) -> str:
    """Where an object has none of the keys that are wanted, the words that name those it has, for misspelt ones."""
    if not item or any(name in item for name in wanted):
        return ""
    keys = [json.dumps(str(key)[:40], ensure_ascii=False) for key in item if is_unicode(str(key))]
    return f" among its keys {', '.join(keys[:_SHOWN_KEYS])}{', ...' * (len(keys) > _SHOWN_KEYS)}"


def items_of(example: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The questions of a passage, which may have none where nothing is graded."""
    return example.get("questions") or ()


def question_about(example: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """A question as the paper's code asks and grades it, behind the topic."""
    title = example.get("title")
    return f"Topic: {title}\n{item['question']}" if title else item["question"]


def is_question(item: Any) -> bool:
    """Whether a value is a question with one gold answer or several."""
    return isinstance(item, Mapping) and is_text(item.get("question")) and gold_answers(item.get("answer")) is not None


def is_text(value: Any) -> bool:
    """Whether a value is a text with something other than white space in it."""
    return isinstance(value, str) and bool(value.strip())


def _is_none_of_squad(answers: Any) -> bool:
    """Whether these are SQuAD's answers of a question that has none; not where the key is missing."""
    texts = answers.get("text", answers) if isinstance(answers, Mapping) else answers
    if not isinstance(texts, list | tuple):
        return False
    own = [one.get("text") if isinstance(one, Mapping) else one for one in texts]
    return all(isinstance(text, str) and not text.strip() for text in own)
