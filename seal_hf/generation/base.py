"""
What every generation backend is asked for: prompts and an adapter for each in, texts out.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..self_edit import Prompt


if TYPE_CHECKING:
    from ..adapters.adapter import Adapter


@dataclass(frozen=True)
class Generation:
    """
    One generated text.

    Parameters:
        text (`str`):
            The completion, without special tokens.
        num_tokens (`int`):
            Generated tokens, the end-of-sequence token included.
        finished (`bool`):
            Whether it has its end: the model ended it, or the line where one was asked for, rather than the length limit or a
            stop.
        token_ids (`tuple[int, ...]`):
            The generated tokens, the end-of-sequence token included. The text need not give them back: special tokens are
            not in it, and a model may write other tokens than a tokenizer would.
        unfinished_parts (`tuple[int, ...]`, *optional*, defaults to none):
            Of a text that was joined of several parts, the places of those that are not finished.
    """

    text: str
    num_tokens: int
    finished: bool
    token_ids: tuple[int, ...] = ()
    unfinished_parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """
    Nucleus sampling with a random stream of its own for every row.

    Parameters:
        seeds (`tuple[int, ...]`):
            One per prompt. What a row draws depends on its seed alone, whatever else is in the batch.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; above 0.
        top_p (`float`, *optional*, defaults to `0.95`):
            Smallest total probability of the tokens that are drawn from; above 0, at most 1.

    Raises:
        ValueError: A value out of its range.
    """

    seeds: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 0.95

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0; a small one such as 0.01 is almost greedy."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1.")


def draw_seed(*parts: int) -> int:
    """A seed for one random stream, such as `draw_seed(seed, example, edit)`; unrelated to those of other parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class TextGenerator(ABC):
    """
    Writes texts with one base model, with or without a policy adapter, and an inner adapter for each prompt.
    """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        adapters: "Sequence[Adapter | None] | None" = None,
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        one_line: bool | Sequence[bool] = False,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """
        Continue prompts.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Plain texts, or chat messages for the tokenizer's template.
            adapters (`Sequence[Adapter | None]`, *optional*):
                For each prompt its inner adapter; no inner adapter where `None` or absent.
            max_new_tokens (`int` or `Sequence[int]`):
                Longest completion, in tokens: of all prompts, or of each.
            sampling ([`Sampling`], *optional*):
                How to sample; greedy where absent.
            one_line (`bool` or `Sequence[bool]`, *optional*, defaults to `False`):
                Whether a completion ends with its first line that is not blank, whose line break it holds: of all prompts, or of
                each.
            on_text (`Callable[[list[str]], bool | None]`, *optional*):
                Called after every step with the new text of every prompt (`""` where there is none); generation stops
                when it returns `True`. A character of several tokens is passed on in whole; where a text ends in the
                middle of one, its last call gives the rest, so that the new texts always add up to the text returned.
            stop (`threading.Event`, *optional*):
                Checked after every step; once set, what has been written so far is returned.

        Returns:
            `list[Generation]`: one per prompt, in order.

        Raises:
            ValueError: Fewer than one new token, an empty prompt or one that does not fit the model's context with its
                new tokens, chat messages for a tokenizer without a template, values that are not one per prompt, or
                adapters for another base model or policy or of different shapes.
        """

    def sample(
        self,
        prompts: Sequence[Prompt],
        streams: Sequence[tuple[int, ...]],
        *,
        adapters: "Sequence[Adapter | None] | None" = None,
        temperature: float,
        top_p: float,
        max_new_tokens: int | Sequence[int],
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """
        Continue prompts at random, without an inner adapter.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Plain texts, or chat messages.
            streams (`Sequence[tuple[int, ...]]`):
                For each prompt the numbers that name its random stream, such as `(seed, example, edit)`. What it draws
                depends on these alone, whatever else is in the batch.
            adapters (`Sequence[Adapter | None]`, *optional*):
                As in [`~TextGenerator.generate`].
            temperature, top_p, on_text, stop:
                As in [`Sampling`] and [`~TextGenerator.generate`].
            max_new_tokens (`int` or `Sequence[int]`):
                Longest completion, in tokens: of all prompts, or of each.

        Returns:
            `list[Generation]`: one per prompt.
        """
        seeds = tuple(draw_seed(*stream) for stream in streams)
        return self.generate(
            prompts,
            adapters=adapters,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(seeds, temperature, top_p),
            on_text=on_text,
            stop=stop,
        )

    def clean_up(self) -> None:  # noqa: B027, most leave nothing
        """Remove what another process that was killed has left where texts are written; nothing by default."""

    @abstractmethod
    def answer_log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        gold_answers: Sequence[Sequence[str]],
        adapters: "Sequence[Adapter | None] | None" = None,
    ) -> list[float | None]:
        """
        The mean log-probability of a gold answer's tokens as the continuation of its prompt.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Plain texts, or chat messages for the tokenizer's template.
            gold_answers (`Sequence[Sequence[str]]`):
                For each prompt the answers that are right, at least one; the likeliest counts.
            adapters (`Sequence[Adapter | None]`, *optional*):
                As in [`~TextGenerator.generate`].

        Returns:
            `list[float | None]`: one per prompt, in nats per token, at most 0; `None` where it is not finite.

        Raises:
            ValueError: Gold answers or adapters that are not one (list) per prompt, a prompt without a gold answer, an
                empty prompt or answer, one that does not fit the model's context, or adapters for another base model or
                policy or of different shapes.
        """
