"""The picture of a run: rewards in training and accuracy per evaluation."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..domains.base import BASE, SELF_EDITS
from .files import write_bytes
from .journal import Journal
from .report import Evaluation, evaluations, percent
from .round_metrics import base_reward, round_metrics
from .schema import ScoredSelfEdit


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# After Okabe and Ito's palette, which the colour-blind can tell apart; darker where it is text.
COLORS = {BASE: "#555555", SELF_EDITS: "#0072b2", "best": "#a3457f", "recitation": "#8a8a8a", "recited": "#8a8a8a"}
_BASELINE_COLORS = ("#007a59", "#c24e00", "#7a5c00", "#5b4a9e")  # of the other baselines, in their order
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "grid.color": "#e5e5e5",
    "lines.markersize": 5,
}


def condition_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each condition of an evaluation, and for `"recitation"` and `"recited"`: always the same for the same names."""
    return COLORS | dict(zip((name for name in names if name not in COLORS), cycle(_BASELINE_COLORS), strict=False))


def save_plot(output_dir: str | Path) -> Path:
    """
    Draw `rewards.png`: the rewards in training and, where there are evaluations, the accuracy of the self-edits after
    each round beside the baselines. The same records give the same file.

    Returns:
        `Path`: the picture, 1800 by 800 pixels.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The disk is full, or the folder cannot be written.
        ValueError: Nothing is scored yet.
    """
    rounds, results = Journal(output_dir).scored_rounds(), evaluations(Journal(Path(output_dir) / "evaluation"))
    panels = [(draw, what) for draw, what in ((_draw_rewards, rounds), (_draw_accuracies, results)) if what]
    if not panels:
        raise ValueError(f"{output_dir} holds no scored round to draw; train for a round first.")

    def draw_all(figure: "Figure") -> None:
        for axes, (draw, what) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes, what)

    path = Path(output_dir) / "rewards.png"
    write_bytes(path, picture_of(draw_all, figsize=(9, 4), dpi=200))
    return path


