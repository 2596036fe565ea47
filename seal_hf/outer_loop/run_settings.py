"""Which options of a run decide its results, so that a run is only continued with the same ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..grading import RubricJudge
from ..grading.rewards import RUBRIC
from ..rollout.settings import describe
from ..self_adapting_lm import SelfAdaptingLM
from .seal_config import SEALConfig


# Fields of SFTConfig that change what a fit learns. How often it logs or saves does not.
_SFT_SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "loss_type",
    "neftune_noise_alpha",
    "optim",
    "optim_args",
    "max_length",
    "truncation_mode",
    "completion_only_loss",
    "bf16",
    "fp16",
    "seed",
)
# What may be changed for the next fit, after one that failed: no self-edit and no reward before it depends on these.
FIT_SETTINGS = ("sft_batch_size", *(name for name in _SFT_SETTINGS if name != "seed"))
# SEALConfig's own fields that do not.
_FREE_FIELDS = (
    "num_rounds",
    "adapters_per_bank",
    "inner_gradient_checkpointing",
    "logging_steps",
    "ddp_timeout",
    "restore_callback_states_from_checkpoint",
    "separate_sft",
    "shard_base",
    "use_vllm",
    "vllm_mode",
    "vllm_server_base_url",
    "vllm_gpu_memory_utilization",
    "vllm_enable_sleep_mode",
)


def run_settings(
    args: SEALConfig,
    lm: SelfAdaptingLM,
    train_examples: Sequence[Mapping],
    eval_examples: Sequence[Mapping] | None,
    num_per_round: int,
    eval_lm: SelfAdaptingLM,
    rubric_judge: RubricJudge | None = None,
) -> dict[str, Any]:
    """
    Describe a run of [`SEALTrainer`] with so many examples per round (see [`seal_hf.rollout.settings.describe`]), and what is
    different of its evaluations, where they have a domain of their own.

    Returns:
        `dict[str, Any]`: flat and JSON-serializable.
    """
    own = [name for name in SEALConfig.__annotations__ if name not in _FREE_FIELDS]
    options = {name: getattr(args, name) for name in dict.fromkeys((*own, *_SFT_SETTINGS))}
    options["examples_per_round"] = num_per_round
    if lm.domain.instruction("Restate it.") is None:  # of no effect, and not known to older runs
        del options["num_instructions_shown"]
    rewards = args.rewards()
    if rewards.is_default:  # named only where it is not, so that older runs can be resumed
        del options["reward_funcs"], options["reward_weights"]
    elif RUBRIC in rewards.names:
        options["rubric_judge"] = None if rubric_judge is None else rubric_judge.model
    settings = describe(lm, {"train_dataset": train_examples, "eval_dataset": eval_examples}, options)
    if eval_lm is not lm:
        of_evaluations = describe(eval_lm, {"eval_dataset": eval_examples}, {})
        settings |= {f"eval_{name}": value for name, value in of_evaluations.items() if name.startswith("domain")}
        settings |= {name: of_evaluations[name] for name in ("eval_dataset", "retention") if name in of_evaluations}
    return settings
