"""
The paper's continual learning (SEAL, section 5): passages one after another, each on top of the last.

After every passage the model is asked about all passages so far: what the matrix of the accuracies loses below its diagonal is
what is forgotten. The paper merges every adapter into the weights before the next is trained. Here the adapter of the next
passage is trained on top of the last one, and the ranks of both are put next to each other, which is the same sum without
rounding, also on a quantized base (see [`Adapter.on_base`]).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from ..adapters.adapter import Adapter
from ..inner_loop.update import InnerUpdate
from ..records.journal import Proposal, TrialResult
from ..records.report import Evaluation
from ..rollout.chain import check_stackable, on_top_of
from ..rollout.rollout import Rollout
from ..rollout.stage import RolloutConfig, Stage, Trial, untrained_banks
from ..self_adapting_lm import SelfAdaptingLM
from .protocol import ComparedCondition, ProtocolRun, evaluated, joined_update, together


def continual(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    *,
    num_orders: int = 1,
    replays: bool = False,
    num_generations: int = 1,
    config: RolloutConfig | None = None,
    seed: int = 0,
    self_edits: Iterable[Mapping[str, Any]] | None = None,
    compared: Iterable[ComparedCondition] = (),
) -> Evaluation:
    """
    Evaluate what a model keeps of examples that it learns one after another.

    For the self-edits, and for every baseline that trains, a chain of adapters is trained in each of several orders of the
    examples. What every adapter says about every example so far is in `evaluation/trials`
    ([`seal_hf.records.continual.matrices`] reads it), what the last ones say is evaluated as by [`single_passage`], with the
    orders as repeats. The last adapter of each chain is kept in `evaluation/chains` until all are done, so that an interrupted
    evaluation goes on where it was. Processes share out the chains step by step; they need one disk, or train the adapters below
    their own again.

    Args:
        lm, examples, output_dir, config, seed, self_edits, compared:
            As for [`single_passage`]. The model carries no policy: those that write are conditions.
        num_orders (`int`, *optional*, defaults to `1`):
            Orders of the examples: as given, and then shuffled ones, drawn from `seed`.
        replays (`bool`, *optional*, defaults to `False`):
            Whether each adapter is also trained on the self-edits about all examples before its own.
        num_generations (`int`, *optional*, defaults to `1`):
            Self-edits about every example, which all go into its adapter.

    Returns:
        [`Evaluation`]: of the adapters at the ends of the chains. Tokens and seconds are of all steps of a chain.

    Raises:
        GradingIncomplete, OSError: As [`single_passage`].
        ValueError: As [`single_passage`]; also `num_orders` below 1, a model that carries a policy, a vLLM server or a skill vector.
    """
    if num_orders < 1:
        raise ValueError(f"num_orders={num_orders!r} must be a whole number of at least 1.")
    check_stackable(lm)
    orders = _orders(len(examples), num_orders, seed)

    def score(run: ProtocolRun) -> None:
        _score_orders(run, orders, replays)

    return evaluated(
        "continual",
        score,
        lm,
        examples,
        output_dir,
        num_generations=num_generations,
        config=config,
        seed=seed,
        self_edits=self_edits,
        compared=compared,
        options={"num_orders": num_orders, "replays": replays},
    )


def _orders(num_examples: int, num_orders: int, seed: int) -> list[list[int]]:
    """The places of the examples in the order given, and shuffled."""
    orders = [list(range(num_examples))]
    for number in range(1, num_orders):
        orders.append(random.Random(f"{seed} {number}").sample(orders[0], num_examples))
    return orders


def _score_orders(run: ProtocolRun, orders: Sequence[Sequence[int]], replays: bool) -> None:
    check_stackable(run.rollout.lm)
    rollout, proposals = run.rollout, run.rollout.propose(run.stage)
    recorded = together(run, proposals)
    # A repeat is an order.
    stage = replace(run.stage, inner_seeds=run.stage.inner_seeds * len(orders))

    def trials() -> list[TrialResult] | None:
        updates = _updates(rollout, stage, proposals, recorded)
        chains = _Chains(rollout.lm, stage, orders, updates, replays)
        results = rollout.run(stage, untrained_banks(stage, 0))
        for step in range(len(stage.data)):
            results += rollout.run(stage, chains.banks(step), chains)
        rollout.processes.on_main(stage.journal.write_trials, stage.round, results)
        rollout.processes.on_main(rmtree, chains.folder, True)
        return _at_the_end(results, len(stage.data))

    rollout.record(stage, recorded, trials)


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
    The chains of a stage: one for each condition and order, of which a bank is one step.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model.
        stage ([`Stage`]):
            Its examples and journal.
        orders (`Sequence[Sequence[int]]`):
            The places of the examples in each order.
        updates (`Mapping[str, Sequence[InnerUpdate | None]]`):
            For each condition what is trained on of every example.
        replays (`bool`):
            Whether earlier examples are trained on again.
    """

    def __init__(
        self,
        lm: SelfAdaptingLM,
        stage: Stage,
        orders: Sequence[Sequence[int]],
        updates: Mapping[str, Sequence[InnerUpdate | None]],
        replays: bool,
    ):
        self.folder = stage.journal.directory / "chains"
        self._lm, self._stage, self._orders, self._updates, self._replays = lm, stage, orders, updates, replays
        self._chains = [(condition, order) for condition in updates for order in range(len(orders))]
        self._first = len(untrained_banks(stage, 0))
        # Of one chain alone, since the ranks grow.
        self._last: tuple[int, int, Adapter | None] = (-1, -1, None)  # chain, step and what is trained by then

    def banks(self, step: int) -> dict[int, list[Trial]]:
        """The trials of a step, each alone in its bank."""
        first = self._first + step * len(self._chains)
        return {first + chain: [self._trial(chain, step)] for chain in range(len(self._chains))}

    def parent(self, bank: int) -> Adapter | None:
        """The adapter of the step before."""
        step, chain = divmod(bank - self._first, len(self._chains))
        return self._after(chain, step - 1)

    def keep(self, bank: int, adapters: Sequence[Adapter | None]) -> None:
        """Keep the adapter of a step on the disk, in place of those before its parent."""
        step, chain = divmod(bank - self._first, len(self._chains))
        parent, (adapter,) = self._after(chain, step - 1), adapters
        adapter = parent if adapter is None else adapter.on_base()
        self._last = (chain, step, adapter)
        if adapter is not None:
            adapter.export(self._file(chain, step))
        rmtree(self._file(chain, step - 2), ignore_errors=True)

    def _trial(self, chain: int, step: int) -> Trial:
        """The newest example is asked about first, so that its seed is the adapter's."""
        condition, order = self._chains[chain]
        so_far = self._orders[order][: step + 1][::-1]
        own = self._updates[condition]
        update = (
            joined_update([own[place] for place in so_far], self._lm.inner_config) if self._replays else own[so_far[0]]
        )
        asked = {one.name: one.questions for one in self._stage.baselines}
        questions = asked.get(condition, self._lm.domain.questions)
        return Trial(condition, step, order, update, tuple(so_far), questions)

    def _after(self, chain: int, step: int) -> Adapter | None:
        """The adapter after a step: as it was kept, or trained again."""
        if step < 0:
            return None
        if self._last[:2] == (chain, step):
            return self._last[2]
        file = self._file(chain, step)
        if file.is_dir():
            adapter = Adapter.from_pretrained(file, self._lm.model, self._lm.base_model_id)
        else:
            trial, adapter = self._trial(chain, step), self._after(chain, step - 1)
            if trial.update is not None:
                with on_top_of(self._lm, adapter) as lm:
                    adapter = lm.adapt(trial.update, seed=self._stage.inner_seed(trial)).on_base()
        self._last = (chain, step, adapter)
        return adapter

    def _file(self, chain: int, step: int) -> Path:
        return self.folder / f"chain_{chain:03d}_step_{step:03d}"
