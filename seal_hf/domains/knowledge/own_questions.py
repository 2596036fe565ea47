"""
Questions that a model asks itself about a passage, where nobody gives any.

A person who gives a passage without questions still needs a reward for each self-edit. The model is shown one sentence at
a time with a name, number or word of it, and writes the question to that answer. The prompts are few-shot prompts in
plain text, because models too small to follow an instruction still follow a pattern.

A question is kept if two readings of it agree on an answer: of the sentence it was written about, and of the whole passage
(round-trip consistency, Alberti et al. 2019, https://arxiv.org/abs/1906.05416). Since a small model writes and reads
badly, the answer must be likely, too, and either be the one that the question was written for or occur in what the
model answers to the domain's own prompt with the passage in view.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

from ...grading.words import normalize
from .grounding import is_about, is_grounded, says
from .sentences import is_asking, likely_answers, split_sentences
from .templates import fill_template, read_prompt_file


# Prompts for each question wanted, and random draws of one prompt: most of what a small model writes is dropped.
_PROMPTS_PER_QUESTION, _DRAWS = 8, 3


@dataclass(frozen=True)
class QuestionPrompt:
    """
    A prompt for one question.

    Parameters:
        sentence (`str`):
            The sentence to ask about.
        answer (`str`):
            Part of it that the question should ask for; empty where the model is to choose.
        prompt (`str`):
            What the model continues.
    """

    sentence: str
    answer: str
    prompt: str


def question_prompts(example: Mapping[str, Any], num_questions: int) -> list[QuestionPrompt]:
    """
    Return prompts that ask for one question each, spread over the sentences of the passage.

    Args:
        example (`Mapping[str, Any]`):
            A passage; its questions are not looked at.
        num_questions (`int`):
            Number of questions wanted.

    Returns:
        `list[QuestionPrompt]`: At most eight for each question wanted, each at most three times.
    """
    by_sentence = []
    for sentence in split_sentences(example["context"]):
        answers = likely_answers(sentence, example) or [""]
        prompts = [QuestionPrompt(sentence, one, question_prompt(sentence, one, example)) for one in answers]
        by_sentence.append(prompts)
    # The first answer of every sentence, then the second of every sentence.
    prompts = [prompt for layer in zip_longest(*by_sentence) for prompt in layer if prompt]
    limit = _PROMPTS_PER_QUESTION * num_questions
    if len(prompts) > limit:
        return [prompts[place * len(prompts) // limit] for place in range(limit)]
    return prompts * min(_DRAWS, limit // max(len(prompts), 1))


def question_prompt(sentence: str, answer: str, example: Mapping[str, Any]) -> str:
    """
    What the model continues with a question about a sentence of a passage to which an answer is given; without one with both.
    """
    template = read_prompt_file("own-question").rstrip()
    prompt = fill_template(template, {"title": example.get("title") or "", "sentence": sentence})
    return f"{prompt} {answer}\nQuestion:" if answer else prompt


def parse_question(completion: str) -> str | None:
    """
    Read the question that the model wrote, with or without its answer before it.

    Example:

    ```python
    >>> parse_question(" Who keeps bees?\\nAnswer: Ann"), parse_question(" Ann\\nQuestion: Who keeps bees?")
    ('Who keeps bees?', 'Who keeps bees?')
    >>> parse_question(" Ann keeps bees.") is None
    True

    ```
    """
    before, label, after = completion.partition("Question:")
    line = before.strip().partition("\n")[0].strip()
    if not is_asking(line) and label:
        line = after.strip().partition("\n")[0].strip()
    return line if is_asking(line) else None


def reading_prompts(example: Mapping[str, Any], notes: list[str], questions: list[str]) -> list[str]:
    """Return prompts that ask for the words of a note, one sentence or the whole passage, that answer a question."""
    template = read_prompt_file("own-answer").rstrip()
    title = example.get("title") or ""
    return [
        fill_template(template, {"title": title, "note": " ".join(note.split()), "question": question})
        for note, question in zip(notes, questions, strict=True)
    ]


# Tried on demo passages with `embedded-tiny`: below this, its answers are mostly wrong.
MIN_ANSWER_LIKELIHOOD = 0.55
_TEMPERATURE, _TOP_P = 0.6, 0.9
_ATTEMPTS, _DRAFTS_PER_ANSWER, _QUESTIONS_PER_SENTENCE = 2, 3, 2


class AskedModel(Protocol):
    """What is asked of a [`SelfAdaptingLM`] here."""

    domain: Any
    generator: Any

    def as_student(self) -> AbstractContextManager[None]: ...

    def answer_prompts(self, prompts: Sequence[str | list[dict]], **options: Any) -> list[str]: ...


@dataclass
class _Draft:
    """A question, the sentence it was written about, the answers it was written for, and the answer read there."""

    question: str
    sentence: str
    wanted: list[str] = field(default_factory=list)
    answer: str = ""
    likelihood: float = 0.0

    @property
    def is_wanted(self) -> bool:
        return any(_is_same(self.answer, answer) for answer in self.wanted)


def own_questions(
    lm: AskedModel,
    example: Mapping[str, Any],
    num_questions: int = 5,
    *,
    seed: int = 0,
    max_question_length: int = 28,
    max_answer_length: int = 16,
    on_text: Callable[[list[str]], bool | None] | None = None,
    stop: threading.Event | None = None,
) -> list[dict[str, str]]:
    """
    Let the model write questions about a passage and answer them from it.

    The model carries its policy adapter, if it has one, and no inner adapter.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model, with a [`KnowledgeDomain`].
        example (`Mapping[str, Any]`):
            A passage, `{"title": ..., "context": ...}`. Questions it may hold are not looked at.
        num_questions (`int`, *optional*, defaults to `5`):
            Most questions to return.
        seed (`int`, *optional*, defaults to `0`):
            Prompt `i` draws its question from the stream of `(seed, 0, i)`; if no question is kept, once more from
            `(seed, 1, i)`.
        max_question_length (`int`, *optional*, defaults to `28`):
            Longest question, in tokens; a longer one is dropped.
        max_answer_length (`int`, *optional*, defaults to `16`):
            Longest answer, in tokens; a question whose answer is longer is dropped.
        on_text (`Callable[[list[str]], bool | None]`, *optional*):
            Called with the new text of all candidates at every token while questions are written; returning `True` ends
            the writing, and what is written by then gets read.
        stop (`threading.Event`, *optional*):
            Once set, the work ends without questions.

    Returns:
        `list[dict[str, str]]`: `{"question": ..., "answer": ...}`, at most `num_questions` and perhaps none: those
        that the passage supports, at most two of a sentence, no two with the same answer, in the order of the passage.

    Raises:
        ValueError: `num_questions` below 1, an empty passage, or one that does not fit the model's context.
    """
    if num_questions < 1:
        raise ValueError(f"num_questions={num_questions} must be at least 1.")
    passage = {"title": example.get("title") or "", "context": example["context"]}
    if not passage["context"].strip():
        raise ValueError("The passage is empty; give it some text to ask about.")
    for attempt in range(_ATTEMPTS):
        drafts = _write(lm, passage, num_questions, (seed, attempt), max_question_length, on_text, stop)
        for draft, answer in zip(drafts, _read(lm, passage, drafts, False, max_answer_length, stop), strict=True):
            draft.answer = answer
        drafts = _few_of_each_answer([draft for draft in drafts if is_grounded(draft.question, draft.answer, passage)])
        answers = _read(lm, passage, drafts, True, max_answer_length, stop)
        drafts = [draft for draft, answer in zip(drafts, answers, strict=True) if _is_same(draft.answer, answer)]
        drafts = _confirmed(lm, passage, drafts, stop)
        # What was cut short looks like an answer.
        if stop is not None and stop.is_set():
            return []
        if drafts:
            break
    chosen = _choose(drafts, num_questions)
    chosen.sort(key=lambda draft: passage["context"].find(draft.sentence))
    return [{"question": draft.question, "answer": draft.answer} for draft in chosen]


def _write(
    lm: AskedModel,
    passage: Mapping[str, str],
    num_questions: int,
    seeds: tuple[int, ...],
    max_question_length: int,
    on_text: Callable[[list[str]], bool | None] | None,
    stop: threading.Event | None,
) -> list[_Draft]:
    """The questions that the model writes, each once for a sentence, without those that are not about the passage."""
    prompts = question_prompts(passage, num_questions)
    generations = lm.generator.sample(
        [prompt.prompt for prompt in prompts],
        [(*seeds, place) for place in range(len(prompts))],
        temperature=_TEMPERATURE,
        top_p=_TOP_P,
        max_new_tokens=max_question_length,
        on_text=on_text,
        stop=stop,
    )
    drafts: dict[tuple, _Draft] = {}
    for prompt, generation in zip(prompts, generations, strict=True):
        question = parse_question(generation.text)
        if question and is_about(question, passage):
            draft = drafts.setdefault((prompt.sentence, normalize(question)), _Draft(question, prompt.sentence))
            draft.wanted.append(prompt.answer)
    return list(drafts.values())


def _read(
    lm: AskedModel,
    passage: Mapping[str, str],
    drafts: Sequence[_Draft],
    whole: bool,
    max_answer_length: int,
    stop: threading.Event | None,
) -> list[str]:
    """The answers that the model finds in the sentences, or in the whole passage; empty where one is too long."""
    with lm.as_student():
        generations = lm.generator.generate(
            _prompts(passage, drafts, whole), max_new_tokens=max_answer_length, one_line=True, stop=stop
        )
    lines = [generation.text.strip().partition("\n") for generation in generations]
    return [
        line.strip() if end or generation.finished else ""
        for (line, end, _), generation in zip(lines, generations, strict=True)
    ]


def _few_of_each_answer(drafts: Sequence[_Draft]) -> list[_Draft]:
    """Some drafts of every answer, so that a favourite of the model's does not take all the time."""
    found: dict[tuple, list[_Draft]] = {}
    for draft in sorted(drafts, key=lambda draft: not draft.is_wanted):
        found.setdefault(normalize(draft.answer), []).append(draft)
    return [draft for others in found.values() for draft in others[:_DRAFTS_PER_ANSWER]]


