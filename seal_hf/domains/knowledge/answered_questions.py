"""
The tool of self-edits that ask questions: the same model answers them with the passage in view.

The policy writes questions that together cover a passage. Each is read twice, with the whole passage in view and with the
sentences that are nearest to it. The answers to the first are what an adapter learns to say where the passage is not in view,
if both readings agree and the passage supports them (round-trip consistency, Alberti et al. 2019,
https://arxiv.org/abs/1906.05416). No label is needed.

Before a question the policy may write the fact of the passage that it asks for, as in "1911: When did Ann come to Vell?". Then
the second reading is one of the sentence with the fact in as few words as possible, and the first must hold it. A small model
that has written the answer first asks a better question. Where it asks for something else than it set out to, what was read is
the fact: the policy is shown which question it did write, as in hindsight experience replay (Andrychowicz et al. 2017,
https://arxiv.org/abs/1707.01495).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...grading.words import normalize
from ...self_edit import Prompt
from ..tools import Answer, AskModel
from .completions import split_completion
from .grounding import MAX_ANSWER_WORDS, is_about, nearest_sentence, news, says
from .own_questions import reading_prompts
from .sentences import coverage, is_asking, names_and_numbers, questions_in, split_sentences


# Why a question is dropped: it was written before; it is not about the passage, or not clear where that is not in view; the two
# readings differ; the passage does not say what they say, or the question does; or no reading is short.
REASONS = ("duplicate", "unclear", "disagreement", "unsupported", "long")
_MAX_QUESTION_CHARACTERS, _MAX_ANSWER_CHARACTERS = 250, 200
_MAX_ANSWER_TOKENS = 32
_MAX_FACT_WORDS = 6
# "3. ", "- ", "Question 3: "; not "1911: ", which may be a fact
_LABEL = re.compile(r"(?:[-*•]\s*|\(?\d+[.)]\s*|(?:Question|Q)\s*\d*\s*[.:]\s*)+")


@dataclass(frozen=True)
class AnsweredQuestions:
    """
    What became of the questions of one self-edit.

    Parameters:
        pairs (`tuple[tuple[str, str], ...]`):
            The questions that are kept, with their answers.
        lines (`tuple[tuple[str, str], ...]`):
            The sentence that answers each of these questions, and the question behind its fact as it was written: in the order of
            the passage, and one for each fact.
        metrics (`dict[str, float]`):
            The number of `questions` and of `questions_kept`, of those that are dropped for each of [`REASONS`]
            (`dropped_duplicate` and so on), and the `coverage` by the pairs that are kept, unless the passage has neither
            names nor numbers.
    """

    pairs: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, str], ...]
    metrics: dict[str, float]

    def kept_of(self, parts: Sequence[str]) -> list[str]:
        """The lines of each of these parts of the passage."""
        return ["\n".join(line for sentence, line in self.lines if sentence in part) for part in parts]


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
        asking = [line for line in lines if is_asking(line)]
        if asking and 2 * len(asking) >= len(lines):
            questions += [one for line in asking for one in questions_in(_LABEL.sub("", line, count=1))]
        else:
            texts += split_completion(part, split_newlines)
    return questions, texts


def answer_questions(
    questions: Sequence[Sequence[str]],
    examples: Sequence[Mapping[str, Any]],
    ask: AskModel,
    in_view: Callable[[Mapping[str, Any]], list[Prompt]],
    by_fact: bool = False,
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
        by_fact (`bool`, *optional*, defaults to `False`):
            Whether the second reading is one in few words, which gives each question the fact that it asks for.

    Returns:
        `list[AnsweredQuestions]`: one for each self-edit.
    """
    dropped = [Counter() for _ in questions]
    clear = [
        _clear(own, example, why, by_fact) for own, example, why in zip(questions, examples, dropped, strict=True)
    ]
    # Self-edits about one passage share most of their questions.
    prompts = [
        [_prompts(question, fact, example, in_view, by_fact) for fact, question in own]
        for own, example in zip(clear, examples, strict=True)
    ]
    distinct = {key_of(prompt): prompt for own in prompts for pair in own for prompt in pair}
    # What continues a plain text goes on with further questions; a chat's answer ends itself, and may begin with a thought.
    one_line = [isinstance(prompt, str) for prompt in distinct.values()]
    texts = ask(list(distinct.values()), _MAX_ANSWER_TOKENS, one_line=one_line) if distinct else ()
    answers = dict(zip(distinct, map(_first_sentence, texts), strict=True))
    results = []
    for own, asked, example, why, written in zip(clear, prompts, examples, dropped, questions, strict=True):
        pairs, asking, corrected = [], [], []
        for (fact, question), prompts_of_question in zip(own, asked, strict=True):
            readings = [answers[key_of(prompt)] for prompt in prompts_of_question]
            found, answer, reason = _fact_and_answer(fact, question, example, readings, by_fact)
            if reason:
                why[reason] += 1
                continue
            pairs.append((question, answer))
            (asking if found == fact else corrected).append((found, question))
        metrics = {"questions": len(written), "questions_kept": len(pairs)}
        metrics |= {f"dropped_{reason}": why[reason] for reason in REASONS}
        if (covered := coverage(example, pairs)) is not None:
            metrics["coverage"] = covered
        results.append(AnsweredQuestions(tuple(pairs), tuple(_in_order([*asking, *corrected], example)), metrics))
    return results


