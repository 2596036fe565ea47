"""
How far a round scales, past the machines at hand: by simulation, without a GPU and in a minute.

    python benchmarks/scaling.py                            # the tables of docs/scaling.md, from the recorded sample
    python benchmarks/scaling.py --run outputs/seal         # replays another run's journal
    python benchmarks/scaling.py --plot docs/scaling.png    # and draws the picture there

Two machines do the paper's round (50 passages, 5 self-edits, 3 repeats, and more passages): the CPU threads of a run that was
measured, and H100s with a 7B model, by FLOPs and bytes.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capacity import CONFIGS, PLACEMENTS, gathered_per_pass, meta_model, scoring_memory, sft_memory
from inputs import FOLDER
from machines import H100, Counted, Measured, Replay, read_run
from report import markdown
from simulation import NO_FAULTS, Faults, Item, Machine, RoundTime, draw_round, simulate
from ways import TARGETS, lora_config

from seal_hf import SEALConfig
from seal_hf.adapters.layout import lora_layout
from seal_hf.rollout.bank_schedule import Work


SAMPLE = FOLDER / "scaling_sample.json"
WORKERS = (1, 2, 8, 32, 100, 300, 1000, 3000, 10_000)
PASSAGES = (50, 250, 1000)
# Between two failures of one GPU that ended a training of Llama 3 405B: 419 in 54 days on 16,384 H100s
# (https://huggingface.co/papers/2407.21783, section 3.3.4).
HOURS_BETWEEN = 54 * 24 * 16384 / 419
# The paper's round: 6 hours on two H100s (https://huggingface.co/papers/2506.10943).
PAPER_GPU_HOURS = 12.0
# Bytes a second that an H100 receives from the others of its machine (NVLink 4; NVIDIA's data sheet has both directions).
NVLINK = 450e9
# Assumed: one worker in 50 is half as fast, and a run works again after three minutes.
FAULTS = Faults(slow_share=0.02, slow_factor=2.0, hours_between=HOURS_BETWEEN, restart_seconds=180.0)


@dataclass(frozen=True)
class Setting:
    """
    A machine, with work that was recorded.

    Parameters:
        name (`str`):
            What it is called.
        machine ([`Machine`]):
            The machine.
        passages (`list[list[Item]]`):
            For each passage its self-edits.
    """

    name: str
    machine: Machine
    passages: list[list[Item]]

    def times(
        self, args: SEALConfig, num_passages: int, workers: Sequence[int], faults: Faults, seed: int
    ) -> list[RoundTime]:
        passages = draw_round(self.passages, num_passages, seed)
        return [simulate(passages, self.machine, args, number, faults, seed) for number in workers]


def replayed(args: SEALConfig, run: Path | None = None) -> Setting:
    """The recorded sample, or another run's journal with the sample's times for what a journal does not hold."""
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))["replay"]
    size, recorded = sample["adapters_per_bank"], sample["self_edits"]
    found = [[Item(written, Work(tokens, tokens, tokens), seconds) for written, tokens, seconds in recorded]]
    if run is not None:
        found, size = read_run(run)
    # As many self-edits for each passage as the round has.
    items = [item for own in found for item in own]
    passages = [
        [items[(first + place) % len(items)] for place in range(args.num_generations)] for first in range(len(items))
    ]
    times = ("prompts_per_self_edit", "seconds_to_write", "seconds_to_answer", "seconds_of_sft_row")
    machine = Replay(size, *(sample[name] for name in times))
    name = "replay of " + ("a 0.5B model on CPU threads" if run is None else str(run))
    return Setting(name, machine, passages)


def measured_spread() -> float:
    """The standard deviation of the logarithm of the seconds a token that the sample's inner updates took."""
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))["replay"]
    return statistics.stdev(math.log(seconds / tokens) for _, tokens, seconds in sample["self_edits"])


def counted(args: SEALConfig) -> Setting:
    """The paper's self-edits with a 7B model on H100s."""
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))["paper"]
    items = [Item(written, Work(*work)) for written, *work in sample["self_edits"]]
    passages = [items[first : first + args.num_generations] for first in range(0, len(items), args.num_generations)]
    measured = Measured.read("7B")
    written = sum(item.written for item in items) / len(items)
    machine = Counted(
        model=meta_model("7B"),
        gpu=H100,
        measured=measured,
        inner=lora_config(TARGETS["q,v"]),
        outer=lora_config("all-linear", r=64),
        adapted="q,v",
        utilization=max(share for _, _, share in measured.steps.values()) * measured.gemm / H100.flops,
        prompt_tokens=sample["prompt_tokens"],
        num_questions=sample["questions"],
        question_tokens=sample["question_tokens"],
        max_answer_length=args.max_answer_length,
        sft_tokens=sample["prompt_tokens"] + written,
    )
    return Setting("7B on H100s, counted", machine, passages)


