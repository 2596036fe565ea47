"""
Questions about a passage that the model writes itself: the prompts, and what comes of them.

A person who gives a passage without questions still needs a reward for each self-edit. The model is shown one sentence at
a time with a name, number or word of it, and writes the question to that answer. Few-shot prompts in plain text, because
models too small to follow an instruction still follow a pattern.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from .domain import fill_template, read_prompt_file
from .grounding import says


# Prompts for each question wanted, and random draws of one prompt: most of what a small model writes is dropped.
_PROMPTS_PER_QUESTION, _DRAWS = 8, 3
_ANSWERS_PER_SENTENCE = 4
# Behind a word of three letters, so that "Dr. Ann" stays together; scripts without spaces end sentences without one.
_SENTENCE_END = re.compile(r"(?<=\w\w\w[.!?؟۔।])[\"'”’»)\]]*\s+|(?<=[。！？])|\n+")
_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")


def split_sentences(passage: str) -> list[str]:
    """
    Split a passage into sentences.

    Example:

    ```python
    >>> split_sentences("Dr. Ann keeps bees. They hum.")
    ['Dr. Ann keeps bees.', 'They hum.']

    ```
    """
    return [sentence.strip() for sentence in _SENTENCE_END.split(passage) if re.search(r"\w", sentence)]


def likely_answers(sentence: str, example: Mapping[str, Any]) -> list[str]:
    """
    Parts of a sentence that a question may ask for, without knowing its language: numbers, names, long words.

    Args:
        sentence (`str`):
            One sentence of the passage.
        example (`Mapping[str, Any]`):
            The passage, whose title is no answer.

    Returns:
        `list[str]`: At most four; empty in scripts without upper case, where the sentence has no number.

    Example:

    ```python
    >>> likely_answers("In 1911 the teacher Edric Molloway found one.", {"context": ""})
    ['1911', 'Edric Molloway', 'teacher']

    ```
    """
    words = list(_WORD.finditer(sentence))
    names: list[str] = []
    end = None  # of the name that goes on
    for place, word in enumerate(words):
        # The first word has a capital for another reason.
        if not word.group()[0].isupper() or place == 0:
            end = None
        elif end is not None and sentence[end : word.start()] in (" ", " & "):
            names[-1] += sentence[end : word.end()]
            end = word.end()
        else:
            names.append(word.group())
            end = word.end()
    long_words = [word.group() for word in words[1:] if word.group()[0].islower() and len(word.group()) > 5]
    ordered = [*_NUMBER.findall(sentence), *sorted(names, key=len, reverse=True), *sorted(long_words, key=len)[-1:]]
    found = [text for text in ordered if not says(example.get("title") or "", text)]
    return list(dict.fromkeys(found))[:_ANSWERS_PER_SENTENCE]


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
    template = read_prompt_file("own-question").rstrip()
    by_sentence = []
    for sentence in split_sentences(example["context"]):
        prompt = fill_template(template, {"title": example.get("title") or "", "sentence": sentence})
        answers = likely_answers(sentence, example)
        prompts = [QuestionPrompt(sentence, answer, f"{prompt} {answer}\nQuestion:") for answer in answers]
        by_sentence.append(prompts or [QuestionPrompt(sentence, "", prompt)])
    # The first answer of every sentence, then the second of every sentence.
    prompts = [prompt for layer in zip_longest(*by_sentence) for prompt in layer if prompt]
    limit = _PROMPTS_PER_QUESTION * num_questions
    if len(prompts) > limit:
        return [prompts[place * len(prompts) // limit] for place in range(limit)]
    return prompts * min(_DRAWS, limit // max(len(prompts), 1))


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
    if not line.endswith(("?", "？", "؟")) and label:
        line = after.strip().partition("\n")[0].strip()
    return line if line.endswith(("?", "？", "؟")) else None


def reading_prompts(example: Mapping[str, Any], notes: list[str], questions: list[str]) -> list[str]:
    """Return prompts that ask for the words of a note, one sentence or the whole passage, that answer a question."""
    template = read_prompt_file("own-answer").rstrip()
    title = example.get("title") or ""
    return [
        fill_template(template, {"title": title, "note": " ".join(note.split()), "question": question})
        for note, question in zip(notes, questions, strict=True)
    ]
