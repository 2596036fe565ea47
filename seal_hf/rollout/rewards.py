"""What a reward is: the share of right answers, of one adapter and over all repeats of a self-edit."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..adapters.adapter import Adapter
from ..domains.base import BASE, Domain
from ..grading import require_verdicts
from ..records.journal import Proposal, ScoredSelfEdit, TrialResult
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
            A prompt for each of its questions.
        recites (`bool`, *optional*, defaults to `True`):
            Whether a recitation is asked for, too, where the domain has a prompt for one (see
            [`Domain.recitation_prompt`]).
        is_retention_asked (`bool`, *optional*, defaults to `False`):
            Whether the questions of [`Domain.retention_example`] are asked, too, where the domain has them.
    """

    adapter: Adapter | Callable[[Mapping], list[Adapter | None]] | None
    example: Mapping
    prompts: Sequence[Prompt]
    recites: bool = True
    is_retention_asked: bool = False

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
        recitation, retention (`dict`, *optional*):
            As in [`TrialResult`].
    """

    answers: list[str]
    verdicts: list[bool | None]
    reward: float | None
    recitation: dict | None = None
    retention: dict | None = None


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
    own = [(index, one.example, one.prompts) for index, one in enumerate(asked)]
    prompts = {index: domain.recitation_prompt(one.example) for index, one in enumerate(asked) if one.recites}
    told = [(index, asked[index].example, [prompt]) for index, prompt in prompts.items() if prompt is not None]
    general = domain.retention_example() if any(one.is_retention_asked for one in asked) else None
    general_prompts = [] if general is None else domain.questions(general)
    kept = [(index, general, general_prompts) for index, one in enumerate(asked) if one.is_retention_asked and general]
    groups = [*own, *told, *kept]
    answers = lm.answer_groups(
        [prompts for *_, prompts in groups],
        [asked[index].adapters_for(example, len(prompts)) for index, example, prompts in groups],
        max_answer_length=[domain.max_answer_length(example) or max_answer_length for _, example, _ in groups],
        stop=stop,
    )
    for place, (index, *_) in enumerate(told, start=len(own)):
        answers[place] *= len(asked[index].prompts)
    verdicts = _verdicts(domain, [example for _, example, _ in groups], answers, require_all)
    graded = list(zip(answers, verdicts, strict=True))
    recitations = {
        index: {"answer": texts[0], "verdicts": right}
        for (index, *_), (texts, right) in zip(told, graded[len(own) : len(own) + len(told)], strict=True)
    }
    retained = {
        index: {"answers": texts, "verdicts": right}
        for (index, *_), (texts, right) in zip(kept, graded[len(own) + len(told) :], strict=True)
    }
    return [
        Graded(
            answers=texts,
            verdicts=right,
            reward=mean([one for one in right if one is not None]),
            recitation=recitations.get(index),
            retention=retained.get(index),
        )
        for index, (texts, right) in enumerate(graded[: len(own)])
    ]


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
    stage: Stage, proposals: Sequence[Proposal], results: Iterable[TrialResult]
) -> list[ScoredSelfEdit]:
    """
    A stage's records, from the results of all its trials.

    The reward of a self-edit is the mean over its repeats, 0 where it is malformed, and `None` where none of its answers
    could be graded.
    """
    by_edit = defaultdict(list)
    for result in results:
        by_edit[result.condition, result.example, result.edit].append(result)
    names = ["seed", "reward", "answers", "verdicts", "loss"]
    names += ["recited", "recitation", "short", "retention", "kl"] if stage.is_evaluation else []
    scored = []
    for proposal in (*proposals, *stage.untrained_proposals()):
        edit = proposal.edit if proposal.same_as is None else proposal.same_as
        own = by_edit[proposal.condition, proposal.example, edit]
        repeats = sorted(own, key=lambda result: result.repeat)
        base = by_edit.get((BASE, proposal.example, 0))
        rewards = [result.reward for result in repeats if result.reward is not None]
        scored.append(
            ScoredSelfEdit(
                **{name: value for name, value in vars(proposal).items() if name not in _OF_PROPOSALS},
                repeats=[{name: getattr(result, name) for name in names} for result in repeats],
                reward=mean(rewards) if proposal.well_formed else 0.0,
                base_reward=base[0].reward if base else None,
                tokens=sum(result.tokens for result in repeats),
                seconds=sum(result.seconds for result in repeats),
            )
        )
    return scored


def mean(values: Sequence[float]) -> float | None:
    """The mean of values; `None` where there are none."""
    return sum(values) / len(values) if values else None
