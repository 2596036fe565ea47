"""
What has been written after each prompt of a call, and the report of it step by step.
"""

import threading
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from .base import Generation


class Writing:
    """
    The texts that a call to a generator writes.

    Parameters:
        tokenizer (`PreTrainedTokenizerBase`):
            Reads their tokens.
        limits (`Sequence[int]`):
            For each prompt the most tokens that may be written after it.
        eos_ids (`set[int]`):
            Tokens that end a text.
        one_line (`Sequence[bool]`):
            For each prompt whether its text ends with its first line.
        on_text, stop:
            As in [`TextGenerator.generate`].
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        limits: Sequence[int],
        eos_ids: set[int],
        one_line: Sequence[bool],
        on_text: Callable[[list[str]], bool | None] | None,
        stop: threading.Event | None,
    ):
        self.tokenizer, self.limits, self.eos_ids, self.on_text, self.stop = tokenizer, limits, eos_ids, on_text, stop
        self.tokens: list[list[int]] = [[] for _ in limits]
        self.is_done = [False] * len(limits)  # ended by the model, its line or the limit
        self._one_line = one_line
        self.is_stopped = False
        self._reported, self._lengths = [""] * len(limits), [0] * len(limits)

    def add(self, place: int, token: int) -> None:
        """Write a token, unless the text is done."""
        if not self.is_done[place]:
            self.tokens[place].append(token)
            self.is_done[place] = self._has_end(place) or len(self.tokens[place]) == self.limits[place]

    def report(self, places: Sequence[int]) -> None:
        """Report what is new of the texts at these places, and see whether to stop."""
        if self.on_text is not None and self.on_text(self._new_texts(places)):
            self.is_stopped = True
        if self.stop is not None and self.stop.is_set():
            self.is_stopped = True

    def finish(self) -> list[Generation]:
        """All texts; what was held back of those that were stopped in the middle of a character is reported."""
        texts = [self._text(place) for place in range(len(self.tokens))]
        new_texts = [self._news(place, text) for place, text in enumerate(texts)]
        if self.on_text is not None and any(new_texts):
            self.on_text(new_texts)
        return [
            Generation(text, len(ids), self._has_end(place), tuple(ids))
            for place, (text, ids) in enumerate(zip(texts, self.tokens, strict=True))
        ]

    def _has_end(self, place: int) -> bool:
        return self._is_ended(place) or self._one_line[place] and "\n" in self._text(place).lstrip()

    def _is_ended(self, place: int) -> bool:
        return bool(self.tokens[place]) and self.tokens[place][-1] in self.eos_ids

    def _text(self, place: int) -> str:
        ids = self.tokens[place]
        return self.tokenizer.decode(ids[: len(ids) - self._is_ended(place)], skip_special_tokens=True)

    def _new_texts(self, places: Sequence[int]) -> list[str]:
        new_texts = [""] * len(self.tokens)
        for place in places:
            if len(self.tokens[place]) == self._lengths[place]:
                continue
            text, self._lengths[place] = self._text(place), len(self.tokens[place])
            # A character of several tokens decodes to U+FFFD until its last one is there.
            if self.is_done[place] or not text.endswith("\ufffd"):
                new_texts[place] = self._news(place, text)
        return new_texts

    def _news(self, place: int, text: str) -> str:
        new_text = text[len(self._reported[place]) :]
        if new_text:
            self._reported[place] = text
        return new_text