def scaling_table(times: Sequence[RoundTime]) -> str:
    """A row for each number of workers; the efficiency is over the first row's."""
    first = times[0]
    rows = []
    for time in times:
        speedup = first.seconds * first.num_workers / time.seconds
        rows.append(
            [
                f"{time.num_workers:,}",
                f"{time.num_banks:,} of {time.adapters_per_bank}",
                *(duration(part) for part in (time.writing, time.scoring, time.sft, time.seconds)),
                f"{speedup:,.1f}",
                percent(speedup / time.num_workers),
                time.bound,
            ]
        )
    heads = [
        "workers",
        "banks of adapters",
        "writing",
        "scoring",
        "SFT",
        "round",
        "speed-up",
        "efficiency",
        "most of it",
    ]
    return markdown(heads, rows)


def passages_table(setting: Setting, args: SEALConfig, workers: Sequence[int], seed: int) -> str:
    """Efficiency of rounds with more passages."""
    rows = []
    for number in PASSAGES:
        alone, *times = setting.times(args, number, [1, *workers], NO_FAULTS, seed)
        shares = [percent(alone.seconds / time.seconds / time.num_workers) for time in times]
        rows.append([f"{number:,}", duration(alone.seconds), *shares])
    return markdown(["passages a round", "one worker", *(f"{number:,}" for number in workers)], rows)


def faults_table(setting: Setting, args: SEALConfig, workers: Sequence[int], seed: int) -> str:
    """What slow workers and failures cost."""
    spread = measured_spread()
    often = replace(FAULTS, spread=spread, hours_between=HOURS_BETWEEN / 10)
    kinds = {
        "none": NO_FAULTS,
        f"times of banks vary (log-normal, {spread:.2f})": Faults(spread=spread),
        f"one worker in {1 / FAULTS.slow_share:.0f} takes twice as long": Faults(
            slow_share=FAULTS.slow_share, slow_factor=FAULTS.slow_factor
        ),
        f"a failure every {HOURS_BETWEEN:,.0f} hours of a worker": Faults(
            hours_between=HOURS_BETWEEN, restart_seconds=FAULTS.restart_seconds
        ),
        "all three": replace(FAULTS, spread=spread),
        "all three, failures 10 times as often": often,
    }
    rows = []
    for name, faults in kinds.items():
        times = setting.times(args, PASSAGES[-1], workers, faults, seed)
        rows.append([name, *(f"{duration(time.seconds)} ({time.num_failures})" for time in times)])
    return markdown([f"{PASSAGES[-1]:,} passages", *(f"{number:,} workers" for number in workers)], rows)


def paper_table(setting: Setting, args: SEALConfig, seed: int) -> str:
    """The paper's round on two GPUs, and with each assumption changed alone."""
    machine = setting.machine
    others = {
        f"as assumed: {machine.utilization:.0%} of the peak FLOPs": {},
        "half the utilization": {"utilization": machine.utilization / 2},
        "the host twice as slow": {"host_factor": 2.0},
        "half the memory bandwidth": {"gpu": replace(machine.gpu, bandwidth=machine.gpu.bandwidth / 2)},
        "banks of at most 16": {"most_adapters": 16},
        "banks of one": {"most_adapters": 1},
        "questions and prompts twice as long": {
            "question_tokens": 2 * machine.question_tokens,
            "prompt_tokens": 2 * machine.prompt_tokens,
        },
        "inner adapters on all linear layers": {"inner": lora_config("all-linear"), "adapted": "all-linear"},
    }
    rows = []
    for name, changes in others.items():
        changed = replace(setting, machine=replace(machine, **changes))
        (time,) = changed.times(args, PASSAGES[0], [2], NO_FAULTS, seed)
        hours = 2 * time.seconds / 3600
        parts = (time.writing, time.scoring, time.sft, time.seconds)
        rows.append(
            [name, time.adapters_per_bank, *map(duration, parts), f"{hours:.2f}", f"{PAPER_GPU_HOURS / hours:.0f}"]
        )
    heads = [
        "assumption",
        "adapters a bank",
        "writing",
        "scoring",
        "SFT",
        "round",
        "GPU hours",
        "paper's 12 hours over it",
    ]
    return markdown(heads, rows)


def steps_table(machine: Counted) -> str:
    """Counted steps beside measured ones."""
    rows = []
    for (adapted, number), (seconds, tokens, _) in machine.measured.steps.items():
        own = replace(machine, inner=lora_config(TARGETS[adapted]), adapted=adapted)
        found = own.step_seconds(number, tokens)
        rows.append([adapted, number, tokens, f"{1e3 * seconds:.0f}", f"{1e3 * found:.0f}", f"{found / seconds:.2f}"])
    return markdown(["adapted", "adapters", "tokens a step", "measured, ms", "counted, ms", "ratio"], rows)


