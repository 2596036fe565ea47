"""
How much work the options for less work save, and what share of the full procedure's gain they keep.

    python benchmarks/less_work.py    # demo passages on the embedded model; goes on where it was interrupted
    python benchmarks/less_work.py --stored_rewards rank_iter0.json --passages 0   # a run of the paper's authors

Every self-edit gets all repeats, and every adapter both rewards, so that each scheme's choice is known: `full` (the mean
of all repeats), `single` (one repeat), `halving`, and the same with the likelihood in place of the accuracy. The gain of
a scheme is the accuracy of the self-edit that it chooses minus the mean of the passage's self-edits, which is what a blind
choice has; work is counted in inner updates. The gain is estimated in three ways:

- `in sample`: choice and gain from the same runs. The full procedure chooses by the very figure that is reported, so its
  gain is too high, and every other scheme's share too low.
- `other questions`: chosen by all of a passage's questions but one, and measured on that one; each in its turn.
- `other repeat`: chosen by all repeats but one, and measured on that one. All schemes have one repeat less.

Repeats are exchangeable, so that each figure is the mean over all orders of them. Intervals are 95 %, by resampling
passages (1000 times); a share's resamples have numerator and denominator of the same passages. No share is given where
the full procedure's own gain is not above 0.
"""

import argparse
import datetime
import itertools
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe_machine, versions
from peft import LoraConfig

from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.generation.transformers_generation import draw_seed
from seal_hf.grading.agreement import load_run
from seal_hf.records.journal import SELF_EDITS, TrialResult, write_text
from seal_hf.rollout.stage import Trial, halved


FOLDER = Path(__file__).parent
Scores = np.ndarray  # (edits, repeats, questions)
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Passage:
    """
    Everything that was measured of one passage's self-edits.

    Parameters:
        accuracy (`np.ndarray` of shape `(edits, repeats, questions)`):
            1 for a right answer, else 0.
        likelihood (`np.ndarray` of the same shape, *optional*):
            Log-likelihoods of the gold answers, in nats per token.
    """

    accuracy: Scores
    likelihood: Scores | None = None


def choose(rewards: np.ndarray, scheme: str) -> tuple[int, int]:
    """
    The self-edit that a scheme chooses, the first of equals, and the inner updates that it takes for that.

    Parameters:
        rewards (`np.ndarray` of shape `(edits, repeats)`):
            The reward of each repeat.
        scheme (`str`):
            `"full"`, `"single"` or `"halving"`.
    """
    num_edits, num_repeats = rewards.shape
    trials, num_updates = [Trial(SELF_EDITS, 0, edit, 0, None, 0) for edit in range(num_edits)], 0
    results: list[TrialResult] = []
    for repeat in range(1 if scheme == "single" else num_repeats):
        if scheme == "halving" and repeat:
            trials = halved(trials, results, keep_best=1)
        num_updates += len(trials)
        results += [
            TrialResult(SELF_EDITS, 0, trial.edit, repeat, 0, float(rewards[trial.edit, repeat]), [], [], None, 0, 0.0)
            for trial in trials
        ]
    used = repeat + 1
    means = {trial.edit: round(float(rewards[trial.edit, :used].mean()), 9) for trial in trials}
    return min(means, key=lambda edit: (-means[edit], edit)), num_updates


def splits(passage: Passage, kind: str) -> Iterator[tuple[Callable[[Scores], np.ndarray], np.ndarray]]:
    """
    For every way to split a passage's scores: what the rewards `(edits, repeats)` of the choice are, and the accuracies
    `(edits,)` that the choice is measured by.
    """
    _, num_repeats, num_questions = passage.accuracy.shape
    orders = list(itertools.permutations(range(num_repeats)))
    if kind == "in sample":
        for order in orders:
            yield lambda scores, order=order: scores[:, order].mean(2), passage.accuracy.mean((1, 2))
    elif kind == "other questions":
        for question in range(num_questions):
            rest = [other for other in range(num_questions) if other != question]
            for order in orders:
                yield (
                    lambda scores, order=order, rest=rest: scores[:, order][..., rest].mean(2),
                    passage.accuracy[..., question].mean(1),
                )
    else:
        for *order, last in orders:
            yield lambda scores, order=order: scores[:, order].mean(2), passage.accuracy[:, last].mean(1)


