"""What a stage of a run tries: which adapters are trained, and apart from that which examples each is asked about."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..domains.base import Condition
from ..generation.base import Sampling, draw_seed
from ..grading.rewards import LABELLED, Rewards
from ..inner_loop.update import InnerUpdate, is_whole
from ..records.journal import Journal
from ..records.schema import Proposal
from ..self_edit import Prompt
from .bank_schedule import expected_cost, work_of
from .examples import ExampleSet


# Options of a [`RolloutConfig`] that change no result.
FREE_OPTIONS = ("adapters_per_bank", "disable_tqdm")
# Examples whose questions are answered without an adapter in one bank.
_EXAMPLES_PER_UNTRAINED_BANK = 16


@dataclass(frozen=True)
class RolloutConfig:
    """
    How self-edits are written, banks composed and answers given.

    Parameters:
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the self-edits.
        top_p (`float`, *optional*, defaults to `0.95`):
            Nucleus of the sampling.
        num_drafts (`int`, *optional*, defaults to `1`):
            How many completions one self-edit is made of, where its domain pools them (see [`Domain.pools_drafts`]).
        max_completion_length (`int`, *optional*, defaults to `2048`):
            Longest completion, in tokens; shorter where the model's context leaves less room after a prompt.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens. Answers are greedy.
        adapters_per_bank (`int`, *optional*):
            Most adapters trained together; chosen from the free memory and the work where absent (see
            [`adapters_per_bank`]).
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether no progress bar is shown.

    Raises:
        ValueError: A value out of its range.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    num_drafts: int = 1
    max_completion_length: int = 2048
    max_answer_length: int = 64
    adapters_per_bank: int | None = None
    disable_tqdm: bool = False

    def __post_init__(self):
        for name in ("num_drafts", "max_completion_length", "max_answer_length"):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1.")
        if self.adapters_per_bank is not None and not is_whole(self.adapters_per_bank, 1):
            raise ValueError(
                f"adapters_per_bank={self.adapters_per_bank!r} must be a whole number of at least 1, or None."
            )
        Sampling((), self.temperature, self.top_p)  # raises for values out of range


@dataclass(frozen=True)
class Stage:
    """
    One round of self-edits over examples of a dataset.

    Parameters:
        name (`str`):
            For progress bars.
        journal ([`Journal`]):
            Where its records go.
        round (`int`):
            Round, from 0.
        data ([`ExampleSet`]):
            The dataset.
        seed (`int`):
            First part of the seeds of its self-edits.
        inner_seeds (`tuple[int, ...]`):
            For each repeat of an inner update its seed; none where no reward needs an adapter.
        num_generations (`int`):
            Self-edits per example; none in an evaluation of baselines alone.
        baselines (`tuple[Condition, ...]`):
            What is scored besides the self-edits: some of the domain's conditions.
        places (`tuple[int, ...]`, *optional*):
            Places of its examples in `data`. Defaults to all.
        is_evaluation (`bool`, *optional*, defaults to `False`):
            Whether baselines that train nothing are recorded besides the self-edits, and an answer that could not be
            graded is an error, rather than left out of the reward.
        completions (`Sequence[Sequence[str]]`, *optional*):
            For each example in `data` what stands in place of the self-edits that the policy would write, as many as
            `num_generations`.
        proposals (`Sequence[Proposal]`, *optional*):
            The self-edits of another stage on the same examples, which are trained on as they are there: nothing is written, and no
            tool is asked again. Their banks are composed anew.
        rewards ([`Rewards`], *optional*):
            What self-edits are rewarded by. Defaults to the labelled reward alone, which an evaluation always has.

    Raises:
        ValueError: A number out of its range.
    """

    name: str
    journal: Journal
    round: int
    data: ExampleSet
    seed: int
    inner_seeds: tuple[int, ...]
    num_generations: int
    baselines: tuple[Condition, ...]
    places: tuple[int, ...] | None = None
    is_evaluation: bool = False
    completions: Sequence[Sequence[str]] | None = None
    proposals: Sequence[Proposal] | None = None
    rewards: Rewards = LABELLED

    def __post_init__(self):
        if self.places is None:
            object.__setattr__(self, "places", tuple(range(len(self.data))))
        least = 0 if self.is_evaluation else 1
        if not is_whole(self.num_generations, least):
            raise ValueError(f"num_generations={self.num_generations!r} must be a whole number of at least {least}.")
        for seed in self.inner_seeds:
            if not is_whole(seed, 0):
                raise ValueError(f"The seed {seed!r} of an inner update must be a whole number of at least 0.")

    @property
    def trained_baselines(self) -> tuple[Condition, ...]:
        """The baselines that train an adapter for every example."""
        return tuple(condition for condition in self.baselines if condition.self_edit is not None)

    @property
    def untrained_baselines(self) -> tuple[Condition, ...]:
        """The baselines that are answered without an inner adapter."""
        return tuple(condition for condition in self.baselines if condition.self_edit is None)

    def inner_seed(self, trial: "Trial") -> int:
        """
        The seed of a trial's initial weights and order.

        Those of one repeat share theirs in training, where self-edits of one example are compared. In an evaluation each
        example has one of its own, so that what a seed happens to give is part of the variation between examples.
        """
        seed = self.inner_seeds[trial.repeat]
        return draw_seed(seed, trial.asked[0]) if self.is_evaluation else seed

    def untrained_proposals(self) -> list[Proposal]:
        """The records of the untrained baselines; none in a training round, where they only give the base reward."""
        return [
            Proposal(
                round=self.round,
                condition=condition.name,
                example=place,
                example_id=self.data.ids[place],
                edit=0,
                prompt="",
                completion="",
                completion_tokens=0,
                well_formed=True,
                tokens=0,
                banks=[],
            )
            for condition in self.untrained_baselines
            if self.is_evaluation
            for place in self.places
        ]


