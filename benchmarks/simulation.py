"""
One round on any number of workers, by simulation: the rules by which work is shared are the package's own, only the clock is not.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from seal_hf import SEALConfig
from seal_hf.outer_loop.outer_sft import optimizer_steps
from seal_hf.rollout.bank_schedule import Work, compose_banks, expected_cost, share_banks
from seal_hf.rollout.writing import examples_per_batch


# What takes so many times as long as the workers go without a failure is expected to begin e^8 = 3,000 times.
_HOPELESS = 8


class Item(NamedTuple):
    """
    A self-edit's counts.

    Parameters:
        written (`int`):
            Tokens of its completion.
        work ([`Work`]):
            What one inner update takes.
        seconds (`float`, *optional*):
            How long one inner update took, where it was measured.
    """

    written: int
    work: Work
    seconds: float | None = None


class Machine(Protocol):
    """
    What the parts of a round take on one worker, in seconds.

    Attributes:
        prompts_per_self_edit (`int`):
            Prompts of a batch of generation that one self-edit takes: drafts times parts of the passage.
    """

    prompts_per_self_edit: int

    def bank_size(self, items: Sequence[Item], num_repeats: int, num_workers: int) -> int:
        """Most adapters in a bank."""

    def writing_seconds(self, batch: Sequence[Item]) -> float:
        """Of one batch of generation."""

    def bank_seconds(self, bank: Sequence[Item]) -> float:
        """Of the training of a bank, and of its answers."""

    def sft_step_seconds(self, num_rows: int, num_workers: int) -> float:
        """Of an optimizer step of the outer SFT, in which a worker has so many self-edits."""


@dataclass(frozen=True)
class Faults:
    """
    What goes wrong, and how often. All draws are seeded.

    Parameters:
        spread (`float`):
            Standard deviation of the logarithm of the time of a bank (log-normal, mean 1).
        slow_share, slow_factor (`float`):
            Which share of the workers takes so many times as long for everything (Bernoulli, each worker for itself).
        hours_between (`float`):
            Mean time between two failures of one worker, in hours (exponential). A failure ends the whole run, which is
            started again with as many workers.
        restart_seconds (`float`):
            How long it takes until it works again.
    """

    spread: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0
    hours_between: float = math.inf
    restart_seconds: float = 0.0


NO_FAULTS = Faults()


@dataclass(frozen=True)
class RoundTime:
    """
    What a round took.

    Parameters:
        num_workers, num_banks, adapters_per_bank, num_failures (`int`):
            Their numbers.
        writing, scoring, sft (`float`):
            Wall time of its parts, in seconds, restarts included.
        largest_bank, even_share (`float`):
            Less than these no sharing of the banks could take, without faults, in seconds.
    """

    num_workers: int
    num_banks: int
    adapters_per_bank: int
    num_failures: int
    writing: float
    scoring: float
    sft: float
    largest_bank: float
    even_share: float

    @property
    def seconds(self) -> float:
        return self.writing + self.scoring + self.sft

    @property
    def bound(self) -> str:
        """What takes the most of it."""
        least = max(self.largest_bank, self.even_share)
        parts = {
            "writing": self.writing,
            "SFT": self.sft,
            "largest bank" if self.largest_bank > self.even_share else "work": min(least, self.scoring),
            "tail": self.scoring - least,
        }
        return max(parts, key=parts.__getitem__)


def draw_round(passages: Sequence[Sequence[Item]], num_passages: int, seed: int) -> list[list[Item]]:
    """The self-edits of so many passages: those that are there, and beyond their number some drawn with replacement."""
    draw = random.Random(seed)
    more = draw.choices(passages, k=max(0, num_passages - len(passages)))
    return [list(own) for own in (*passages[:num_passages], *more)]


def simulate(
    passages: Sequence[Sequence[Item]],
    machine: Machine,
    args: SEALConfig,
    num_workers: int,
    faults: Faults = NO_FAULTS,
    seed: int = 0,
) -> RoundTime:
    """
    Let workers do a round as the processes of a run would.

    Batches of generation are cut and dealt out, banks composed and shared out, and the rest of a round that a failure ended
    is shared out again by the functions that a run calls. Not simulated are loading, grading, the answers of the base, and
    what the workers tell each other.

    Args:
        passages (`Sequence[Sequence[Item]]`):
            For each passage its self-edits.
        machine ([`Machine`]):
            What the parts take.
        args ([`SEALConfig`]):
            `num_repeats`, `keep_best`, `max_answer_length` and the settings of the SFT.
        num_workers (`int`):
            How many there are.
        faults ([`Faults`], *optional*, defaults to `NO_FAULTS`):
            What goes wrong.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the faults.
    """
    clock = _Clock(num_workers, faults, seed)
    items = [item for own in passages for item in own]
    per_batch = examples_per_batch(max(map(len, passages)) * machine.prompts_per_self_edit)
    batches = [
        [item for own in passages[first : first + per_batch] for item in own]
        for first in range(0, len(passages), per_batch)
    ]
    per_worker = [
        sum(machine.writing_seconds(batch) * clock.slowness(worker) for batch in batches[worker::num_workers])
        for worker in range(min(num_workers, len(batches)))
    ]
    writing = clock.whole(max(per_worker))

    size = machine.bank_size(items, args.num_repeats, num_workers)
    banks = defaultdict(list)
    for item, own in zip(items, compose_banks([item.work for item in items], args.num_repeats, size), strict=True):
        for bank in own:
            banks[bank].append(item)
    seconds = {bank: machine.bank_seconds(own) for bank, own in banks.items()}
    costs = {
        bank: sum(expected_cost(item.work.num_tokens, 1, args.max_answer_length) for item in own)
        for bank, own in banks.items()
    }
    scoring = clock.banks(costs, seconds)

    (num_steps,) = optimizer_steps(len(passages), args)
    rows = math.ceil(args.sft_batch_size / num_workers)
    slowest = max(clock.slowness(worker) for worker in range(min(num_workers, args.sft_batch_size)))
    sft = clock.whole(num_steps * machine.sft_step_seconds(rows, num_workers) * slowest)
    return RoundTime(
        num_workers=num_workers,
        num_banks=len(banks),
        adapters_per_bank=max(map(len, banks.values())),
        num_failures=clock.num_failures,
        writing=writing,
        scoring=scoring,
        sft=sft,
        largest_bank=max(seconds.values()),
        even_share=sum(seconds.values()) / num_workers,
    )


class _Clock:
    """The workers' slowness and failures."""

    def __init__(self, num_workers: int, faults: Faults, seed: int):
        self.num_workers, self.faults, self.num_failures = num_workers, faults, 0
        self._draw = random.Random(seed)
        self._seconds_between = 3600 * faults.hours_between / num_workers
        slow = (self._draw.random() < faults.slow_share for _ in range(num_workers))
        self._slowness = [faults.slow_factor if one else 1.0 for one in slow]

    def slowness(self, worker: int) -> float:
        return self._slowness[worker]

    def whole(self, seconds: float) -> float:
        """How long something takes that begins from its start where a failure ends it; infinite where it would not end."""
        if seconds > _HOPELESS * self._seconds_between:
            return math.inf
        spent = 0.0
        while (failure := self._next_failure()) < seconds:
            spent += self._restart(failure)
        return spent + seconds

    def banks(self, costs: dict[int, int], seconds: dict[int, float]) -> float:
        """
        How long the scoring takes, of which a failure loses the banks that are not finished; infinite where one would not end.
        """
        if max(seconds.values()) > _HOPELESS * self._seconds_between:
            return math.inf
        spent = 0.0
        while True:
            ends = {}
            for worker, own in enumerate(share_banks(costs, self.num_workers)):
                end = 0.0
                for bank in own:
                    end += seconds[bank] * self._slowness[worker] * self._noise()
                    ends[bank] = end
            last = max(ends.values())
            if (failure := self._next_failure()) >= last:
                return spent + last
            spent += self._restart(failure)
            costs = {bank: cost for bank, cost in costs.items() if ends[bank] > failure}

    def _next_failure(self) -> float:
        """Seconds until the first of the workers fails."""
        between = self._seconds_between
        return between if math.isinf(between) else self._draw.expovariate(1 / between)

    def _restart(self, failure: float) -> float:
        self.num_failures += 1
        return failure + self.faults.restart_seconds

    def _noise(self) -> float:
        spread = self.faults.spread
        return self._draw.lognormvariate(-(spread**2) / 2, spread) if spread else 1.0
