"""
Teach a model to write its own finetuning data: SEAL on passages with questions.

    python -m trainers.knowledge --config trainers/configs/small.yaml
    accelerate launch -m trainers.knowledge --config trainers/configs/qwen2.5-7b.yaml

Every field of SEALConfig and of TRL's ModelConfig is an option, on the command line or in the YAML file. With --dry_run
everything is checked and the plan is printed. The same command with --resume_from_checkpoint true continues a run.
"""

import logging
import sys
from dataclasses import dataclass, field

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging as transformers_logging
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from seal_hf import SEALConfig, SEALTrainer
from seal_hf.grading import GradingIncomplete, JudgeRefused
from seal_hf.hub import HubError
from seal_hf.records.tables import results_table
from seal_hf.rollout.processes import ProcessEnded
from trainers.arguments import DomainArguments, JudgeArguments, load_dataset_argument


@dataclass
class KnowledgeArguments(JudgeArguments, DomainArguments):
    """Passages to learn from and to evaluate on."""

    dataset_name: str = field(
        default="demo", metadata={"help": "'demo', a .json, .jsonl or .parquet file, or a dataset on the Hub."}
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


@dataclass
class PolicyModelConfig(ModelConfig):
    """TRL's model options. `--use_peft` with `--lora_...` sets another policy adapter than the paper's."""

    model_name_or_path: str = field(
        default="embedded",
        metadata={
            "help": "Hub id or folder of a causal LM, 'embedded' for a small one (0.5B parameters), or 'embedded-tiny' "
            "(135M) where memory is short."
        },
    )
    dtype: str | None = field(default="bfloat16", metadata={"help": "Data type of the base model."})
    lora_r: int = field(default=64, metadata={"help": "Rank of the policy adapter."})
    lora_alpha: int = field(default=128, metadata={"help": "Alpha of the policy adapter."})
    # With dropout a fit would depend on the number of processes.
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the policy adapter."})


def main(script_args: KnowledgeArguments, training_args: SEALConfig, model_args: PolicyModelConfig) -> None:
    eval_dataset = None
    if script_args.dataset_test_split is not None or script_args.eval_dataset_name is not None:
        eval_dataset = load_dataset_argument(
            script_args.eval_dataset_name or script_args.dataset_name,
            script_args.dataset_test_split,
            script_args.num_eval_passages,
            script_args.shuffle_seed,
        )
    options = {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
    }
    training_args.model_init_kwargs = {
        **{name: value for name, value in options.items() if value is not None},
        **(training_args.model_init_kwargs or {}),
    }
    if script_args.dry_run:
        training_args.push_to_hub = False  # which would create the repository
    trainer = SEALTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        domain=script_args.domain(script_args.judge_grader()),
        train_dataset=load_dataset_argument(
            script_args.dataset_name,
            script_args.dataset_train_split,
            script_args.num_train_passages,
            script_args.shuffle_seed,
        ),
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    resume = training_args.resume_from_checkpoint
    resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
    if script_args.dry_run:
        plan = trainer.plan(resume_from_checkpoint=resume)
        if trainer.is_world_process_zero():
            print(plan)
        return
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    failed_push = trainer.failed_push
    if training_args.push_to_hub and training_args.hub_strategy == HubStrategy.END:
        try:
            trainer.push_to_hub()
        except HubError as error:
            failed_push = str(error)
    if trainer.is_world_process_zero():
        texts = [example["context"] for example in eval_dataset or ()]
        print(f"\n{results_table(training_args.output_dir, texts)}")
        print(f"The policy adapter, the journal and rewards.png are in {training_args.output_dir}.")
    if failed_push is not None:
        sys.exit(f"error: {failed_push}")


if __name__ == "__main__":
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        main(*TrlParser((KnowledgeArguments, SEALConfig, PolicyModelConfig)).parse_args_and_config())
    except (ValueError, OSError, ImportError, GradingIncomplete, JudgeRefused, ProcessEnded) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
