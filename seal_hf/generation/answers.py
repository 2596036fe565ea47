"""Greedy answers: to prompts in groups, and to prompts of which some may be too long."""

import threading
from collections.abc import Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..models.encoding import encode_prompt
from ..self_edit import Prompt
from .base import Generation, TextGenerator
from .thoughts import without_thoughts


_Value = TypeVar("_Value")


def answers_that_fit(
    generator: TextGenerator,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    context_length: int | None,
    adapter: Adapter | None = None,
    one_line: bool | Sequence[bool] = False,
    stop: threading.Event | None = None,
) -> list[Generation]:
    """
    Greedy answers, without their thoughts, to prompts that a policy may have written, however long.

    Args:
        generator ([`TextGenerator`]):
            Writes them.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            Plain texts, or chat messages.
        max_new_tokens (`int`):
            Longest answer, in tokens.
        context_length (`int`, *optional*):
            Most tokens of a prompt with its answer; `None` where that is not known.
        adapter ([`Adapter`], *optional*):
            The adapter that answers.
        one_line (`bool` or `Sequence[bool]`, *optional*, defaults to `False`):
            Whether an answer ends with its first line, for prompts that open no thought: of all, or of each.
        stop (`threading.Event`, *optional*):
            Once set, what has been written so far is returned.

    Returns:
        `list[Generation]`: one for each prompt; nothing where it does not fit.
    """
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    fitting = [
        place
        for place, length in enumerate(lengths)
        if context_length is None or length + max_new_tokens <= context_length
    ]
    asked = [prompts[place] for place in fitting]
    generations = generator.generate(
        asked,
        adapters=adapter and [adapter] * len(asked),
        max_new_tokens=max_new_tokens,
        one_line=one_line if isinstance(one_line, bool) else [one_line[place] for place in fitting],
        stop=stop,
    )
    found = dict(zip(fitting, without_thoughts(generations, asked, tokenizer), strict=True))
    return [found.get(place, Generation("", 0, False)) for place in range(len(prompts))]


def value_of_each(groups: Sequence[Sequence[Prompt]], values: Sequence[_Value | Sequence[_Value]]) -> list[_Value]:
    """
    A value for each prompt of groups, one after another.

    Args:
        groups (`Sequence[Sequence[str | list[dict]]]`):
            Groups of prompts.
        values (`Sequence`):
            For each group its value, or one for each of its prompts.

    Example:

    ```python
    >>> value_of_each([["Who?", "Where?"], ["Why?", "How?"]], [8, [16, 32]])
    [8, 8, 16, 32]

    ```
    """
    return [
        value
        for group, own in zip(groups, values, strict=True)
        for value in (own if isinstance(own, Sequence) else [own] * len(group))
    ]