def picture_of(
    draw: Callable[["Figure"], None], figsize: tuple[float, float], dpi: int, style: Mapping[str, Any] = STYLE
) -> bytes:
    """
    A PNG file, the same for the same drawing whatever the user's settings of matplotlib.

    Args:
        draw (`Callable[[Figure], None]`):
            Draws on an empty figure.
        figsize (`tuple[float, float]`):
            Width and height in inches.
        dpi (`int`):
            Pixels per inch.
        style (`Mapping[str, Any]`, *optional*):
            Settings of matplotlib in place of its default ones. Defaults to those of all pictures of a run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", dict(style)]):
        figure = Figure(figsize=figsize, dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_rewards(axes: "Axes", rounds: Sequence[Sequence[ScoredSelfEdit]]) -> None:
    """The rewards of all self-edits, and their best, mean and base as lines."""
    jitter, numbers = np.random.default_rng(0), range(1, len(rounds) + 1)
    left, right = 0.65, len(rounds) + 0.35
    for number, scored in zip(numbers, rounds, strict=True):
        rewards = [edit.reward for edit in scored if edit.reward is not None]
        places = number + jitter.uniform(-0.18, 0.18, len(rewards))
        axes.scatter(places, rewards, s=9, color=COLORS[SELF_EDITS], alpha=0.2, linewidths=0)
    values = [round_metrics(scored, ()) | {"base": base_reward(scored)} for scored in rounds]
    best, mean, base = (
        np.array([one.get(name) for one in values], dtype=float) for name in ("reward/best", "reward", "base")
    )
    axes.plot(numbers, best, "o-", color=COLORS["best"])
    axes.plot(numbers, mean, "o-", color=COLORS[SELF_EDITS])
    axes.plot([left, *numbers, right], [base[0], *base, base[-1]], "--", color=COLORS[BASE])
    axes.set(xlim=(left, right), ylim=(-0.03, 1.03), xlabel="round", title="Reward in training")
    most = max(Counter(edit.example for edit in rounds[-1]).values(), default=0)
    ends = [(f"best of {most}", best, "best"), ("mean", mean, SELF_EDITS), ("base", base, BASE)]
    known = [(name, line[np.isfinite(line)], COLORS[color]) for name, line, color in ends]
    _finish(axes, [(name, float(line[-1]), color) for name, line, color in known if len(line)])


def _draw_accuracies(axes: "Axes", results: Sequence[Evaluation]) -> None:
    numbers, own = range(len(results)), [one.accuracies[SELF_EDITS] for one in results]
    baselines = {name: value for name, value in results[0].accuracies.items() if name != SELF_EDITS}
    colors = condition_colors(baselines)
    for name, value in list(baselines.items()):
        measured = [one.accuracies[name] for one in results if name in one.accuracies]
        if 1 < len(measured) == len(results):  # with the policy of every round
            axes.plot(numbers, [one.value for one in measured], "o--", color=colors[name])
            bounds = [one.low for one in measured], [one.high for one in measured]
            axes.fill_between(numbers, *bounds, color=colors[name], alpha=0.08, linewidth=0)
            baselines[name] = measured[-1]
        else:
            axes.axhline(value.value, color=colors[name], linestyle="--")
            axes.axhspan(value.low, value.high, color=colors[name], alpha=0.08, linewidth=0)
    axes.vlines(numbers, [one.low for one in own], [one.high for one in own], color=COLORS[SELF_EDITS])
    axes.plot(numbers, [one.value for one in own], "o-", color=COLORS[SELF_EDITS])
    # Of the same adapters: what they earn with one text for all questions, and the share of their answers that recite.
    recitals = []
    for name, mark, found in (
        ("recitation", "x:", [one.recitations.get(SELF_EDITS) for one in results]),
        ("recited", "+-.", [one.recited.get(SELF_EDITS) for one in results]),
    ):
        if None not in found:
            axes.plot(numbers, [one.value for one in found], mark, color=COLORS[name])
            baselines[name] = found[-1]
            recitals += found
    everything = [*own, *recitals, *baselines.values()]
    low = min(0.8, math.floor(10 * min(one.low for one in everything)) / 10)
    high = max(low + 0.2, math.ceil(10 * max(one.high for one in everything)) / 10)
    axes.set(
        xlim=(-0.35, len(results) - 0.65),
        ylim=(low - 0.03 * (high - low), high + 0.03 * (high - low)),
        xlabel="rounds of training",
        title=f"Mean accuracy over {own[0].num_passages} passages, 95 % intervals",
    )
    shown = {**baselines, SELF_EDITS: own[-1]}
    names = {"recitation": "a recitation earns", "recited": "answers that recite"}
    _finish(axes, [(names.get(name, name), one.value, colors[name]) for name, one in shown.items()])


def _finish(axes: "Axes", ends: Sequence[tuple[str, float, str]]) -> None:
    """Set the ticks, and name each line at its end, right of the axes and apart from the other names."""
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])  # whole percents
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    places = _apart([(value - low) / (high - low) for _, value, _ in ends], gap=0.065)
    for (name, value, color), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{name}: {percent(value)}",
            xy=(1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(12, place),
            textcoords=("offset points", "axes fraction"),
            color=color,
            verticalalignment="center",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "relpos": (0, 0.5),
                "patchA": None,
                "shrinkA": 3,
                "shrinkB": 0,
            },
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 1, moved as little as needed to be `gap` apart and half of it from the ends."""
    blocks: list[list[float]] = []  # of places that push each other, less the gaps below them
    for index, place in enumerate(places):
        blocks.append([place - index * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    settled = [fmean(block) for block in blocks for _ in block]
    low, high = gap / 2, 1 + gap / 2 - len(places) * gap
    return [min(max(place, low), high) + index * gap for index, place in enumerate(settled)]
