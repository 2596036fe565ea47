"""The GPU benchmark's tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence

from machine import training_flops
from report import markdown


# What a bank of 16 is to reach: model, figure, least value, how it is shown.
GOALS = (
    ("0.5B", "over_peft", 6.0, "6 x PEFT"),
    ("7B", "over_peft", 2.0, "2 x PEFT"),
    ("7B", "share", 0.4, "40 % of GEMM"),
)
GOAL_ADAPTERS = 16
# A bank of more adapters gains nothing where a smaller one has this share of the greatest throughput.
NEARLY_ALL = 0.9


def training_figures(row: Mapping, rates: Mapping[int, float]) -> dict[str, float]:
    """
    What follows from a measured bank: `over_peft`, how many times as fast it is, and where products were measured
    `share`, the share of the greatest rate, and `shares` by the products' size.
    """
    flops = training_flops(row["parameters"], row["bank"])
    shares = {size: flops / rate for size, rate in rates.items()}
    return {"over_peft": row["bank"] / row["peft"], "shares": shares} | (
        {"share": min(shares.values())} if shares else {}
    )


def goals_of(row: Mapping, figures: Mapping) -> str:
    """The goals that a row has, and whether they are reached."""
    if row["adapters"] != GOAL_ADAPTERS or row["nf4"]:
        return ""
    return ", ".join(
        f"{shown}: {'reached' if figures[figure] >= least else 'missed'}"
        for name, figure, least, shown in GOALS
        if name == row["model"] and figure in figures
    )


def end_of_gain(rows: Sequence[Mapping]) -> int:
    """
    The least number of adapters with nearly all of the greatest throughput.

    >>> end_of_gain([{"adapters": 1, "bank": 10}, {"adapters": 4, "bank": 38}, {"adapters": 16, "bank": 40}])
    4
    """
    most = max(row["bank"] for row in rows)
    return min(row["adapters"] for row in rows if row["bank"] >= NEARLY_ALL * most)


def table(results: Mapping) -> str:
    """All tables, with what was run on what, and the errors at the end."""
    rows = {name: part.get("rows", []) for name, part in results["parts"].items()}

    def of(kind: str) -> list[Mapping]:
        return [row for name, own in rows.items() if results["parts"][name]["kind"] == kind for row in own]

    rates = {row["size"]: row["rate"] for row in of("gemm")}
    sections = [_head(results)]
    for kind, section in SECTIONS.items():
        if own := of(kind):
            sections.append(section(own, rates))
    return "\n\n".join([*sections, *_left_out(results)])


def _head(results: Mapping) -> str:
    device = results["device"]
    made = ", ".join(f"{name} {version or 'absent'}" for name, version in results["versions"].items())
    failed = [name for name, part in results["parts"].items() if part["status"] == "failed"]
    lines = [
        f"**{device['name']}**, {device['memory_bytes'] / 1e9:.0f} GB, driver {device['driver'] or 'none'}; Python "
        f"{device['python']}, {made}.",
        f"`{results['command']}`, {results['date']}, {results['seconds'] / 60:.1f} minutes.",
        f"Failed: {', '.join(failed)}." if failed else "Nothing failed.",
    ]
    if results["tiny"]:
        lines.append("Tiny models: that everything runs and is right, and no measurement of speed.")
    return "\n".join(lines)


def _checks(rows: Sequence[Mapping], rates: Mapping) -> str:
    cells = [
        [
            row["what"],
            _number(row.get("difference"), ".2g"),
            _number(row.get("tolerance"), ".2g"),
            row["verdict"],
            row["note"],
        ]
        for row in rows
    ]
    return markdown(["correctness (goal: exact up to rounding)", "difference", "passes up to", "verdict", ""], cells)


def _gemm(rows: Sequence[Mapping], rates: Mapping) -> str:
    products = ", ".join(f"{row['rate'] / 1e12:.1f} TFLOP/s at {row['size']}^3" for row in rows)
    return f"Matrix products in bf16: {products}."


def _training(rows: Sequence[Mapping], rates: Mapping) -> str:
    cells, ends, groups = [], [], {}
    for row in rows:
        name = f"{row['model']}{', NF4' if row['nf4'] else ''}"
        if "bank" not in row:
            cells.append([name, row["adapted"], row["adapters"], f"{row['peft']:.0f}", row["skipped"], *[""] * 5])
            continue
        figures = training_figures(row, rates)
        groups.setdefault((name, row["adapted"]), []).append(row)
        shares = " / ".join(f"{share:.1%}" for share in figures["shares"].values())
        cells.append([name, row["adapted"], row["adapters"], f"{row['peft']:.0f}", f"{row['bank']:.0f}"])
        cells[-1] += [f"{figures['over_peft']:.2f}", f"{1e3 * row['step_seconds']:.1f}", row["tokens"], shares]
        cells[-1].append(goals_of(row, figures))
    for (name, adapted), own in groups.items():
        ends.append(f"{name} {adapted} K = {end_of_gain(own)}")
    heads = ["training, real tokens per second", "adapted", "K", "PEFT, one after another", "bank", "bank / PEFT"]
    heads += ["ms a step", "tokens a step", f"share of GEMM at {' / '.join(f'{size}^3' for size in rates)}", "goal"]
    return f"{markdown(heads, cells)}\n\nThe gain of more adapters ends ({NEARLY_ALL:.0%} of the greatest) at: " + (
        f"{'; '.join(ends)}."
    )


def _plain(heads: Sequence[str], columns: Mapping[str, Callable[[float], str]]) -> Callable[[Sequence, Mapping], str]:
    """A table with a column for each of the row's figures, or the reason why there is none."""

    def section(rows: Sequence[Mapping], rates: Mapping) -> str:
        cells = []
        for row in rows:
            own = [shown(row[name]) if row.get(name) is not None else "" for name, shown in columns.items()]
            if "skipped" in row:
                own[-1] = row["skipped"]
            cells.append([row["model"], row["adapted"], row.get("adapters", row.get("way")), *own])
        return markdown(heads, cells)

    return section


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.3f}"


