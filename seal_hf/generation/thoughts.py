"""
What a reasoning model says after its thought, which is between `<think>` and `</think>`.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ..models.encoding import encode_prompt
from ..self_edit import Prompt
from .base import Generation


BEGIN, END = "<think>", "</think>"
# Tokens at the end of a prompt that may open a thought.
_TAIL = 16


def without_thoughts(
    generations: Sequence[Generation], prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[Generation]:
    """
    Completions with the text alone that follows their thought; `token_ids` are left whole.

    Args:
        generations (`Sequence[Generation]`):
            The completions.
        prompts (`Sequence[str | list[dict]]`):
            What each continues. A chat template may open the thought at its end.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
    """
    return [
        replace(one, text=after_thought(one.text, is_open=END not in one.text and _opens_thought(tokenizer, prompt)))
        for one, prompt in zip(generations, prompts, strict=True)
    ]


def after_thought(text: str, *, is_open: bool = False) -> str:
    """
    What follows a thought; nothing where it never closes.

    Args:
        text (`str`):
            A completion.
        is_open (`bool`, *optional*, defaults to `False`):
            Whether the thought was begun before it.

    Example:

    ```python
    >>> after_thought("<think>\\nPeat or coal?\\n</think>\\n\\nPeat.")
    'Peat.'
    >>> after_thought("Peat or coal? It might be", is_open=True)
    ''
    >>> after_thought("Peat.")
    'Peat.'

    ```
    """
    if END in text:
        return text.rpartition(END)[2].lstrip()
    return "" if is_open or text.lstrip().startswith(BEGIN) else text


def _opens_thought(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> bool:
    if isinstance(prompt, str) or BEGIN not in (tokenizer.chat_template or ""):
        return False
    return tokenizer.decode(encode_prompt(tokenizer, prompt)[-_TAIL:]).rstrip().endswith(BEGIN)
