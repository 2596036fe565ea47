"""What a run's records say: metrics of a round, accuracy per evaluation, a table and sample tables."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..domains.base import BASE, SELF_EDITS
from ..grading.intervals import Accuracy, Difference, accuracy, paired_difference
from .files import write_bytes
from .journal import Journal, ScoredSelfEdit, SelectedSelfEdit, rank, rounded


_SAMPLE_SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("example_id", pa.string()),
        ("edit", pa.int64()),
        ("prompt", pa.string()),
        ("self_edit", pa.string()),
        ("well_formed", pa.bool_()),
        ("reward", pa.float64()),
        ("base_reward", pa.float64()),
        ("gain", pa.float64()),
        ("kept", pa.bool_()),
        ("tokens", pa.int64()),
        ("answers", pa.list_(pa.string())),
        ("verdicts", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True)
class Evaluation:
    """
    One evaluation of the policy.

    Parameters:
        round (`int`):
            Outer rounds that the policy has been trained for.
        accuracies (`dict[str, Accuracy]`):
            The accuracy of each condition that this round measured.
        gains (`dict[str, Difference]`):
            The self-edits minus each baseline of round 0, and minus the self-edits of round 0 and of the round before
            (as `"self-edits, round 0"`), paired by passage.
        reference (`str`):
            The baseline that matters most: the last that trains an adapter without a self-edit, else the base model.
    """

    round: int
    accuracies: dict[str, Accuracy]
    gains: dict[str, Difference]
    reference: str


def evaluations(journal: Journal) -> list[Evaluation]:
    """
    Accuracies and gains of all evaluations on disk.

    A passage's share of right answers is the mean over its self-edits and their repeats, so it is what one self-edit
    gives on average. A malformed self-edit counts as answered by the base model of round 0: nothing was learned.

    Args:
        journal ([`Journal`]):
            The evaluations' journal, `Journal(output_dir / "evaluation")`.

    Returns:
        `list[Evaluation]`: from round 0 on, up to the first that is not scored.
    """
    rounds = journal.scored_rounds()
    if not rounds:
        return []
    base = {edit.example: edit.repeats[0]["verdicts"] for edit in rounds[0] if edit.condition == BASE}
    shares = [_shares(scored, base) for scored in rounds]
    untrained, trained = _baselines(rounds[0])
    baselines = (*untrained, *trained)
    results = []
    for number, measured in enumerate(shares):
        references = {name: shares[0][name] for name in baselines}
        for earlier in sorted({0, number - 1}) if number else ():
            references[f"{SELF_EDITS}, round {earlier}"] = shares[earlier][SELF_EDITS]
        results.append(
            Evaluation(
                round=number,
                accuracies={name: accuracy(measured[name]) for name in (*baselines, SELF_EDITS) if name in measured},
                gains={name: paired_difference(other, measured[SELF_EDITS]) for name, other in references.items()},
                reference=trained[-1] if trained else BASE,
            )
        )
    return results


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """
    An evaluation as flat numbers to log: `base_accuracy`, `self_edits_accuracy`, `gain_over_passage_only`,
    `gain_over_round_0` and so on, each with its `_low` and `_high`, and the counts.
    """
    estimates = {f"{_slug(name)}_accuracy": value for name, value in evaluation.accuracies.items()}
    for name, value in evaluation.gains.items():
        estimates[f"gain_over_{_slug(name.removeprefix(f'{SELF_EDITS}, '))}"] = value
    flat: dict[str, float] = {}
    for name, estimate in estimates.items():
        flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
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
        `dict[str, float]`: without the names that there is no value for. `reward/best` is the mean over examples of the
            reward of the self-edit that [`rank`] puts first.
    """
    kept = _kept(selected)
    graded = list(_graded(scored).values())
    rewards = [[edit.reward for edit in own] for own in graded]
    losses = [repeat["loss"] for edit in scored for repeat in edit.repeats]
    values = {
        "reward": [reward for own in rewards for reward in own],
        "reward_std": [pstdev(own) for own in rewards],
        "frac_reward_zero_std": [len(set(map(rounded, own))) == 1 for own in rewards],
        "reward/best": [min(own, key=rank).reward for own in graded],
        "completions/mean_length": [edit.completion_tokens for edit in scored],
        "completions/clipped_ratio": [not edit.finished for edit in scored if edit.finished is not None],
        "self_edits/valid_ratio": [edit.well_formed for edit in scored],
        "self_edits/kept_ratio": [_key(edit) in kept for edit in scored],
        "inner/loss": [loss for loss in losses if loss is not None and math.isfinite(loss)],
        "inner/gain": [gain for gain in map(_gain, scored) if gain is not None],
    }
    result = {name: fmean(numbers) for name, numbers in values.items() if numbers}
    if scored:
        lengths = values["completions/mean_length"]
        result |= {"completions/min_length": min(lengths), "completions/max_length": max(lengths)}
    if seconds := sum(edit.seconds for edit in scored):
        result["inner/tokens_per_second"] = sum(edit.tokens for edit in scored) / seconds
    return result | {"num_examples": len({edit.example for edit in scored})}


