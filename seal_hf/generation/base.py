"""
What every generation backend is asked for: prompts and an adapter for each in, texts out.
"""

import hashlib
from dataclasses import dataclass


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
            Whether the model ended it itself, rather than the length limit or a stop.
    """

    text: str
    num_tokens: int
    finished: bool


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
