"""A run's results as Markdown tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..domains.base import SELF_EDITS
from ..grading.intervals import Estimate
from ..grading.statements import num_words
from .journal import Journal
from .report import Evaluation, evaluations, of_every_policy, percent
from .round_metrics import base_reward, best_of_k, kept_flags, mean_reward, reward_names, round_metrics
from .schema import ScoredSelfEdit


# Words of an example from which on it is long, and told apart in the results.
LONG_WORDS = 200


def results_table(output_dir: str | Path, texts: Sequence[str] | None = None) -> str:
    """
    The results of a run, as Markdown: a table of its training rounds, and of its evaluations one of the conditions and one of
    the differences.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.
        texts (`Sequence[str]`, *optional*):
            What each example of the evaluation holds to learn (see [`Domain.content`]). Where some have more than
            [`LONG_WORDS`] words and others have not, the tables of both follow.
    """
    parts = []
    if rounds := Journal(output_dir).scored_rounds():
        parts += _training_table(output_dir, rounds)
    journal = Journal(Path(output_dir) / "evaluation")
    if results := evaluations(journal):
        parts += [*_notes(results), *_evaluation_tables(results)]
        long = {place for place, text in enumerate(texts or ()) if num_words(text) > LONG_WORDS}
        short = set(range(len(texts or ()))) - long
        for name, places in (("at most", short), ("more than", long)) if short and long else ():
            parts.append(f"Passages of {name} {LONG_WORDS} words, {len(places)}:")
            parts += _evaluation_tables(evaluations(journal, places))
    return "\n\n".join(parts or ["No round is scored yet."]) + "\n"


def _training_table(output_dir: str | Path, rounds: Sequence[Sequence[ScoredSelfEdit]]) -> list[str]:
    journal, rows, seen = Journal(output_dir), [], set()
    names = list(dict.fromkeys(name for scored in rounds for name in reward_names(scored)))
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
                *(percent(round_metrics(scored, ()).get(f"rewards/{name}/mean")) for name in names),
            ]
        )
    note = (
        "Training: rewards on the passages that each round trains on, means over these passages with 95 % intervals. The best "
        "of k is scored by repeats that did not choose it, so it needs two of them."
    )
    if names:
        note += " The reward is a weighted sum; the last columns are the means of its parts over the self-edits."
    header = ["round", "passages", "self-edits", "well-formed", "kept", "mean reward", "best of k", "base reward"]
    header += [name.replace("_", " ") for name in names]
    return [note, markdown(header, rows)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up as plain text too; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    sides = "<" + ">" * (len(widths) - 1)
    lines = [
        " | ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True))
        for cells in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _evaluation_tables(results: Sequence[Evaluation]) -> list[str]:
    """A table of the conditions and one of the differences between them."""
    labels = _labels(results)
    rows = []
    for one in results:
        for name, value in one.accuracies.items():
            coverage = one.self_edit_metrics.get("coverage") if name == SELF_EDITS else None
            rows.append(
                {
                    "condition": labels[one.round, name],
                    "accuracy": str(value),
                    "per question": percent(value.per_question),
                    "strict": _shown(one.strict_accuracies.get(name)),
                    "recited": _share(one.recited.get(name)),
                    "retained": _share(one.retention.get(name)),
                    "KL": _number(one.kl.get(name), 3),
                    "coverage": percent(coverage),
                    "tokens": _number(one.tokens.get(name), 0),
                    "seconds": _number(one.seconds.get(name) or None, 1),
                    "tokens written": _number(one.written_tokens.get(name), 0),
                    "seconds to write": _number(one.writing_seconds.get(name), 1),
                }
            )
            if recitation := one.recitations.get(name):
                label = f"recitation, {labels[one.round, name]}"
                told = {
                    "condition": label,
                    "accuracy": str(recitation),
                    "per question": percent(recitation.per_question),
                }
                rows.append(dict.fromkeys(rows[-1], "") | told)
    differences = []
    for one in results:
        for name, gain in one.gains.items():
            if name in (results[0].reference, f"{SELF_EDITS}, round 0", *one.compared):
                other = labels.get((one.round, name)) or labels.get((0, name), labels[0, SELF_EDITS])
                label = f"{labels[one.round, SELF_EDITS]} minus {other}"
                strict = _shown(one.strict_gains.get(name))
                differences.append({"difference": label, "accuracy": str(gain), "strict": strict})
    start = results[0]
    for name in start.compared:
        gain = start.differences[name, start.reference]
        differences.append({"difference": f"{name} minus {start.reference}", "accuracy": str(gain), "strict": "–"})
    return [_known_columns(rows), _known_columns(differences)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _labels(results: Sequence[Evaluation]) -> dict[tuple[int, str], str]:
    """What a condition is called in each round in which it was measured."""
    measured_again = of_every_policy(results) if len(results) > 1 else ()
    when = {one.round: f" after round {one.round}" if one.round else " before round 1" for one in results}
    return {
        (one.round, name): f"{name}{when[one.round] if name in measured_again else ''}"
        for one in results
        for name in one.accuracies
    }


def _known_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """A table without the columns in which nothing is known, as of what a domain does not tell or a run did not record."""
    names = [name for name in rows[0] if any(row[name] not in ("", "–") for row in rows)]
    return markdown(names, [[row[name] for name in names] for row in rows])


def _shown(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)


def _share(estimate: Estimate | None) -> str:
    return percent(estimate and estimate.value)


def _notes(results: Sequence[Evaluation]) -> list[str]:
    """What the columns and rows of an evaluation's tables mean."""
    start = results[0]
    size = start.accuracies[SELF_EDITS]
    notes = [
        f"Evaluation on {size.num_passages} passages with {size.num_questions} questions. Accuracy: the mean over passages of "
        "the share of right answers, with 95 % intervals over passages; differences are of it, paired by passage. Per "
        "question: the mean over all questions. A malformed self-edit counts in every column and row as what the base model "
        "answered."
    ]
    if len(results) > 1:
        measured_again = of_every_policy(results)
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
    writes = any(one.written_tokens for one in results)
    others = [
        (
            any(one.strict_accuracies for one in results),
            "Strict: an answer is right and has at most 12 words, or three times the gold answer's where that is more.",
        ),
        (
            any(one.retention for one in results),
            "Retained: right answers to general questions, which learning should leave as they are.",
        ),
        (
            any(one.kl for one in results),
            "KL: the divergence of the adapted model from the base at the answers that it gave, in nats per token; what is forgotten "
            "grows with it.",
        ),
        (
            any("coverage" in one.self_edit_metrics for one in results),
            "Coverage: the share of a passage's names and numbers that a self-edit's questions ask for.",
        ),
        (
            any(one.tokens for one in results),
            f"Tokens and seconds of training are means per adapter{', those of writing per self-edit' if writes else ''}.",
        ),
    ]
    if told := [text for is_told, text in others if is_told]:
        notes.append(" ".join(told))
    return notes
