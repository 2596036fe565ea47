"""
The tool of self-edits that ask for facts, where it also asks for those that the policy left out.

A fact is a name, a number or a long word of a sentence. The policy is given the beginning of a line of its own self-edit, the
fact, and continues it with the question. So what it learns for its own lines serves here too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...self_edit import Prompt
from ..tools import AskModel
from .answered_questions import answer_questions, is_clear, key_of, split_fact
from .grounding import says
from .own_questions import parse_question, question_prompt
from .sentences import asks_for, likely_answers, split_sentences


_MIN_LETTERS = 4  # of a word that may be a fact, such as "iron"
_MAX_QUESTION_TOKENS = 40


def ask_for_left_out(
    questions: Sequence[Sequence[str]],
    examples: Sequence[Mapping[str, Any]],
    ask: AskModel,
    parts: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    prompt: Callable[[Mapping[str, Any]], Prompt],
    num_words: int,
) -> list[list[str]]:
    """
    Let the model write the questions that self-edits lack, all of them with one call.

    Args:
        questions (`Sequence[Sequence[str]]`):
            The questions of each self-edit, behind their facts.
        examples (`Sequence[Mapping[str, Any]]`):
            For each the passage that they are about.
        ask ([`AskModel`]):
            The model.
        parts (`Callable[[Mapping], Sequence[Mapping]]`):
            Returns the sentences of a passage, each as an example.
        prompt (`Callable[[Mapping], str | list[dict]]`):
            Returns the prompt for a self-edit about a sentence.
        num_words (`int`):
            Most words of a sentence that are taken for facts, beside its names and numbers: the longest.

    Returns:
        `list[list[str]]`: for each self-edit a question behind its fact for every fact that it leaves out, where the model writes
            one.
    """
    left_out = [
        _left_out(own, example, parts(example), num_words) for own, example in zip(questions, examples, strict=True)
    ]
    begun = [[(fact, _begun(prompt(part), fact)) for part, fact in own] for own in left_out]
    distinct = {key_of(one): one for own in begun for _, one in own}
    answers = ask(list(distinct.values()), _MAX_QUESTION_TOKENS, as_writer=True, one_line=True) if distinct else ()
    lines = dict(zip(distinct, (answer.text.partition("\n")[0].strip() for answer in answers), strict=True))
    return [[f"{fact}: {lines[key_of(one)]}" for fact, one in own if lines[key_of(one)]] for own in begun]


def ask_about(
    fact: str,
    example: Mapping[str, Any],
    ask: AskModel,
    prompt: Callable[[Mapping[str, Any]], Prompt],
    in_view: Callable[[Mapping[str, Any]], list[Prompt]],
) -> tuple[str, str] | None:
    """
    Let the model write a question about one fact of a passage, and answer it with the passage in view.

    For each sentence that says the fact it is asked in two ways: by the beginning of a line of a self-edit, and with examples in
    plain text (see [`own_questions`]). What it writes is checked as [`answer_questions`] does.

    Args:
        fact (`str`):
            A name, number or word of the passage.
        example (`Mapping[str, Any]`):
            The passage.
        ask ([`AskModel`]):
            The model.
        prompt (`Callable[[Mapping], str | list[dict]]`):
            Returns the prompt for a self-edit about a sentence.
        in_view (`Callable[[Mapping], list[str | list[dict]]]`):
            Returns a prompt for each question of an example, with the passage in view.

    Returns:
        `tuple[str, str]`, *optional*: The question and its answer, which holds the fact; `None` where none passes.
    """
    sentences = [sentence for sentence in split_sentences(example["context"]) if says(sentence, fact)]
    begun = [_begun(prompt({**example, "context": sentence, "questions": ()}), fact) for sentence in sentences]
    shown = [question_prompt(sentence, fact, example) for sentence in sentences]
    if not sentences:
        return None
    one_line = [True] * len(begun) + [False] * len(shown)
    written = [
        answer.text for answer in ask([*begun, *shown], _MAX_QUESTION_TOKENS, as_writer=True, one_line=one_line)
    ]
    lines = [text.partition("\n")[0].strip() for text in written[: len(begun)]]
    lines += [parse_question(text) for text in written[len(begun) :]]
    (answered,) = answer_questions([[f"{fact}: {line}" for line in lines if line]], [example], ask, in_view, True)
    return next((pair for pair in answered.pairs if asks_for(fact, [pair])), None)


def _left_out(
    questions: Sequence[str], example: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], num_words: int
) -> list[tuple[Mapping[str, Any], str]]:
    """The facts that no clear question asks for, each with its sentence."""
    split = [split_fact(question, example) for question in questions]
    asked = [fact for fact, question in split if fact and is_clear(fact, question, example)]
    return [
        (part, fact)
        for part in parts
        for fact in likely_answers(part["context"], example, num_words, None, _MIN_LETTERS)
        if not any(says(known, fact) for known in asked)
    ]


def _begun(prompt: Prompt, fact: str) -> Prompt:
    """A prompt with the beginning of what continues it."""
    line = f"{fact}:"
    return f"{prompt}{line}" if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": line}]
