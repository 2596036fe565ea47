"""What a stage of a run has to try: every self-edit with its repeats and the baselines, and the banks that do it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..inner_loop.update import tokenize_self_edit
from ..records.journal import BASE, IN_CONTEXT, PASSAGE_ONLY, Journal, Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .bank_schedule import Work, work_of
from .examples import ExampleSet


# First parts of the seeds of a run's streams.
TRAINING, EVALUATION, SFT = range(3)
# Examples whose questions are answered without an adapter in one bank.
_EXAMPLES_PER_PLAIN_BANK = 16


@dataclass(frozen=True)
class Stage:
    """
    One round over a set of examples.

    Parameters:
        name (`str`):
            For progress bars.
        journal ([`Journal`]):
            Where its records go.
        round (`int`):
            Round, from 0.
        data ([`ExampleSet`]):
            The examples.
        seed (`int`):
            Seed of everything random in it.
        num_generations (`int`):
            Self-edits per example.
        num_repeats (`int`):
            Inner updates per self-edit.
        baselines (`tuple[str, ...]`):
            Conditions to score beside the self-edits.
        is_evaluation (`bool`):
            Whether the baselines without an adapter are recorded beside the self-edits, and an answer that could not be
            graded is an error, rather than left out of the reward.
    """

    name: str
    journal: Journal
    round: int
    data: ExampleSet
    seed: int
    num_generations: int
    num_repeats: int = 1
    baselines: tuple[str, ...] = (BASE,)
    is_evaluation: bool = False


@dataclass(frozen=True)
class Trial:
    """One row of a bank: an example under a condition, with a self-edit to adapt to or without."""

    condition: str
    example: int
    edit: int
    repeat: int
    self_edit: SelfEdit | None
    tokens: int

    @property
    def key(self) -> tuple[str, int, int, int]:
        """As that of its [`TrialResult`]."""
        return self.condition, self.example, self.edit, self.repeat


def size_of(lm: SelfAdaptingLM, self_edit: SelfEdit | None) -> Work | None:
    """The work of a self-edit's inner update; `None` where there is nothing to train on."""
    if self_edit is None:
        return None
    try:
        return work_of(tokenize_self_edit(self_edit, lm.processing_class, lm.inner_config))
    except ValueError:  # no text, or hyperparameters that are not possible: malformed, which is data
        return None


def self_edit_of(lm: SelfAdaptingLM, condition: str, completion: str, example: Mapping) -> SelfEdit | None:
    """What is trained on under a condition; `None` where the completion is malformed."""
    return lm.domain.passage_only(example) if condition == PASSAGE_ONLY else lm.domain.parse(completion, example)


def stage_banks(lm: SelfAdaptingLM, stage: Stage, proposals: Sequence[Proposal]) -> dict[int, list[Trial]]:
    """The trials of a stage's banks: as recorded, then those that need no adapter."""
    banks = defaultdict(list)
    for proposal in proposals:
        example = stage.data.examples[proposal.example]
        self_edit = self_edit_of(lm, proposal.condition, proposal.completion, example)
        for repeat, bank in enumerate(proposal.banks):
            banks[bank].append(
                Trial(proposal.condition, proposal.example, proposal.edit, repeat, self_edit, proposal.tokens)
            )
    plain = [name for name in stage.baselines if name in (BASE, IN_CONTEXT)]
    for first in range(0, len(stage.data), _EXAMPLES_PER_PLAIN_BANK):
        places = range(len(stage.data))[first : first + _EXAMPLES_PER_PLAIN_BANK]
        if trials := [Trial(name, place, 0, 0, None, 0) for name in plain for place in places]:
            banks[max(banks, default=-1) + 1] = trials
    return dict(banks)


def plain_proposals(stage: Stage) -> list[Proposal]:
    """What is recorded of the baselines without an adapter; in a training round they are the base reward, no more."""
    return [
        Proposal(stage.round, condition, place, stage.data.ids[place], 0, "", "", 0, True, 0, [])
        for condition in (BASE, IN_CONTEXT)
        if condition in stage.baselines and stage.is_evaluation
        for place in range(len(stage.data))
    ]


def scored_self_edits(
    stage: Stage, proposals: Sequence[Proposal], results: Iterable[TrialResult]
) -> list[ScoredSelfEdit]:
    """A stage's records, from the results of all its trials."""
    by_edit = defaultdict(list)
    for result in results:
        by_edit[result.condition, result.example, result.edit].append(result)
    scored = []
    for row in map(vars, (*proposals, *plain_proposals(stage))):
        runs = sorted(by_edit[row["condition"], row["example"], row["edit"]], key=lambda run: run.repeat)
        base = by_edit.get((BASE, row["example"], 0))
        rewards = [run.reward for run in runs if run.reward is not None]
        scored.append(
            ScoredSelfEdit(
                **{name: value for name, value in row.items() if name not in ("tokens", "banks")},
                repeats=[
                    {name: getattr(run, name) for name in ("seed", "reward", "answers", "verdicts", "loss")}
                    for run in runs
                ],
                reward=mean(rewards) if row["well_formed"] else 0.0,
                base_reward=base[0].reward if base else None,
                tokens=sum(run.tokens for run in runs),
                seconds=sum(run.seconds for run in runs),
            )
        )
    return scored


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
