"""AdamW of a whole bank."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.optim.adamw import adamw

from ..adapters.layout import LoraStacks
from ..models import transfers


# fp32 gradients that a GPU holds at once; more adapters than fit take their step one group after the other.
_GRADIENT_VALUES = 2**27


class StepSize(NamedTuple):
    """
    What an adapter's step depends on besides its gradient.

    Parameters:
        learning_rate (`float`):
            AdamW's.
        max_grad_norm (`float`):
            Greatest norm of the gradient; 0 for no clipping.
    """

    learning_rate: float
    max_grad_norm: float

    def clipping(self, norm: float) -> float:
        """What a gradient of this norm is multiplied by."""
        return self.max_grad_norm / (norm + 1e-6) if self.max_grad_norm and norm > self.max_grad_norm else 1.0


class BankOptimizer:
    """
    AdamW of K adapters, each with its own moments, learning rate and gradient norm.

    A GPU is waited for once a step: losses and norms of all adapters are read together, and what follows is launched for
    many adapters at once. A CPU takes one adapter after the other, so that the gradient in fp32 stays in its caches.

    Parameters:
        weights (`torch.Tensor` of shape `(K, num_parameters)`, fp32):
            The adapters' weights, changed in place.
        grads ([`LoraStacks`]):
            Where the gradients of a step are, in the order in which the adapters are given to it.
        trained (`torch.Tensor` of shape `(num_parameters,)`, *optional*):
            1 for the weights of an adapter that are trained, 0 for those that stay as they are; all are trained where absent.
    """

    def __init__(self, weights: torch.Tensor, grads: LoraStacks, trained: torch.Tensor | None = None):
        self.grads, self._trained = grads, trained
        rows = 1 if grads.vectors is None else max(1, _GRADIENT_VALUES // weights.shape[1])
        self._gradients = torch.empty_like(weights[:rows])
        self._weights = weights.unbind()
        self._moments = [torch.zeros_like(weights).unbind() for _ in range(2)]
        self._num_steps = weights.new_zeros(len(weights)).unbind()

    def step(
        self, adapters: Sequence[int], sizes: Sequence[StepSize], losses: torch.Tensor
    ) -> tuple[list[float], list[bool]]:
        """
        One step of some adapters; none of one whose loss or gradient is not finite.

        Args:
            adapters (`Sequence[int]`):
                Which ones.
            sizes (`Sequence[StepSize]`):
                Their steps.
            losses (`torch.Tensor` of shape `(k,)`):
                Their losses.

        Returns:
            `tuple[list[float], list[bool]]`: their losses, and which of them took the step.
        """
        if self.grads.vectors is None:
            values, places = losses.tolist(), range(len(adapters))
            return values, list(map(self._step_alone, places, adapters, sizes, values))
        vectors, count = self.grads.vectors[: len(adapters)], len(adapters)
        if self._trained is not None:
            vectors.mul_(self._trained)
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
        read = transfers.to_host(torch.cat([losses, norms]))
        values, norms = read[:count], read[count:]
        finite = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(values, norms, strict=True)]
        factors = [size.clipping(norm) for size, norm in zip(sizes, norms, strict=True)]
        factors = transfers.to_device(factors, vectors.device, torch.float32)[:, None]
        for start in range(0, count, len(self._gradients)):
            places = range(start, min(start + len(self._gradients), count))
            chunk = slice(places.start, places.stop)
            gradients = torch.mul(vectors[chunk], factors[chunk], out=self._gradients[: len(places)])
            by_rate: dict[float, list[int]] = {}
            for place in places:
                if finite[place]:
                    by_rate.setdefault(sizes[place].learning_rate, []).append(place)
            for rate, own in by_rate.items():
                self._adamw([adapters[place] for place in own], [gradients[place - start] for place in own], rate)
        return values, finite

    def _step_alone(self, place: int, adapter: int, size: StepSize, loss: float) -> bool:
        """The step of the adapter whose gradient is at this place; whether it took it."""
        gradient = self._gradients[0]
        for target, source in zip(self.grads.layout.split(gradient), self.grads.segments_of(place), strict=True):
            target.copy_(source)
        if self._trained is not None:
            gradient.mul_(self._trained)
        norm = torch.linalg.vector_norm(gradient).item()
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return False
        if (factor := size.clipping(norm)) != 1:
            gradient.mul_(factor)
        self._adamw([adapter], [gradient], size.learning_rate)
        return True

    def _adamw(self, adapters: Sequence[int], gradients: Sequence[torch.Tensor], rate: float) -> None:
        first, second = ([moments[adapter] for adapter in adapters] for moments in self._moments)
        weights = [self._weights[adapter] for adapter in adapters]
        adamw_step(weights, list(gradients), first, second, [self._num_steps[adapter] for adapter in adapters], rate)


def adamw_step(
    weights: list[torch.Tensor],
    gradients: list[torch.Tensor],
    first: list[torch.Tensor],
    second: list[torch.Tensor],
    num_steps: list[torch.Tensor],
    rate: float,
) -> None:
    """
    AdamW with torch's defaults and no weight decay, in place.

    Args:
        weights, gradients, first, second (`list[torch.Tensor]`, fp32):
            Weights, their gradients and both moments, each of one shape.
        num_steps (`list[torch.Tensor]`, each of shape `()`, fp32):
            Steps that were taken of each.
        rate (`float`):
            The learning rate.
    """
    adamw(
        weights,
        gradients,
        first,
        second,
        [],
        num_steps,
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
