"""
What a reasoning model says after its thought, such as one between `<think>` and `</think>`.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ..models.encoding import encode_prompt
from ..self_edit import Prompt
from .base import Generation


# How thoughts begin and end. The first form is of many models, whose tokenizers need not have tokens for it; the others are of
# Magistral, of Seed-OSS, and of gpt-oss, which names a channel before each message.
_FORMS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
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
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    forms = [_FORMS[0], *(form for form in _FORMS[1:] if any(map(form[1].startswith, added)))]
    special = [token for token, is_special in added.items() if is_special]
    # Texts are without special tokens, so that thoughts which these tell apart are seen in the tokens alone.
    are_hidden = any(end.startswith(token) for _, end in forms for token in special)
    said = []
    for one, prompt in zip(generations, prompts, strict=True):
        text = tokenizer.decode(one.token_ids, skip_special_tokens=False) if are_hidden else one.text
        is_open = not any(end in text for _, end in forms) and _opens_thought(tokenizer, prompt, forms)
        rest = after_thought(text, is_open=is_open, forms=forms)
        if are_hidden:
            rest = one.text if rest == text else re.sub("|".join(map(re.escape, special)), "", rest)
        said.append(replace(one, text=rest))
    return said


def after_thought(text: str, *, is_open: bool = False, forms: Sequence[tuple[str, str]] = _FORMS[:1]) -> str:
    """
    What follows a thought; nothing where it never closes.

    Args:
        text (`str`):
            A completion.
        is_open (`bool`, *optional*, defaults to `False`):
            Whether the thought was begun before it.
        forms (`Sequence[tuple[str, str]]`, *optional*):
            How thoughts begin and end. Defaults to `<think>` and `</think>` alone.

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
    for _, end in forms:
        if end in text:
            return text.rpartition(end)[2].lstrip()
    is_begun = text.lstrip().startswith(tuple(begin for begin, _ in forms))
    return "" if is_open or is_begun else text


def _opens_thought(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, forms: Sequence[tuple[str, str]]) -> bool:
    begins = tuple(begin for begin, _ in forms if begin in (tokenizer.chat_template or ""))
    if isinstance(prompt, str) or not begins:
        return False
    return tokenizer.decode(encode_prompt(tokenizer, prompt)[-_TAIL:]).rstrip().endswith(begins)
