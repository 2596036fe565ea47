"""What a run will do, and about how long that takes here: its own stages, counted without training or writing any."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..evaluation.plan import COLUMNS, ESTIMATED, expected_seconds, row_of
from ..records.journal import Journal
from ..records.tables import markdown
from ..rollout.examples import ExampleSet
from ..rollout.planning import Counts, PlanningRollout
from ..rollout.rollout import Rollout
from ..rollout.stage import Stage
from .outer_sft import optimizer_steps, parts_per_example
from .scoring import Scoring
from .stages import evaluation_stage, examples_per_round, places_to_draw_from, training_stage


@dataclass(frozen=True)
class RunPlan:
    """
    The work of a run that is left to be done.

    Parameters:
        num_rounds, num_eval_examples, num_processes (`int`):
            As configured.
        num_examples (`int`):
            Training examples that rounds draw from.
        examples_per_round (`int`):
            Training examples of each round.
        rounds (`list[Counts]`):
            For each round what is left of writing and scoring its self-edits.
        evaluations (`list[Counts]`):
            The same for the evaluation before the first round and after each; empty where there is nothing to evaluate on.
        optimizer_steps (`list[int]`):
            Steps of each round's outer SFT, if every example has its share of kept self-edits; 0 where its policy is on disk.
        seconds (`float`, *optional*):
            Expected time of training, writing and answering, without the outer SFT; `None` where nothing of that is left, and where
            self-edits are of unknown length since the domain has no baseline that trains.
    """

    num_rounds: int
    num_examples: int
    examples_per_round: int
    num_eval_examples: int
    num_processes: int
    rounds: list[Counts]
    evaluations: list[Counts]
    optimizer_steps: list[int]
    seconds: float | None

    @property
    def everything(self) -> Counts:
        """The work of all rounds and evaluations together."""
        return sum((*self.rounds, *self.evaluations), Counts())

    def __str__(self) -> str:
        is_new = self.examples_per_round < self.num_examples
        own = f", {self.examples_per_round} new ones in each round" if is_new else ""
        rows = [
            [f"round {number}", *row_of(counts), f"{steps:,}"]
            for number, (counts, steps) in enumerate(zip(self.rounds, self.optimizer_steps, strict=True), start=1)
        ]
        if self.evaluations:
            rows.append(["evaluations", *row_of(sum(self.evaluations, Counts())), ""])
        rows.append(["all", *row_of(self.everything), f"{sum(self.optimizer_steps):,}"])
        lines = [
            f"rounds: {self.num_rounds}, examples: {self.num_examples}{own}, evaluated on: {self.num_eval_examples}, processes: "
            f"{self.num_processes}; left to be done:",
            f"\n{markdown(['stage', *COLUMNS, 'steps of outer SFT'], rows)}\n",
        ]
        if self.everything.is_estimated:
            lines.append(ESTIMATED)
        if self.seconds is not None:
            lines.append(f"About {self.seconds / 60:.0f} minutes by a short probe of this machine, without the SFT.")
        return "\n".join(lines)


def plan_run(scoring: Scoring, train: ExampleSet, evaluation: ExampleSet | None) -> RunPlan:
    """
    Count the work of a run, and measure this machine for a few steps, whose results are thrown away.

    Args:
        scoring ([`Scoring`]):
            The run's engines, settings and folder: what is on disk is not counted.
        train ([`ExampleSet`]):
            The training set.
        evaluation ([`ExampleSet`], *optional*):
            The evaluation set.
    """
    args, run, domain = scoring.args, scoring.run, scoring.rollout.lm.domain
    rounds = [
        _counted(scoring.rollout, training_stage(args, domain, run.journal, train, index))
        for index in range(args.num_rounds)
    ]
    eval_rollout, evaluations = scoring.eval_rollout, []
    if evaluation is not None:
        evaluations = [
            _counted(eval_rollout, evaluation_stage(args, eval_rollout.lm.domain, run.evaluation, evaluation, number))
            for number in range(args.num_rounds + 1)
        ]
    num_examples = len(places_to_draw_from(args, domain, train))
    per_round = examples_per_round(args, num_examples)
    steps = optimizer_steps(per_round, args, parts_per_example(domain, train.examples))
    num_fitted = scoring.processes.on_main(run.num_policies)
    return RunPlan(
        num_rounds=args.num_rounds,
        num_examples=num_examples,
        examples_per_round=per_round,
        num_eval_examples=len(evaluation) if evaluation is not None else 0,
        num_processes=scoring.processes.count,
        rounds=rounds,
        evaluations=evaluations,
        optimizer_steps=[0] * num_fitted + steps[num_fitted:],
        seconds=expected_seconds(scoring.rollout, train.examples, sum((*rounds, *evaluations), Counts())),
    )


def _counted(rollout: Rollout, stage: Stage) -> Counts:
    """What is left to be done of a stage, by what its journal has."""
    planning = PlanningRollout(rollout, stage.journal)
    with TemporaryDirectory() as directory:
        stage = replace(stage, journal=Journal(Path(directory)))
        planning.score(stage, planning.propose(stage))
    return sum(planning.counts.values(), Counts())
