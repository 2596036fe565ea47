"""
What a reward is: the share of right answers, of one adapter and over all repeats of a self-edit; or a weighted sum of that and of
rewards without labels (see [`seal_hf.grading.rewards`]).
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..adapters.adapter import Adapter
from ..domains.base import BASE, Domain
from ..grading import require_verdicts
from ..grading.rewards import ACCURACY, RUBRIC
from ..grading.rubric import rubric_reward
from ..records.schema import Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import Prompt
from .stage import Stage


# What the records of scored self-edits leave to those of the proposals.
_OF_PROPOSALS = ("tokens", "banks", "tool_examples", "same_as")


@dataclass(frozen=True)
class Asked:
    """
    Who is asked about an example.

    Parameters:
        adapter ([`Adapter`] or `Callable[[Mapping], list[Adapter | None]]`, *optional*):
            Who answers; the model without an inner adapter where it is `None`. A function tells who answers each question of an
            example, also of the general one.
        example (`Mapping`):
            The example.
        prompts (`Sequence[str | list[dict]]`):
            A prompt for each of its questions; none where no answer is rewarded by a label.
        recites (`bool`, *optional*, defaults to `True`):
            Whether a recitation is asked for, too, where the domain has a prompt for one (see
            [`Domain.recitation_prompt`]).
        is_retention_asked (`bool`, *optional*, defaults to `False`):
            Whether the questions of [`Domain.retention_example`] are asked, too, where the domain has them.
        unlabelled (`Mapping[str, Mapping]`, *optional*, defaults to none):
            Examples whose questions are asked, too, by the reward that each is for.
    """

    adapter: Adapter | Callable[[Mapping], list[Adapter | None]] | None
    example: Mapping
    prompts: Sequence[Prompt]
    recites: bool = True
    is_retention_asked: bool = False
    unlabelled: Mapping[str, Mapping] = field(default_factory=dict)

    def adapters_for(self, example: Mapping, num_prompts: int) -> list[Adapter | None]:
        """Who answers each of so many prompts about an example."""
        if self.adapter is None or isinstance(self.adapter, Adapter):
            return [self.adapter] * num_prompts
        return self.adapter(example)


@dataclass(frozen=True)
class Graded:
    """
    Answers to an example's questions and what they are worth.

    Parameters:
        answers (`list[str]`):
            An answer to each question.
        verdicts (`list[bool | None]`):
            The domain's verdicts on them.
        reward (`float`, *optional*):
            Share of the verdicts that are right, among those that are not `None`; `None` when all are.
        recitation, retention, unlabelled (`dict`, *optional*):
            As in [`TrialResult`].
    """

    answers: list[str]
    verdicts: list[bool | None]
    reward: float | None
    recitation: dict | None = None
    retention: dict | None = None
    unlabelled: dict[str, dict] | None = None


@dataclass
class _Group:
    """Prompts about an example that one who is asked answers; `times` each answer is taken."""

    place: int
    example: Mapping
    prompts: Sequence[Prompt]
    times: int = 1


def ask_and_grade(
    lm: SelfAdaptingLM,
    asked: Sequence[Asked],
    max_answer_length: int,
    *,
    require_all: bool = False,
    stop: threading.Event | None = None,
) -> list[Graded]:
    """
    Ask about examples and grade the answers, in common batches. A recitation is graded as the answer to every question,
    and what is asked for retention as the example that it is.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain.
        asked (`Sequence[Asked]`):
            Who is asked what.
        max_answer_length (`int`):
            Longest answer, in tokens, of an example of which the domain does not know it (see [`Domain.max_answer_length`]).
        require_all (`bool`, *optional*, defaults to `False`):
            Whether an answer that could not be graded is an error.
        stop (`threading.Event`, *optional*):
            Once set, what has been written so far is graded.

    Returns:
        `list[Graded]`: one for each in `asked`.

    Raises:
        GradingIncomplete: An answer could not be graded, and `require_all` is set.
        ValueError: The domain does not return verdicts for every example.
    """
    domain = lm.domain
    own, told, kept, unlabelled = _groups(domain, asked)
    groups = [*own, *told, *kept, *unlabelled]
    answers = lm.answer_groups(
        [group.prompts for group in groups],
        [asked[group.place].adapters_for(group.example, len(group.prompts)) for group in groups],
        max_answer_length=[domain.max_answer_length(group.example) or max_answer_length for group in groups],
        stop=stop,
    )
    answers = [texts * group.times for group, texts in zip(groups, answers, strict=True)]
    verdicts = _verdicts(domain, [group.example for group in groups], answers, require_all)
    graded = iter(zip(answers, verdicts, strict=True))
    results = {place: Graded([], [], None) for place in range(len(asked))}
    for group in own:
        texts, right = next(graded)
        results[group.place] = Graded(texts, right, _share(right))
    extra: dict[int, dict[str, Any]] = defaultdict(dict)
    for group in told:
        texts, right = next(graded)
        extra[group.place]["recitation"] = {"answer": texts[0], "verdicts": right}
    for group in kept:
        texts, right = next(graded)
        extra[group.place]["retention"] = {"answers": texts, "verdicts": right}
    names = [name for one in asked for name in one.unlabelled]
    for name, group in zip(names, unlabelled, strict=True):
        texts, right = next(graded)
        extra[group.place].setdefault("unlabelled", {})[name] = {"answers": texts, "verdicts": right}
    return [replace(result, **extra[place]) for place, result in results.items()]


def num_prompts(domain: Domain, asked: Asked) -> int:
    """How many prompts [`ask_and_grade`] has answered for this."""
    return sum(len(group.prompts) for groups in _groups(domain, [asked]) for group in groups)


def _groups(domain: Domain, asked: Sequence[Asked]) -> tuple[list[_Group], ...]:
    """What is asked: questions, for a recitation, for retention, and for rewards without labels."""
    own = [_Group(place, one.example, one.prompts) for place, one in enumerate(asked) if one.prompts]
    prompts = {place: domain.recitation_prompt(one.example) for place, one in enumerate(asked) if one.recites}
    told = [
        _Group(place, asked[place].example, [prompt], len(asked[place].prompts))
        for place, prompt in prompts.items()
        if prompt is not None and asked[place].prompts
    ]
    general = domain.retention_example() if any(one.is_retention_asked for one in asked) else None
    general_prompts = [] if general is None else domain.questions(general)
    kept = [
        _Group(place, general, general_prompts)
        for place, one in enumerate(asked)
        if one.is_retention_asked and general
    ]
    unlabelled = [
        _Group(place, example, domain.questions(example))
        for place, one in enumerate(asked)
        for example in one.unlabelled.values()
    ]
    return own, told, kept, unlabelled


def _share(verdicts: Iterable[bool | None]) -> float | None:
    """The share of verdicts that are right, of those that are not `None`."""
    return mean([one for one in verdicts if one is not None])


def divergences_from_base(
    lm: SelfAdaptingLM, asked: Sequence[Asked], answers: Sequence[Sequence[str]], base: nn.Module | None = None
) -> list[float | None]:
    """
    How far those who answered are from the base: KL(base || adapted) at the tokens of their answers, the mean over tokens (see
    [`SelfAdaptingLM.divergences_from_base`]).

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        asked (`Sequence[Asked]`):
            Who was asked what.
        answers (`Sequence[Sequence[str]]`):
            What each of them answered.
        base (`PreTrainedModel`, *optional*):
            The base, where all weights of the model are trained.

    Returns:
        `list[float | None]`: in nats per token; `None` where nothing is adapted, and where it is not finite.
    """
    places = [place for place, one in enumerate(asked) if base is not None or one.adapter is not None]
    adapters = [asked[place].adapters_for(asked[place].example, len(answers[place])) for place in places]
    found = iter(
        lm.divergences_from_base(
            [prompt for place in places for prompt in asked[place].prompts],
            [answer for place in places for answer in answers[place]],
            [adapter for own in adapters for adapter in own],
            base,
        )
    )
    values: list[float | None] = [None] * len(asked)
    for place in places:
        own = [next(found) for _ in answers[place]]
        value = sum(one.nats for one in own) / sum(one.num_tokens for one in own)
        values[place] = value if math.isfinite(value) else None
    return values


def _verdicts(
    domain: Domain, examples: Sequence[Mapping], answers: Sequence[list[str]], require_all: bool
) -> list[list[bool | None]]:
    """A domain's verdicts on the answers to many examples; with `require_all` a verdict of `None` is an error."""
    verdicts = domain.grade(examples, answers)
    if len(verdicts) != len(examples) or not all(isinstance(own, Sequence) and own for own in verdicts):
        raise ValueError(
            f"{type(domain).__name__}.grade() must return a list for each of the {len(examples)} examples, with at least one "
            "verdict in each."
        )
    return [require_verdicts(own) for own in verdicts] if require_all else verdicts


