"""What the records of evaluations say: accuracies, differences and costs."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from statistics import fmean

import numpy as np

from ..domains.base import BASE, SELF_EDITS
from ..grading.intervals import Accuracy, Difference, accuracy, paired_difference
from .files import RUN_FILE
from .journal import Journal
from .round_metrics import self_edit_metrics
from .schema import ScoredSelfEdit


# Where the conditions are that an evaluation compares with beside those of the domain, each in the folder of a run.
COMPARED_FOLDER = "conditions"


@dataclass(frozen=True)
class Evaluation:
    """
    One evaluation of the policy.

    Parameters:
        round (`int`):
            Outer rounds that the policy has been trained for.
        accuracies (`dict[str, Accuracy]`):
            The accuracy of each condition that this round measured; its `value` is the mean over passages, `per_question`
            that over questions.
        gains (`dict[str, Difference]`):
            Differences of means over passages: the self-edits minus each baseline, and minus the self-edits of round 0 and of
            the round before (as `"self-edits, round 0"`), paired by passage. A baseline that trains an adapter is that of the
            same policy, one that does not that of round 0.
        reference (`str`):
            The baseline that matters most: the last that trains an adapter without a self-edit, else the base model.
        recitations (`dict[str, Accuracy]`):
            For the base model and for conditions that train an adapter, what one text earns that the model gives to "Tell me
            about ..." and that is graded as the answer to every question. Empty where the domain has no such prompt.
        recited (`dict[str, Accuracy]`):
            Share of each condition's answers that recite (see [`Domain.recited`]). Empty where the domain does not tell.
        self_edit_metrics (`dict[str, float]`, *optional*, defaults to an empty dictionary):
            Means of what is told of the self-edits (see [`self_edit_metrics`]).
        strict_accuracies (`dict[str, Accuracy]`, *optional*, defaults to an empty dictionary):
            The same as `accuracies` where an answer has to be right and short (see [`Domain.short`]). Empty where the domain
            does not tell.
        strict_gains (`dict[str, Difference]`, *optional*, defaults to an empty dictionary):
            The same as `gains` of these.
        retention (`dict[str, Accuracy]`, *optional*, defaults to an empty dictionary):
            For the base model and for conditions that train an adapter, the share of right answers to the questions of
            [`Domain.retention_example`]. The base model's count for every passage. Empty where the domain has none.
        kl (`dict[str, float]`, *optional*, defaults to an empty dictionary):
            For each condition that trains, KL(base || adapted) in nats per token at the answers that were given: the mean over
            passages. A malformed self-edit counts as 0, the base model's.
        tokens, seconds (`dict[str, float]`, *optional*, defaults to an empty dictionary):
            For each condition that trains, the tokens that an adapter was trained on and the seconds that this took, its share
            of its bank's time by tokens: means over its adapters.
        written_tokens, writing_seconds (`dict[str, float]`, *optional*, defaults to an empty dictionary):
            For each condition that writes, the tokens of a self-edit, with those that its tool let the model write, and the
            seconds that this took: means over its self-edits, of which many are written at once.
        compared (`tuple[str, ...]`, *optional*, defaults to none):
            The conditions that are no domain's, such as other self-edits (see [`seal_hf.evaluation`]).
        differences (`dict[tuple[str, str], Difference]`, *optional*, defaults to an empty dictionary):
            The first of two conditions minus the second, paired by passage, for every pair that this round measured.
    """

    round: int
    accuracies: dict[str, Accuracy]
    gains: dict[str, Difference]
    reference: str
    recitations: dict[str, Accuracy]
    recited: dict[str, Accuracy]
    self_edit_metrics: dict[str, float] = field(default_factory=dict)
    strict_accuracies: dict[str, Accuracy] = field(default_factory=dict)
    strict_gains: dict[str, Difference] = field(default_factory=dict)
    retention: dict[str, Accuracy] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    written_tokens: dict[str, float] = field(default_factory=dict)
    writing_seconds: dict[str, float] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)


def evaluations(journal: Journal, examples: Collection[int] | None = None) -> list[Evaluation]:
    """
    Accuracies and gains of all evaluations on disk.

    A passage's share of right answers is the mean over its self-edits and their repeats, so it is what one self-edit
    gives on average. A malformed self-edit counts, in accuracies, recitations, recited answers and retention, as the base
    model of round 0: nothing was learned.

    Args:
        journal ([`Journal`]):
            The evaluations' journal, `Journal(output_dir / "evaluation")`.
        examples (`Collection[int]`, *optional*):
            Places of the examples that count. Defaults to all.

    Returns:
        `list[Evaluation]`: from round 0 on, up to the first that is not scored.
    """
    rounds = journal.scored_rounds()
    if not rounds:
        return []
    _spread_retention(rounds[0])
    base = {edit.example: edit.repeats[0] for edit in rounds[0] if edit.condition == BASE}
    own_baselines = _baselines(rounds[0])
    seconds = [{SELF_EDITS: journal.writing_seconds(number)} for number in range(len(rounds))]
    compared = compared_journals(journal)
    for name, other in compared.items():
        rounds[0] = [*rounds[0], *(replace(edit, condition=name) for edit in other.scored(0))]
        seconds[0][name] = other.writing_seconds(0)
    if examples is not None:
        rounds = [[edit for edit in scored if edit.example in examples] for scored in rounds]
    right, strict, recitations, recited, retained = (
        [_shares(scored, base, flags) for scored in rounds]
        for flags in (_right, _right_and_short, _right_by_recitation, _recited, _retained)
    )
    untrained, trained = own_baselines
    baselines = (*untrained, *trained, *compared)
    results = []
    for number, measured in enumerate(right):
        names = [name for name in (*baselines, SELF_EDITS) if name in measured]
        results.append(
            Evaluation(
                round=number,
                accuracies=_accuracies(measured, names),
                gains=_gains(right[: number + 1], baselines),
                reference=trained[-1] if trained else BASE,
                recitations=_accuracies(recitations[number], names),
                recited=_accuracies(recited[number], names),
                self_edit_metrics=self_edit_metrics(edit for edit in rounds[number] if edit.condition == SELF_EDITS),
                strict_accuracies=_accuracies(strict[number], names),
                strict_gains=_gains(strict[: number + 1], baselines),
                retention=_accuracies(retained[number], names),
                kl=_divergences(rounds[number]),
                tokens=_per_adapter(rounds[number], names, "tokens"),
                seconds=_per_adapter(rounds[number], names, "seconds"),
                **_cost_of_writing(rounds[number], seconds[number]),
                compared=tuple(compared) if number == 0 else (),
                differences={
                    (one, other): paired_difference(measured[other], measured[one])
                    for one, other in permutations(names, 2)
                },
            )
        )
    return results


def of_every_policy(results: Sequence[Evaluation]) -> set[str]:
    """The names of the conditions that are measured again with the policy of every round."""
    return {SELF_EDITS, *(name for one in results[1:] for name in one.accuracies)}


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """
    An evaluation as flat numbers to log: `base_accuracy`, `self_edits_accuracy`, `self_edits_strict_accuracy`,
    `self_edits_recitation`, `self_edits_recited`, `self_edits_retention`, `gain_over_passage_only`, `gain_over_round_0`,
    `strict_gain_over_round_0` and so on, which are means over passages, each with its `_low` and `_high`;
    `self_edits_accuracy_per_question` and so on; `self_edits_kl`, the divergence from the base in nats per token;
    `self_edits_tokens`, those that an adapter was trained on; what is told of the self-edits, such as `self_edits_coverage`; and the counts.
    """
    kinds = {
        "accuracy": evaluation.accuracies,
        "strict_accuracy": evaluation.strict_accuracies,
        "recitation": evaluation.recitations,
        "recited": evaluation.recited,
        "retention": evaluation.retention,
    }
    estimates = {f"{_slug(name)}_{kind}": value for kind, own in kinds.items() for name, value in own.items()}
    for kind, gains in (("gain", evaluation.gains), ("strict_gain", evaluation.strict_gains)):
        for name, value in gains.items():
            estimates[f"{kind}_over_{_slug(name.removeprefix(f'{SELF_EDITS}, '))}"] = value
    flat: dict[str, float] = {}
    for name, estimate in estimates.items():
        flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    flat |= {f"{_slug(name)}_accuracy_per_question": one.per_question for name, one in evaluation.accuracies.items()}
    # Not its seconds, so that what is logged is the same for the same seeds.
    flat |= {f"{_slug(name)}_kl": value for name, value in evaluation.kl.items()}
    flat |= {f"{_slug(name)}_tokens": value for name, value in evaluation.tokens.items()}
    flat |= {f"{_slug(SELF_EDITS)}_{name}": value for name, value in evaluation.self_edit_metrics.items()}
    own = evaluation.accuracies[SELF_EDITS]
    return flat | {"num_passages": own.num_passages, "num_questions": own.num_questions}


def _right(repeat: Mapping) -> list[bool]:
    return repeat["verdicts"]


def _right_and_short(repeat: Mapping) -> list[bool] | None:
    short = repeat.get("short")
    return short and [right and is_short for right, is_short in zip(repeat["verdicts"], short, strict=True)]


def _right_by_recitation(repeat: Mapping) -> list[bool] | None:
    return (repeat.get("recitation") or {}).get("verdicts")


def _recited(repeat: Mapping) -> list[bool] | None:
    return repeat.get("recited")


def _retained(repeat: Mapping) -> list[bool] | None:
    return (repeat.get("retention") or {}).get("verdicts")


def _spread_retention(scored: Iterable[ScoredSelfEdit]) -> None:
    """Give the base model's answers that were asked for once, without a topic, to its records of all examples."""
    repeats = [edit.repeats[0] for edit in scored if edit.condition == BASE]
    asked = next((repeat["retention"] for repeat in repeats if repeat.get("retention")), None)
    for repeat in repeats:
        repeat["retention"] = asked