def compare(passages: Sequence[Passage]) -> dict[str, object]:
    """
    Work, gain and share of the full procedure's gain of every scheme, in each of the three ways.

    Returns:
        `dict[str, object]`: sizes, and under `"estimates"` for each way and scheme `updates_saved` (a share), `gain` (share
        of right answers) and `share_kept`, `None` where the full procedure's gain may be none.
    """
    kinds = ["accuracy"] + ["likelihood"] * (passages[0].likelihood is not None)
    schemes = [(kind, scheme) for kind in kinds for scheme in ("full", "halving", "single")]
    draws = np.random.default_rng(0).integers(len(passages), size=(NUM_RESAMPLES, len(passages)))
    comparison = {}
    for split in ("in sample", "other questions", "other repeat"):
        gains, updates = defaultdict(list), defaultdict(list)
        for passage in passages:
            own_gains, own_updates = defaultdict(list), defaultdict(list)
            for rewards_of, accuracies in splits(passage, split):
                for kind, scheme in schemes:
                    edit, num_updates = choose(rewards_of(getattr(passage, kind)), scheme)
                    own_gains[kind, scheme].append(accuracies[edit] - accuracies.mean())
                    own_updates[kind, scheme].append(num_updates)
            for key in schemes:
                gains[key].append(np.mean(own_gains[key]))
                updates[key].append(np.mean(own_updates[key]))
        full = np.array(gains["accuracy", "full"])
        has_gain = np.percentile(full[draws].mean(1), 2.5) > 0
        comparison[split] = {}
        for key in schemes:
            own = np.array(gains[key])
            # Of a gain that may be none there is no share.
            share = _estimate(own.mean() / full.mean(), own[draws].mean(1) / full[draws].mean(1)) if has_gain else None
            comparison[split][f"{key[0]}, {key[1]}"] = {
                "updates_saved": 1 - float(np.sum(updates[key]) / np.sum(updates["accuracy", "full"])),
                "gain": _estimate(own.mean(), own[draws].mean(1)),
                "share_kept": share,
            }
    num_edits, num_repeats, _ = passages[0].accuracy.shape
    return {
        "num_passages": len(passages),
        "num_self_edits": num_edits,
        "num_repeats": num_repeats,
        "num_questions": sum(passage.accuracy.shape[2] for passage in passages),
        "mean_accuracy": float(np.mean([passage.accuracy.mean() for passage in passages])),
        "estimates": comparison,
    }


def _estimate(value: float, resampled: np.ndarray) -> dict[str, float]:
    # Where the full gain of a resample is 0 or less, its share has no meaning; the interval is then as wide as it is.
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def stored_passages(path: str) -> list[Passage]:
    """Passages of a run in the paper's format, with the verdicts stored in it."""
    passages = []
    for article in load_run(path):
        edits = []
        for edit in article["completions"]:
            by_repeat = defaultdict(list)
            for row in edit["questions"]:
                by_repeat[row["rep"]].append(row["adapter_correct"])
            edits.append([by_repeat[repeat] for repeat in sorted(by_repeat)])
        passages.append(Passage(np.array(edits, dtype=float)))
    return passages


def load_model(args: argparse.Namespace) -> SelfAdaptingLM:
    """The embedded model with the inner loop's settings."""
    return SelfAdaptingLM.from_pretrained(
        "embedded",
        domain=KnowledgeDomain("rewrite"),
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules=args.target_modules),
        inner_config=InnerLoopConfig(learning_rate=args.learning_rate, num_train_epochs=args.num_train_epochs),
    )


def read_records(file: Path, settings: Mapping) -> list[dict]:
    """
    The records of a run's banks; the file is made, or loses a last line that was cut off.

    Raises:
        ValueError: They are of a run with other settings.
    """
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    header, *records = map(json.loads, lines) if lines else [{"settings": settings}]
    if header != {"settings": settings}:
        raise ValueError(f"{file} holds a run with other settings, {header}; give another --records.")
    write_text(file, "".join(json.dumps(line) + "\n" for line in [header, *records]))
    return records


def run_live(args: argparse.Namespace) -> list[dict] | None:
    """
    Measure what is not on disk yet, a bank for each repeat of some passages, until the time is over.

    Returns:
        `list[dict]`: the records of all banks, or `None` where some are missing.
    """
    file = Path(args.records)
    settings = {
        name: value for name, value in vars(args).items() if name not in ("records", "seconds", "stored_rewards")
    }
    records = read_records(file, settings)
    chunks = range(0, args.passages, args.passages_per_bank)
    missing = [(first, repeat) for first in chunks for repeat in range(args.repeats)][len(records) :]
    if not missing:
        return records
    start, lm = time.perf_counter(), load_model(args)
    examples = load_demo_passages("train")[: args.passages]
    proposed: dict[int, list[list[SelfEdit]]] = {}
    for first, repeat in missing:
        chunk = examples[first : first + args.passages_per_bank]
        if first not in proposed:
            written = lm.propose_batch(
                chunk, args.self_edits, temperature=0.6, max_completion_length=256, seed=0, first_example=first
            )
            # A malformed one is trained on its passage alone, so that all passages have as many.
            proposed[first] = [
                [edit or lm.domain.passage_only(example) for edit in edits]
                for example, edits in zip(chunk, written, strict=True)
            ]
        record = {"first": first, "repeat": repeat, **_measure(lm, chunk, proposed[first], draw_seed(0, repeat))}
        records.append(record)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(record) + "\n")
        if time.perf_counter() - start > args.seconds:
            break
    return records if len(records) == len(chunks) * args.repeats else None


