"""The policy adapter: how a model gets one, and its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
    set_seed,
)

from ..adapters.layout import lora_layout
from ..adapters.policy import default_policy_config
from ..adapters.sources import WEIGHTS_NAME
from ..models.loading import default_dtype, load_causal_lm
from ..models.memory import release_memory
from ..models.sharding import shard_base
from ..records.files import explaining_failed_write
from ..records.run_folder import RunFolder
from ..rollout.processes import Processes
from .seal_config import SEALConfig


def prepare_policy(
    model: str | PreTrainedModel | PeftModel,
    args: SEALConfig,
    processing_class: PreTrainedTokenizerBase | None,
    peft_config: LoraConfig | None,
    quantization_config: BitsAndBytesConfig | None,
    device: torch.device | None = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase, str]:
    """
    A model with a policy adapter, from what a [`SEALTrainer`] is given.

    The adapter's weights are held in fp32, whatever the precision of the base or of the adapter that is given: in bf16 the
    small updates of the outer SFT are lost.

    Args:
        model, args, processing_class, peft_config, quantization_config:
            As for [`SEALTrainer`].
        device (`torch.device`, *optional*):
            Where a model is loaded that is given by its name. Defaults to `args.device`.

    Returns:
        `tuple[PeftModel, PreTrainedTokenizerBase, str]`: model, tokenizer and the base model's identity.

    Raises:
        ValueError: A `PeftModel` together with `peft_config`, or a loaded model with `quantization_config`.
    """
    if isinstance(model, str):
        options = load_options(args)
        for name in ("device_map", "quantization_config"):
            if name in options:
                raise ValueError(
                    f"model_init_kwargs has {name!r}: every process has the model on its own device, and a "
                    "quantization is given as quantization_config to SEALTrainer; leave it out."
                )
        options.setdefault("dtype", default_dtype(args.device))  # also where it is loaded elsewhere at first
        model, tokenizer, base_model_id = load_causal_lm(
            model, load_in_4bit=False, quantization_config=quantization_config, device=device or args.device, **options
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
        peft_config = peft_config or default_policy_config()
        # Resolved here: PEFT would adapt fused experts, a vision tower and the like as well, and has no default for many.
        modules = lora_layout(model, peft_config, trained=True).target_modules
        model = get_peft_model(model, replace(peft_config, task_type="CAUSAL_LM", target_modules=list(modules)))
        # PEFT notes where the model was loaded from, which for an embedded one is a folder of this machine.
        model.active_peft_config.base_model_name_or_path = base_model_id
    elif peft_config is not None:
        raise ValueError(
            "Both a PeftModel and peft_config were given; give the PeftModel alone to train its adapter further, or the base "
            "model with peft_config for a new one."
        )
    else:
        # PeftModel.from_pretrained freezes its adapter.
        model.set_adapter(model.active_adapter)
        model.active_peft_config.inference_mode = False
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, processing_class, base_model_id


def prepare_sharded_policy(
    model: str,
    args: SEALConfig,
    processing_class: PreTrainedTokenizerBase | None,
    peft_config: LoraConfig | None,
    quantization_config: BitsAndBytesConfig | None,
    processes: Processes,
) -> tuple[PeftModel, PreTrainedTokenizerBase, str]:
    """
    As [`prepare_policy`], with the base sharded over all processes.

    Those of one machine load it one after the other, so that its memory holds one copy and the shares.

    Raises:
        ValueError: A single process, or a model that is quantized or otherwise cannot be sharded (see [`shard_base`]).
    """
    if processes.count == 1:
        raise ValueError(
            "shard_base=True needs two processes at least, and this run has one; start it with `accelerate launch "
            "--num_processes N`, or leave shard_base out."
        )
    if quantization_config is not None:
        raise ValueError(
            "shard_base=True cannot shard a quantized base; leave quantization_config out, or shard_base."
        )
    mesh = init_device_mesh(args.device.type, (processes.count,))
    for turn in range(processes.local_count):
        if turn == processes.local_index:
            prepared = prepare_policy(model, args, processing_class, peft_config, None, torch.device("cpu"))
            shard_base(prepared[0], mesh, processes.group)
            release_memory(torch.device("cpu"))
        processes.wait()
    return prepared


def load_options(args: SEALConfig) -> dict[str, Any]:
    """What [`load_causal_lm`] is given for a run's model, besides its name, quantization and device."""
    return {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}


def write_policy(model: PeftModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """
    Write the active adapter as a PEFT folder, whatever its name in the model; with other weights than its own where the model
    holds a share of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = policy_weights(model) if weights is None else weights
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    replace(model.active_peft_config, inference_mode=True).save_pretrained(str(folder))


def read_policy(folder: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a policy that [`write_policy`] wrote; `None` where there is none."""
    return load_file(folder / WEIGHTS_NAME) if folder.is_dir() else None


def policy_weights(model: PeftModel, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A copy of the active adapter's weights, on the CPU; those of `state_dict` where the model holds a share of them."""
    # Embedding layers are not LoRA's; looking for them would ask the Hub.
    weights = get_peft_model_state_dict(
        model, state_dict, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}


def restore_policy(model: PeftModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the active adapter these weights."""
    set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)


@contextmanager
def undone_on_error(model: PeftModel, state: TrainerState) -> Iterator[None]:
    """Bring policy and log back where the block ends with an error or the keyboard ends it, so that the same trainer can be resumed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    steps, epoch, num_logs = state.global_step, state.epoch, len(state.log_history)
    try:
        yield
    except BaseException:
        for parameter, values in zip(parameters, before, strict=True):
            # TRL may have cast it to another dtype by then.
            parameter.data = parameter.data.to(values.dtype).copy_(values)
        state.global_step, state.epoch = steps, epoch
        del state.log_history[num_logs:]
        raise


def keep_policy(
    model: PeftModel,
    run: RunFolder,
    round_index: int,
    state: TrainerState,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Write the policy after a round's SFT (see [`write_policy`]), with the trainer's state, so that it is there whole or not at
    all.
    """
    with explaining_failed_write(run.policy(round_index)):
        partial = run.begin_policy(round_index)
        write_policy(model, partial, weights)
    run.save_state(state, partial)
    with explaining_failed_write(run.policy(round_index)):
        run.finish_policy(round_index)
    run.save_state(state)


def bytes_of_policies(model: PeftModel, args: SEALConfig, run: RunFolder) -> int:
    """Disk space for the fp32 policies of all rounds to come, for one to be saved at the end, and for the records."""
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    num_policies = max(0, args.num_rounds - run.num_policies()) + 1
    return 4 * num_trained * num_policies + 20_000_000