def _shares(
    scored: Iterable[ScoredSelfEdit], base: Mapping[int, Mapping], flags: Callable[[Mapping], list[bool] | None]
) -> dict[str, list[list[float]]]:
    """For each condition the mean of some flags of its answers, per passage and question; of those that have them."""
    runs = defaultdict(lambda: defaultdict(list))
    for edit in scored:
        own = [flags(repeat) for repeat in edit.repeats or [base[edit.example]]]
        if None not in own:
            runs[edit.condition][edit.example].append(np.mean(own, axis=0))  # (Q,)
    return {name: [np.mean(own[place], axis=0).tolist() for place in sorted(own)] for name, own in runs.items()}


def _divergences(scored: Iterable[ScoredSelfEdit]) -> dict[str, float]:
    """For each condition the mean over passages of what is known of its divergence from the base."""
    runs = defaultdict(lambda: defaultdict(list))
    for edit in scored:
        own = [repeat.get("kl") for repeat in edit.repeats] or [0.0]
        if None not in own:
            runs[edit.condition][edit.example].append(fmean(own))
    return {name: fmean(map(fmean, own.values())) for name, own in runs.items() if any(map(any, own.values()))}


def _accuracies(shares: Mapping[str, list[list[float]]], names: Iterable[str]) -> dict[str, Accuracy]:
    return {name: accuracy(shares[name]) for name in names if name in shares}


