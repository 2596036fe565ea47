"""
Nucleus sampling with a random stream of its own for every row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch


# Tokens that top-p looks at first, before it sorts more of the vocabulary for the rows whose nucleus is larger.
_NUCLEUS_CANDIDATES = (128, 1024)


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


class Sampler:
    """
    Draws the next token of each row from the row's own stream.

    A row draws one uniform number per step, and takes the token at that point of its nucleus' cumulative distribution.

    Parameters:
        sampling ([`Sampling`]):
            Temperature and top-p.
        seeds (`Sequence[int]`):
            The seeds of the rows.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]):
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.generators = [self.generators[row] for row in rows]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """A token `(R,)` for each row of the logits `(R, V)`."""
        draws = torch.stack([torch.rand((), generator=generator) for generator in self.generators]).to(logits.device)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        sizes = [size for size in _NUCLEUS_CANDIDATES if size < logits.shape[-1]] + [logits.shape[-1]]
        tokens, held = self._choose(probabilities, draws, sizes[0])
        for size in sizes[1:]:
            # Only these rows, since the order of equal probabilities, and so the draw, may change with the candidates.
            wide = (held < self.top_p).nonzero()[:, 0]
            if not len(wide):
                break
            tokens[wide], held[wide] = self._choose(probabilities[wide], draws[wide], size)
        return tokens

    def _choose(
        self, probabilities: torch.Tensor, draws: torch.Tensor, num_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drawn tokens `(R,)`, and the total probability `(R,)` of the candidates that they were drawn from."""
        candidates, tokens = probabilities.topk(num_candidates)
        cumulative = candidates.cumsum(-1)  # (R, C)
        # The nucleus ends with the token that brings the total to top_p.
        last = (cumulative < self.top_p).sum(-1, keepdim=True).clamp(max=num_candidates - 1)
        points = draws[:, None] * cumulative.gather(-1, last)
        chosen = torch.searchsorted(cumulative, points, right=True).clamp(max=last)
        return tokens.gather(-1, chosen)[:, 0], cumulative[:, -1]
