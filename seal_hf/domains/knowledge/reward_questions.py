"""
Questions for rewards without labels.

For the reward `"own_questions"` an adapter is asked what the other self-edits about its passage ask: questions that the policy
wrote and the model answered with the passage in view. So no self-edit gains by asking what is easy, since it is never asked what
it trains on itself (as in cross-fitting, where no one is judged by what it was fitted to). Where the others ask nothing, or there
are no others, the model writes questions about the passage itself (see [`own_questions`]).

For the reward `"self_consistency"` the questions are those of the example, and the answers what the model says in few words with
the passage in view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...grading.words import normalize
from .own_questions import AskedModel, own_questions, reading_prompts


MOST_QUESTIONS = 10  # that one adapter is asked
_NUM_ABOUT_PASSAGE = 5
_MAX_READING_TOKENS = 32


def cross_fitted(pairs: Sequence[Sequence[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """
    For each self-edit the questions that the others ask and it does not, each once, with their answers; at most
    [`MOST_QUESTIONS`], at even distances.

    Args:
        pairs (`Sequence[Sequence[tuple[str, str]]]`):
            The questions with answers that each self-edit trains on.

    Example:

    ```python
    >>> cross_fitted([[("Who hums?", "Ann")], [("who hums", "Ann"), ("Where?", "Vell")], []])
    [[('Where?', 'Vell')], [], [('Who hums?', 'Ann'), ('Where?', 'Vell')]]

    ```
    """
    asked = [{normalize(question) for question, _ in own} for own in pairs]
    found = []
    for place, known in enumerate(asked):
        others: dict[tuple[str, ...], tuple[str, str]] = {}
        for other, own in enumerate(pairs):
            for pair in own if other != place else ():
                if (words := normalize(pair[0])) not in known:
                    others.setdefault(words, pair)
        found.append(_spread(list(others.values())))
    return found


def _spread(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    number = min(len(pairs), MOST_QUESTIONS)
    return [pairs[place * len(pairs) // number] for place in range(number)]


def examples_of_own_questions(
    lm: AskedModel, example: Mapping[str, Any], pairs: Sequence[Sequence[tuple[str, str]] | None], seed: int
) -> list[dict[str, Any] | None]:
    """
    For each self-edit about a passage the example that its adapter is asked about.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        example (`Mapping[str, Any]`):
            The passage.
        pairs (`Sequence[Sequence[tuple[str, str]] | None]`):
            The questions with answers that each self-edit trains on; `None` for a malformed one, which is asked nothing.
        seed (`int`):
            Seed of the questions about the passage itself.

    Returns:
        `list[dict | None]`: `{"title", "context", "questions"}`; `None` where there is no question.
    """
    found = cross_fitted([own or () for own in pairs])
    about_passage: list[dict[str, str]] = []
    if any(own is not None and not others for own, others in zip(pairs, found, strict=True)):
        about_passage = own_questions(lm, example, _NUM_ABOUT_PASSAGE, seed=seed)
    asked = [
        about_passage if not others else [{"question": question, "answer": answer} for question, answer in others]
        for others in found
    ]
    return [
        _with_questions(example, questions) if own is not None and questions else None
        for own, questions in zip(pairs, asked, strict=True)
    ]


def examples_with_own_answers(lm: AskedModel, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """
    The examples with what the model answers, in few words and with the passage in view, in place of their answers.

    Returns:
        `list[dict | None]`: `{"title", "context", "questions"}` without the questions that the model gives no answer to; `None`
            where it answers none.
    """
    questions = [[item["question"] for item in example.get("questions") or ()] for example in examples]
    prompts = [
        prompt
        for example, own in zip(examples, questions, strict=True)
        for prompt in reading_prompts(example, [example["context"]] * len(own), own)
    ]
    texts = lm.answer_prompts(prompts, max_answer_length=_MAX_READING_TOKENS) if prompts else []
    answers = iter(text.partition("\n")[0].strip() for text in texts)
    read = [[{"question": question, "answer": next(answers)} for question in own] for own in questions]
    kept = [[item for item in own if normalize(item["answer"])] for own in read]
    return [_with_questions(example, own) if own else None for example, own in zip(examples, kept, strict=True)]


def _with_questions(example: Mapping[str, Any], questions: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {"title": example.get("title") or "", "context": example["context"], "questions": list(questions)}