def _gains(shares: Sequence[Mapping[str, list[list[float]]]], baselines: Iterable[str]) -> dict[str, Difference]:
    """The self-edits of the last of some rounds minus each baseline and earlier self-edits, of what is known of both."""
    own, number = shares[-1].get(SELF_EDITS), len(shares) - 1
    references = {name: shares[-1].get(name, shares[0].get(name)) for name in baselines}
    for earlier in sorted({0, number - 1}) if number else ():
        references[f"{SELF_EDITS}, round {earlier}"] = shares[earlier].get(SELF_EDITS)
    return {name: paired_difference(other, own) for name, other in references.items() if own and other}


def _per_adapter(scored: Iterable[ScoredSelfEdit], names: Iterable[str], field_name: str) -> dict[str, float]:
    """For each condition that trains the mean over its adapters of a field that is a sum over them."""
    values = {}
    for name in names:
        own = [edit for edit in scored if edit.condition == name and edit.tokens]
        if own:
            values[name] = sum(getattr(edit, field_name) for edit in own) / sum(len(edit.repeats) for edit in own)
    return values


def _cost_of_writing(
    scored: Iterable[ScoredSelfEdit], seconds: Mapping[str, float | None]
) -> dict[str, dict[str, float]]:
    """The tokens and seconds that a self-edit of each condition took to be written, of those that are known."""
    tokens, writing = {}, {}
    for name, known in seconds.items():
        own = [edit for edit in scored if edit.condition == name]
        if any(edit.completion_tokens for edit in own):
            tokens[name] = fmean(
                edit.completion_tokens if edit.written_tokens is None else edit.written_tokens for edit in own
            )
            if known is not None:
                writing[name] = known / len(own)
    return {"written_tokens": tokens, "writing_seconds": writing}


def compared_journals(journal: Journal) -> dict[str, Journal]:
    """The journals of the conditions that an evaluation is compared with, by their names, as far as they are scored."""
    found = {}
    for file in sorted((journal.directory.parent / COMPARED_FOLDER).glob(f"*/{RUN_FILE}")):
        own = Journal(file.parent / journal.directory.name)
        if own.scored(0) is not None:
            found[json.loads(file.read_text(encoding="utf-8"))["settings"]["condition"]] = own
    return found


def _baselines(scored: Iterable[ScoredSelfEdit]) -> tuple[list[str], list[str]]:
    """The names of an evaluation's baselines, in the order of the records: those that train nothing, and those that do."""
    is_trained: dict[str, bool] = {}
    for edit in scored:
        if edit.condition != SELF_EDITS:
            is_trained[edit.condition] = is_trained.get(edit.condition, False) or edit.tokens > 0
    return [name for name in is_trained if not is_trained[name]], [name for name in is_trained if is_trained[name]]


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_").replace("-", "_")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
