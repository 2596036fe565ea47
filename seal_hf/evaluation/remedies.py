"""
What may be done against forgetting in continual learning, on the same self-edits, orders and questions as the chains.

- `"replay"`: each adapter of a chain is also trained on a share of the self-edits about the examples before its own.
- `"routed"`: adapters apart, one for each example; a question goes to the adapter of the example that it is about by
  [`Domain.routes`], among those learned so far.
- `"average"`, `"ties"`, `"dare_linear"` and `"dare_ties"`: adapters apart, merged into one (see [`seal_hf.evaluation.merging`]).

The adapters apart are the same in each order, as their seeds are; so they are trained once for all orders, in banks as large as
those of the self-edits at most, and kept on the disk until all questions are asked.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from ..adapters.adapter import Adapter
from ..domains.base import SELF_EDITS, Domain
from ..generation.base import draw_seed
from ..inner_loop.update import InnerUpdate, TrainingSequence
from ..records.schema import Proposal, TrialResult
from ..rollout.bank_schedule import compose_banks, size_of_banks, work_of
from ..rollout.rollout import Rollout
from ..rollout.stage import Stage, Trial
from .kept_adapters import keep_adapter, kept_or_trained
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


def run_remedy(
    rollout: Rollout,
    stage: Stage,
    proposals: Sequence[Proposal],
    orders: Sequence[Sequence[int]],
    updates: Sequence[InnerUpdate | None],
    remedy: str,
) -> list[TrialResult]:
    """
    Train an adapter for each example, and after each step of each order ask about the examples so far.

    Args:
        rollout, stage, proposals, updates, remedy:
            As for [`run_apart`]. A repeat is an order.
        orders (`Sequence[Sequence[int]]`):
            The places of the examples in each order.

    Returns:
        `list[TrialResult]`: those of a chain: `edit` is the step, `repeat` the order, and the newest example comes first. Tokens and
            seconds are those of the newest adapter.

    Raises:
        ValueError: The domain cannot tell what a question is about.
    """
    steps = [
        Trial(SELF_EDITS, step, order, None, tuple(places[: step + 1][::-1]), rollout.lm.domain.questions)
        for order, places in enumerate(orders)
        for step in range(len(places))
    ]
    results, cost = run_apart(rollout, stage, proposals, updates, steps, remedy)
    newest = {(trial.edit, trial.repeat): trial.asked[0] for trial in steps}
    return [
        replace(result, tokens=tokens, seconds=seconds)
        for result in results
        for tokens, seconds in [cost[newest[result.edit, result.repeat]]]
    ]


def run_apart(
    rollout: Rollout,
    stage: Stage,
    proposals: Sequence[Proposal],
    updates: Sequence[InnerUpdate | None],
    steps: Sequence[Trial],
    remedy: str,
) -> tuple[list[TrialResult], dict[int, tuple[int, float]]]:
    """
    Train an adapter for each example, and when all are there ask about examples with what is made of some of them.

    Args:
        rollout ([`Rollout`]):
            The engine.
        stage ([`Stage`]):
            The examples.
        proposals (`Sequence[Proposal]`):
            Its self-edits, whose banks tell how many adapters are trained together.
        updates (`Sequence[InnerUpdate | None]`):
            What is trained on of every example.
        steps (`Sequence[Trial]`):
            Trials without an update: each is asked about its examples, with the adapters of these.
        remedy (`str`):
            `"routed"`, or one of [`MERGES`].

    Returns:
        `tuple[list[TrialResult], dict[int, tuple[int, float]]]`: what the steps come to, and for each example the tokens and seconds
            of its adapter.

    Raises:
        ValueError: The domain cannot tell what a question is about.
    """
    apart = _Apart(rollout, stage, proposals, updates, steps, remedy)
    trained = rollout.run(stage, apart.training_banks, apart)
    results = rollout.run(stage, apart.asking_banks, apart)
    rollout.processes.on_main(rmtree, apart.folder, True)
    cost = dict.fromkeys(stage.places, (0, 0.0)) | {one.example: (one.tokens, one.seconds) for one in trained}
    return results, cost


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


class _Apart:
    """
    Adapters apart, in the first banks, and then each step in a bank of its own.

    Parameters:
        rollout, stage, proposals, updates, steps, remedy:
            As for [`run_apart`].
    """

    def __init__(
        self,
        rollout: Rollout,
        stage: Stage,
        proposals: Sequence[Proposal],
        updates: Sequence[InnerUpdate | None],
        steps: Sequence[Trial],
        remedy: str,
    ):
        self.folder = stage.journal.directory / "apart"
        self._lm, self._stage, self._remedy = rollout.lm, stage, remedy
        self._apart = {
            place: Trial(_APART, 0, 0, update, (place,), rollout.lm.domain.questions)
            for place, update in zip(stage.places, updates, strict=True)
            if update is not None
        }
        work = [work_of(trial.update) for trial in self._apart.values()]
        size = size_of_banks([bank for one in proposals for bank in one.banks], len(work))
        self.training_banks: dict[int, list[Trial]] = defaultdict(list)
        for trial, (bank,) in zip(self._apart.values(), compose_banks(work, 1, size), strict=True):
            self.training_banks[bank].append(trial)
        self._steps = dict(enumerate(steps, start=len(self.training_banks)))
        self.asking_banks = {bank: self._asking(step) for bank, step in self._steps.items()}

    def _asking(self, step: Trial) -> list[Trial]:
        """A step; where it is routed after the adapters of its examples, which are asked nothing by themselves."""
        if self._remedy != ROUTED:
            return [step]
        routes = routes_of(self._lm.domain, [self._stage.data.examples[place] for place in step.asked])
        return [*(Trial(_APART, 0, 0, None, (), step.questions) for _ in step.asked), replace(step, routes=routes)]

    def parents(self, bank: int) -> list[Adapter | None]:
        """The adapters of a step's examples, or what they are merged into."""
        if bank in self.training_banks:
            return [None] * len(self.training_banks[bank])
        places = self._steps[bank].asked
        if self._remedy == ROUTED:
            return [*map(self._adapter, places), None]
        # The seed is the same for the same examples in any order.
        places = sorted(places)
        learned = [adapter for adapter in map(self._adapter, places) if adapter is not None]
        merge = MERGES[self._remedy]
        return [merge(learned, draw_seed(self._stage.seed, *places)) if learned else None]

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Keep the adapters apart on the disk."""
        if bank in self.training_banks:
            for trial, adapter in zip(self.training_banks[bank], adapters, strict=True):
                keep_adapter(adapter, self._file(trial.asked[0]))

    def _adapter(self, place: int) -> Adapter | None:
        """The adapter of an example; none where nothing can be trained on."""
        if (trial := self._apart.get(place)) is None:
            return None
        return kept_or_trained(
            self._lm, self._file(place), lambda: self._lm.adapt(trial.update, seed=self._stage.inner_seed(trial))
        )

    def _file(self, place: int) -> Path:
        return self.folder / f"example_{place:04d}"
