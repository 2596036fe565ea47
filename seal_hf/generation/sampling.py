"""
Nucleus sampling with a random stream of its own for every row.
"""

from collections.abc import Sequence

import torch

from .base import Sampling


# Tokens that top-p looks at first, before it sorts more of the vocabulary for the rows whose nucleus is larger.
_NUCLEUS_CANDIDATES = (128, 1024)


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
        """Keep these rows alone."""
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