SECTIONS: dict[str, Callable[[Sequence[Mapping], Mapping], str]] = {
    "check": _checks,
    "gemm": _gemm,
    "training": _training,
    "launches": _plain(
        ["launches of one step", "adapted", "K", "operations", "kernel launches", "copies", "waits of the host"],
        dict.fromkeys(("operations", "launches", "copies", "waits"), _whole),
    ),
    "answers": _plain(
        ["answers", "adapted", "way", "answers given", "seconds", "answers per second", "new tokens per second"],
        {"rows": _whole, "seconds": _seconds, "answers": lambda value: f"{value:.1f}", "tokens": _whole},
    ),
    "memory": _plain(
        ["memory, MB", "adapted", "K", "peak", "an adapter more", "estimated"],
        dict.fromkeys(("peak_bytes", "bytes_per_adapter", "estimated_bytes_per_adapter"), _megabytes),
    ),
    "host": _plain(
        ["seconds of a bank besides its steps", "adapted", "K", "a step", "before the first step", "after the last"]
        + ["StackedAdapters", "first token of K answers", "without adapters"],
        dict.fromkeys(
            ("step", "before_first_step", "after_last_step", "stacking", "first_token", "first_token_without"),
            _seconds,
        ),
    ),
}


def _left_out(results: Mapping) -> list[str]:
    parts = results["parts"]
    skipped = [f"{name} ({part['reason']})" for name, part in parts.items() if part["status"] == "skipped"]
    sentences = [f"Left out: {'; '.join(skipped)}."] if skipped else []
    errors = [
        f"Error in {name}:\n\n```\n{part['error'].rstrip()}\n```" for name, part in parts.items() if "error" in part
    ]
    return sentences + errors


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
