"""An evaluation with all of its conditions and what they cost: as JSON, as Markdown and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..grading.intervals import Estimate
from .files import RESUME_EVALUATION, SCHEMA_VERSION, remedy_of, write_bytes, write_text
from .journal import Journal
from .plot import COLORS, picture_of
from .report import Evaluation, evaluations
from .tables import results_table


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the picture: the height of a name in inches, and letters of the longest one.
_NAME_HEIGHT, _LONGEST_NAME = 0.18, 32


def save_comparison(output_dir: str | Path) -> list[Path]:
    """
    Write `comparison.json`, `comparison.md` and `comparison.png` of a run's first evaluation.

    The JSON file holds for every condition its accuracies with their intervals and what it cost, and the paired differences of
    all pairs of conditions. The picture shows the accuracies, and beside them accuracy over tokens.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The disk is full, or the folder cannot be written.
        ValueError: Nothing is evaluated yet.
    """
    folder = Path(output_dir)
    results = evaluations(Journal(folder / "evaluation"))
    if not results:
        raise ValueError(f"{output_dir} holds no evaluation; evaluate first.")
    record = {"schema_version": SCHEMA_VERSION, **as_record(results[0])}
    files = [folder / f"comparison.{suffix}" for suffix in ("json", "md", "png")]
    remedy = remedy_of(RESUME_EVALUATION)
    write_text(files[0], json.dumps(record, indent=2, ensure_ascii=False) + "\n", remedy)
    write_text(files[1], results_table(folder), remedy)
    write_bytes(files[2], _picture(results[0]), remedy)
    return files


def as_record(evaluation: Evaluation) -> dict[str, Any]:
    """
    An evaluation as plain values.

    Returns:
        `dict[str, Any]`: `conditions`, for each its `accuracy`, `strict_accuracy`, `recitation`, `recited` and `retention`, each a
            value with the bounds of its 95 % interval and its counts, its `kl`, and its cost in tokens and seconds (see [`Evaluation`]);
            and `differences`, a list of `condition` minus `other`.
    """
    estimates = {
        "accuracy": evaluation.accuracies,
        "strict_accuracy": evaluation.strict_accuracies,
        "recitation": evaluation.recitations,
        "recited": evaluation.recited,
        "retention": evaluation.retention,
    }
    values = {
        "kl": evaluation.kl,
        "trained_tokens": evaluation.tokens,
        "training_seconds": evaluation.seconds,
        "written_tokens": evaluation.written_tokens,
        "writing_seconds": evaluation.writing_seconds,
    }
    conditions = {
        name: {kind: asdict(own[name]) for kind, own in estimates.items() if name in own}
        | {kind: own[name] for kind, own in values.items() if name in own}
        for name in evaluation.accuracies
    }
    differences = [
        {"condition": one, "other": other, **asdict(value)} for (one, other), value in evaluation.differences.items()
    ]
    return {"conditions": conditions, "differences": differences}


def _picture(evaluation: Evaluation) -> bytes:
    shown = dict(sorted(evaluation.accuracies.items(), key=lambda item: item[1].value))

    def draw(figure: "Figure") -> None:
        bars, cost = figure.subplots(1, 2)
        _draw_accuracies(bars, shown)
        _draw_cost(cost, shown, evaluation)

    return picture_of(draw, figsize=(11, 1.5 + 0.35 * max(8, len(shown))), dpi=160)


def _color(name: str) -> str:
    return COLORS.get(name, "#007a59")


def _draw_accuracies(axes: "Axes", shown: dict[str, Estimate]) -> None:
    for row, (name, one) in enumerate(shown.items()):
        axes.plot([one.low, one.high], [row, row], color=_color(name))
        axes.plot(one.value, row, "o", color=_color(name))
    axes.set(
        yticks=range(len(shown)),
        yticklabels=list(shown),
        xlim=(0, 1),
        title=f"Accuracy on {next(iter(shown.values())).num_passages} passages, 95 % intervals",
    )
    axes.xaxis.set_major_formatter(percents)


def _draw_cost(axes: "Axes", shown: dict[str, Estimate], evaluation: Evaluation) -> None:
    # The names stand beside the axes, as the points of many conditions lie close together.
    heights = _spread([one.value for one in shown.values()], _NAME_HEIGHT / axes.figure.get_figheight())
    for (name, one), height in zip(shown.items(), heights, strict=True):
        tokens = evaluation.written_tokens.get(name, 0) + evaluation.tokens.get(name, 0)
        axes.plot([tokens, tokens], [one.low, one.high], color=_color(name), alpha=0.4, clip_on=False)
        axes.plot(tokens, one.value, "o", color=_color(name), clip_on=False)
        axes.annotate(
            name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
            (tokens, one.value),
            xytext=(1.04, height),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": _color(name), "alpha": 0.35, "linewidth": 0.7},
        )
    axes.set(ylim=(0, 1), title="Accuracy over tokens", xlabel="tokens written and trained on, per adapter")
    axes.set_xscale("symlog", linthresh=100)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(percents)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """
    Heights near values in rising order, so far apart that names do not overlap, and as far as that allows at most 1.

    >>> _spread([0.2, 0.25, 0.9, 1.0], 0.2)
    [0.2, 0.4, 0.8, 1.0]
    """
    heights: list[float] = []
    for value in values:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    highest = 1.0
    for place in range(len(heights) - 1, -1, -1):
        heights[place] = min(heights[place], highest)
        highest = heights[place] - gap
    return [round(height, 6) for height in heights]


def percents(share: float, _: int) -> str:
    return f"{100 * share:.0f} %"