def split_fact(question: str, example: Mapping[str, Any]) -> tuple[str, str]:
    """
    Split what the policy wrote into the fact of the passage that it asks for, which may be missing, and the question.

    Example:

    ```python
    >>> bees = {"title": "Bees", "context": "In 1911 Ann came to Vell."}
    >>> split_fact("1911: When did Ann come to Vell?", bees), split_fact("Tell me: who came to Vell?", bees)
    (('1911', 'When did Ann come to Vell?'), ('', 'Tell me: who came to Vell?'))

    ```
    """
    before, colon, rest = question.partition(":")
    if colon and rest.strip() and len(before.split()) <= MAX_ANSWER_WORDS and says(example["context"], before):
        return before.strip(), rest.strip()
    is_number = colon and before.strip().isdigit()  # of the question
    return "", rest.strip() if is_number else question


def fact_and_question(written: str, example: Mapping[str, Any], by_fact: bool) -> tuple[str, str]:
    """
    What a line asks, behind the fact that it asks for: as [`split_fact`], and where a fact is to stand before the question, without
    what stands there in its place.
    """
    fact, question = split_fact(written, example)
    if by_fact and not (fact and is_clear(fact, question, example)):
        # What is not clear may be the fact alone, or what stands in its place and is not said by the passage.
        return "", question.partition(": ")[2].strip() or question
    return fact, question


def is_clear(fact: str, question: str, example: Mapping[str, Any]) -> bool:
    """Whether a question makes sense without the passage and tells neither itself nor by the title the fact that it asks for."""
    is_short = len(question) <= _MAX_QUESTION_CHARACTERS
    return is_short and is_about(question, example) and not says(f"{example.get('title') or ''}\n{question}", fact)


