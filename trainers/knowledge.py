"""
Teach a model to write its own finetuning data: SEAL on passages with questions.

    python -m trainers.knowledge --config trainers/configs/small.yaml
    accelerate launch -m trainers.knowledge --config trainers/configs/qwen2.5-7b.yaml

Every field of SEALConfig and of TRL's ModelConfig is an option, on the command line or in the YAML file. With --dry_run
everything is checked and the plan is printed. The same command with --resume_from_checkpoint true continues a run.
"""

from dataclasses import dataclass, field, replace

from seal_hf import SEALConfig
from seal_hf.grading import RubricJudge
from seal_hf.grading.rewards import ACCURACY
from trainers.arguments import DomainArguments, JudgeArguments, load_dataset_argument
from trainers.outer_loop import PolicyModelConfig, run_script, train


@dataclass
class KnowledgeArguments(JudgeArguments, DomainArguments):
    """Passages to learn from and to evaluate on."""

    dataset_name: str = field(
        default="demo",
        metadata={"help": "'demo', a .json, .jsonl, .ndjson, .csv or .parquet file, or a dataset on the Hub."},
    )
    dataset_train_split: str | None = field(default=None, metadata={"help": "Split to learn from."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on. Default: nothing is evaluated."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Where the passages to evaluate on are, if not in the same place."}
    )
    prompt_style: str = field(
        default="implications",
        metadata={"help": "How self-edits are asked for: the name of a style, or a prompt with {context}."},
    )
    training_format: str = field(
        default="language_modeling",
        metadata={
            "help": "How adapters are trained on self-edits: 'language_modeling' (the paper's) or 'prompt_completion'."
        },
    )
    eval_asks_for_left_out: bool | None = field(
        default=None, metadata={"help": "--asks_for_left_out of the evaluations, if it is not the same."}
    )
    rubric_judge_model: str | None = field(
        default=None,
        metadata={
            "help": "With 'rubric' among --reward_funcs: score with this language model, at --judge_provider or --judge_base_url, its "
            "key in JUDGE_API_KEY. Default: the base model itself."
        },
    )
    num_train_passages: int | None = field(default=None, metadata={"help": "Take only the first so many."})
    num_eval_passages: int | None = field(default=None, metadata={"help": "Take only the first so many."})
    shuffle_seed: int = field(
        default=42,
        metadata={
            "help": "Seed of the passages' order, of which the first so many are taken (42: the paper's); -1 keeps the "
            "dataset's own order."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Check everything and print the plan, no more."})

    def rubric_judge(self) -> RubricJudge | None:
        """The judge that scores self-edits, or `None` for the base model."""
        if self.rubric_judge_model is None:
            return None
        return RubricJudge(self.rubric_judge_model, **self.judge_endpoint())


def main(script_args: KnowledgeArguments, training_args: SEALConfig, model_args: PolicyModelConfig) -> None:
    eval_dataset = None
    if script_args.dataset_test_split is not None or script_args.eval_dataset_name is not None:
        eval_dataset = load_dataset_argument(
            script_args.eval_dataset_name or script_args.dataset_name,
            script_args.dataset_test_split,
            script_args.num_eval_passages,
            script_args.shuffle_seed,
        )
    train_dataset = load_dataset_argument(
        script_args.dataset_name,
        script_args.dataset_train_split,
        script_args.num_train_passages,
        script_args.shuffle_seed,
        is_labelled=ACCURACY in training_args.reward_funcs,
    )
    grader, eval_domain = script_args.judge_grader(), None
    if script_args.eval_asks_for_left_out is not None:
        eval_domain = replace(script_args, asks_for_left_out=script_args.eval_asks_for_left_out).domain(grader)
    train(
        script_args.domain(grader),
        train_dataset,
        eval_dataset,
        training_args,
        model_args,
        eval_domain=eval_domain,
        dry_run=script_args.dry_run,
        texts=[example["context"] for example in eval_dataset or ()],
        rubric_judge=script_args.rubric_judge(),
    )


if __name__ == "__main__":
    run_script(main, KnowledgeArguments)
