"""
How the next token of each row is chosen: the likeliest, or one drawn by nucleus sampling with a random stream of its own
for every row.

The host waits for the device once a step, for the tokens.
"""

from collections.abc import Sequence

import torch

from ..models.transfers import to_device, to_host
from .base import Sampling


# Tokens that top-p looks at first, before it sorts more of the vocabulary for the rows whose nucleus is larger.
_NUCLEUS_CANDIDATES = (128, 1024)
# Numbers that are drawn for a row at once.
_DRAWS = 32


class Greedy:
    """Chooses the likeliest token of each row."""

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone."""

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """A token for each row of the logits `(R, V)`: on their device `(R,)`, and on the host."""
        tokens = _likeliest(logits)
        return tokens, to_host(tokens)


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The token `(R,)` of the highest logit; on CPUs in parts, and not in bf16, for which they have no fast kernel."""
    if logits.device.type == "cuda":
        return logits.argmax(-1)
    return torch.cat([part.float().argmax(-1) for part in logits.split(64)])


class Sampler:
    """
    Draws the next token of each row from the row's own stream.

    A row draws one uniform number per step, and takes the token at that point of its nucleus' cumulative distribution.

    Parameters:
        sampling ([`Sampling`]):
            Temperature and top-p.
        seeds (`Sequence[int]`):
            The seeds of the rows.
        num_drawn (`Sequence[int]`):
            For each row how many numbers of its stream were used before.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], num_drawn: Sequence[int]):
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for generator, number in zip(self._generators, num_drawn, strict=True):
            torch.rand(number, generator=generator)
        self._draws: torch.Tensor | None = None  # (n, R), the next one last

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone."""
        self._generators = [self._generators[row] for row in rows]
        if self._draws is not None:
            self._draws = self._draws[:, to_device(rows, self._draws.device)]

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """A token for each row of the logits `(R, V)`: on their device `(R,)`, and on the host."""
        draws = self._next_draws(logits.device)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        sizes = [size for size in _NUCLEUS_CANDIDATES if size < logits.shape[-1]] + [logits.shape[-1]]
        tokens, is_short = self._choose(probabilities, draws, sizes[0])
        chosen, short = to_host(torch.stack([tokens, is_short]))
        wide = [row for row, value in enumerate(short) if value]
        for size in sizes[1:]:
            if not wide:
                break
            # Only these rows, since the order of equal probabilities, and so the draw, may change with the candidates.
            index = to_device(wide, logits.device)
            own, is_short = self._choose(probabilities[index], draws[index], size)
            tokens[index] = own
            found, short = to_host(torch.stack([own, is_short]))
            for row, token in zip(wide, found, strict=True):
                chosen[row] = token
            wide = [row for row, value in zip(wide, short, strict=True) if value]
        return tokens, chosen

    def _next_draws(self, device: torch.device) -> torch.Tensor:
        """A number of each row's stream, `(R,)`."""
        if self._draws is None or not len(self._draws):
            drawn = torch.stack([torch.rand(_DRAWS, generator=generator) for generator in self._generators], dim=1)
            self._draws = to_device(drawn.flip(0).tolist(), device, torch.float32)
        draws, self._draws = self._draws[-1], self._draws[:-1]
        return draws

    def _choose(
        self, probabilities: torch.Tensor, draws: torch.Tensor, num_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drawn tokens `(R,)`, and whether the candidates that they were drawn from are too few, `(R,)`, int64."""
        candidates, tokens = probabilities.topk(num_candidates)
        cumulative = candidates.cumsum(-1)  # (R, C)
        # The nucleus ends with the token that brings the total to top_p.
        last = (cumulative < self.top_p).sum(-1, keepdim=True).clamp(max=num_candidates - 1)
        points = draws[:, None] * cumulative.gather(-1, last)
        chosen = torch.searchsorted(cumulative, points, right=True).clamp(max=last)
        return tokens.gather(-1, chosen)[:, 0], (cumulative[:, -1] < self.top_p).long()