def scored_self_edits(
    stage: Stage,
    proposals: Sequence[Proposal],
    results: Iterable[TrialResult],
    rubric: Mapping[tuple[int, int], Mapping[str, float] | None] | None = None,
) -> list[ScoredSelfEdit]:
    """
    A stage's records, from the results of all its trials.

    The reward of a self-edit is the mean over its repeats of the weighted sum of the stage's rewards, 0 where it is malformed,
    and `None` where a reward with a weight is not known of any repeat.

    Args:
        stage ([`Stage`]):
            The stage.
        proposals (`Sequence[Proposal]`):
            Its self-edits.
        results (`Iterable[TrialResult]`):
            What their adapters answered.
        rubric (`Mapping[tuple[int, int], Mapping[str, float] | None]`, *optional*):
            The scores by the rubric, by example and self-edit.
    """
    by_edit = defaultdict(list)
    for result in results:
        by_edit[result.condition, result.example, result.edit].append(result)
    scored = []
    for proposal in (*proposals, *stage.untrained_proposals()):
        edit = proposal.edit if proposal.same_as is None else proposal.same_as
        own = by_edit[proposal.condition, proposal.example, edit]
        repeats = sorted(own, key=lambda result: result.repeat)
        base = by_edit.get((BASE, proposal.example, 0))
        scores = (rubric or {}).get((proposal.example, proposal.edit))
        # Without repeats there is the rubric alone.
        by_repeat = [_rewards_of(stage, result, scores) for result in repeats or [None]]
        totals = [stage.rewards.total(values) for values in by_repeat]
        rewards = {name: _share(values[name] for values in by_repeat) for name in stage.rewards.names}
        if not proposal.well_formed:
            rewards = dict.fromkeys(rewards, 0.0)
        scored.append(
            ScoredSelfEdit(
                **{name: value for name, value in vars(proposal).items() if name not in _OF_PROPOSALS},
                repeats=[
                    _record_of(stage, result, values, total)
                    for result, values, total in zip(repeats, by_repeat, totals, strict=False)
                ],
                reward=_share(totals) if proposal.well_formed else 0.0,
                base_reward=base[0].reward if base else None,
                tokens=sum(result.tokens for result in repeats),
                seconds=sum(result.seconds for result in repeats),
                rewards=None if stage.rewards.is_default else rewards,
                rubric=None if scores is None else dict(scores),
            )
        )
    return scored


def _rewards_of(
    stage: Stage, result: TrialResult | None, scores: Mapping[str, float] | None
) -> dict[str, float | None]:
    """The stage's rewards in one repeat by their names; `None` where one is not known."""
    values = {} if scores is None else {RUBRIC: rubric_reward(scores)}
    if result is not None:
        values[ACCURACY] = result.reward
        values |= {name: _share(said["verdicts"]) for name, said in (result.unlabelled or {}).items()}
    return {name: values.get(name) for name in stage.rewards.names}


def _record_of(
    stage: Stage, result: TrialResult, rewards: dict[str, float | None], total: float | None
) -> dict[str, Any]:
    """What is recorded of a repeat."""
    names = ["seed", "reward", "answers", "verdicts", "loss"]
    names += ["recited", "recitation", "short", "retention", "kl"] if stage.is_evaluation else []
    record = {name: getattr(result, name) for name in names} | {"reward": total}
    if stage.rewards.is_default:
        return record
    return record | {"rewards": rewards, "unlabelled": result.unlabelled}


def mean(values: Sequence[float]) -> float | None:
    """The mean of values; `None` where there are none."""
    return sum(values) / len(values) if values else None
