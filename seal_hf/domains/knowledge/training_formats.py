"""
The formats in which what the policy wrote about a passage is trained on.

`"language_modeling"` is the paper's: raw text behind the title, the loss on every token. `"prompt_completion"` is the form in
which a person will ask: questions become closed-book prompts with the loss on the answer, and the passage is the answer to
what is known of its topic. What was learned as raw text is continued by a small model, and hardly found by a question
(Allen-Zhu and Li, arXiv 2309.14316).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...self_edit import Prompt, TrainingExample


TRAINING_FORMATS = ("language_modeling", "prompt_completion")
_PAIR = re.compile(r"Question\s+\d+:\s*(?P<question>.+?)\s*\n\s*Answer\s*:\s*(?P<answer>.+)", re.DOTALL)


def raw_texts(example: Mapping[str, Any], texts: Sequence[str]) -> tuple[TrainingExample, ...]:
    """Each text behind the title, and the passage as the last one; the loss is taken on every token."""
    title = example.get("title")
    texts = (*texts, example["context"].strip())
    return tuple(TrainingExample("", f"{title}\n{text}" if title else text) for text in texts)


def trained_pairs(examples: Sequence[TrainingExample]) -> list[tuple[str, str]]:
    """The questions with their answers that are trained on as raw texts, each in a text of its own."""
    found = [_PAIR.search(one.completion.strip()) for one in examples if not one.prompt]
    pairs = [(pair["question"], pair["answer"].strip()) for pair in found if pair]
    return [(question, answer) for question, answer in pairs if not _PAIR.search(answer)]


def prompts_with_completions(
    example: Mapping[str, Any],
    texts: Sequence[str],
    ask: Callable[[Sequence[str], str], list[Prompt]],
    known: Callable[[Mapping[str, Any]], Prompt],
    num_passages: int,
) -> tuple[TrainingExample, ...]:
    """
    Questions as prompts with their answers; other texts, together, and the passage as answers to what is known.

    Args:
        example (`Mapping[str, Any]`):
            The passage.
        texts (`Sequence[str]`):
            What the policy wrote, a question with its answer each, or something else.
        ask (`Callable`):
            Returns closed-book prompts for questions about a title.
        known (`Callable`):
            Returns the prompt that asks what is known of the passage's topic.
        num_passages (`int`):
            How often the passage is among the examples, which are all trained on once per epoch.
    """
    pairs = [_PAIR.fullmatch(text.strip()) for text in texts]
    questions = [pair["question"] for pair in pairs if pair]
    answers = [pair["answer"].strip() for pair in pairs if pair]
    prompts = ask(questions, example.get("title") or "") if questions else []
    statements = "\n".join(text for text, pair in zip(texts, pairs, strict=True) if not pair)
    about = [*[statements] * bool(statements), *[example["context"].strip()] * num_passages]
    return (
        *map(TrainingExample, prompts, answers),
        *(TrainingExample(known(example), text) for text in about),
    )
