"""What a reward is: the share of right answers, of one adapter and over all repeats of a self-edit."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..adapters.adapter import Adapter
from ..domains.base import BASE, Domain
from ..grading import require_verdicts
from ..records.journal import Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from .stage import Stage, Trial


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
    """

    answers: list[str]
    verdicts: list[bool | None]
    reward: float | None


def ask_and_grade(
    lm: SelfAdaptingLM, stage: Stage, asked: Sequence[tuple[Trial, Adapter | None, int]], max_answer_length: int
) -> tuple[list[Graded], dict[int, dict]]:
    """
    Ask adapters about their examples and grade the answers.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain.
        stage ([`Stage`]):
            The stage of the trials.
        asked (`Sequence[tuple[Trial, Adapter | None, int]]`):
            Each adapter, or `None` for the model alone, with its trial and the place of the example that it is asked about.
        max_answer_length (`int`):
            Longest answer, in tokens.

    Returns:
        `tuple[list[Graded], dict[int, dict]]`: the graded answers, and by place in `asked` the recitation of each trained
        adapter of an evaluation (see [`TrialResult`]), where the domain has a prompt for one.

    Raises:
        GradingIncomplete: An answer could not be graded, and `stage.is_evaluation` is set.
        ValueError: The domain does not return verdicts for every example.
    """
    examples = [stage.data.examples[place] for *_, place in asked]
    prompts = [trial.questions(example) for (trial, *_), example in zip(asked, examples, strict=True)]
    reciting = {
        index: prompt
        for index, (trial, *_) in enumerate(asked)
        if stage.is_evaluation
        and trial.update is not None
        and (prompt := lm.domain.recitation_prompt(examples[index])) is not None
    }
    texts = lm.answer_groups(
        [*prompts, *([prompt] for prompt in reciting.values())],
        [asked[index][1] for index in (*range(len(asked)), *reciting)],
        max_answer_length=max_answer_length,
    )
    answers, recitations = texts[: len(asked)], [text for (text,) in texts[len(asked) :]]
    graded = _grade_answers(
        lm.domain,
        [examples[index] for index in (*range(len(asked)), *reciting)],
        answers + [[text] * len(answers[index]) for index, text in zip(reciting, recitations, strict=True)],
        require_all=stage.is_evaluation,
    )
    return graded[: len(asked)], {
        index: {"answer": text, "verdicts": own.verdicts}
        for index, text, own in zip(reciting, recitations, graded[len(asked) :], strict=True)
    }


def _grade_answers(
    domain: Domain, examples: Sequence[Mapping], answers: Sequence[list[str]], require_all: bool
) -> list[Graded]:
    """Let a domain judge the answers to many examples; with `require_all` a verdict of `None` is an error."""
    verdicts = domain.grade(examples, answers)
    if len(verdicts) != len(examples) or not all(isinstance(own, Sequence) and own for own in verdicts):
        raise ValueError(
            f"{type(domain).__name__}.grade() must return a list for each of the {len(examples)} examples, with at least one "
            "verdict in each."
        )
    if require_all:
        verdicts = [require_verdicts(own) for own in verdicts]
    return [
        Graded(own_answers, own, mean([verdict for verdict in own if verdict is not None]))
        for own_answers, own in zip(answers, verdicts, strict=True)
    ]


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
    names += ["recited", "recitation"] if stage.is_evaluation else []
    scored = []
    for proposal in (*proposals, *stage.untrained_proposals()):
        own = by_edit[proposal.condition, proposal.example, proposal.edit]
        repeats = sorted(own, key=lambda result: result.repeat)
        base = by_edit.get((BASE, proposal.example, 0))
        rewards = [result.reward for result in repeats if result.reward is not None]
        scored.append(
            ScoredSelfEdit(
                **{name: value for name, value in vars(proposal).items() if name not in ("tokens", "banks")},
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