@dataclass(frozen=True)
class Trial:
    """
    One inner adapter, or none, and what is asked of it.

    Parameters:
        condition (`str`):
            Name of the condition that it is a part of.
        edit (`int`):
            Which of several adapters of that condition.
        repeat (`int`):
            Which of its independent inner updates.
        update ([`InnerUpdate`], *optional*):
            What is trained: one self-edit, several, or a passage; the model answers without an inner adapter where it is
            `None`.
        asked (`tuple[int, ...]`):
            Indices of the examples that it is asked about, in their dataset.
        questions (`Callable[[Mapping], list[str | list[dict]]]`):
            The prompts of an example.
        routes (`Callable[[Mapping], list[int | None]]`, *optional*):
            For each of these prompts which trial of the bank has the adapter that answers it; `None` for the model without one. It
            takes the place of the trial's own adapter.
        trains_all_weights (`bool`, *optional*, defaults to `False`):
            Whether all weights of a copy of the model are trained in place of an adapter. Such a trial is alone in its bank.
        unlabelled (`Mapping[str, Mapping]`, *optional*, defaults to none):
            Examples that its adapter is asked about, too, by the reward without labels that each is for.
    """

    condition: str
    edit: int
    repeat: int
    update: InnerUpdate | None
    asked: tuple[int, ...]
    questions: Callable[[Mapping], list[Prompt]]
    routes: Callable[[Mapping], list[int | None]] | None = None
    trains_all_weights: bool = False
    unlabelled: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def keys(self) -> list[tuple[str, int, int, int]]:
        """The keys of its results (see [`TrialResult`]), one for each example that is asked."""
        return [(self.condition, example, self.edit, self.repeat) for example in self.asked]

    def cost(self, max_answer_length: int) -> int:
        """Expected work, in tokens trained on or written."""
        num_trained = work_of(self.update).num_tokens if self.update is not None else 0
        return expected_cost(num_trained, len(self.asked), max_answer_length)


def stage_banks(
    stage: Stage,
    proposals: Sequence[Proposal],
    updates: Sequence[InnerUpdate | None],
    questions: Callable[[Mapping], list[Prompt]],
    unlabelled: Mapping[tuple[int, int], Mapping[str, Mapping]] | None = None,
) -> dict[int, list[Trial]]:
    """
    The trials of a stage whose adapters are each asked about their own example, by bank.

    Args:
        stage ([`Stage`]):
            The stage.
        proposals (`Sequence[Proposal]`):
            Its proposals, with their banks as recorded.
        updates (`Sequence[InnerUpdate | None]`):
            What each of them trains on; `None` where it is malformed.
        questions (`Callable[[Mapping], list[str | list[dict]]]`):
            The prompts that a self-edit's adapter is asked.
        unlabelled (`Mapping[tuple[int, int], Mapping[str, Mapping]]`, *optional*):
            By example and self-edit what it is asked about besides (see [`Trial`]).

    Returns:
        `dict[int, list[Trial]]`: banks by number; those that train nothing come last.
    """
    banks = defaultdict(list)
    asked = {condition.name: condition.questions for condition in stage.baselines}
    for proposal, update in zip(proposals, updates, strict=True):
        own = asked.get(proposal.condition, questions)
        besides = (unlabelled or {}).get((proposal.example, proposal.edit), {})
        for repeat, bank in enumerate(proposal.banks):
            banks[bank].append(
                Trial(proposal.condition, proposal.edit, repeat, update, (proposal.example,), own, unlabelled=besides)
            )
    return dict(banks) | untrained_banks(stage, 1 + max(banks, default=-1))


def untrained_banks(stage: Stage, number: int) -> dict[int, list[Trial]]:
    """The trials of a stage's untrained baselines, by bank, of which the first has the given number."""
    banks: dict[int, list[Trial]] = {}
    for first in range(0, len(stage.places), _EXAMPLES_PER_UNTRAINED_BANK):
        places = stage.places[first : first + _EXAMPLES_PER_UNTRAINED_BANK]
        if trials := [
            Trial(condition.name, 0, 0, None, (place,), condition.questions)
            for condition in stage.untrained_baselines
            for place in places
        ]:
            banks[number + len(banks)] = trials
    return banks
