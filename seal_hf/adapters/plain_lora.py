"""Which options of a LoraConfig a stacked adapter follows."""

import math
from collections.abc import Collection
from dataclasses import fields

from peft import LoraConfig

from .files import PLAIN_INITIALIZATIONS
from .peft_targets import is_without_effect


# Options of LoraConfig that a stacked adapter follows, or that do not change what an adapter computes. Every other one
# must be left at its default, also one that a later PEFT adds.
_FOLLOWED_OPTIONS = {
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern"),  # checked against the modules
    "fan_in_fan_out",  # PEFT sets it by the modules' types
    *("megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
}


def require_plain_lora(config: LoraConfig, trained: bool) -> None:
    """
    Check that a configuration is one of plain LoRA on linear modules.

    Args:
        config (`LoraConfig`):
            The adapter's shape.
        trained (`bool`):
            Whether the adapter has its weights already, so that its initialization and dropout do not matter.

    Raises:
        ValueError: An option that a stacked adapter does not follow, or a rank below 1.
    """
    if config.target_parameters:
        raise ValueError(
            f"LoraConfig(target_parameters={sorted(config.target_parameters)!r:.200}) adapts parameters that are no linear "
            "modules, such as fused experts; name linear modules in target_modules, such as those of attention, alone."
        )
    defaults = LoraConfig()
    for option in (field.name for field in fields(LoraConfig)):
        value, default = getattr(config, option), getattr(defaults, option)
        harmless = option in _FOLLOWED_OPTIONS or (
            trained and (option == "lora_dropout" or option == "init_lora_weights" and value in PLAIN_INITIALIZATIONS)
        )
        if not harmless and value != default and (value or default):
            raise ValueError(
                f"LoraConfig({option}={value!r:.200}) is not supported, since adapters are plain LoRA here; train with it left "
                f"at {default!r}."
            )
    if config.r < 1:
        raise ValueError(f"The LoRA rank r={config.r} must be at least 1.")
    if not math.isfinite(config.lora_alpha):
        raise ValueError(f"lora_alpha={config.lora_alpha} must be a finite number.")


def require_one_rank(config: LoraConfig, names: Collection[str]) -> None:
    """
    Check that a configuration gives all modules one rank and one scaling.

    Args:
        config (`LoraConfig`):
            The adapter's shape.
        names (`Collection[str]`):
            The modules that it adapts.

    Raises:
        ValueError: A pattern gives some of them another value.
    """
    for option, common in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
        if not is_without_effect(getattr(config, option), common, names):
            raise ValueError(
                f"LoraConfig({option}={getattr(config, option)!r:.200}) is not supported, since it gives modules another value "
                f"than {common} and a stacked adapter has one for all; train with it left at {{}}."
            )
