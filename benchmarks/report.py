"""From raw figures to ratios, and the table in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import training_flops


def training_figures(row: Mapping, results: Mapping) -> dict[str, float]:
    """
    Medians of one row of the training part, in tokens per second, and what follows from them.

    Returns:
        `dict[str, float]`: the three speeds and that of the bank's full steps, `over_reference` and `over_peft` (how
        many times as fast the bank is, its tail included), and the share of the square matrix product's rate,
        `utilization`, also `full_step_utilization`.
    """
    reference = row["tokens_per_sequence"] / statistics.median(row["reference_step_seconds"])
    peft = statistics.median(row["peft_tokens_per_second"])
    bank = statistics.median(row["bank_tokens_per_second"])
    full_step = statistics.median(row["full_step_tokens_per_second"])
    square = statistics.median(results["gemm"]["square"])
    return {
        "reference": reference,
        "peft": peft,
        "bank": bank,
        "full_step": full_step,
        "over_reference": bank / reference,
        "over_peft": bank / peft,
        "utilization": training_flops(results["num_parameters"], bank) / square,
        "full_step_utilization": training_flops(results["num_parameters"], full_step) / square,
    }


def memory_figures(row: Mapping) -> dict[str, float]:
    """
    Growth per added adapter between the two largest banks, in bytes.

    Returns:
        `dict[str, float]`: `bytes_per_adapter`, and `bytes_per_parameter` without the activations, which are what a bank
        of rank 1 grows by: the growth that the greater rank adds, over the parameters that it adds.
    """
    added = row["adapters"][-1] - row["adapters"][-2]
    growth = (row["peak_bytes"][-1] - row["peak_bytes"][-2]) / added
    small = (row["small_rank_peak_bytes"][-1] - row["small_rank_peak_bytes"][-2]) / added
    parameters = row["parameters_per_adapter"] - row["small_rank_parameters"]
    return {"bytes_per_adapter": growth, "bytes_per_parameter": (growth - small) / parameters}


def answer_figures(row: Mapping) -> dict[str, float]:
    """Seconds of all adapters in common batches and, projected from a slice, one after another with PEFT."""
    ours = statistics.median(row["bank_seconds"])
    peft = statistics.median(row["peft_seconds"]) * row["adapters"] / row["peft_adapters"]
    return {"bank": ours, "peft": peft, "over_peft": peft / ours}


def step_figures(results: Mapping) -> dict[str, float]:
    """Seconds of a whole expectation step, projected from a part of ours and from slices of the reference way."""
    step = results["step"]
    rows = [row for row in results["training"] if row["target_modules"] == "q,v"]
    answered = next(row for row in results["answers"] if row["target_modules"] == "q,v")
    step_seconds = statistics.median(rows[0]["reference_step_seconds"])
    answers = answer_figures(answered)["peft"] * step["adapters"] / answered["adapters"]
    training = step["training_seconds"] * step["epochs"] / step["epochs_run"]
    ours = step["repeats"] * (training + step["answer_seconds"])
    reference = step["repeats"] * (step["steps"] * step_seconds + answers)
    return {"bank": ours, "reference": reference, "over_reference": reference / ours}


def processes_figures(rows: Sequence[Mapping]) -> dict[str, float]:
    """How many times as fast the last of the rows is as the first, with its writing and without."""
    first, last = rows[0], rows[-1]
    scoring = [row["seconds"] - row["writing_seconds"] for row in (first, last)]
    return {"speed_up": first["seconds"] / last["seconds"], "scoring_speed_up": scoring[0] / scoring[1]}


def table(results: Mapping) -> str:
    """The tables in Markdown, one after another."""
    parts = [_training_table(results), _answers_table(results), _operations_table(results)]
    if results["memory"]:
        parts.append(_memory_table(results))
    if "processes" in results:
        parts.append(_processes_table(results["processes"]))
    if results.get("arc"):  # results of before have none
        parts.append(_arc_table(results))
    return "\n\n".join([*parts, *_sentences(results)])


def _training_table(results: Mapping) -> str:
    rows = []
    for row in results["training"]:
        figures = training_figures(row, results)
        rows.append(
            [
                row["target_modules"],
                row["adapters"],
                f"{figures['reference']:.1f}",
                _spread(row["peft_tokens_per_second"]),
                _spread(row["bank_tokens_per_second"]),
                f"{figures['over_reference']:.0f}",
                f"{figures['over_peft']:.2f}",
                f"{figures['utilization']:.1%}",
                _spread(row["full_step_tokens_per_second"]),
                f"{figures['full_step_utilization']:.1%}",
            ]
        )
    if quantized := results.get("quantized"):
        peft, bank = (statistics.median(quantized[f"{way}_tokens_per_second"]) for way in ("peft", "bank"))
        name = f"{quantized['target_modules']}, NF4 base"
        speeds = ["", f"{peft:.0f}", f"{bank:.0f}", "", f"{bank / peft:.2f}"]
        rows.append([name, quantized["adapters"], *speeds, "", "", ""])
    heads = ["training, real tokens per second", "K", "reference", "PEFT", "bank", "bank / reference", "bank / PEFT"]
    return markdown([*heads, "utilization", "bank, full steps", "their utilization"], rows)


def _answers_table(results: Mapping) -> str:
    rows = []
    for row in results["answers"]:
        figures = answer_figures(row)
        rows.append(
            [
                row["target_modules"],
                row["adapters"],
                row["questions"],
                f"{figures['peft']:.0f} (from {row['peft_adapters']})",
                _spread(row["bank_seconds"], 1),
                f"{figures['over_peft']:.2f}",
                f"{row['equal_answers']:.0%}",
                f"{row['peft_equal_answers']:.0%}",
            ]
        )
    heads = ["answers, seconds", "adapters", "questions", "PEFT", "common batches", "PEFT / common"]
    return markdown([*heads, "equal answers", "PEFT's own"], rows)


def _operations_table(results: Mapping) -> str:
    rows = []
    for row in results["operations"]:
        cells = [row["target_modules"]]
        for kind in ("all", "without_views"):
            one, sixteen = row["one"][kind], row["sixteen"][kind]
            cells += [f"{one:.0f}", f"{sixteen:.0f}", f"1/{one / sixteen:.1f}"]
        rows.append(cells)
    heads = ["tensor operations per adapter step", "K = 1", "K = 16", "ratio"]
    return markdown([*heads, "without views, K = 1", "K = 16", "ratio"], rows)


def _memory_table(results: Mapping) -> str:
    rows = []
    for row in results["memory"]:
        figures = memory_figures(row)
        parameters = figures["bytes_per_parameter"] * row["parameters_per_adapter"]
        rows.append(
            [
                row["target_modules"],
                *(f"{peak / 1e6:.0f}" for peak in row["peak_bytes"]),
                f"{figures['bytes_per_adapter'] / 1e6:.1f}",
                f"{parameters / 1e6:.1f}",
                f"{figures['bytes_per_parameter']:.1f}",
            ]
        )
    sizes = [f"K = {size}" for size in results["memory"][0]["adapters"]]
    heads = ["peak memory, MB", *sizes, "growth per adapter", "of it parameters", "bytes per parameter"]
    return markdown(heads, rows)


def _processes_table(rows: Sequence[Mapping]) -> str:
    cells = [
        [
            row["processes"],
            row["banks"],
            row["tokens"],
            f"{row['writing_seconds']:.0f}",
            f"{row['seconds']:.0f}",
            f"{figures['speed_up']:.2f}",
            f"{figures['scoring_speed_up']:.2f}",
        ]
        for row in rows
        for figures in [processes_figures([rows[0], row])]
    ]
    heads = ["an expectation step, processes of one thread", "banks", "tokens", "writing, seconds", "all, seconds"]
    return markdown([*heads, "times as fast (goal: 1.8)", "without the writing"], cells)


def _arc_table(results: Mapping) -> str:
    rows = [
        [
            row["task"],
            f"{row['training_tasks']} ({row['longest_sequence']:,})",
            f"{row['training_tokens']:,}",
            f"{row['training_seconds']:.0f}",
            row["predictions"],
            f"{row['prediction_tokens']:,}",
            f"{row['prediction_seconds']:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f} ({row['loaded_bytes'] / 1e6:.0f})",
        ]
        for row in results["arc"]
    ]
    heads = [
        "ARC task",
        "training tasks (longest, tokens)",
        "tokens trained",
        "seconds",
        "predictions",
        "their tokens",
    ]
    return markdown([*heads, "seconds", "peak memory, MB (loaded)"], rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = ["|" + "".join(f" {cell} |" if cell != "" else " |" for cell in row) for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def _sentences(results: Mapping) -> list[str]:
    machine, gemm, inputs = results["machine"], results["gemm"], results["inputs"]
    rates = [
        f"{statistics.median(gemm[name]) / 1e9:.0f} GFLOP/s [{min(gemm[name]) / 1e9:.0f}, "
        f"{max(gemm[name]) / 1e9:.0f}] at {' x '.join(map(str, gemm[f'{name}_shape']))}"
        for name in ("square", "model")
    ]
    sentences = [f"Matrix products of this machine in bf16: {rates[0]}, {rates[1]}."]
    if "step" in results:
        step, figures = results["step"], step_figures(results)
        sentences.append(
            f"A whole expectation step ({step['adapters']} self-edits, {step['repeats']} repeats, {step['epochs']} epochs, "
            f"q,v): "
            f"{figures['bank'] / 60:.1f} minutes with banks ({step['epochs_run']} epochs of one repeat were run: "
            f"{step['training_seconds']:.0f} s of training and {step['answer_seconds']:.0f} s of answers, banks: "
            f"{step['banks']}), "
            f"{figures['reference'] / 3600:.1f} hours the reference way ({step['repeats']} x {step['steps']} steps and "
            f"the answers, projected): {figures['over_reference']:.0f} times as long."
        )
    else:
        sentences.append("Memory and the whole expectation step were left out (`--quick`).")
    if "processes" not in results:
        sentences.append("One process and two were not compared in this run.")
    if "quantized" not in results:
        reason = "`--quick`" if results["quick"] else "bitsandbytes is not installed"
        sentences.append(f"The quantized base was left out ({reason}).")
    sentences += [
        f"{inputs['self_edits']} self-edits, {inputs['lines']} lines of {inputs['tokens_per_line']:.0f} tokens on average "
        f"and passages of {inputs['tokens_per_passage']:.0f}; a sequence has {inputs['tokens_per_sequence']:.0f} tokens.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB; {machine['system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {version or 'absent'}" for name, version in results["versions"].items())
        + f"; {results['date']}; `{results['command']}`, {results['seconds'] / 60:.1f} minutes.",
    ]
    return sentences


def _spread(values: Sequence[float], digits: int = 0) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def write_readme(results: Mapping, template: Path, readme: Path) -> None:
    """Fill the tables into the template's place for them."""
    text = template.read_text(encoding="utf-8").replace("{table}", table(results))
    readme.write_text(text, encoding="utf-8")
