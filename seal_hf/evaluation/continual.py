"""
The paper's continual learning (SEAL, section 5): passages one after another, each on top of the last.

After every passage the model is asked about all passages so far: what the matrix of the accuracies loses below its diagonal is
what is forgotten. The paper merges every adapter into the weights before the next is trained. Here the adapter of the next
passage is trained on top of the last one, and the ranks of both are put next to each other, which is the same sum without
rounding, also on a quantized base (see [`stacked_ranks`]). [`seal_hf.evaluation.remedies`] has what is compared with it.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Unpack

from peft import PeftModel

from ..adapters.adapter import Adapter
from ..domains.base import SELF_EDITS
from ..generation.base import draw_seed
from ..generation.vllm_generation import VLLMGenerator
from ..inner_loop.update import InnerUpdate
from ..records.report import Evaluation
from ..records.schema import Proposal, TrialResult
from ..rollout.bank_schedule import size_of_banks
from ..rollout.rollout import Rollout
from ..rollout.stage import Stage, Trial, untrained_banks
from ..self_adapting_lm import SelfAdaptingLM
from .conditions import ComparedCondition
from .kept_adapters import keep_adapter, kept_or_trained
from .plan import EvaluationPlan
from .protocol import ProtocolArguments, ProtocolRun, evaluated, joined_update, together
from .remedies import REMEDIES, REPLAY, ROUTED, replayed, routes_of, run_remedy


def continual(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    *,
    num_orders: int = 1,
    remedies: Sequence[str] = (),
    replay_share: float = 0.25,
    **arguments: Unpack[ProtocolArguments],
) -> Evaluation | EvaluationPlan:
    """
    Evaluate what a model keeps of examples that it learns one after another.

    For the self-edits, and for every baseline that trains, a chain of adapters is trained in each of several orders of the
    examples; adapters of several chains that are as far are trained in one bank. What every adapter says about every example so
    far is in `evaluation/trials` ([`seal_hf.records.continual.matrices`] reads it), what the last ones say is evaluated as by
    [`single_passage`], with the orders as repeats. The last adapter of each chain is kept in `evaluation/chains` until all are
    done, so that an interrupted evaluation goes on where it was. Processes share out the banks step by step; they need one disk,
    or train the adapters below their own again.

    Args:
        lm, examples, output_dir:
            As for [`single_passage`]. The model carries no policy: those that write are conditions.
        num_orders (`int`, *optional*, defaults to `1`):
            Orders of the examples: as given, and then shuffled ones, drawn from `seed`.
        remedies (`Sequence[str]`, *optional*, defaults to none):
            Some of [`REMEDIES`], each a further condition with a matrix of its own on the same self-edits.
        replay_share (`float`, *optional*, defaults to `0.25`):
            With `"replay"`: the share of the training sequences about each earlier example that are trained on again with every
            new one; above 0 and at most 1.
        **arguments ([`ProtocolArguments`]):
            As for [`single_passage`]. All of `num_generations` self-edits about an example go into its adapter.

    Returns:
        [`Evaluation`]: of the adapters at the ends of the chains. Tokens and seconds are of all steps of a chain. With `dry_run` an
            [`EvaluationPlan`].

    Raises:
        GradingIncomplete, OSError: As [`single_passage`].
        ValueError: As [`single_passage`]; also `num_orders` below 1, an unknown remedy, a share out of its range, a domain that cannot
            route questions, a model that carries a policy, that vLLM writes for, or with a skill vector.
    """
    if num_orders < 1:
        raise ValueError(f"num_orders={num_orders!r} must be a whole number of at least 1.")
    if unknown := sorted(set(remedies) - set(REMEDIES)):
        raise ValueError(f"remedies: {unknown[0]!r} is none of {', '.join(map(repr, REMEDIES))}.")
    if not 0 < replay_share <= 1:
        raise ValueError(f"replay_share={replay_share!r} must be above 0 and at most 1.")
    _check_stackable(lm)
    orders = _orders(len(examples), num_orders, arguments.get("seed", 0))
    compared = arguments.pop("compared", ())
    against = [
        ComparedCondition(
            f"{SELF_EDITS}, {remedy}",
            lm,
            shares_self_edits=True,
            options={"remedy": remedy} | ({"replay_share": replay_share} if remedy == REPLAY else {}),
        )
        for remedy in remedies
    ]

    def score(run: ProtocolRun) -> None:
        if ROUTED in remedies:
            routes_of(run.rollout.lm.domain, run.stage.data.examples)
        _score_orders(run, orders)

    return evaluated(
        "continual",
        score,
        lm,
        examples,
        output_dir,
        {"num_orders": num_orders},
        compared=[*against, *compared] if isinstance(compared, Sequence) else itertools.chain(against, compared),
        **arguments,
    )


def _check_stackable(lm: SelfAdaptingLM) -> None:
    """
    Raises:
        ValueError: The model carries a policy, has its texts written by vLLM, or has something added to its adapters.
    """
    kind = None
    if isinstance(lm.model, PeftModel):
        kind = "carries a policy"
    elif isinstance(lm.generator, VLLMGenerator):
        kind = "has its texts written by vLLM"
    elif lm.added is not None:
        kind = "has a skill vector added to its adapters"
    if kind is not None:
        raise ValueError(
            f"The model {kind}, so that no adapter can be trained on top of another; load the base model alone, and give "
            "policies as further conditions."
        )


def _orders(num_examples: int, num_orders: int, seed: int) -> list[list[int]]:
    """The places of the examples in the order given, and shuffled."""
    orders = [list(range(num_examples))]
    for number in range(1, num_orders):
        orders.append(random.Random(f"{seed} {number}").sample(orders[0], num_examples))
    return orders


def _score_orders(run: ProtocolRun, orders: Sequence[Sequence[int]]) -> None:
    _check_stackable(run.rollout.lm)
    rollout, proposals = run.rollout, run.rollout.propose(run.stage)
    recorded = together(run, proposals)
    # A repeat is an order.
    stage = replace(run.stage, inner_seeds=run.stage.inner_seeds * len(orders))
    remedy = run.options.get("remedy")

    def trials() -> list[TrialResult] | None:
        updates = _updates(rollout, stage, proposals, recorded)
        if remedy in (None, REPLAY):
            results = _run_chains(rollout, stage, proposals, orders, updates, run.options.get("replay_share", 0.0))
        else:
            own = updates.get(SELF_EDITS, [None] * len(stage.places))
            results = run_remedy(rollout, stage, proposals, orders, own, remedy)
        rollout.processes.on_main(stage.journal.write_trials, stage.round, results)
        return _at_the_end(results, len(stage.data))

    rollout.record(stage, recorded, trials)


def _run_chains(
    rollout: Rollout,
    stage: Stage,
    proposals: Sequence[Proposal],
    orders: Sequence[Sequence[int]],
    updates: Mapping[str, Sequence[InnerUpdate | None]],
    replay_share: float,
) -> list[TrialResult]:
    chains = _Chains(rollout.lm, stage, proposals, orders, updates, replay_share)
    results = rollout.run(stage, untrained_banks(stage, 0))
    for step in range(len(stage.data)):
        results += rollout.run(stage, chains.banks(step), chains)
    rollout.processes.on_main(rmtree, chains.folder, True)
    return results


def _updates(
    rollout: Rollout, stage: Stage, proposals: Sequence[Proposal], recorded: Sequence[Proposal]
) -> dict[str, list[InnerUpdate | None]]:
    """For every condition what is trained on of each example."""
    found: dict[tuple[str, int], list[InnerUpdate | None]] = {}
    for proposal, update in zip(proposals, rollout.updates_of(stage, proposals), strict=True):
        found.setdefault((proposal.condition, proposal.example), []).append(update)
    conditions = dict.fromkeys(proposal.condition for proposal in recorded if proposal.well_formed)
    return {
        condition: [joined_update(found[condition, place], rollout.lm.inner_config) for place in stage.places]
        for condition in conditions
    }


def _at_the_end(results: Sequence[TrialResult], num_examples: int) -> list[TrialResult]:
    """What the last adapters of the chains said, with the tokens and seconds of all adapters below them."""
    cost: dict[tuple[str, int], dict[int, tuple[int, float]]] = {}
    for result in results:
        cost.setdefault((result.condition, result.repeat), {})[result.edit] = (result.tokens, result.seconds)
    last = [result for result in results if result.edit == num_examples - 1 and result.retention is not None]
    retained = {(result.condition, result.repeat): result.retention for result in last}
    ends = []
    for result in results:
        tokens, seconds = map(sum, zip(*cost[result.condition, result.repeat].values(), strict=True))
        if tokens == 0:
            ends.append(result)
        elif result.edit == num_examples - 1:
            # It was asked with the newest passage, which is another one in each order.
            retention = retained.get((result.condition, result.repeat))
            ends.append(replace(result, edit=0, tokens=tokens, seconds=seconds, retention=retention))
    return ends


class _Chains:
    """
    The chains of a stage, one for each condition and order. Those that are as far share banks.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model.
        stage ([`Stage`]):
            Its examples and journal.
        proposals (`Sequence[Proposal]`):
            Its self-edits, with the banks that were composed for them: they tell how many adapters are trained together.
        orders (`Sequence[Sequence[int]]`):
            The places of the examples in each order.
        updates (`Mapping[str, Sequence[InnerUpdate | None]]`):
            For each condition what is trained on of every example.
        replay_share (`float`):
            The share of what was trained on of each earlier example that is trained on again; 0 for none.
    """

    def __init__(
        self,
        lm: SelfAdaptingLM,
        stage: Stage,
        proposals: Sequence[Proposal],
        orders: Sequence[Sequence[int]],
        updates: Mapping[str, Sequence[InnerUpdate | None]],
        replay_share: float,
    ):
        self.folder = stage.journal.directory / "chains"
        self._lm, self._stage, self._orders, self._updates = lm, stage, orders, updates
        self._replay_share = replay_share
        self._chains = [(condition, order) for condition in updates for order in range(len(orders))]
        self._first = len(untrained_banks(stage, 0))
        self._size = size_of_banks([bank for one in proposals for bank in one.banks], len(self._chains))
        self._members: dict[int, tuple[int, list[int]]] = {}  # of each bank its step and its chains

    def banks(self, step: int) -> dict[int, list[Trial]]:
        """
        The trials of a step: of each bank adapters whose parents have one rank, and the fewer the higher that is, so that they take
        the memory of the first step's.
        """
        by_rank: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for chain in range(len(self._chains)):
            num_below = sum(self._trial(chain, earlier).update is not None for earlier in range(step))
            by_rank[self._trial(chain, step).update is not None, num_below].append(chain)
        banks: dict[int, list[Trial]] = {}
        for (_, num_below), chains in by_rank.items():
            size = max(1, self._size // (1 + num_below))
            for start in range(0, len(chains), size):
                number = self._first + step * len(self._chains) + len(banks)
                self._members[number] = (step, chains[start : start + size])
                banks[number] = [self._trial(chain, step) for chain in chains[start : start + size]]
        return banks

    def parents(self, bank: int) -> list[Adapter | None]:
        """The adapters of the step before."""
        step, chains = self._members[bank]
        return [self._after(chain, step - 1) for chain in chains]

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Keep the adapters of a step on the disk, in place of those before their parents."""
        step, chains = self._members[bank]
        for chain, adapter in zip(chains, adapters, strict=True):
            if adapter is not None:
                keep_adapter(adapter, self._file(chain, step))
            rmtree(self._file(chain, step - 2), ignore_errors=True)

    def _trial(self, chain: int, step: int) -> Trial:
        """The newest example is asked about first, so that its seed is the adapter's."""
        condition, order = self._chains[chain]
        so_far = self._orders[order][: step + 1][::-1]
        update = self._updates[condition][so_far[0]]
        if self._replay_share:
            update = self._with_earlier(update, condition, order, so_far[1:])
        asked = {one.name: one.questions for one in self._stage.baselines}
        questions = asked.get(condition, self._lm.domain.questions)
        return Trial(condition, step, order, update, tuple(so_far), questions)

    def _with_earlier(
        self, update: InnerUpdate | None, condition: str, order: int, earlier: Sequence[int]
    ) -> InnerUpdate | None:
        """What is trained on with a share of what was trained on of earlier examples."""
        parts = [update]
        for place in earlier:
            if (own := self._updates[condition][place]) is not None:
                seed = draw_seed(self._stage.seed, order, len(earlier), place)
                parts.append(replace(own, sequences=replayed(own, self._replay_share, seed)))
        return joined_update(parts, self._lm.inner_config)

    def _after(self, chain: int, step: int) -> Adapter | None:
        """The adapter after a step: as it was kept, or trained again, with those below it."""
        if step < 0:
            return None
        adapter = kept_or_trained(self._lm, self._file(chain, step), lambda: self._trained(chain, step))
        rmtree(self._file(chain, step - 2), ignore_errors=True)
        return adapter

    def _trained(self, chain: int, step: int) -> Adapter | None:
        trial, parent = self._trial(chain, step), self._after(chain, step - 1)
        if trial.update is None:
            return parent
        seed, parents = self._stage.inner_seed(trial), parent and [parent]
        (adapter,) = self._lm.adapt([trial.update], seed=seed, parents=parents)
        return adapter

    def _file(self, chain: int, step: int) -> Path:
        return self.folder / f"chain_{chain:03d}_step_{step:03d}"
