"""
The paper's single-passage protocol: base, passage in context, passage only and self-edits on the same questions.

    python trainers/evaluate.py --dataset demo --split test --output_file results.jsonl
    python trainers/evaluate.py --dataset passages.json --num_passages 10 --output_file results.jsonl

A line per passage is written as soon as it is known; the table over all passages is printed at the end.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from arguments import AdaptationArguments
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf.domains import load_demo_passages, load_passages
from seal_hf.protocols import Summary, single_passage, summarize


@dataclass
class EvaluationArguments(AdaptationArguments):
    """Passages to evaluate on, and where the results go."""

    dataset: str = field(
        default="demo", metadata={"help": "'demo', a .json, .jsonl or .parquet file, or a dataset on the Hub."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    num_passages: int | None = field(default=None, metadata={"help": "Take only the first so many passages."})
    max_answer_length: int = field(default=64, metadata={"help": "Longest answer, in tokens."})
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


def main(args: EvaluationArguments) -> None:
    output = Path(args.output_file)
    if output.exists():
        raise ValueError(f"{output} exists; give another --output_file, so that no results are lost.")
    if args.num_passages is not None and args.num_passages < 1:
        raise ValueError(f"--num_passages {args.num_passages} must be at least 1.")
    if args.dataset == "demo":
        examples = load_demo_passages(args.split or "train")
    else:
        examples = load_passages(args.dataset, args.split)
    examples = examples[: args.num_passages]
    lm = args.load()
    output.parent.mkdir(parents=True, exist_ok=True)
    protocol = single_passage(
        lm,
        examples,
        num_generations=args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length,
        max_answer_length=args.max_answer_length,
        seed=args.seed,
    )
    results, start = [], time.perf_counter()
    for result in tqdm(protocol, total=len(examples), desc="passages"):
        results.append(result)
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
    print(table(summarize(results), len(results), sum(len(example["questions"]) for example in examples)))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; answers and verdicts are in {output}.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
