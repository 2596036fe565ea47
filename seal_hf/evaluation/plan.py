"""What an evaluation will do, and about how long that takes here: its own trials, counted without training or writing any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..domains.base import SELF_EDITS
from ..records.tables import markdown
from ..rollout.planning import Counts, PlanningRollout
from ..rollout.probe import measure_pace
from ..rollout.rollout import Rollout
from ..rollout.stage import Stage


# What the table of a plan tells of each row's work (see [`Counts`]).
COLUMNS = ("prompts to write", "adapters", "per bank", "tokens to train on", "prompts to answer")
ESTIMATED = (
    "What has a ~ is estimated: a self-edit is taken to hold what the baseline trains on, and texts as long as that. A tool may "
    "write and ask more, and so may rewards without labels."
)


@dataclass(frozen=True)
class EvaluationPlan:
    """
    The work of an evaluation that is left to be done.

    Parameters:
        protocol (`str`):
            Name of the protocol.
        num_examples, num_questions, num_processes (`int`):
            Examples that are evaluated on, their questions, and processes that share the work.
        conditions (`dict[str, Counts]`):
            By the name of the condition its work. Of a condition that is compared with it is all that is done for it.
        seconds (`float`, *optional*):
            Expected time of training, writing and answering; `None` where nothing is left, where self-edits are of unknown length
            since the domain has no baseline that trains, and with full finetuning, whose time is not measured.
    """

    protocol: str
    num_examples: int
    num_questions: int
    num_processes: int
    conditions: dict[str, Counts]
    seconds: float | None

    def __str__(self) -> str:
        rows = [[name, *row_of(counts)] for name, counts in self.conditions.items()]
        everything = sum(self.conditions.values(), Counts())
        rows.append(["all", *row_of(everything)])
        lines = [
            f"protocol: {self.protocol}, examples: {self.num_examples} with {self.num_questions} questions, processes: "
            f"{self.num_processes}; left to be done:",
            f"\n{markdown(['condition', *COLUMNS], rows)}\n",
        ]
        if everything.is_estimated:
            lines.append(ESTIMATED)
        if self.seconds is not None:
            lines.append(f"About {self.seconds / 60:.0f} minutes by a short probe of this machine.")
        return "\n".join(lines)


def row_of(counts: Counts) -> list[str]:
    """The cells of a plan's table that tell this work, in the order of [`COLUMNS`]."""
    per_bank, tokens = f"{counts.adapters_per_bank:,}", f"{counts.tokens:,}"
    if counts.is_estimated:
        per_bank, tokens = (f"~{per_bank}", f"~{tokens}") if counts.tokens else ("unknown", "unknown")
    return [f"{counts.prompts_to_write:,}", f"{counts.adapters:,}", per_bank, tokens, f"{counts.prompts_to_answer:,}"]


def plan_of(protocol: str, counted: PlanningRollout, stage: Stage, compared: Mapping[str, Counts]) -> EvaluationPlan:
    """
    The plan of an evaluation.

    Args:
        protocol (`str`):
            Name of the protocol.
        counted ([`PlanningRollout`]):
            The engine that has counted the evaluation's own conditions.
        stage ([`Stage`]):
            Their stage, with the baselines of the domain.
        compared (`Mapping[str, Counts]`):
            By the name of each further condition its work.
    """
    names = [*(condition.name for condition in stage.baselines), SELF_EDITS]
    conditions = {name: counted.counts.get(name, Counts()) for name in names} | compared
    examples, everything = [stage.data.examples[place] for place in stage.places], sum(conditions.values(), Counts())
    return EvaluationPlan(
        protocol=protocol,
        num_examples=len(stage.places),
        num_questions=sum(len(counted.lm.domain.questions(example)) for example in stage.data.examples),
        num_processes=counted.processes.count,
        conditions=conditions,
        seconds=None if counted.trains_all_weights else expected_seconds(counted, examples, everything),
    )


def expected_seconds(rollout: Rollout, examples: Sequence[Mapping], work: Counts) -> float | None:
    """
    The expected time of work, measured for a few steps on what the domain's baseline trains on.

    Args:
        rollout ([`Rollout`]):
            The engine.
        examples (`Sequence[Mapping]`):
            Examples to measure with, at least one.
        work ([`Counts`]):
            The work.

    Returns:
        `float`: seconds, with the work shared by all processes; `None` where nothing is to be done, or the domain has no baseline that
            trains.
    """
    baseline = next((one for one in reversed(rollout.lm.domain.conditions) if one.self_edit is not None), None)
    num_prompts = work.prompts_to_write + work.prompts_to_answer
    if baseline is None or not num_prompts:
        return None
    pace = measure_pace(rollout.lm, baseline, examples, max(1, work.adapters_per_bank))
    num_written = work.tokens_to_write + work.prompts_to_answer * rollout.config.max_answer_length
    return pace.seconds(work.tokens, num_prompts, num_written) / rollout.processes.count