def _measure(lm: SelfAdaptingLM, chunk: Sequence[dict], proposed: Sequence[Sequence[SelfEdit]], seed: int) -> dict:
    """Both rewards of one repeat, and the seconds of each step."""
    pairs = [(example, edit) for example, edits in zip(chunk, proposed, strict=True) for edit in edits]
    times = [time.perf_counter()]
    adapters = lm.adapt([edit for _, edit in pairs], seed=seed)
    times.append(time.perf_counter())
    prompts = [lm.domain.questions(example) for example, _ in pairs]
    rows = [(prompt, adapter) for own, adapter in zip(prompts, adapters, strict=True) for prompt in own]
    flat = iter(lm.answer_prompts([prompt for prompt, _ in rows], [adapter for _, adapter in rows]))
    answers = [[next(flat) for _ in own] for own in prompts]
    verdicts = lm.domain.grade([example for example, _ in pairs], answers)
    times.append(time.perf_counter())
    golds = [gold for example, _ in pairs for gold in lm.domain.gold_answers(example)]
    values = iter(lm.answer_log_likelihoods([prompt for prompt, _ in rows], golds, [adapter for _, adapter in rows]))
    likelihoods = [[next(values) for _ in own] for own in prompts]
    times.append(time.perf_counter())
    return {
        "accuracy": verdicts,
        "likelihood": likelihoods,
        "answers": answers,
        "tokens": sum(adapter.training["num_tokens"] for adapter in adapters),
        "seconds": dict(zip(("training", "answering", "likelihood"), np.diff(times).tolist(), strict=True)),
    }


def live_passages(records: Sequence[dict], num_edits: int) -> list[Passage]:
    """The records of all banks by passage."""
    by_chunk = defaultdict(list)
    for record in records:
        by_chunk[record["first"]].append(record)
    passages = []
    for first in sorted(by_chunk):
        repeats = sorted(by_chunk[first], key=lambda record: record["repeat"])
        for start in range(0, len(repeats[0]["accuracy"]), num_edits):
            scores = [
                np.array([record[kind][start : start + num_edits] for record in repeats], dtype=float).swapaxes(0, 1)
                for kind in ("accuracy", "likelihood")
            ]
            passages.append(Passage(*scores))
    return passages


def lines_of(name: str, result: dict) -> list[str]:
    """A comparison as text."""
    lines = [
        f"{name}: {result['num_passages']} passages x {result['num_self_edits']} self-edits x {result['num_repeats']} "
        f"repeats, {result['num_questions']} questions, mean accuracy {100 * result['mean_accuracy']:.1f} %"
    ]
    for split, schemes in result["estimates"].items():
        lines.append(f"  {split}")
        for scheme, own in schemes.items():
            gain, share = own["gain"], own["share_kept"]
            kept = f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]" if share else "undetermined"
            lines.append(
                f"    {scheme:20} updates saved {own['updates_saved']:5.0%}   gain {100 * gain['value']:+5.1f} points "
                f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]   share kept {kept}"
            )
    return lines


def main(args: argparse.Namespace) -> None:
    output = FOLDER / "less_work.json"
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    about = {
        # of paths their names alone, which mean something elsewhere
        "command": shlex.join(["python", sys.argv[0], *(part.rsplit("/", 1)[-1] for part in sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": versions(),
    }
    if args.stored_rewards:
        comparison = compare(stored_passages(args.stored_rewards))
        results["stored"] = {**about, **comparison}
        print("\n".join(lines_of("stored rewards", comparison)))
    if args.passages:
        records = run_live(args)
        if records is None:
            print(f"The time is over; the same command goes on from {args.records}.")
        else:
            comparison = compare(live_passages(records, args.self_edits))
            seconds = {name: sum(record["seconds"][name] for record in records) for name in records[0]["seconds"]}
            settings = {name: getattr(args, name) for name in ("learning_rate", "num_train_epochs", "target_modules")}
            results["live"] = {**about, **settings, "seconds": seconds, **comparison}
            print("\n".join(lines_of("embedded model", comparison)))
            print("  " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored_rewards", help="a run in the paper's format, such as rank_iter0.json")
    parser.add_argument("--records", default="outputs/less_work.jsonl", help="where each bank's scores go")
    parser.add_argument("--seconds", type=float, default=1e9, help="end after the bank that is under way then")
    parser.add_argument("--passages", type=int, default=8, help="demo passages; 0 for none")
    parser.add_argument("--self_edits", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--passages_per_bank", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--num_train_epochs", type=int, default=10)
    parser.add_argument("--target_modules", default="all-linear")
    main(parser.parse_args())
