"""One bank of trials: its adapters are trained together, and asked and graded together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import nn

from ..adapters.adapter import Adapter
from ..domains.base import BASE
from ..records.schema import TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from .rewards import Asked, ask_and_grade, divergences_from_base, mean
from .stage import Stage, Trial


def trained_adapters(
    lm: SelfAdaptingLM,
    stage: Stage,
    trials: Sequence[Trial],
    parents: Sequence[Adapter | None] | None,
    report: Callable[[int], None],
) -> list[Adapter | None]:
    """
    Train the adapters of a bank together.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        stage ([`Stage`]):
            The stage, which has the seeds.
        trials (`Sequence[Trial]`):
            The trials of the bank.
        parents (`Sequence[Adapter | None]`, *optional*):
            For each what its adapter is trained on top of.
        report (`Callable[[int], None]`):
            Called after every step with the tokens that were trained on so far.

    Returns:
        `list[Adapter | None]`: for each trial its adapter; its parent, or none, where it trains nothing.
    """
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
        trained = iter(lm.adapt(updates, seed=seeds, on_step=lambda step: report(step.num_tokens), parents=below))
    return [parent if trial.update is None else next(trained) for trial, parent in zip(trials, parents, strict=True)]


def asked_of(stage: Stage, trials: Sequence[Trial], adapters: Sequence[Adapter | None]) -> list[tuple[Trial, Asked]]:
    """What each trial of a bank is asked about each of its examples, with the trial."""
    return [
        (
            trial,
            # Of the conditions without an adapter the base alone is asked for more, since all would say the same.
            Asked(
                adapter if trial.routes is None else partial(_routed, trial.routes, adapters),
                stage.data.examples[place],
                trial.questions(stage.data.examples[place]),
                recites=stage.is_evaluation
                and (trial.condition == BASE or trial.routes is None and _is_adapted(trial, adapter)),
                is_retention_asked=stage.is_evaluation and _is_asked_for_retention(stage, trial, adapter, place),
                unlabelled=trial.unlabelled,
            ),
        )
        for trial, adapter in zip(trials, adapters, strict=True)
        for place in trial.asked
    ]


def examine(
    lm: SelfAdaptingLM,
    stage: Stage,
    trials: Sequence[Trial],
    adapters: Sequence[Adapter | None],
    trainings: Sequence[Mapping],
    seconds: float,
    max_answer_length: int,
    base: nn.Module | None = None,
) -> list[TrialResult]:
    """
    Ask the adapters of a bank, or a finetuned model, and grade what they answer.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model that is asked.
        stage ([`Stage`]):
            The stage.
        trials (`Sequence[Trial]`):
            The trials of the bank.
        adapters (`Sequence[Adapter | None]`):
            For each its adapter.
        trainings (`Sequence[Mapping]`):
            For each how it was trained, as `training` of an [`Adapter`].
        seconds (`float`):
            How long that took, all together.
        max_answer_length (`int`):
            Longest answer, in tokens.
        base (`PreTrainedModel`, *optional*):
            What an evaluation compares with, where `lm` is a finetuned model. Defaults to the model without an inner adapter.

    Returns:
        `list[TrialResult]`: one for each trial and example that it is asked about.

    Raises:
        GradingIncomplete: An answer could not be graded and `stage.is_evaluation` is set.
    """
    placed = asked_of(stage, trials, adapters)
    asked, examples = [one for _, one in placed], [one.example for _, one in placed]
    graded = ask_and_grade(lm, asked, max_answer_length, require_all=stage.is_evaluation)
    divergences = [None] * len(asked)
    if stage.is_evaluation:
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
                recited=lm.domain.recited(example, own.answers) if stage.is_evaluation else None,
                recitation=own.recitation,
                short=lm.domain.short(example, own.answers) if stage.is_evaluation else None,
                retention=own.retention,
                kl=kl,
                unlabelled=own.unlabelled,
            )
        )
    return results


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
