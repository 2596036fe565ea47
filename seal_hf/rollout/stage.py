"""What a stage of a run has to try: every self-edit with its repeats and the baselines, and the banks that do it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..inner_loop.update import tokenize_self_edit
from ..outer_loop.selection import rounded
from ..records.journal import BASE, IN_CONTEXT, PASSAGE_ONLY, Journal, Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .bank_schedule import Work, compose_banks, work_of
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
        keep_for_halving (`int`, *optional*):
            Give repeats to the leaders alone, of which so many are kept (see [`halved`]); every self-edit gets all
            repeats where it is `None`.
        reward (`str`):
            `"accuracy"` or `"likelihood"`.
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
    keep_for_halving: int | None = None
    reward: str = "accuracy"
    baselines: tuple[str, ...] = (BASE,)
    is_evaluation: bool = False

    @property
    def num_first_repeats(self) -> int:
        """Repeats whose banks are composed with the proposals, since they do not depend on rewards."""
        return self.num_repeats if self.keep_for_halving is None else 1


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


def first_banks(lm: SelfAdaptingLM, stage: Stage, proposals: Sequence[Proposal]) -> dict[int, list[Trial]]:
    """The trials of the banks that are known before any reward: as recorded, then those that need no adapter."""
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


def next_banks(
    lm: SelfAdaptingLM,
    stage: Stage,
    proposals: Sequence[Proposal],
    banks: Mapping[int, Sequence[Trial]],
    finished: Mapping[int, Sequence[TrialResult]],
) -> dict[int, list[Trial]]:
    """
    The banks of the next repeat of a stage that halves, a function of what is on disk; none where all is done.

    Parameters:
        banks (`Mapping[int, Sequence[Trial]]`):
            Those of the last repeat.
        finished (`Mapping[int, Sequence[TrialResult]]`):
            The results of all banks so far.
    """
    trained = [trial for trials in banks.values() for trial in trials if trial.self_edit is not None]
    if not trained or trained[0].repeat + 1 >= stage.num_repeats or stage.keep_for_halving is None:
        return {}
    results = [result for own in finished.values() for result in own]
    going_on = halved(trained, results, stage.keep_for_halving)
    # As large as the largest bank of the first repeat, whose size was chosen once and is on disk.
    size = max(Counter(proposal.banks[0] for proposal in proposals if proposal.banks).values())
    composed = compose_banks([size_of(lm, trial.self_edit) for trial in going_on], 1, size)
    following = defaultdict(list)
    for trial, (bank,) in zip(going_on, composed, strict=True):
        following[max(finished) + 1 + bank].append(
            Trial(trial.condition, trial.example, trial.edit, trial.repeat + 1, trial.self_edit, trial.tokens)
        )
    return dict(sorted(following.items()))


def halved(trials: Sequence[Trial], results: Iterable[TrialResult], keep_best: int) -> list[Trial]:
    """
    The trials whose self-edits get another repeat: the better half of each example's, by successive halving (Karnin et
    al., *Almost Optimal Exploration in Multi-Armed Bandits*, 2013; Jamieson and Talwalkar, *Non-stochastic Best Arm
    Identification and Hyperparameter Optimization*, 2016).

    Parameters:
        trials (`Sequence[Trial]`):
            The last repeat of those that are still in it.
        results (`Iterable[TrialResult]`):
            The results of all their repeats. A self-edit stands by the mean of its rewards; behind all others where none
            of its repeats could be graded.
        keep_best (`int`):
            How many are kept in the end.

    Returns:
        `list[Trial]`: by example and self-edit.
    """
    rewards = defaultdict(list)
    for result in results:
        if result.reward is not None:
            rewards[result.condition, result.example, result.edit].append(result.reward)
    by_example = defaultdict(list)
    for trial in trials:
        own = rewards[trial.condition, trial.example, trial.edit]
        by_example[trial.example].append((not own, -rounded(fmean(own)) if own else 0.0, trial.edit, trial))
    going_on = []
    for example in sorted(by_example):
        standings = sorted(by_example[example], key=lambda standing: standing[:3])
        leaders = standings[: num_going_on(len(standings), keep_best)]
        going_on += [trial for *_, trial in sorted(leaders, key=lambda standing: standing[2])]
    return going_on


def num_going_on(number: int, keep_best: int) -> int:
    """
    How many of an example's self-edits get another repeat: half, rounded up, and more than are kept.

    So the last repeat decides, and what is kept has had all of them.

    Example:

    ```python
    >>> num_going_on(5, keep_best=1), num_going_on(3, keep_best=1), num_going_on(2, keep_best=1)
    (3, 2, 2)
    >>> num_going_on(6, keep_best=3), num_going_on(2, keep_best=3)
    (4, 2)

    ```
    """
    return min(number, max(-(-number // 2), keep_best + 1))


def num_trained(num_self_edits: int, num_repeats: int, keep_for_halving: int | None) -> int:
    """
    Inner updates that a stage trains for one example.

    Example:

    ```python
    >>> num_trained(5, 3, keep_for_halving=None), num_trained(5, 3, keep_for_halving=1)
    (15, 10)

    ```
    """
    total = 0
    for _ in range(num_repeats):
        total += num_self_edits
        if keep_for_halving is not None:
            num_self_edits = num_going_on(num_self_edits, keep_for_halving)
    return total


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
        base_reward = base[0].reward if base else None
        of_malformed = base_reward if stage.reward == "likelihood" else 0.0
        rewards = [run.reward for run in runs if run.reward is not None]
        scored.append(
            ScoredSelfEdit(
                **{name: value for name, value in row.items() if name not in ("tokens", "banks")},
                repeats=[_repeat(run) for run in runs],
                reward=mean(rewards) if row["well_formed"] else of_malformed,
                base_reward=base_reward,
                tokens=sum(run.tokens for run in runs),
                seconds=sum(run.seconds for run in runs),
            )
        )
    return scored


def _repeat(run: TrialResult) -> dict:
    repeat = {name: getattr(run, name) for name in ("seed", "reward", "answers", "verdicts", "loss")}
    if run.log_likelihoods is not None:
        repeat["log_likelihoods"] = run.log_likelihoods
    return repeat


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
