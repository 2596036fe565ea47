"""
The engine under the trainer and the protocols: the policy writes self-edits, adapters are trained and asked, answers graded.

What is computed is a function of the policy, the examples and the seeds alone: batches of generation are cut by the
examples, banks are composed from the proposals and recorded with them, and every random stream has a seed of its own.
So neither the number of processes nor an interruption changes the records (in fp32; in lower precision up to rounding).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tqdm.auto import tqdm

from ..adapters.adapter import Adapter
from ..adapters.layout import lora_layout
from ..grading import RubricJudge
from ..grading.rewards import ACCURACY, RUBRIC
from ..inner_loop.update import InnerUpdate
from ..models.access import policy_in_activation_dtype
from ..models.sharding import gathering
from ..records.schema import Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from .bank_schedule import adapters_per_bank, compose_banks, share_banks
from .chain import Chain
from .processes import Processes
from .proposals import ProposedUpdates
from .reward_questions import reward_questions
from .rewards import scored_self_edits
from .rubric_scores import rubric_scores
from .stage import RolloutConfig, Stage, Trial, stage_banks
from .trials import examine, trained_adapters
from .writing import Written, write_self_edits


class Rollout:
    """
    Proposes and scores stages, in as many processes as the run has.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model with its policy adapter, the domain and the inner loop's settings.
        config ([`RolloutConfig`]):
            Sampling, answer length and bank size.
        processes ([`Processes`]):
            The processes of the run.
        on_bank (`Callable[[], bool]`, *optional*):
            Called after every bank of this process; returning `True` ends the stage, with all that is scored on disk.
        writer ([`SelfAdaptingLM`], *optional*):
            Another model that writes the self-edits. What they ask of a tool is carried out by `lm`.
        rubric_judge ([`RubricJudge`], *optional*):
            Who scores self-edits by the rubric where that is a reward. Defaults to the base model of `lm`.

    Raises:
        ValueError: Self-edits of several drafts for a domain that does not pool them.
    """

    def __init__(
        self,
        lm: SelfAdaptingLM,
        config: RolloutConfig,
        processes: Processes,
        on_bank: Callable[[], bool] = lambda: False,
        writer: SelfAdaptingLM | None = None,
        rubric_judge: RubricJudge | None = None,
    ):
        if config.num_drafts > 1 and not lm.domain.pools_drafts:
            raise ValueError(
                f"num_drafts={config.num_drafts} needs a domain that makes one self-edit of several completions, such as a "
                "KnowledgeDomain whose style asks for questions; choose such a style, or leave num_drafts at 1."
            )
        self.lm, self.config, self.processes, self.on_bank = lm, config, processes, on_bank
        self.writer, self.rubric_judge = writer, rubric_judge
        self._proposed = ProposedUpdates(lm)

    def propose(self, stage: Stage) -> list[Proposal]:
        """
        Let the policy write the stage's self-edits and carry out what they ask of a tool, unless they are on disk, and
        compose its banks.

        Raises:
            ValueError: The file on disk does not hold the stage's proposals.
        """
        recorded = self.processes.on_main(stage.journal.proposals, stage.round)
        if recorded is not None:
            per_example = stage.num_generations + len(stage.trained_baselines)
            _require_all(stage, "proposals", len(recorded), len(stage.places) * per_example)
            return recorded
        written = [[] for _ in stage.places]
        if stage.proposals is None:
            start = time.perf_counter()
            written = write_self_edits(self.lm, self.config, self.processes, stage, self.writer)
            if stage.is_evaluation:
                self.processes.on_main(stage.journal.write_writing_seconds, stage.round, time.perf_counter() - start)
        # They may be of an earlier run, on the disk of a machine that this run's folder was not removed from.
        stage.journal.forget_banks(stage.round)
        return self.processes.on_main(self._record_proposals, stage, written)

    def score(self, stage: Stage, proposals: Sequence[Proposal]) -> list[ScoredSelfEdit] | None:
        """
        Train and ask every adapter of the stage, each about its own example, and record the rewards.

        Returns:
            `list[ScoredSelfEdit]`, or `None` where `on_bank` asked to end early.

        Raises:
            GradingIncomplete: An answer could not be graded and `stage.is_evaluation` is set.
            ValueError: The records on disk are not those of the stage.
        """

        def run() -> list[TrialResult] | None:
            updates = self.updates_of(stage, proposals)
            if not stage.rewards.needs_adapters:
                return []
            asked = self._asked_without_labels(stage, proposals)
            questions = self.lm.domain.questions if ACCURACY in stage.rewards.names else lambda example: []
            return self.run(stage, stage_banks(stage, proposals, updates, questions, asked))

        return self.record(stage, proposals, run)

    def record(
        self, stage: Stage, proposals: Sequence[Proposal], run: Callable[[], list[TrialResult] | None]
    ) -> list[ScoredSelfEdit] | None:
        """
        Record what the trials of a stage were worth, unless that is on disk.

        Args:
            stage ([`Stage`]):
                The stage.
            proposals (`Sequence[Proposal]`):
                What is recorded as scored, with the untrained baselines.
            run (`Callable[[], list[TrialResult] | None]`):
                Runs the trials, of which each result belongs to a proposal by condition, example and edit.

        Returns:
            `list[ScoredSelfEdit]`, or `None` where `run` gives `None`.

        Raises:
            ValueError: The records on disk are not those of the stage.
        """
        recorded = self.processes.on_main(stage.journal.scored, stage.round)
        if recorded is not None:
            _require_all(stage, "journal", len(recorded), len(proposals) + len(stage.untrained_proposals()))
            stage.journal.forget_banks(stage.round)
            return recorded
        rubric = {}
        if RUBRIC in stage.rewards.names:
            rubric = rubric_scores(self.lm, self.processes, stage, proposals, self.rubric_judge)
        results = run()
        if results is None:
            return None
        recorded = self.processes.on_main(self._record_scored, stage, proposals, results, rubric)
        stage.journal.forget_banks(stage.round)
        return recorded

    def updates_of(self, stage: Stage, proposals: Sequence[Proposal]) -> list[InnerUpdate | None]:
        """What every proposal trains on (see [`ProposedUpdates.updates_of`], also for the errors)."""
        return self._proposed.updates_of(stage, proposals)

    def run(
        self, stage: Stage, banks: Mapping[int, Sequence[Trial]], chain: Chain | None = None
    ) -> list[TrialResult] | None:
        """
        Train and ask the adapters of any trials, bank by bank, each process a share of the banks.

        Args:
            stage ([`Stage`]):
                Their data, seeds and journal, in which every finished bank is recorded at once.
            banks (`Mapping[int, Sequence[Trial]]`):
                Trials that are trained together, all of one repeat, by the bank's number. A bank whose results are on
                disk is not run again.
            chain ([`Chain`], *optional*):
                What the adapters of a bank stand on.

        Returns:
            `list[TrialResult]`: one for each trial and example that it is asked about, in every process; `None` where
            `on_bank` asked to end early.

        Raises:
            GradingIncomplete: An answer could not be graded and `stage.is_evaluation` is set.
        """
        finished = self._finished(stage, banks)
        costs = {
            bank: sum(trial.cost(self.config.max_answer_length) for trial in trials)
            for bank, trials in banks.items()
            if bank not in finished
        }
        own, stopped = share_banks(costs, self.processes.count)[self.processes.index], False
        scored: dict[int, list[TrialResult]] = {}
        with (
            self._bar(stage, sum(costs[bank] for bank in own)) as bar,
            policy_in_activation_dtype(self.lm.model),
            self.processes.naming_losses(),
            gathering(self.lm.model),
        ):
            for bank in own:
                scored[bank] = self._run_bank(stage, banks[bank], bar, bank, chain)
                stage.journal.write_bank(stage.round, bank, scored[bank])
                if stopped := self.on_bank():
                    break
        for results, one_stopped in self.processes.gather((scored, stopped)):
            finished.update(results)
            stopped |= one_stopped
        return None if stopped else [result for bank in sorted(finished) for result in finished[bank]]

    def _asked_without_labels(
        self, stage: Stage, proposals: Sequence[Proposal]
    ) -> Mapping[tuple[int, int], Mapping[str, Mapping]]:
        """What the adapters of self-edits are asked for rewards without labels (see [`reward_questions`])."""
        self_edit_of = partial(self._proposed.self_edit_of, stage)
        return reward_questions(self.lm, self.processes, stage, proposals, self_edit_of)

    def _finished(self, stage: Stage, banks: Mapping[int, Sequence[Trial]]) -> dict[int, list[TrialResult]]:
        """The results of those banks that are on disk."""
        finished: dict[int, list[TrialResult]] = {}
        # Every process reads its own disk, so that a shared one is not needed.
        for found in self.processes.gather(stage.journal.banks(stage.round)):
            for bank in found.keys() & banks.keys():
                if [result.key for result in found[bank]] == [key for trial in banks[bank] for key in trial.keys]:
                    finished[bank] = list(found[bank])
        return finished

    def _record_proposals(self, stage: Stage, written: Sequence[Sequence[Written]]) -> list[Proposal]:
        drafts, work = self._proposed.drafts(stage, written)
        num_repeats = len(stage.inner_seeds)
        size = self.config.adapters_per_bank or adapters_per_bank(
            self.lm.model,
            lora_layout(self.lm.model, self.lm.peft_config),
            work,
            num_repeats,
            self.processes.count,
            self.lm.inner_gradient_checkpointing,
        )
        composed = iter(compose_banks(work, num_repeats, size))
        proposals = [
            replace(draft, banks=next(composed)) if draft.well_formed and draft.same_as is None else draft
            for draft in drafts
        ]
        stage.journal.write_proposals(stage.round, proposals)
        return proposals

    def _record_scored(
        self,
        stage: Stage,
        proposals: Sequence[Proposal],
        results: Sequence[TrialResult],
        rubric: Mapping[tuple[int, int], Mapping[str, float] | None],
    ) -> list[ScoredSelfEdit]:
        scored = scored_self_edits(stage, proposals, results, rubric)
        stage.journal.write_scored(stage.round, scored)
        return scored

    def _run_bank(
        self, stage: Stage, trials: Sequence[Trial], bar: tqdm, bank: int, chain: Chain | None
    ) -> list[TrialResult]:
        before, start = bar.n, time.perf_counter()

        def report(num_tokens: int) -> None:
            bar.update(max(0, before + num_tokens - bar.n))

        if trials[0].trains_all_weights:
            (trial,) = trials
            lm, training = self.lm.finetune(trial.update, seed=stage.inner_seed(trial), on_step=report)
            adapters, trainings = [None], [training]
        else:
            lm, adapters = self.lm, trained_adapters(self.lm, stage, trials, chain and chain.parents(bank), report)
            trainings = [
                adapter.training if trial.update is not None else {"num_tokens": 0, "losses": ()}
                for trial, adapter in zip(trials, adapters, strict=True)
            ]
        results = self._examine(lm, stage, trials, adapters, trainings, time.perf_counter() - start)
        if chain is not None:
            chain.keep(bank, adapters)
        report(sum(trial.cost(self.config.max_answer_length) for trial in trials))
        return results

    def _examine(
        self,
        lm: SelfAdaptingLM,
        stage: Stage,
        trials: Sequence[Trial],
        adapters: Sequence[Adapter | None],
        trainings: Sequence[Mapping],
        seconds: float,
    ) -> list[TrialResult]:
        base = None if lm is self.lm else self.lm.model
        return examine(lm, stage, trials, adapters, trainings, seconds, self.config.max_answer_length, base)

    def _bar(self, stage: Stage, total: int) -> tqdm:
        hidden = self.config.disable_tqdm or not self.processes.is_main or not total
        desc = f"{stage.name}: inner updates"
        return tqdm(total=total, desc=desc, unit=" tokens", unit_scale=True, leave=False, disable=hidden)


def _require_all(stage: Stage, kind: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{stage.journal.directory / kind} holds {found} records of round {stage.round + 1}, but {expected} were "
            "written; restore the file, or remove it to compute the round again."
        )
