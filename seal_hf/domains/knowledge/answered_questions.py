"""
The tool of self-edits that ask questions: the same model answers them with the passage in view.

The policy writes questions that together cover a passage. Each is read twice, with the whole passage in view and with the
sentences that are nearest to it. The answers to the first are what an adapter learns to say where the passage is not in view,
if both readings agree and the passage supports them (round-trip consistency, Alberti et al. 2019,
https://arxiv.org/abs/1906.05416). No label is needed.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...grading.words import normalize
from ...self_edit import Prompt
from ..base import Answer, AskModel
from .completions import split_completion
from .grounding import MAX_ANSWER_WORDS, is_about, nearest_sentence, news, says
from .sentences import coverage, names_and_numbers, split_sentences


# Why a question is dropped: it was written before; it is not about the passage, or not clear where that is not in view; the two
# readings differ; the passage does not say what they say, or the question does; or no reading is short.
REASONS = ("duplicate", "unclear", "disagreement", "unsupported", "long")
_MAX_QUESTION_CHARACTERS, _MAX_ANSWER_CHARACTERS = 250, 200
_MAX_ANSWER_TOKENS = 32
_QUESTION_MARKS = "?？؟"
# "3. ", "- ", "Question 3: "
_LABEL = re.compile(r"(?:[-*•]\s*|\(?\d+[.):]\s*|(?:Question|Q)\s*\d*\s*[.:]\s*)+")
_QUESTION = re.compile(rf"[^{_QUESTION_MARKS}]+[{_QUESTION_MARKS}]+")


@dataclass(frozen=True)
class AnsweredQuestions:
    """
    What became of the questions of one self-edit.

    Parameters:
        pairs (`tuple[tuple[str, str], ...]`):
            The questions that are kept, with their answers.
        metrics (`dict[str, float]`):
            The number of `questions` and of `questions_kept`, of those that are dropped for each of [`REASONS`]
            (`dropped_duplicate` and so on), and the `coverage` by the pairs that are kept, unless the passage has neither
            names nor numbers.
    """

    pairs: tuple[tuple[str, str], ...]
    metrics: dict[str, float]


def split_questions(completion: str, split_newlines: bool = True) -> tuple[list[str], list[str]]:
    """
    Split what the policy wrote into questions without answers and other training texts.

    Parts that are separated by `---` are lists of questions where at least half of their lines are questions; all else in
    them is dropped. Other parts are split by the paper's rules (see [`split_completion`]).

    Example:

    ```python
    >>> split_questions("1. Who keeps bees?\\n2. What do they make? Where?\\n---\\nBees hum.\\nThey sting.")
    (['Who keeps bees?', 'What do they make?', 'Where?'], ['Bees hum.', 'They sting.'])

    ```
    """
    questions: list[str] = []
    texts: list[str] = []
    for part in re.split("-{3,}", completion):
        lines = [line.strip() for line in part.splitlines() if line.strip()]
        asking = [line for line in lines if line.endswith(tuple(_QUESTION_MARKS))]
        if asking and 2 * len(asking) >= len(lines):
            questions += [one.strip() for line in asking for one in _QUESTION.findall(_LABEL.sub("", line, count=1))]
        else:
            texts += split_completion(part, split_newlines)
    return questions, texts


def answer_questions(
    questions: Sequence[Sequence[str]],
    examples: Sequence[Mapping[str, Any]],
    ask: AskModel,
    in_view: Callable[[Mapping[str, Any]], list[Prompt]],
) -> list[AnsweredQuestions]:
    """
    Let the model answer the questions of many self-edits, all of them with one call.

    Args:
        questions (`Sequence[Sequence[str]]`):
            The questions of each self-edit.
        examples (`Sequence[Mapping[str, Any]]`):
            For each the passage that they are about; its own questions are not looked at.
        ask ([`AskModel`]):
            The model.
        in_view (`Callable[[Mapping], list[str | list[dict]]]`):
            Returns a prompt for each question of an example, with the passage in view.

    Returns:
        `list[AnsweredQuestions]`: one for each self-edit.
    """
    dropped = [Counter() for _ in questions]
    clear = [_clear(own, example, why) for own, example, why in zip(questions, examples, dropped, strict=True)]
    # Self-edits about one passage share most of their questions.
    prompts = [
        [_prompts(question, example, in_view) for question in own]
        for own, example in zip(clear, examples, strict=True)
    ]
    distinct = {_key(prompt): prompt for own in prompts for pair in own for prompt in pair}
    texts = map(_first_sentence, ask(list(distinct.values()), _MAX_ANSWER_TOKENS)) if distinct else ()
    answers = dict(zip(distinct, texts, strict=True))
    results = []
    for own, asked, example, why, written in zip(clear, prompts, examples, dropped, questions, strict=True):
        pairs = []
        for question, readings in zip(own, asked, strict=True):
            answer, reason = _agreed(question, example, *(answers[_key(prompt)] for prompt in readings))
            if reason:
                why[reason] += 1
            else:
                pairs.append((question, answer))
        metrics = {"questions": len(written), "questions_kept": len(pairs)}
        metrics |= {f"dropped_{reason}": why[reason] for reason in REASONS}
        if (covered := coverage(example, pairs)) is not None:
            metrics["coverage"] = covered
        results.append(AnsweredQuestions(tuple(pairs), metrics))
    return results


def _clear(questions: Sequence[str], example: Mapping[str, Any], dropped: Counter) -> list[str]:
    """The questions that make sense without the passage, each once."""
    seen, kept = set(), []
    for question in questions:
        if (words := normalize(question)) in seen:
            dropped["duplicate"] += 1
        elif len(question) > _MAX_QUESTION_CHARACTERS or not is_about(question, example):
            dropped["unclear"] += 1
        else:
            kept.append(question)
        seen.add(words)
    return kept


def _prompts(
    question: str, example: Mapping[str, Any], in_view: Callable[[Mapping[str, Any]], list[Prompt]]
) -> list[Prompt]:
    """The prompts of both readings: of the whole passage, and of the nearest sentence with those beside it."""
    sentences = split_sentences(example["context"])
    nearest = nearest_sentence(question, sentences, example.get("title") or "")
    beside = 1 if len(sentences) > 3 else 0  # three sentences may be the whole passage
    note = " ".join(sentences[max(0, nearest - beside) : nearest + beside + 1])
    asked = [{"question": question}]
    return [
        prompt
        for text in (example["context"], note)
        for prompt in in_view({**example, "context": text, "questions": asked})
    ]


def _key(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)


def _first_sentence(answer: Answer) -> tuple[str, bool]:
    """What an answer says first, and whether that is complete."""
    sentences = split_sentences(answer.text.strip())
    return (sentences[0], answer.finished or len(sentences) > 1) if sentences else ("", answer.finished)


def _agreed(
    question: str, example: Mapping[str, Any], whole: tuple[str, bool], near: tuple[str, bool]
) -> tuple[str, str | None]:
    """The answer that both readings agree on; or why there is none."""
    told = f"{example.get('title') or ''}\n{question}"
    texts = [text for text, _ in (whole, near)]
    own = [news(told, text) for text in texts]
    if not all(texts) or not (says(texts[0], own[1]) or says(texts[1], own[0])):
        # What only repeats the question agrees with everything.
        return "", "unsupported" if all(texts) and not any(own) else "disagreement"
    readings = [
        text
        for (text, is_complete), new in zip((whole, near), own, strict=True)
        if is_complete and len(new.split()) <= MAX_ANSWER_WORDS and len(text) <= _MAX_ANSWER_CHARACTERS
    ]
    if not readings:
        return "", "long"
    # The first, unless the second alone is short, too, with what it repeats of the question.
    answer = min(readings, key=lambda text: len(normalize(text)) > MAX_ANSWER_WORDS)
    known = f"{told}\n{example['context']}"
    core = min((words for words in own if words), key=len)
    if not says(example["context"], core) or not all(says(known, fact) for fact in names_and_numbers(answer)):
        return "", "unsupported"
    return answer, None
