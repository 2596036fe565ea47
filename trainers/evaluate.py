"""
The paper's single-passage protocol: base, passage in context, passage only and self-edits on the same questions.

    python trainers/evaluate.py --dataset demo --split test --output_file results.jsonl
    python trainers/evaluate.py --dataset passages.json --num_passages 10 --output_file results.jsonl

A line per passage is written as soon as it is known, and the table over all passages is printed at the end. The same
command again goes on where an interrupted one ended. With --judge_model a language model grades in place of the local
grader; its key is read from JUDGE_API_KEY.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from arguments import AdaptationArguments, JudgeArguments, load_dataset_argument
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf import SelfEdit
from seal_hf.evaluation.single_passage import PassageResult, Summary, single_passage, summarize
from seal_hf.grading import GradingIncomplete, JudgeRefused
from seal_hf.records.journal import write_text


@dataclass
class EvaluationArguments(JudgeArguments, AdaptationArguments):
    """Passages to evaluate on, and where the results go."""

    dataset: str = field(
        default="demo", metadata={"help": "'demo', a .json, .jsonl or .parquet file, or a dataset on the Hub."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    num_passages: int | None = field(default=None, metadata={"help": "Take only the first so many passages."})
    max_answer_length: int = field(default=64, metadata={"help": "Longest answer, in tokens."})
    passages_per_bank: int = field(default=4, metadata={"help": "Passages whose adapters are trained together."})
    output_file: str = field(default="outputs/evaluation.jsonl", metadata={"help": "Where a line per passage goes."})


def table(summary: Summary, num_passages: int, num_questions: int) -> str:
    """The results as Markdown."""
    lines = [
        f"{num_passages} passages, {num_questions} questions, {summary.num_self_edits} self-edits; 95 % intervals by "
        "resampling passages.",
        "",
        "| condition | accuracy | self-edits minus this |",
        "|---|---|---|",
    ]
    for condition, value in summary.accuracies.items():
        lines.append(f"| {condition} | {value} | {summary.differences.get(condition, '')} |")
    return "\n".join(lines)


def read_finished(output: Path, settings: dict, examples: Sequence[Mapping]) -> list[PassageResult]:
    """
    The results of an earlier, interrupted run, cut to whole banks; the file is created or cut to match.

    Raises:
        ValueError: The file is not a record of this script, or of a run with other settings, other passages or more.
    """
    # Not splitlines(): a text may hold other line separators, unescaped. The last line is empty or torn.
    lines = output.read_text(encoding="utf-8").split("\n")[:-1] if output.exists() else []
    remedy = "give another --output_file, so that no results are lost"
    try:
        records = [json.loads(line) for line in lines]
        found = records[0]["settings"] if records else settings
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{output} is not a record of this script ({error!r}); {remedy}.") from error
    if not records and output.exists() and output.stat().st_size:
        raise ValueError(f"{output} is not a record of this script; {remedy}.")
    if different := sorted(name for name in {*settings, *found} if settings.get(name) != found.get(name)):
        raise ValueError(f"{output} holds a run with another {', '.join(different)}; {remedy}.")
    results, num_passages = records[1:], len(examples)
    if len(results) > num_passages:
        raise ValueError(f"{output} holds {len(results)} passages, more than the {num_passages} asked for; {remedy}.")
    # Told by their titles and the number of their questions, which is what a result keeps of them.
    for result, example in zip(results, examples, strict=False):
        answered = {len(run) for runs in result["answers"].values() for run in runs}
        if result["title"] != (example.get("title") or "") or answered != {len(example["questions"])}:
            raise ValueError(f"{output} holds results of other passages, as of {result['title']!r}; {remedy}.")
    if len(results) < num_passages:
        results = results[: len(results) // settings["passages_per_bank"] * settings["passages_per_bank"]]
    kept = [{"settings": settings}, *results]
    write_text(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    return [
        PassageResult(**{**result, "self_edits": tuple(SelfEdit(**edit) for edit in result["self_edits"])})
        for result in results
    ]


def main(args: EvaluationArguments) -> None:
    if args.passages_per_bank < 1:
        raise ValueError(f"--passages_per_bank {args.passages_per_bank} must be at least 1.")
    examples = load_dataset_argument(args.dataset, args.split, args.num_passages)
    settings = {name: value for name, value in asdict(args).items() if name not in ("num_passages", "output_file")}
    output = Path(args.output_file)
    results = read_finished(output, settings, examples)
    grader = args.judge_grader()
    lm = args.load()
    lm.domain.grader = grader or lm.domain.grader
    protocol = single_passage(
        lm,
        examples,
        num_generations=args.num_generations,
        passages_per_bank=args.passages_per_bank,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length,
        max_answer_length=args.max_answer_length,
        seed=args.seed,
        start=len(results),
    )
    start = time.perf_counter()
    for result in tqdm(protocol, total=len(examples), initial=len(results), desc="passages"):
        results.append(result)
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
    print(table(summarize(results), len(results), sum(len(example["questions"]) for example in examples)))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; answers and verdicts are in {output}.")


if __name__ == "__main__":
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError, GradingIncomplete, JudgeRefused) as error:
        sys.exit(f"error: {error}")
