"""
Texts of people as token ids: control tokens that are written out in a text stay text.

A tokenizer reads `"<|im_end|>"` in a text as its token that ends a turn. In what a chat template adds that is meant. In a
passage about templates it is not: there such a string is cut in two, and both parts are tokenized apart, so that the ids still
stand for the same text.
"""

import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase


# Added tokens that are not declared as special, but tell turns apart all the same, such as DeepSeek's "<｜User｜>". Tags such as
# "<think>" are left alone: models write them in their texts.
_CONTROL_FORM = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
# Characters of which one marks where to cut: of private use, so that texts have none of most of them.
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF
# The number of tokens and what matches control tokens, of every tokenizer that was used.
_PATTERNS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, re.Pattern | None]] = WeakKeyDictionary()


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """
    Token ids of a text, in which control tokens that are written out are text. Those of a text without any are the tokenizer's
    own.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        text (`str`):
            A text of a person or a model.
        add_special_tokens (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer adds its tokens around the text, such as the one that begins a sequence.

    Returns:
        `list[int]`: the ids.
    """
    control = _control_tokens(tokenizer)
    if control is None or not control.search(text):
        return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    mark = _unused_mark(text)
    first, *others = _cut(control, text, mark).split(mark)
    ids = tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"]
    return ids + _continued(tokenizer, others)


def encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **template_options: Any
) -> list[int]:
    """
    Token ids that the chat template makes of messages, in whose texts control tokens that are written out are text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A tokenizer with a chat template.
        messages (`list[dict]`):
            The chat.
        template_options (*optional*):
            As for `apply_chat_template`.

    Returns:
        `list[int]`: the ids.
    """
    control = _control_tokens(tokenizer)
    texts = list(_texts_of(messages))
    if control is None or not any(map(control.search, texts)):
        return tokenizer.apply_chat_template(messages, return_dict=True, **template_options)["input_ids"]
    mark = _unused_mark("".join(texts))
    marked = [
        {name: _cut_content(control, value, mark) if name == "content" else value for name, value in message.items()}
        for message in messages
    ]
    first, *others = tokenizer.apply_chat_template(marked, tokenize=False, **template_options).split(mark)
    return tokenizer(first, add_special_tokens=False)["input_ids"] + _continued(tokenizer, others)


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """What matches a tokenizer's control tokens; `None` where it has none that can be written out."""
    size, pattern = _PATTERNS.get(tokenizer, (None, None))
    if size != len(tokenizer):  # tokens may have been added since
        added = tokenizer.added_tokens_decoder.values()
        found = {str(token) for token in added if token.special or _CONTROL_FORM.fullmatch(str(token))}
        # What has one character cannot be cut. The longest first, since one may be the beginning of another.
        found = sorted((text for text in found if len(text) > 1), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, found))) if found else None
        _PATTERNS[tokenizer] = len(tokenizer), pattern
    return pattern


def _unused_mark(text: str) -> str:
    return next(chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in text)


def _cut(control: re.Pattern, text: str, mark: str) -> str:
    # More than once, since what is left of one may be the beginning of another.
    while control.search(text):
        text = control.sub(lambda match: f"{match.group()[0]}{mark}{match.group()[1:]}", text)
    return text


def _cut_content(control: re.Pattern, content: Any, mark: str) -> Any:
    """A message's content, a text or parts of which some are texts, with marks where control tokens are to be cut."""
    if isinstance(content, str):
        return _cut(control, content, mark)
    if isinstance(content, list):
        return [
            {**part, "text": _cut(control, part["text"], mark)} if isinstance(part.get("text"), str) else part
            for part in content
        ]
    return content


def _texts_of(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        yield from (part["text"] for part in parts if isinstance(part.get("text"), str))


def _continued(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """
    Token ids of texts that each continue the one before.

    Tokenizers in the manner of SentencePiece put a blank before a text. They get each text after a character of their own,
    whose tokens are left out again.
    """
    anchor = chr(_LAST_MARK)
    before = tokenizer(anchor, add_special_tokens=False)["input_ids"]

    def after_anchor(text: str) -> list[int] | None:
        ids = tokenizer(f"{anchor}{text}", add_special_tokens=False)["input_ids"]
        return ids[len(before) :] if ids[: len(before)] == before else None

    adds_blank = after_anchor("a") not in (None, tokenizer("a", add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    for text in texts:
        own = after_anchor(text) if adds_blank else None
        ids += tokenizer(text, add_special_tokens=False)["input_ids"] if own is None else own
    return ids
