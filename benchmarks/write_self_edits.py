"""
Let the model `embedded-tiny` write the self-edits that the benchmark trains on.

    python benchmarks/write_self_edits.py

They are written once and shipped, so that every run of the benchmark trains on the same tokens. Another run of this
script gives the same texts up to what rounding on another machine changes in a sample.
"""

import argparse
import json
import sys
from pathlib import Path

from inputs import LIST_PROMPT, SELF_EDITS

from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.domains.knowledge.completions import split_completion


# Fewer lines than this are not a list; the next sample of the passage is taken in their place.
LEAST_LINES = 3


def write_self_edits(args: argparse.Namespace) -> list[dict]:
    """`num_generations` records for each of the first `num_passages` training passages, one passage after another."""
    domain = KnowledgeDomain(LIST_PROMPT.read_text(encoding="utf-8").rstrip(), chat=False)
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny", domain=domain)
    records = []
    for place, passage in enumerate(load_demo_passages("train")[: args.num_passages]):
        (written,) = lm.write_batch(
            [passage],
            3 * args.num_generations,
            temperature=args.temperature,
            top_p=args.top_p,
            max_completion_length=args.max_completion_length,
            seed=args.seed,
            numbers=[place],
        )
        # After the list the model continues with a passage of its own invention.
        completions = [generation.text.split("\n\n")[0].strip() for generation in written]
        lists = [completion for completion in completions if len(split_completion(completion)) >= LEAST_LINES]
        if len(lists) < args.num_generations:
            raise ValueError(
                f"Only {len(lists)} of {len(written)} completions on {passage['title']!r} are lists; raise "
                "--max_completion_length or change --seed."
            )
        records += [
            {"passage": place, "edit": edit, "completion": completion}
            for edit, completion in enumerate(lists[: args.num_generations])
        ]
        print(f"{place + 1} of {args.num_passages}: {passage['title']}", file=sys.stderr)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_passages", type=int, default=8)
    parser.add_argument("--num_generations", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument(
        "--max_completion_length", type=int, default=360, help="Tokens, before the cut after the list."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, default=SELF_EDITS)
    args = parser.parse_args()
    records = write_self_edits(args)
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    args.output_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
