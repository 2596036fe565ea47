"""A run's results as Markdown tables."""

from collections.abc import Sequence
from pathlib import Path

from ..domains.base import SELF_EDITS
from .journal import Journal, ScoredSelfEdit
from .report import Evaluation, base_reward, best_of_k, evaluations, kept_flags, mean_reward, of_every_policy, percent


def results_table(output_dir: str | Path) -> str:
    """The results of a run, as Markdown: a table of its training rounds and one of its evaluations."""
    parts = []
    if rounds := Journal(output_dir).scored_rounds():
        parts += _training_table(output_dir, rounds)
    if results := evaluations(Journal(Path(output_dir) / "evaluation")):
        parts += _evaluation_table(results)
    return "\n\n".join(parts or ["No round is scored yet."]) + "\n"


def _training_table(output_dir: str | Path, rounds: Sequence[Sequence[ScoredSelfEdit]]) -> list[str]:
    journal, rows, seen = Journal(output_dir), [], set()
    for index, scored in enumerate(rounds):
        selected = journal.selected(index)
        own = {edit.example_id for edit in scored}
        repeated = len(own & seen)
        seen |= own
        rows.append(
            [
                str(index + 1),
                f"{len(own)}" + (f", {repeated} trained on before" if repeated else ""),
                str(len(scored)),
                str(sum(edit.well_formed for edit in scored)),
                "–" if selected is None else str(sum(kept_flags(scored, selected))),
                *(str(value or "–") for value in (mean_reward(scored), best_of_k(scored))),
                percent(base_reward(scored)),
            ]
        )
    note = (
        "Training: rewards on the passages that each round trains on, means over these passages with 95 % intervals. The best "
        "of k is scored by repeats that did not choose it, so it needs two of them."
    )
    header = ["round", "passages", "self-edits", "well-formed", "kept", "mean reward", "best of k", "base reward"]
    return [note, _markdown(header, rows)]


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
    measured_again = of_every_policy(results)
    is_told = any(one.recited for one in results)
    rows = []
    for one in results:
        when = f" after round {one.round}" if one.round else " before round 1" if len(results) > 1 else ""
        for name, value in one.accuracies.items():
            gains = [str(one.gains.get(column, "")) if name == SELF_EDITS else "" for column in columns]
            label = f"{name}{when if name in measured_again else ''}"
            # Of rounds that an earlier version measured it is not known.
            recited = percent(one.recited[name].value) if name in one.recited else "–"
            rows.append([label, str(value), percent(value.per_question), *[recited] * is_told, *gains])
            if recitation := one.recitations.get(name):
                empty = [""] * (is_told + len(columns))
                rows.append([f"recitation, {label}", str(recitation), percent(recitation.per_question), *empty])
    size = start.accuracies[SELF_EDITS]
    notes = [
        f"Evaluation on {size.num_passages} passages with {size.num_questions} questions. Accuracy: the mean over passages of "
        "the share of right answers, with 95 % intervals over passages; differences are of it, paired by passage. Per "
        "question: the mean over all questions. A malformed self-edit counts in every column and row as what the base model "
        "answered."
    ]
    if len(results) > 1:
        measured_once = ", ".join(name for name in start.accuracies if name not in measured_again)
        notes[0] += (
            f" Measured before round 1 alone, so that gains after later rounds are over these answers too: {measured_once}."
        )
    if any(one.recitations for one in results):
        notes.append(
            'A recitation is what the model says to "Tell me about" the passage\'s topic, graded as the answer to every '
            "question: what it earns is earned without answering. Recited is the share of answers that are given to two or more "
            "questions or copy 12 words of the passage in a row."
        )
    header = ["condition", "accuracy", "per question", *["recited"] * is_told, *columns.values()]
    return [*notes, _markdown(header, rows)]
