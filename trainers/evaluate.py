"""
The paper's protocols: base, passage in context, passage only, self-edits and other conditions on the same questions.

    python -m trainers.evaluate --dataset_name demo --dataset_test_split test --output_dir outputs/demo
    python -m trainers.evaluate --dataset_name passages.json --num_passages 10 --output_dir outputs/mine
    python -m trainers.evaluate --compare_styles rewrite self-qa --compare_methods retrieval SPA --output_dir outputs/many
    python -m trainers.evaluate --protocol continued_pretraining --full_finetuning true --inner_learning_rate 1e-5 --output_dir outputs/full
    python -m trainers.evaluate --protocol continual --num_passages 8 --num_orders 3 --remedies replay routed --output_dir outputs/continual

Answers and verdicts are written as soon as they are known, and the table over all passages is printed at the end. The
same command again continues an interrupted one. With --judge_model a language model grades in place of the local grader;
its key is read from JUDGE_API_KEY. With --self_edits the self-edits are read from a file or dataset instead of being written.
With --dry_run everything is checked and the work that is left is printed.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf.domains.base import SELF_EDITS
from seal_hf.domains.knowledge.reference_files import query_run
from seal_hf.evaluation.continual import continual
from seal_hf.evaluation.continued_pretraining import continued_pretraining
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.grading import GradingIncomplete, JudgeRefused
from seal_hf.hub.stored_self_edits import load_stored_self_edits
from seal_hf.records.comparison import save_comparison
from seal_hf.records.continual import save_continual
from seal_hf.records.files import RESUME_EVALUATION, remedy_of, write_text
from seal_hf.records.journal import Journal
from seal_hf.records.tables import results_table
from seal_hf.rollout.stage import RolloutConfig
from trainers.arguments import JudgeArguments, load_dataset_argument
from trainers.conditions import ROUTED, ConditionArguments


PROTOCOLS = {
    "single_passage": single_passage,
    "continued_pretraining": continued_pretraining,
    "continual": continual,
}


@dataclass
class EvaluationArguments(JudgeArguments, ConditionArguments):
    """The protocol, passages to evaluate on, and where the results go."""

    protocol: str = field(
        default="single_passage",
        metadata={
            "help": "'single_passage': an adapter for each passage; 'continued_pretraining': one for all; 'continual': the passages "
            "one after another, each on top of the last."
        },
    )
    num_orders: int = field(default=1, metadata={"help": "Orders of the passages, with --protocol continual."})
    remedies: list[str] = field(
        default_factory=list,
        metadata={
            "help": "With --protocol continual further rows against forgetting, each with a matrix: 'replay' (earlier self-edits are "
            "trained on again), 'routed' (adapters apart, chosen by the question), 'average', 'ties', 'dare_linear' or 'dare_ties' "
            "(adapters apart, merged)."
        },
    )
    replay_share: float = field(
        default=0.25, metadata={"help": "With --remedies replay the share of earlier self-edits in every update."}
    )
    full_finetuning: bool = field(
        default=False,
        metadata={
            "help": "With --protocol continued_pretraining train all weights in place of an adapter; set a lower --inner_learning_rate."
        },
    )

    dataset_name: str = field(
        default="demo",
        metadata={"help": "'demo', a .json, .jsonl, .ndjson, .csv or .parquet file, or a dataset on the Hub."},
    )
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split of the dataset to evaluate on."})
    num_passages: int | None = field(default=None, metadata={"help": "Take only the first so many passages."})
    shuffle_seed: int = field(
        default=42,
        metadata={
            "help": "Seed of the passages' order, of which the first so many are taken (42: the paper's); -1 keeps the "
            "dataset's own order."
        },
    )
    self_edits: str | None = field(
        default=None,
        metadata={
            "help": "Self-edits that somebody else wrote, in place of the model's own: a .json, .jsonl, .ndjson, .csv or .parquet file, or a "
            "dataset of self-edits in a folder or on the Hub."
        },
    )
    policy: str | None = field(
        default=None,
        metadata={
            "help": "The adapter that writes the self-edits: a folder, such as outputs/seal/policy/round_001, or a repository on "
            "the Hub. Where absent, the base model does."
        },
    )
    student: str = field(
        default="base",
        metadata={"help": "Who learns from the self-edits of a policy and answers: 'base', or the 'policy' itself."},
    )
    num_drafts: int = field(default=1, metadata={"help": "Completions that one self-edit is made of."})
    max_answer_length: int = field(default=64, metadata={"help": "Longest answer, in tokens."})
    adapters_per_bank: int | None = field(
        default=None, metadata={"help": "Most adapters trained together; chosen from the free memory where absent."}
    )
    query_run: bool = field(
        default=False,
        metadata={
            "help": "With --protocol single_passage also write query_run.json, the form in which the paper's code stores an evaluation."
        },
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where the records go."})
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything and print the work that is left, no more."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol {self.protocol!r} must be {', '.join(map(repr, PROTOCOLS))}.")
        for name, protocol in (("remedies", "continual"), ("full_finetuning", "continued_pretraining")):
            if getattr(self, name) and self.protocol != protocol:
                raise ValueError(f"--{name} belongs to --protocol {protocol}, not to {self.protocol}; leave it out.")
        for name in ("compare_policies", "skill_vector"):
            if self.policy is not None and getattr(self, name):
                raise ValueError(
                    f"--{name} loads adapters of the base model, which carries one with --policy; leave --policy out, and compare "
                    "it with --compare_policies."
                )
        if self.skill_vector and (self.full_finetuning or self.protocol == "continual"):
            other = "--full_finetuning" if self.full_finetuning else "--protocol continual"
            raise ValueError(
                f"--skill_vector is added to adapters of one passage, and not with {other}; leave one of the two out."
            )
        if ROUTED in self.compare_methods and self.protocol == "continual":
            raise ValueError(
                f"--compare_methods {ROUTED} has no matrix with --protocol continual; give --remedies routed."
            )
        if self.query_run and self.protocol != "single_passage":
            raise ValueError(
                f"--query_run holds adapters of one passage; leave it out with --protocol {self.protocol}."
            )


def main(args: EvaluationArguments) -> None:
    # Without the flag several processes on CPUs would not find each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    args.check_conditions(f"{SELF_EDITS}, {remedy}" for remedy in args.remedies)
    examples = load_dataset_argument(args.dataset_name, args.dataset_test_split, args.num_passages, args.shuffle_seed)
    self_edits = None if args.self_edits is None else load_stored_self_edits(args.self_edits)
    config = RolloutConfig(
        temperature=args.temperature,
        top_p=args.top_p,
        num_drafts=args.num_drafts,
        max_completion_length=args.max_completion_length,
        max_answer_length=args.max_answer_length,
        adapters_per_bank=args.adapters_per_bank,
    )
    start, grader = time.perf_counter(), args.judge_grader()
    is_continual = args.protocol == "continual"
    options = {
        "single_passage": {},
        "continued_pretraining": {"full_finetuning": args.full_finetuning},
        "continual": {
            "num_orders": args.num_orders,
            "remedies": args.remedies,
            "replay_share": args.replay_share,
        },
    }[args.protocol]
    lm = args.load(grader, policy=args.policy, student=args.student)
    result = PROTOCOLS[args.protocol](
        lm,
        examples,
        args.output_dir,
        num_generations=args.num_generations,
        config=config,
        seed=args.seed,
        self_edits=self_edits,
        compared=args.conditions(lm, examples, grader),
        dry_run=args.dry_run,
        **options,
    )
    if not state.is_main_process:
        return
    if args.dry_run:
        print(result)
        return
    saved = [*save_comparison(args.output_dir), *(save_continual(args.output_dir) if is_continual else [])]
    if args.query_run:
        scored = Journal(Path(args.output_dir) / "evaluation").scored(0)
        saved.append(Path(args.output_dir) / "query_run.json")
        record = query_run(examples, scored, model=args.model_name_or_path, dataset=args.dataset_name)
        text = json.dumps(record, indent=2, ensure_ascii=False)
        write_text(saved[-1], f"{text}\n", remedy_of(RESUME_EVALUATION))
    print(results_table(args.output_dir, [example["context"] for example in examples]))
    names = ", ".join(file.name for file in saved)
    print(
        f"{(time.perf_counter() - start) / 60:.1f} minutes; answers and verdicts are in {args.output_dir}/evaluation, the same "
        f"results in {names} beside it."
    )


if __name__ == "__main__":
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
        main(arguments)
    except (ValueError, OSError, ImportError, GradingIncomplete, JudgeRefused) as error:
        sys.exit(f"error: {error}")