def results_table(output_dir: str | Path) -> str:
    """The results of a run, as Markdown: a table of its training rounds and one of its evaluations."""
    journal = Journal(output_dir)
    rows = []
    for index, scored in enumerate(journal.scored_rounds()):
        selected = journal.selected(index)
        values = round_metrics(scored, selected or ())
        kept = _kept(selected or ())
        rows.append(
            [
                str(index + 1),
                str(len(scored)),
                str(sum(edit.well_formed for edit in scored)),
                "–" if selected is None else str(sum(_key(edit) in kept for edit in scored)),
                percent(values.get("reward")),
                percent(values.get("reward/best")),
                percent(base_reward(scored)),
            ]
        )
    parts = []
    if rows:
        header = ["round", "self-edits", "well-formed", "kept", "mean reward", "best-of-k reward", "base reward"]
        parts.append(_markdown(header, rows))
    if results := evaluations(Journal(Path(output_dir) / "evaluation")):
        parts += _evaluation_table(results)
    return "\n\n".join(parts or ["No round is scored yet."]) + "\n"


def save_samples(output_dir: str | Path, round_index: int) -> Path:
    """
    Write a training round's self-edits as a table, `self_edits/round_000.parquet`, one a row. `answers` and `verdicts`
    are those of the first repeat; `kept` is empty while the selection is not on disk.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
        ValueError: The round is not scored yet.
    """
    journal = Journal(output_dir)
    scored, selected = journal.scored(round_index), journal.selected(round_index)
    if scored is None:
        raise ValueError(f"round_index={round_index} is not scored in {output_dir}; give a round that is.")
    rows = []
    for edit, kept in zip(scored, kept_flags(scored, selected), strict=True):
        first = edit.repeats[0] if edit.repeats else {}
        text = edit.prompt if isinstance(edit.prompt, str) else json.dumps(edit.prompt, ensure_ascii=False)
        row = vars(edit) | {"prompt": text, "self_edit": edit.completion, "gain": _gain(edit)}
        rows.append(row | {"kept": kept, "answers": first.get("answers"), "verdicts": first.get("verdicts")})
    table = pa.Table.from_pylist(rows, schema=_SAMPLE_SCHEMA)
    file = io.BytesIO()
    parquet.write_table(table, file)
    path = Path(output_dir) / "self_edits" / f"round_{round_index:03d}.parquet"
    write_bytes(path, file.getvalue())
    return path


def _shares(scored: Iterable[ScoredSelfEdit], base: Mapping[int, Sequence[bool]]) -> dict[str, list[list[float]]]:
    """For each condition the share of right answers, per passage and question."""
    runs = defaultdict(lambda: defaultdict(list))
    for edit in scored:
        verdicts = [repeat["verdicts"] for repeat in edit.repeats] or [base[edit.example]]
        runs[edit.condition][edit.example].append(np.mean(verdicts, axis=0))  # (Q,)
    return {name: [np.mean(own[place], axis=0).tolist() for place in sorted(own)] for name, own in runs.items()}


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


def _gain(edit: ScoredSelfEdit) -> float | None:
    return None if edit.reward is None or edit.base_reward is None else edit.reward - edit.base_reward


def _key(edit: ScoredSelfEdit | SelectedSelfEdit) -> tuple:
    return edit.example_id, edit.edit


def _kept(selected: Iterable[SelectedSelfEdit]) -> set[tuple]:
    return set(map(_key, selected))


def kept_flags(scored: Iterable[ScoredSelfEdit], selected: Iterable[SelectedSelfEdit] | None) -> list[bool | None]:
    """Whether each of a round's self-edits was selected; `None` while the selection is not on disk."""
    kept = None if selected is None else _kept(selected)
    return [None if kept is None else _key(edit) in kept for edit in scored]


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_").replace("-", "_")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up as plain text too; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    sides = "<" + ">" * (len(widths) - 1)
    lines = [
        " | ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True))
        for cells in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _evaluation_table(results: Sequence[Evaluation]) -> list[str]:
    start = results[0]
    columns = {start.reference: f"minus {start.reference}"}
    if len(results) > 1:
        columns[f"{SELF_EDITS}, round 0"] = "minus before round 1"
    blank = [""] * len(columns)
    rows = [[name, str(value), *blank] for name, value in start.accuracies.items() if name != SELF_EDITS]
    for one in results:
        when = f" after round {one.round}" if one.round else " before round 1" if len(results) > 1 else ""
        gains = [str(one.gains[name]) if name in one.gains else "" for name in columns]
        rows.append([f"{SELF_EDITS}{when}", str(one.accuracies[SELF_EDITS]), *gains])
    size = start.accuracies[SELF_EDITS]
    note = (
        f"Evaluation on {size.num_passages} passages with {size.num_questions} questions: mean over passages of the "
        "share of right answers, with 95 % intervals over passages; differences are paired by passage."
    )
    return [note, _markdown(["condition", "accuracy", *columns.values()], rows)]