def scoring_table(all_gpus: Sequence[int] = (2, 4, 8, 16), num_adapters: int = 16, length: int = 48) -> str:
    """GB on each GPU while banks are trained, on a replica of the frozen base or on one that so many GPUs share."""
    inner, outer = lora_config(TARGETS["q,v"]), lora_config("all-linear", r=64)
    rows = []
    for name in CONFIGS:
        replicas = [("bf16", "replica", 1, False), ("NF4", "replica", 1, True)]
        for base, kept, num_gpus, four_bit in replicas + [("bf16", f"shared by {n}", n, False) for n in all_gpus]:
            score = scoring_memory(meta_model(name), inner, outer, num_adapters, length, num_gpus, four_bit)
            parts = (score.weights, score.gathered, score.policy, score.bank, score.total)
            rows.append([name, base, kept, *(f"{part / 1e9:.1f}" for part in parts)])
    return markdown(["model", "base", "kept as", "weights", "whole", "policy", f"bank of {num_adapters}", "all"], rows)


def gathering_table(all_gpus: Sequence[int] = (2, 4, 8, 16)) -> str:
    """What a GPU receives in a pass over a shared base, and the seconds that this takes at least."""
    rows = []
    for name in CONFIGS:
        for num_gpus in all_gpus:
            rows.append([name, str(num_gpus)])
            for num_bytes in gathered_per_pass(meta_model(name), num_gpus):
                rows[-1].append(f"{num_bytes / 1e9:.1f}")
                rows[-1] += [f"{num_bytes / rate:.2g} s" for rate in (NVLINK, H100.link)]
    fast, slow = (f"at {rate / 1e9:.0f} GB/s" for rate in (NVLINK, H100.link))
    return markdown(["model", "GPUs", "forward, GB", fast, slow, "and backward, GB", fast, slow], rows)


def sft_table(num_gpus: int, num_tokens: int = 1024) -> str:
    """GB on each GPU in the outer SFT, where the frozen base is kept in each way."""
    rows = []
    for name in CONFIGS:
        for four_bit in (False, True):
            for placement in PLACEMENTS:
                sft = sft_memory(
                    meta_model(name), lora_config("all-linear", r=64), num_tokens, placement, num_gpus, four_bit
                )
                parts = (sft.weights, sft.gathered, sft.policy, sft.activations, sft.total)
                rows.append([name, "NF4" if four_bit else "bf16", placement, *(f"{part / 1e9:.1f}" for part in parts)])
    return markdown(
        ["model", "base", f"on {num_gpus} GPUs", "weights", "whole", "policy", "activations, logits", "all"], rows
    )


def adapters_table(ranks: Sequence[int] = (8, 16, 32, 64)) -> str:
    """What an adapter takes in a bank, by its rank: 16 bytes a parameter."""
    rows = []
    for name in CONFIGS:
        for adapted, target in TARGETS.items():
            layouts = [lora_layout(meta_model(name), lora_config(target, r)) for r in ranks]
            sizes = [f"{16 * layout.num_parameters / 1e9:.2f}" for layout in layouts]
            rows.append([name, adapted, f"{layouts[ranks.index(32)].num_parameters / 1e6:.0f} M", *sizes])
    return markdown(["model", "adapted", "parameters at r = 32", *(f"r = {r}, GB" for r in ranks)], rows)


def duration(seconds: float) -> str:
    """
    A time for people.

    >>> [duration(seconds) for seconds in (0.4, 75, 4000, 400_000, math.inf)]
    ['0.4 s', '75 s', '67 min', '111.1 h', 'never']
    """
    if math.isinf(seconds):
        return "never"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """
    >>> percent(0.123), percent(0.0123)
    ('12%', '1.2%')
    """
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def draw(curves: dict[str, Sequence[RoundTime]], path: Path) -> None:
    """The efficiency of each curve over the number of workers, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, times in curves.items():
        numbers = [time.num_workers for time in times]
        axes.plot(numbers, [times[0].seconds / time.seconds / time.num_workers for time in times], "o-", label=name)
    axes.set(xscale="log", xlabel="workers", ylabel="efficiency", ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.grid(color="#e5e5e5")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="output_dir of a run whose journal is replayed.")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="Numbers of workers, the first 1.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of what is drawn.")
    parser.add_argument("--plot", type=Path, help="Where a picture is written.")
    args = parser.parse_args(arguments)
    config = SEALConfig("unused", bf16=False, report_to=[], num_rounds=1)  # the paper's settings are the defaults
    h100s, curves = counted(config), {}
    for setting in (replayed(config, args.run), h100s):
        print(f"## {setting.name}\n")
        for number in PASSAGES:
            times = setting.times(config, number, args.workers, NO_FAULTS, args.seed)
            curves[f"{setting.name}, {number:,} passages"] = times
            if number == PASSAGES[0]:
                print(f"{number} passages:\n\n{scaling_table(times)}\n")
        several = args.workers[2::2]
        print(f"{passages_table(setting, config, several, args.seed)}\n")
        print(f"{faults_table(setting, config, several, args.seed)}\n")
    print(f"## The paper's round on two H100s\n\n{paper_table(h100s, config, args.seed)}\n")
    print(f"{steps_table(h100s.machine)}\n")
    print(f"## Memory, GB\n\n{scoring_table()}\n\n{gathering_table()}\n\n{sft_table(8)}\n\n{adapters_table()}")
    if args.plot is not None:
        draw(curves, args.plot)


if __name__ == "__main__":
    main()
