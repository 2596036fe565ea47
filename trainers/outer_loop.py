"""What the scripts of the outer loop have in common: options of the model, the trainer and what it prints at the end."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging as transformers_logging
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from seal_hf import SEALConfig, SEALTrainer
from seal_hf.domains import Domain
from seal_hf.grading import GradingIncomplete, JudgeRefused, RubricJudge
from seal_hf.hub import HubError
from seal_hf.records.tables import results_table
from seal_hf.rollout.processes import ProcessEnded


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
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Data type of the base model; by default bfloat16, or float32 on a CPU without instructions for it."
        },
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the policy adapter."})
    lora_alpha: int = field(default=128, metadata={"help": "Alpha of the policy adapter."})
    # With dropout a fit would depend on the number of processes.
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the policy adapter."})

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name.startswith("lora_") and value != option.default and not self.use_peft:
                raise ValueError(f"--{option.name} {value} counts with --use_peft alone; add that, or leave it out.")
        super().__post_init__()


def train(
    domain: Domain,
    train_dataset: Sequence[Mapping],
    eval_dataset: Sequence[Mapping] | None,
    training_args: SEALConfig,
    model_args: PolicyModelConfig,
    *,
    eval_domain: Domain | None = None,
    dry_run: bool = False,
    texts: Sequence[str] = (),
    rubric_judge: RubricJudge | None = None,
) -> None:
    """
    Train a policy, save it and print the tables of the run; or check everything and print the plan.

    Args:
        domain ([`Domain`]):
            What is learned.
        train_dataset, eval_dataset (`Sequence[Mapping]`):
            Its examples.
        training_args ([`SEALConfig`]), model_args ([`PolicyModelConfig`]):
            The options.
        eval_domain ([`Domain`], *optional*):
            The domain of evaluations, where it is another.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether nothing is trained.
        texts (`Sequence[str]`, *optional*):
            The passages that are evaluated on, by whose length the tables are parted.
        rubric_judge ([`RubricJudge`], *optional*):
            Who scores self-edits by the rubric, where not the base model.
    """
    options = {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
    }
    training_args.model_init_kwargs = {
        **{name: value for name, value in options.items() if value is not None},
        **(training_args.model_init_kwargs or {}),
    }
    if dry_run:
        training_args.push_to_hub = False  # which would create the repository
    trainer = SEALTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        domain=domain,
        eval_domain=eval_domain,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
        rubric_judge=rubric_judge,
    )
    resume = training_args.resume_from_checkpoint
    resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
    if dry_run:
        plan = trainer.plan(resume_from_checkpoint=resume)
        if trainer.is_world_process_zero():
            print(plan)
        return
    trainer.train(resume_from_checkpoint=resume)
    if trainer.waits_for_sft:
        return
    trainer.save_model()
    failed_push = trainer.failed_push
    if training_args.push_to_hub and training_args.hub_strategy == HubStrategy.END:
        try:
            trainer.push_to_hub()
        except HubError as error:
            failed_push = str(error)
    if trainer.is_world_process_zero():
        print(f"\n{results_table(training_args.output_dir, texts)}")
        print(f"The policy adapter, the journal and rewards.png are in {training_args.output_dir}.")
    if failed_push is not None:
        sys.exit(f"error: {failed_push}")


def run_script(main: Callable[..., None], arguments: type) -> None:
    """Call a script's `main` with its own arguments and those of trainer and model, from command line and YAML file."""
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        main(*TrlParser((arguments, SEALConfig, PolicyModelConfig)).parse_args_and_config())
    except (ValueError, OSError, ImportError, GradingIncomplete, JudgeRefused, ProcessEnded) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
