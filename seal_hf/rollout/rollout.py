"""
The engine under the trainer and the protocols: the policy writes self-edits, adapters are trained and asked, answers graded.

What is computed is a function of the policy, the examples and the seeds alone: batches of generation are cut by the
examples, banks are composed from the proposals and recorded with them, and every random stream has a seed of its own.
So neither the number of processes nor an interruption changes the records (in fp32; in lower precision up to rounding).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from tqdm.auto import tqdm

from ..adapters.adapter import Adapter
from ..adapters.layout import lora_layout
from ..domains.base import BASE, SELF_EDITS
from ..generation.base import Generation
from ..grading import RubricJudge
from ..grading.rewards import ACCURACY, RUBRIC
from ..inner_loop.update import InnerUpdate, tokenize_self_edit
from ..models.access import policy_in_activation_dtype
from ..models.sharding import gathering
from ..records.schema import Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit, TrainingExample
from .bank_schedule import adapters_per_bank, compose_banks, share_banks, work_of
from .chain import Chain
from .processes import Processes
from .reward_questions import reward_questions
from .rewards import Asked, ask_and_grade, divergences_from_base, mean, scored_self_edits
from .rubric_scores import rubric_scores
from .stage import RolloutConfig, Stage, Trial, stage_banks
from .writing import Written, write_self_edits


logger = logging.getLogger(__name__)


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
        # What the proposals of one stage train on, by condition, example and edit.
        self._stage: Stage | None = None
        self._updates: dict[tuple[str, int, int], InnerUpdate | None] = {}

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
            self_edit_of = partial(self._self_edit_of, stage)
            asked = reward_questions(self.lm, self.processes, stage, proposals, self_edit_of)
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
        """
        What every proposal trains on.

        Raises:
            ValueError: One is not read as it was when it was recorded.
        """
        updates = [self.update_of(stage, proposal) for proposal in proposals]
        for proposal, update in zip(proposals, updates, strict=True):
            if proposal.well_formed != (update is not None):
                raise ValueError(
                    f"{stage.journal.directory}: self-edit {proposal.edit} of example {proposal.example_id} is not read as "
                    "it was when it was recorded; use the domain that recorded it, or give another output_dir."
                )
        return updates

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

    def _finished(self, stage: Stage, banks: Mapping[int, Sequence[Trial]]) -> dict[int, list[TrialResult]]:
        """The results of those banks that are on disk."""
        finished: dict[int, list[TrialResult]] = {}
        # Every process reads its own disk, so that a shared one is not needed.
        for found in self.processes.gather(stage.journal.banks(stage.round)):
            for bank in found.keys() & banks.keys():
                if [result.key for result in found[bank]] == [key for trial in banks[bank] for key in trial.keys]:
                    finished[bank] = list(found[bank])
        return finished

    def update_of(self, stage: Stage, proposal: Proposal) -> InnerUpdate | None:
        """What a proposal trains on, parsed and tokenized once; `None` where it is malformed, which is data."""
        updates = self._updates_of(stage)
        if (key := _key(proposal)) not in updates:
            updates[key] = self._tokenized(proposal, self._self_edit_of(stage, proposal))
        return updates[key]

    def _updates_of(self, stage: Stage) -> dict[tuple[str, int, int], InnerUpdate | None]:
        if self._stage is not stage:
            self._stage, self._updates = stage, {}
        return self._updates

    def _self_edit_of(self, stage: Stage, proposal: Proposal) -> SelfEdit | None:
        """A proposal as a self-edit, with what is recorded of its tool."""
        example = stage.data.examples[proposal.example]
        if proposal.condition != SELF_EDITS:
            (baseline,) = (one for one in stage.trained_baselines if one.name == proposal.condition)
            return baseline.self_edit(example)
        self_edit = self.lm.domain.parse(proposal.completion, example)
        if self_edit is None or proposal.tool_examples is None:
            return self_edit
        return replace(self_edit, examples=tuple(TrainingExample(**one) for one in proposal.tool_examples), calls=())

    def _tokenized(self, proposal: Proposal, self_edit: SelfEdit | None) -> InnerUpdate | None:
        if self_edit is None:
            return None
        try:
            return tokenize_self_edit(self_edit, self.lm.processing_class, self.lm.inner_config)
        except ValueError as error:  # no text, or hyperparameters that are not possible
            name = (proposal.edit, proposal.example_id)
            logger.debug("Self-edit %d of example %s is malformed: %s", *name, error)
            return None

    def _record_proposals(self, stage: Stage, written: Sequence[Sequence[Written]]) -> list[Proposal]:
        drafts, work = [], []
        for place, own in zip(stage.places, written, strict=True):
            example = stage.data.examples[place]
            candidates = [(SELF_EDITS, i, one) for i, one in enumerate(own)]
            candidates += [
                (baseline.name, 0, Written(Generation("", 0, True), baseline.self_edit(example)))
                for baseline in stage.trained_baselines
            ]
            first_of: dict[InnerUpdate, int] = {}
            for condition, edit, one in candidates:
                draft = Proposal(
                    round=stage.round,
                    condition=condition,
                    example=place,
                    example_id=stage.data.ids[place],
                    edit=edit,
                    prompt=self.lm.domain.prompt(example) if condition == SELF_EDITS else "",
                    completion=one.generation.text,
                    completion_tokens=one.generation.num_tokens,
                    well_formed=False,
                    tokens=0,
                    banks=[],
                    finished=one.generation.finished,
                    completion_ids=list(one.generation.token_ids),
                    tool_examples=list(map(_record, one.self_edit.examples)) if one.called else None,
                    metrics=dict(one.self_edit.metrics) or None if one.self_edit is not None else None,
                    written_tokens=one.num_tokens,
                )
                update = self._tokenized(draft, one.self_edit)
                self._updates_of(stage)[_key(draft)] = update
                if update is not None:
                    own_work = work_of(update)
                    draft = replace(draft, well_formed=True, tokens=own_work.num_tokens)
                    first = first_of.setdefault(update, edit) if condition == SELF_EDITS else edit
                    if first != edit:
                        draft = replace(draft, same_as=first)
                    else:
                        work.append(own_work)
                drafts.append(draft)
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
            lm, adapters = self.lm, self._trained(stage, trials, chain and chain.parents(bank), report)
            trainings = [
                adapter.training if trial.update is not None else {"num_tokens": 0, "losses": ()}
                for trial, adapter in zip(trials, adapters, strict=True)
            ]
        results = self._examine(lm, stage, trials, adapters, trainings, time.perf_counter() - start)
        if chain is not None:
            chain.keep(bank, adapters)
        report(sum(trial.cost(self.config.max_answer_length) for trial in trials))
        return results

    def _trained(
        self,
        stage: Stage,
        trials: Sequence[Trial],
        parents: Sequence[Adapter | None] | None,
        report: Callable[[int], None],
    ) -> list[Adapter | None]:
        """The adapter of each trial, trained together; its parent, or none, where it trains nothing."""
        parents = parents or [None] * len(trials)
        work = [
            (trial.update, stage.inner_seed(trial), parent)
            for trial, parent in zip(trials, parents, strict=True)
            if trial.update is not None
        ]
        trained: Iterator[Adapter] = iter(())
        if work:
            updates, seeds, below = zip(*work, strict=True)
            below = None if None in below else below
            trained = iter(
                self.lm.adapt(updates, seed=seeds, on_step=lambda step: report(step.num_tokens), parents=below)
            )
        return [
            parent if trial.update is None else next(trained) for trial, parent in zip(trials, parents, strict=True)
        ]

    def _examine(
        self,
        lm: SelfAdaptingLM,
        stage: Stage,
        trials: Sequence[Trial],
        adapters: Sequence[Adapter | None],
        trainings: Sequence[Mapping],
        seconds: float,
    ) -> list[TrialResult]:
        """Ask the adapters of a bank, or a finetuned model, which took `seconds` to train, and grade what they answer."""
        placed = self._asked(stage, trials, adapters)
        asked, examples = [one for _, one in placed], [one.example for _, one in placed]
        graded = ask_and_grade(lm, asked, self.config.max_answer_length, require_all=stage.is_evaluation)
        divergences = [None] * len(asked)
        if stage.is_evaluation:
            base = None if lm is self.lm else self.lm.model
            divergences = divergences_from_base(lm, asked, [own.answers for own in graded], base)
        own_trainings = [training for trial, training in zip(trials, trainings, strict=True) for _ in trial.asked]
        bank_tokens = sum(training["num_tokens"] for training in trainings)
        results = []
        places = [place for trial in trials for place in trial.asked]
        for (trial, _), place, training, example, own, kl in zip(
            placed, places, own_trainings, examples, graded, divergences, strict=True
        ):
            steps = len(training["losses"]) // training.get("num_train_epochs", 1)
            results.append(
                TrialResult(
                    condition=trial.condition,
                    example=place,
                    edit=trial.edit,
                    repeat=trial.repeat,
                    seed=stage.inner_seed(trial),
                    reward=own.reward,
                    answers=own.answers,
                    verdicts=own.verdicts,
                    loss=mean(training["losses"][-steps:] if steps else ()),
                    tokens=training["num_tokens"],
                    seconds=seconds * training["num_tokens"] / bank_tokens if bank_tokens else 0.0,
                    recited=self.lm.domain.recited(example, own.answers) if stage.is_evaluation else None,
                    recitation=own.recitation,
                    short=self.lm.domain.short(example, own.answers) if stage.is_evaluation else None,
                    retention=own.retention,
                    kl=kl,
                    unlabelled=own.unlabelled,
                )
            )
        return results

    def _asked(
        self, stage: Stage, trials: Sequence[Trial], adapters: Sequence[Adapter | None]
    ) -> list[tuple[Trial, Asked]]:
        """What each trial of a bank is asked about each of its examples, with the trial."""
        return [
            (
                trial,
                # Of the conditions without an adapter the base alone is asked for more, since all would say the same.
                Asked(
                    adapter if trial.routes is None else partial(_routed, trial.routes, adapters),
                    stage.data.examples[place],
                    trial.questions(stage.data.examples[place]),
                    recites=stage.is_evaluation and (trial.condition == BASE or _is_adapted(trial, adapter)),
                    is_retention_asked=stage.is_evaluation and _is_asked_for_retention(stage, trial, adapter, place),
                    unlabelled=trial.unlabelled,
                ),
            )
            for trial, adapter in zip(trials, adapters, strict=True)
            for place in trial.asked
        ]

    def _bar(self, stage: Stage, total: int) -> tqdm:
        hidden = self.config.disable_tqdm or not self.processes.is_main or not total
        desc = f"{stage.name}: inner updates"
        return tqdm(total=total, desc=desc, unit=" tokens", unit_scale=True, leave=False, disable=hidden)


def _record(example: TrainingExample) -> dict:
    """What is recorded of a training example: `trains_on_prompt` only where it is set."""
    return {name: value for name, value in asdict(example).items() if value or name != "trains_on_prompt"}


def _key(proposal: Proposal) -> tuple[str, int, int]:
    return proposal.condition, proposal.example, proposal.edit


def _routed(
    routes: Callable[[Mapping], list[int | None]], adapters: Sequence[Adapter | None], example: Mapping
) -> list[Adapter | None]:
    """For each question of an example the adapter that it is routed to."""
    return [None if number is None else adapters[number] for number in routes(example)]


def _is_adapted(trial: Trial, adapter: Adapter | None) -> bool:
    """Whether one adapter, or all weights, make the difference to the base model."""
    return adapter is not None or trial.trains_all_weights


def _is_asked_for_retention(stage: Stage, trial: Trial, adapter: Adapter | None, place: int) -> bool:
    """Whether it is the one example by which its adapter, or once for all the base model, is asked what it has retained."""
    if trial.routes is None and not _is_adapted(trial, adapter):
        return trial.condition == BASE and place == stage.places[0]
    return place == trial.asked[0]


def _require_all(stage: Stage, kind: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{stage.journal.directory / kind} holds {found} records of round {stage.round + 1}, but {expected} were "
            "written; restore the file, or remove it to compute the round again."
        )
