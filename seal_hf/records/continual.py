"""What a model keeps of passages that it learned one after another: a triangular matrix of accuracies."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..domains.base import BASE, SELF_EDITS
from .comparison import percents
from .files import RESUME_EVALUATION, SCHEMA_VERSION, remedy_of, write_bytes, write_text
from .journal import Journal
from .plot import STYLE, picture_of
from .report import compared_journals
from .schema import TrialResult
from .tables import markdown


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Heat maps beside each other in the picture.
_MOST_COLUMNS = 3


@dataclass(frozen=True)
class ContinualMatrix:
    """
    The accuracies of one condition, by the passages' places in their order.

    Parameters:
        values (`np.ndarray`):
            Shape `(num_orders, n + 1, n)`, float64: in each order, after `i` of `n` passages the share of right answers about passage
            `j`. Row 0 is the model before any; what has not been learned yet is NaN in the others.
    """

    values: np.ndarray

    @property
    def num_orders(self) -> int:
        return self.values.shape[0]

    @property
    def mean(self) -> np.ndarray:
        """The mean over the orders, `(n + 1, n)`."""
        return self.values.mean(axis=0)

    @property
    def std(self) -> np.ndarray:
        """The standard deviations over the orders, `(n + 1, n)`; 0 where there is one order."""
        return self.values.std(axis=0)

    @property
    def untouched(self) -> np.ndarray:
        """The mean of row 0 in each order, `(num_orders,)`: the accuracy about all passages before the first."""
        return self.values[:, 0].mean(axis=1)

    @property
    def when_learned(self) -> np.ndarray:
        """The mean of the diagonal in each order, `(num_orders,)`: the accuracy about each passage when it has just been learned."""
        return self.values[:, 1:].diagonal(axis1=1, axis2=2).mean(axis=1)

    @property
    def at_the_end(self) -> np.ndarray:
        """The mean of the last row in each order, `(num_orders,)`: the accuracy about all passages after the last."""
        return self.values[:, -1].mean(axis=1)

    @property
    def num_first(self) -> int:
        """How many of the first passages [`~ContinualMatrix.kept`] is about: three quarters of them, such as six of eight."""
        return max(1, self.values.shape[2] * 3 // 4)

    @property
    def kept(self) -> np.ndarray:
        """
        The share in each order, `(num_orders,)`, that is kept of the first passages: their accuracy at the end over that when each
        had just been learned; NaN where that was 0.
        """
        first = slice(self.num_first)
        learned = self.values[:, 1:].diagonal(axis1=1, axis2=2)[:, first].mean(axis=1)
        end = self.values[:, -1, first].mean(axis=1)
        return np.divide(end, learned, out=np.full_like(end, np.nan), where=learned > 0)


def matrices(output_dir: str | Path) -> dict[str, ContinualMatrix]:
    """
    The matrices of an evaluation by [`seal_hf.evaluation.continual`], by condition.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.

    Raises:
        ValueError: The evaluation is not finished, is by another protocol, or nothing of it could be trained on.
    """
    journal = Journal(Path(output_dir) / "evaluation")
    results = journal.trials(0)
    if results is None:
        raise ValueError(f"{output_dir} holds no finished evaluation of continual learning; let it come to its end.")
    base = {result.example: result.reward for result in results if result.condition == BASE}
    found = _by_condition(results, base)
    for name, other in compared_journals(journal).items():
        for matrix in _by_condition(other.trials(0) or (), base).values():
            found[name] = matrix
    if not found:
        raise ValueError(f"{output_dir} holds no adapter: no self-edit could be trained on; look at its proposals.")
    return found


def _by_condition(results: Sequence[TrialResult], base: dict[int, float]) -> dict[str, ContinualMatrix]:
    # Of each step of each chain the results, of which the first is about the newest passage.
    chains: dict[str, dict[int, dict[int, list[TrialResult]]]] = defaultdict(lambda: defaultdict(dict))
    trained = {result.condition for result in results if result.tokens}
    for result in results:
        if result.condition in trained:
            chains[result.condition][result.repeat].setdefault(result.edit, []).append(result)
    return {name: _matrix(list(orders.values()), base) for name, orders in chains.items()}


def _matrix(orders: Sequence[dict[int, list[TrialResult]]], base: dict[int, float]) -> ContinualMatrix:
    n = len(base)
    values = np.full((len(orders), n + 1, n), np.nan)
    for number, steps in enumerate(orders):
        order = [steps[step][0].example for step in range(n)]
        values[number, 0] = [base[example] for example in order]
        for step in range(n):
            rewards = {result.example: result.reward for result in steps[step]}
            values[number, step + 1, : step + 1] = [rewards[example] for example in order[: step + 1]]
    return ContinualMatrix(values)


def continual_table(found: dict[str, ContinualMatrix]) -> str:
    """The matrices as Markdown: a summary of the conditions, then each matrix with the standard deviations over orders."""
    summary = [
        [name, *map(_summed_up, (one.untouched, one.when_learned, one.at_the_end, one.kept))]
        for name, one in found.items()
    ]
    num_first = next(iter(found.values())).num_first
    header = ["condition", "untouched", "when just learned", "at the end", f"kept of the first {num_first}"]
    note = (
        "Means over the passages, learned one after another, in %, with standard deviations over orders where there are several. "
        "Kept: the accuracy about the first passages at the end, over that when each had just been learned."
    )
    parts = [note, markdown(header, summary)]
    for name, one in found.items():
        n = one.mean.shape[1]
        rows = [
            [str(row), *("" if np.isnan(cells).any() else _summed_up(cells) for cells in one.values[:, row].T)]
            for row in range(n + 1)
        ]
        orders = f"mean and standard deviation of {one.num_orders} orders" if one.num_orders > 1 else "one order"
        parts.append(f"{name}: accuracy in % about each passage after so many of them, {orders}.")
        parts.append(markdown(["learned", *(f"passage {place + 1}" for place in range(n))], rows))
    return "\n\n".join(parts) + "\n"


def _summed_up(values: np.ndarray) -> str:
    """Mean and standard deviation of the values of all orders that have one, in %."""
    known = 100 * values[~np.isnan(values)]
    if not len(known):
        return "–"
    return f"{known.mean():.1f}" + (f" ± {known.std():.1f}" if len(known) > 1 else "")


def save_continual(output_dir: str | Path) -> list[Path]:
    """
    Write `continual.json`, `continual.md` and `continual.png`, a heat map for each condition.

    The JSON file holds each condition as the paper's code stores its summary: `mean_over_sequences` and `std_over_sequences`, lists
    of rows with 0 for what was not learned yet, `n_sequences` and `n_datapoints`; besides `kept`, for each order the share kept of the
    first `n_first` passages, or `null`.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The disk is full, or the folder cannot be written.
        ValueError: As [`matrices`].
    """
    folder, found = Path(output_dir), matrices(output_dir)
    files = [folder / f"continual.{suffix}" for suffix in ("json", "md", "png")]
    remedy = remedy_of(RESUME_EVALUATION)
    record = {name: _as_record(one) for name, one in found.items()}
    write_text(files[0], json.dumps({"schema_version": SCHEMA_VERSION, "conditions": record}, indent=1) + "\n", remedy)
    write_text(files[1], continual_table(found), remedy)
    write_bytes(files[2], _picture(found), remedy)
    return files


def _as_record(matrix: ContinualMatrix) -> dict[str, Any]:
    mean, std = (np.nan_to_num(values).round(4).tolist() for values in (matrix.mean, matrix.std))
    counts = {"n_sequences": matrix.num_orders, "n_datapoints": matrix.mean.shape[1]}
    kept = [None if np.isnan(share) else round(float(share), 4) for share in matrix.kept]
    return {
        "mean_over_sequences": mean,
        "std_over_sequences": std,
        **counts,
        "n_first": matrix.num_first,
        "kept": kept,
    }


def _picture(found: dict[str, ContinualMatrix]) -> bytes:
    num_columns = min(len(found), _MOST_COLUMNS)
    num_rows = math.ceil(len(found) / num_columns)

    def draw(figure: "Figure") -> None:
        all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
        for axes in all_axes[len(found) :]:
            axes.set_axis_off()
        for axes, (name, one) in zip(
            all_axes, sorted(found.items(), key=lambda item: item[0] != SELF_EDITS), strict=False
        ):
            image = axes.imshow(one.mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (row, column), cell in np.ndenumerate(one.mean):
                if not np.isnan(cell):
                    color = "white" if cell < 0.6 else "black"
                    axes.text(column, row, f"{100 * cell:.0f}", ha="center", va="center", color=color, fontsize=8)
            rows, columns = map(range, one.mean.shape)
            axes.set(title=name, xlabel="passage", ylabel="passages learned", xticks=columns, yticks=rows)
            axes.set_xticklabels([str(place + 1) for place in columns])
        figure.colorbar(image, ax=list(all_axes), format=percents)

    size = (4.5 * num_columns + 1, 4.5 * num_rows)
    return picture_of(draw, figsize=size, dpi=160, style=STYLE | {"axes.grid": False})
