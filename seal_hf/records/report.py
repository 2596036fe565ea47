"""What a run's records say: metrics of a round, and accuracy per evaluation."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from statistics import fmean, pstdev

import numpy as np

from ..domains.base import BASE, SELF_EDITS
from ..grading.choosing import scored_apart
from ..grading.diversity import distinct_ngrams
from ..grading.intervals import Accuracy, Difference, accuracy, paired_difference
from .files import RUN_FILE
from .journal import Journal, ScoredSelfEdit, SelectedSelfEdit, rank, rounded


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


def round_metrics(scored: Sequence[ScoredSelfEdit], selected: Sequence[SelectedSelfEdit]) -> dict[str, float]:
    """
    A training round as flat numbers to log, under the names that TRL's GRPO gives them.

    Args:
        scored (`Sequence[ScoredSelfEdit]`):
            The round's self-edits.
        selected (`Sequence[SelectedSelfEdit]`):
            The self-edits of the round that are kept.

    Returns:
        `dict[str, float]`: without the names that there is no value for. `reward/best` is what choosing is worth (see
            [`best_of_k`]). What is told of the self-edits is there as `self_edits/coverage` and so on, how much those about one
            example differ as `self_edits/distinct_1` and so on (see [`diversity`]), and each reward, where the labelled one is
            not the only one, as `rewards/rubric/mean` and so on.
    """
    rewards = [[edit.reward for edit in own] for own in _graded(scored).values()]
    best = best_of_k(scored)
    losses = [repeat["loss"] for edit in scored for repeat in edit.repeats]
    values = {
        "reward": [reward for own in rewards for reward in own],
        "reward_std": [pstdev(own) for own in rewards],
        "frac_reward_zero_std": [len(set(map(rounded, own))) == 1 for own in rewards],
        "reward/best": [] if best is None else [best.value],
        "completions/mean_length": [edit.completion_tokens for edit in scored],
        "completions/clipped_ratio": [not edit.finished for edit in scored if edit.finished is not None],
        "self_edits/valid_ratio": [edit.well_formed for edit in scored],
        "self_edits/kept_ratio": kept_flags(scored, selected),
        "inner/loss": [loss for loss in losses if loss is not None and math.isfinite(loss)],
        "inner/gain": [gain for gain in map(gain_of, scored) if gain is not None],
    }
    result = {name: fmean(numbers) for name, numbers in values.items() if numbers}
    if scored:
        lengths = values["completions/mean_length"]
        result |= {"completions/min_length": min(lengths), "completions/max_length": max(lengths)}
    if seconds := sum(edit.seconds for edit in scored):
        result["inner/tokens_per_second"] = sum(edit.tokens for edit in scored) / seconds
    result |= {
        f"self_edits/{name}": value for name, value in (*diversity(scored).items(), *self_edit_metrics(scored).items())
    }
    result |= _each_reward(scored)
    return result | {"num_examples": len({edit.example for edit in scored})}


def _each_reward(scored: Sequence[ScoredSelfEdit]) -> dict[str, float]:
    """Mean and standard deviation of each reward over the self-edits, under TRL's names, and the means of the rubric's scores."""
    result = {}
    for name in reward_names(scored):
        values = [edit.rewards[name] for edit in scored if edit.rewards[name] is not None]
        if values:
            result |= {f"rewards/{name}/mean": fmean(values), f"rewards/{name}/std": pstdev(values)}
    scores = defaultdict(list)
    for edit in scored:
        for criterion, score in (edit.rubric or {}).items():
            scores[criterion].append(score)
    return result | {f"rubric/{criterion}": fmean(own) for criterion, own in scores.items()}


def reward_names(scored: Iterable[ScoredSelfEdit]) -> list[str]:
    """The names of a round's rewards where the labelled one is not the only one; else none."""
    return list(next((edit.rewards for edit in scored if edit.rewards is not None), ()))


def diversity(scored: Iterable[ScoredSelfEdit]) -> dict[str, float]:
    """
    How much the self-edits about one example differ from each other and within themselves: `distinct_1`, `distinct_2` and
    `distinct_3`, the share of distinct n-grams in all n-grams of its well-formed self-edits together (see [`distinct_ngrams`]),
    the mean over the examples. The best of k is the less worth, the more alike they are.
    """
    texts = defaultdict(list)
    for edit in scored:
        if edit.well_formed:
            texts[edit.example].append(edit.completion)
    result = {}
    for n in (1, 2, 3):
        shares = [share for own in texts.values() if (share := distinct_ngrams(own, n)) is not None]
        if shares:
            result[f"distinct_{n}"] = fmean(shares)
    return result


def self_edit_metrics(scored: Iterable[ScoredSelfEdit]) -> dict[str, float]:
    """What is told of self-edits (the `metrics` of [`SelfEdit`]), each the mean over those that it is known of."""
    values = defaultdict(list)
    for edit in scored:
        for name, value in (edit.metrics or {}).items():
            values[name].append(value)
    return {name: fmean(numbers) for name, numbers in values.items()}


def mean_reward(scored: Iterable[ScoredSelfEdit]) -> Accuracy | None:
    """The mean over a round's examples of the mean reward of their self-edits, with its interval over the examples."""
    rewards = [[edit.reward for edit in own] for own in _graded(scored).values()]
    return accuracy(rewards) if rewards else None


def best_of_k(scored: Iterable[ScoredSelfEdit]) -> Accuracy | None:
    """
    The reward of each example's best self-edit, scored by repeats that did not choose it.

    Each repeat in turn scores the self-edit that [`rank`] puts first by the mean of all others (see
    [`seal_hf.grading.choosing`]). An example without a well-formed self-edit earns nothing.

    Returns:
        `Accuracy`: the mean over the examples whose repeats are all graded; `None` where there are none, or not two repeats.
    """
    by_example = _graded(scored).values()
    num_repeats = max((len(edit.repeats) for own in by_example for edit in own), default=0)
    values = []
    for own in by_example if num_repeats > 1 else ():
        # In the order in which equals are chosen.
        edits = sorted((edit for edit in own if edit.well_formed), key=lambda edit: rank(edit)[1:])
        rewards = [[repeat["reward"] for repeat in edit.repeats] for edit in edits]
        if not any(None in one for one in rewards):
            values.append(scored_apart(rewards, rewards) if rewards else [0.0] * num_repeats)
    return accuracy(values) if values else None


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


def _graded(scored: Iterable[ScoredSelfEdit]) -> dict[int, list[ScoredSelfEdit]]:
    """The self-edits of each example that have a reward."""
    by_example = defaultdict(list)
    for edit in scored:
        if edit.reward is not None:
            by_example[edit.example].append(edit)
    return by_example


def base_reward(scored: Iterable[ScoredSelfEdit]) -> float | None:
    known = {edit.example: edit.base_reward for edit in scored if edit.base_reward is not None}
    return fmean(known.values()) if known else None


def gain_of(edit: ScoredSelfEdit) -> float | None:
    """What a self-edit gains over the base model, by the labelled reward."""
    return None if edit.accuracy is None or edit.base_reward is None else edit.accuracy - edit.base_reward


def kept_flags(scored: Iterable[ScoredSelfEdit], selected: Iterable[SelectedSelfEdit] | None) -> list[bool | None]:
    """Whether each of a round's self-edits was selected; `None` while the selection is not on disk."""
    if selected is None:
        return [None for _ in scored]
    kept = {(edit.example_id, edit.edit) for edit in selected}
    return [(edit.example_id, edit.edit) in kept for edit in scored]


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_").replace("-", "_")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
