"""The policy adapter: how a model gets one, and its files."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..adapters.files import WEIGHTS_NAME
from ..models.loading import load_causal_lm
from .seal_config import SEALConfig


def prepare_policy(
    model: str | PreTrainedModel | PeftModel,
    args: SEALConfig,
    processing_class: PreTrainedTokenizerBase | None,
    peft_config: LoraConfig | None,
    quantization_config: BitsAndBytesConfig | None,
) -> tuple[PeftModel, PreTrainedTokenizerBase, str]:
    """
    A model with a policy adapter, from what a [`SEALTrainer`] is given.

    Returns:
        `tuple[PeftModel, PreTrainedTokenizerBase, str]`: model, tokenizer and the base model's identity.

    Raises:
        ValueError: A `PeftModel` together with `peft_config`, or a loaded model with `quantization_config`.
    """
    if isinstance(model, str):
        options = dict(args.model_init_kwargs or {})
        options.setdefault("trust_remote_code", args.trust_remote_code)
        for name in ("device_map", "quantization_config"):
            if name in options:
                raise ValueError(
                    f"model_init_kwargs has {name!r}: every process holds the whole model on its own device, and a "
                    "quantization is given as quantization_config to SEALTrainer; leave it out."
                )
        model, tokenizer, base_model_id = load_causal_lm(
            model, load_in_4bit=False, quantization_config=quantization_config, device=args.device, **options
        )
        processing_class = processing_class or tokenizer
    else:
        if quantization_config is not None:
            raise ValueError(
                "quantization_config was given with a model that is loaded already; give the model's name, or load it "
                "with that quantization."
            )
        base_model_id = model.config.name_or_path
        processing_class = processing_class or AutoTokenizer.from_pretrained(base_model_id)
    if not isinstance(model, PeftModel):
        set_seed(args.seed)
        peft_config = peft_config or LoraConfig(r=64, lora_alpha=128, target_modules="all-linear")
        model = get_peft_model(model, replace(peft_config, task_type="CAUSAL_LM"))
        # PEFT notes where the model was loaded from, which for the embedded one is a folder of this machine.
        model.active_peft_config.base_model_name_or_path = base_model_id
    elif peft_config is not None:
        raise ValueError(
            "Both a PeftModel and peft_config were given; give the PeftModel alone to go on with its adapter, or the base "
            "model with peft_config for a new one."
        )
    else:
        # PeftModel.from_pretrained freezes its adapter.
        model.set_adapter(model.active_adapter)
        model.active_peft_config.inference_mode = False
    return model, processing_class, base_model_id


def write_policy(model: PeftModel, folder: Path) -> None:
    """Write the active adapter as a PEFT folder, whatever its name in the model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(policy_weights(model), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    replace(model.active_peft_config, inference_mode=True).save_pretrained(str(folder))


def read_policy(folder: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a policy that [`write_policy`] wrote; `None` where there is none."""
    return load_file(folder / WEIGHTS_NAME) if folder.is_dir() else None


def policy_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the active adapter's weights, on the CPU."""
    # Embedding layers are not LoRA's; looking for them would ask the Hub.
    weights = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}


def restore_policy(model: PeftModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the active adapter these weights."""
    set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)
