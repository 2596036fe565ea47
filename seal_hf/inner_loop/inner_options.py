"""The options of scripts and trainer for the inner loop: fields of its configuration and of its adapters, as `inner_...`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

from peft import LoraConfig

from .update import InnerLoopConfig


class InnerOptions(Protocol):
    """What has these options: a trainer's config, or the arguments of a script. It has every field of [`InnerLoopConfig`], too."""

    inner_lora_r: int
    inner_lora_alpha: int
    inner_target_modules: Sequence[str] | str | None


def inner_loop_config(options: InnerOptions) -> InnerLoopConfig:
    """
    How a self-edit is trained on.

    Raises:
        ValueError: A value out of its range, by its name as an option.
    """
    values = {one.name: getattr(options, f"inner_{one.name}") for one in fields(InnerLoopConfig)}
    try:
        return InnerLoopConfig(**values)
    except ValueError as error:
        raise ValueError(f"inner_{error}") from error


def inner_peft_config(options: InnerOptions) -> LoraConfig:
    """Shape of the inner adapters."""
    targets = options.inner_target_modules
    return LoraConfig(
        r=options.inner_lora_r,
        lora_alpha=options.inner_lora_alpha,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