def _in_order(asking: Sequence[tuple[str, str]], example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sentences with the facts and questions about them, in the order of the passage, of a fact the first alone."""
    sentences = split_sentences(example["context"])
    found, facts = [], []
    for fact, question in asking:
        if fact and any(says(fact, other) or says(other, fact) for other in facts):
            continue
        facts += [fact] * bool(fact)
        sentence = _sentence_of(fact, question, sentences, example)
        place = sentences.index(sentence), sentence.lower().find(fact.lower())
        found.append((place, f"{fact}: {question}" if fact else question))
    return [(sentences[place], line) for (place, _), line in sorted(found, key=lambda one: one[0])]


def _sentence_of(fact: str, question: str, sentences: Sequence[str], example: Mapping[str, Any]) -> str:
    """The sentence that is nearest to a question, of those that say the fact where any does."""
    having = [sentence for sentence in sentences if says(sentence, fact)] or list(sentences)
    return having[nearest_sentence(question, having, example.get("title") or "")]


def _clear(
    questions: Sequence[str], example: Mapping[str, Any], dropped: Counter, by_fact: bool
) -> list[tuple[str, str]]:
    """The questions that make sense without the passage, each once, behind the facts that they may ask for."""
    seen, kept = set(), []
    for written in questions:
        fact, question = fact_and_question(written, example, by_fact)
        if (words := normalize(question)) in seen:
            dropped["duplicate"] += 1
        elif not is_clear(fact, question, example):
            dropped["unclear"] += 1
        else:
            kept.append((fact, question))
        seen.add(words)
    return kept


def _prompts(
    question: str,
    fact: str,
    example: Mapping[str, Any],
    in_view: Callable[[Mapping[str, Any]], list[Prompt]],
    by_fact: bool,
) -> list[Prompt]:
    """
    The prompts of both readings: of the whole passage, and of the nearest sentence, in few words where that is to be a fact, and
    else with the sentences beside it.
    """
    asked, sentences = [{"question": question}], split_sentences(example["context"])
    if fact or by_fact:
        note = _sentence_of(fact, question, sentences, example)
        return [*in_view({**example, "questions": asked}), *reading_prompts(example, [note], [question])]
    nearest = nearest_sentence(question, sentences, example.get("title") or "")
    beside = 1 if len(sentences) > 3 else 0  # three sentences may be the whole passage
    note = " ".join(sentences[max(0, nearest - beside) : nearest + beside + 1])
    return [
        prompt
        for text in (example["context"], note)
        for prompt in in_view({**example, "context": text, "questions": asked})
    ]


def key_of(prompt: Prompt) -> str:
    """What tells a prompt from others."""
    return prompt if isinstance(prompt, str) else repr(prompt)


def _first_sentence(answer: Answer) -> tuple[str, bool]:
    """What an answer says first, and whether that is complete."""
    sentences = split_sentences(answer.text.strip())
    return (sentences[0], answer.finished or len(sentences) > 1) if sentences else ("", answer.finished)


def _fact_and_answer(
    fact: str, question: str, example: Mapping[str, Any], readings: Sequence[tuple[str, bool]], by_fact: bool
) -> tuple[str, str, str | None]:
    """The fact that a question asks for and the answer that both readings agree on, or why there is none."""
    reason: str | None = "unclear"
    if fact or not by_fact:
        answer, reason = _agreed(question, fact, example, readings)
        if reason is None:
            return fact, answer, None
    if by_fact and (read := _fact_read(question, example, readings)):
        return read, *_agreed(question, read, example, readings)
    return "", "", reason


def _fact_read(question: str, example: Mapping[str, Any], readings: Sequence[tuple[str, bool]]) -> str:
    """What the reading in few words found, where it is a fact of the passage that may stand before the question."""
    _, (text, is_complete) = readings
    read = text.strip().rstrip(".。।")
    fact, rest = split_fact(f"{read}: {question}", example)
    is_fact = is_complete and fact == read and rest == question and len(read.split()) <= _MAX_FACT_WORDS
    return read if is_fact and is_clear(read, question, example) else ""


def _without_small_words(text: str) -> str:
    """A text without words of at most three small letters, such as "in" and "the", unless there are no others."""
    return " ".join(word for word in text.split() if not (word.isalpha() and word.islower() and len(word) < 4)) or text


def _agreed(
    question: str, fact: str, example: Mapping[str, Any], readings: Sequence[tuple[str, bool]]
) -> tuple[str, str | None]:
    """The answer that both readings agree on, and the fact where it is known; or why there is none."""
    told = f"{example.get('title') or ''}\n{question}"
    texts = [text for text, _ in readings]
    own = [news(told, text) for text in texts]
    if fact:
        asked, read = _without_small_words(news(told, fact) or fact), _without_small_words(own[1])
        agree = says(texts[0], fact) and says(read, asked) and says(asked, read)
    else:
        agree = says(texts[0], own[1]) or says(texts[1], own[0])
    if not all(texts) or not agree:
        # What only repeats the question agrees with everything.
        return "", "unsupported" if all(texts) and not any(own) else "disagreement"
    short = [
        text
        for (text, is_complete), new in zip(readings, own, strict=True)
        if is_complete and len(new.split()) <= MAX_ANSWER_WORDS and len(text) <= _MAX_ANSWER_CHARACTERS
    ]
    if not short:
        return "", "long"
    # The first, unless the second alone is short, too, with what it repeats of the question.
    answer = min(short, key=lambda text: len(normalize(text)) > MAX_ANSWER_WORDS)
    known = f"{told}\n{example['context']}"
    core = fact or min((words for words in own if words), key=len)
    if not says(example["context"], core) or not all(says(known, stated) for stated in names_and_numbers(answer)):
        return "", "unsupported"
    return answer, None