def _confirmed(
    lm: AskedModel, passage: Mapping[str, str], drafts: Sequence[_Draft], stop: threading.Event | None
) -> list[_Draft]:
    """The drafts whose answer is likely and has a second reason to be believed."""
    questions = [{"question": draft.question} for draft in drafts]
    texts = lm.answer_prompts(
        lm.domain.questions_in_context({**passage, "questions": questions}), max_answer_length=32, stop=stop
    )
    drafts = [draft for draft, text in zip(drafts, texts, strict=True) if says(text, draft.answer) or draft.is_wanted]
    with lm.as_student():
        likelihoods = lm.generator.answer_log_likelihoods(
            _prompts(passage, drafts, False), [[draft.answer] for draft in drafts]
        )
    for draft, likelihood in zip(drafts, likelihoods, strict=True):
        draft.likelihood = 0.0 if likelihood is None else math.exp(likelihood)
    return [draft for draft in drafts if draft.likelihood >= MIN_ANSWER_LIKELIHOOD]


def _choose(drafts: Sequence[_Draft], num_questions: int) -> list[_Draft]:
    """The best of every sentence, then the second of every sentence, without an answer given already."""
    chosen: list[_Draft] = []
    for most in range(1, _QUESTIONS_PER_SENTENCE + 1):
        for draft in sorted(drafts, key=lambda draft: (not draft.is_wanted, -draft.likelihood)):
            num_others = sum(other.sentence == draft.sentence for other in chosen)
            is_new = not any(says(draft.answer, o.answer) or says(o.answer, draft.answer) for o in chosen)
            if is_new and num_others < most:
                chosen.append(draft)
    return chosen[:num_questions]


def _prompts(passage: Mapping[str, str], drafts: Sequence[_Draft], whole: bool) -> list[str]:
    notes = [passage["context"] if whole else draft.sentence for draft in drafts]
    return reading_prompts(passage, notes, [draft.question for draft in drafts])


def _is_same(answer: str, other: str) -> bool:
    return normalize(answer) == normalize(other)
