"""
What may be done against forgetting in continual learning, on the same self-edits, orders and questions as the chains.

- `"replay"`: each adapter of a chain is also trained on a share of the self-edits about the examples before its own.
- `"routed"`: adapters apart, one for each example; a question goes to the adapter of the example that it is about by
  [`Domain.routes`], among those learned so far.
- `"average"`, `"ties"`, `"dare_linear"` and `"dare_ties"`: adapters apart, merged into one (see [`seal_hf.evaluation.merging`]).

The adapters apart are the same in each order, as their seeds are; so they are trained once, in one bank, for all orders.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from ..adapters.adapter import Adapter
from ..domains.base import SELF_EDITS, Domain
from ..generation.base import draw_seed
from ..inner_loop.update import InnerUpdate, TrainingSequence
from ..records.schema import TrialResult
from ..rollout.rollout import Rollout
from ..rollout.stage import Stage, Trial
from .merging import averaged, dare_linear_merged, dare_ties_merged, ties_merged


REPLAY, ROUTED = "replay", "routed"
# What makes one adapter of several, with a seed for what is drawn.
MERGES: dict[str, Callable[[Sequence[Adapter], int], Adapter]] = {
    "average": lambda adapters, seed: averaged(adapters),
    "ties": lambda adapters, seed: ties_merged(adapters),
    "dare_linear": dare_linear_merged,
    "dare_ties": dare_ties_merged,
}
REMEDIES = (REPLAY, ROUTED, *MERGES)
_APART = "apart"  # the condition of an adapter by itself


def replayed(update: InnerUpdate, share: float, seed: int) -> tuple[TrainingSequence, ...]:
    """
    The training sequences of an earlier example that are trained on again.

    Args:
        update ([`InnerUpdate`]):
            What was trained on.
        share (`float`):
            The share that is drawn, above 0 and at most 1; at least one sequence.
        seed (`int`):
            Seed of the draw.

    Returns:
        `tuple[TrainingSequence, ...]`: in their own order.
    """
    count = max(1, round(share * len(update.sequences)))
    drawn = sorted(random.Random(seed).sample(range(len(update.sequences)), count))
    return tuple(update.sequences[place] for place in drawn)


def run_apart(
    rollout: Rollout,
    stage: Stage,
    orders: Sequence[Sequence[int]],
    updates: Sequence[InnerUpdate | None],
    remedy: str,
) -> list[TrialResult]:
    """
    Train an adapter for each example, and after each step of each order ask about the examples so far.

    Args:
        rollout ([`Rollout`]):
            The engine.
        stage ([`Stage`]):
            The examples. A repeat is an order.
        orders (`Sequence[Sequence[int]]`):
            The places of the examples in each order.
        updates (`Sequence[InnerUpdate | None]`):
            What is trained on of every example.
        remedy (`str`):
            `"routed"`, or one of [`MERGES`].

    Returns:
        `list[TrialResult]`: those of a chain: `edit` is the step, `repeat` the order, and the newest example comes first. Tokens and
            seconds are those of the newest adapter.

    Raises:
        ValueError: The domain cannot tell what a question is about.
    """
    questions = rollout.lm.domain.questions
    apart = [
        Trial(_APART, 0, 0, update, (place,), questions) for place, update in zip(stage.places, updates, strict=True)
    ]
    steps = [
        Trial(SELF_EDITS, step, order, None, tuple(places[: step + 1][::-1]), questions)
        for order, places in enumerate(orders)
        for step in range(len(places))
    ]
    if remedy == ROUTED:
        routed = [replace(trial, routes=routes_among(rollout, stage, trial.asked)) for trial in steps]
        results = rollout.run(stage, {0: [*apart, *routed]})
    else:
        merged = _Merged(rollout, stage, apart, steps, MERGES[remedy])
        results = rollout.run(stage, {0: apart}, merged)
        results += rollout.run(stage, {1 + number: [trial] for number, trial in enumerate(steps)}, merged)
        rollout.processes.on_main(rmtree, merged.folder, True)
    cost = {result.example: (result.tokens, result.seconds) for result in results if result.condition == _APART}
    newest = {(trial.edit, trial.repeat): trial.asked[0] for trial in steps}
    return [
        replace(result, tokens=tokens, seconds=seconds)
        for result in results
        if result.condition != _APART
        for tokens, seconds in [cost[newest[result.edit, result.repeat]]]
    ]


def routes_among(rollout: Rollout, stage: Stage, places: Sequence[int]) -> Callable[[Mapping], list[int | None]]:
    """
    What tells for each question of an example which of the examples at some places it is about: the number of that place among all
    of the stage.

    Raises:
        ValueError: The domain cannot tell.
    """
    routes = routes_of(rollout.lm.domain, [stage.data.examples[place] for place in places])
    numbers = [stage.places.index(place) for place in places]
    return lambda example: [None if found is None else numbers[found] for found in routes(example)]


def routes_of(domain: Domain, examples: Sequence[Mapping]) -> Callable[[Mapping], list[int | None]]:
    """
    The routes of a domain (see [`Domain.routes`]).

    Raises:
        ValueError: It cannot tell what a question is about.
    """
    routes = domain.routes(examples)
    if routes is None:
        raise ValueError(
            f"{type(domain).__name__}.routes() cannot tell what a question is about; implement it, or leave the routed "
            "condition out."
        )
    return routes


class _Merged:
    """
    Adapters apart, in the first bank, and what they are merged into, one for each further bank.

    Parameters:
        rollout ([`Rollout`]):
            The engine, which trains an adapter again that is not on this process's disk.
        stage ([`Stage`]):
            The examples.
        apart (`Sequence[Trial]`):
            The trials of the first bank, one for each example.
        steps (`Sequence[Trial]`):
            The trials of the further banks.
        merge (`Callable[[Sequence[Adapter], int], Adapter]`):
            Makes one adapter of several, with a seed for what it draws, which is the same for the same examples in any order.
    """

    def __init__(
        self,
        rollout: Rollout,
        stage: Stage,
        apart: Sequence[Trial],
        steps: Sequence[Trial],
        merge: Callable[[Sequence[Adapter], int], Adapter],
    ):
        self.folder = stage.journal.directory / "apart"
        self._lm, self._stage, self._steps, self._merge = rollout.lm, stage, steps, merge
        self._apart = {trial.asked[0]: trial for trial in apart}

    def parents(self, bank: int) -> list[Adapter | None]:
        """The adapter that those learned by then are merged into."""
        if bank == 0:
            return [None] * len(self._apart)
        places = sorted(self._steps[bank - 1].asked)
        learned = [adapter for adapter in map(self._adapter, places) if adapter is not None]
        return [self._merge(learned, draw_seed(self._stage.seed, *places)) if learned else None]

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Keep the adapters apart on the disk."""
        if bank == 0:
            for place, adapter in zip(self._apart, adapters, strict=True):
                if adapter is not None:
                    adapter.export(self._file(place))

    def _adapter(self, place: int) -> Adapter | None:
        """The adapter of an example: as it was kept, or trained again."""
        trial = self._apart[place]
        if trial.update is None:
            return None
        if self._file(place).is_dir():
            return Adapter.from_pretrained(self._file(place), self._lm.model, self._lm.base_model_id)
        return self._lm.adapt(trial.update, seed=self._stage.inner_seed(trial))

    def _file(self, place: int) -> Path:
        return self.folder / f"example_{place:04d}"
