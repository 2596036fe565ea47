"""
The outer SFT by processes of their own: the trainer leaves on disk what a round's SFT needs, and ends; they write the policy.

    sft/round_000/job.json          the model's name, how it is loaded, the SFT's settings
    sft/round_000/rows.jsonl        what is trained on: token ids and labels
    sft/round_000/adapter_*         the policy that it begins from, and the tokenizer beside it

The folder is removed when `policy/round_000` is there. So the processes know nothing of domains and examples, and are free to
shard the model, which those of the trainer are not.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from ..models.access import activation_dtype
from ..models.loading import load_causal_lm
from ..records.files import explaining_failed_write, read_records, write_records, write_text
from ..records.run_folder import RunFolder
from ..records.schema import SelectedSelfEdit
from ..rollout.processes import Processes
from .outer_sft import ForwardingCallback, PolicyNotFinite, require_finite, train_policy, training_rows
from .policy import keep_policy, policy_weights, write_policy
from .seal_config import SEALConfig


logger = logging.getLogger(__name__)

_JOB_FILE, _ROWS_FILE = "job.json", "rows.jsonl"
# Fields of SFTConfig, by their beginnings, that are the trainer's alone, and no part of a fit.
_OF_THE_TRAINER = (
    "hub_",
    "push_to_hub",
    "report_to",
    "run_name",
    "trackio",
    "output_dir",
    "model_init",
    "resume_from",
)


@dataclass(frozen=True)
class ModelSource:
    """
    Where other processes find the model of a trainer.

    Parameters:
        name (`str`):
            What [`load_causal_lm`] takes: a Hub id, a folder or an embedded model.
        options (`Mapping[str, Any]`):
            Its other options, such as `dtype`.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            How it is quantized.
    """

    name: str
    options: Mapping[str, Any]
    quantization_config: BitsAndBytesConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON, with a folder's full path."""
        quantization = self.quantization_config
        return {
            "name": str(Path(self.name).absolute()) if Path(self.name).is_dir() else self.name,
            "options": {
                name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
                for name, value in self.options.items()
            },
            "quantization_config": None if quantization is None else quantization.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSource":
        quantization = values["quantization_config"]
        return cls(
            values["name"],
            values["options"],
            None if quantization is None else BitsAndBytesConfig.from_dict(quantization),
        )


def leave_sft(
    run: RunFolder,
    round_index: int,
    selected: Sequence[SelectedSelfEdit],
    *,
    source: ModelSource,
    policy: PeftModel,
    processing_class: PreTrainedTokenizerBase,
    args: SEALConfig,
    seed: int,
    state: TrainerState,
) -> None:
    """
    Write what [`fit_waiting`] needs for a round's SFT, in place of what was left for it before, and say how it is started.

    Args:
        run ([`RunFolder`]):
            The run's folder.
        round_index (`int`):
            The round, from 0.
        selected (`Sequence[SelectedSelfEdit]`):
            What the policy is to learn.
        source ([`ModelSource`]):
            The base model.
        policy (`PeftModel`):
            The model with the policy adapter that the SFT begins from.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args ([`SEALConfig`]):
            The run's settings.
        seed (`int`):
            Seed of the fit.
        state (`TrainerState`):
            The trainer's, which is saved.

    Raises:
        ValueError: No self-edit fits into `max_length`.
        OSError: The disk is full, or the folder cannot be written.
    """
    rows = training_rows(selected, processing_class, args)
    folder = run.sft(round_index)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with explaining_failed_write(folder):
        write_policy(policy, partial)
        processing_class.save_pretrained(partial)
    write_records(partial / _ROWS_FILE, rows)
    job = {"seed": seed, "model": source.to_dict(), "arguments": _changed_arguments(args)}
    write_text(partial / _JOB_FILE, json.dumps(job, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    run.save_state(state)
    logger.warning(
        "Round %d waits for its SFT: run `accelerate launch --config_file CONFIG -m trainers.sft %s`, then go on with "
        "resume_from_checkpoint=True.",
        round_index + 1,
        args.output_dir,
    )


def fit_waiting(output_dir: str | Path) -> int | None:
    """
    Do the SFT that a run waits for, with all processes that were launched together, and write its policy.

    How they share the work follows from the launch: data parallel, or the model sharded by FSDP2 or DeepSpeed's ZeRO-3. Where
    they are ended before the policy is there, the same call begins the fit again.

    Args:
        output_dir (`str` or `Path`):
            The run's folder, which all processes see.

    Returns:
        `int`: the round whose policy was written, from 0; `None` where the run waits for none.

    Raises:
        ValueError: The launch asks for FSDP1 or for another stage of ZeRO, or a process trains in the folder already.
        PolicyNotFinite: The fit came to values that are not finite; no policy is written.
        ProcessEnded: Another process has ended.
        OSError: The model cannot be loaded, or the policy cannot be written.
    """
    run = RunFolder(output_dir, {})
    round_index = run.num_policies()
    folder = run.sft(round_index)
    if not folder.is_dir():
        return None
    job = json.loads((folder / _JOB_FILE).read_text(encoding="utf-8"))
    # Before the model is loaded: DeepSpeed's settings, which they bring, decide how.
    args = SEALConfig(str(output_dir), **job["arguments"])
    remedy = f"What round {round_index + 1} learns from is in {folder}; start the same command again for its SFT."
    processes = Processes(run.path, args.ddp_timeout, remedy)
    with processes.explaining_termination(), processes.naming_losses(), ExitStack() as held:
        processes.on_main(lambda: held.enter_context(run.held()))
        rows = read_records(folder / _ROWS_FILE)
        model = _load_policy(ModelSource.from_dict(job["model"]), folder, args)
        state = TrainerState(**processes.on_main(run.load_state))

        def on_step() -> bool:
            state.global_step += 1
            return False

        def on_log(logs: dict[str, float]) -> None:
            entry = {"round": round_index + 1, **logs, "epoch": state.epoch, "step": state.global_step}
            state.log_history.append(entry)
            if processes.is_main:
                logger.info("%s", entry)

        train_policy(
            model,
            AutoTokenizer.from_pretrained(folder),
            rows,
            args,
            seed=job["seed"],
            output_dir=folder,
            callback=ForwardingCallback(on_step, on_log),
        )
        weights = policy_weights(model, _gathered(model))
        try:
            require_finite(weights.values(), args)
        except PolicyNotFinite:
            processes.on_main(run.note_failed_fit, round_index)
            raise
        state.epoch = float(round_index + 1)
        processes.on_main(keep_policy, model, run, round_index, state, weights)
    return round_index


def _changed_arguments(args: SEALConfig) -> dict[str, Any]:
    """The settings of a fit that are not the default ones, for JSON."""
    names = [field.name for field in fields(SFTConfig) if field.init and not field.name.startswith(_OF_THE_TRAINER)]
    own, default = args.to_dict(), SEALConfig(args.output_dir).to_dict()
    return {name: own[name] for name in (*names, "sft_batch_size") if own[name] != default[name]}


def _load_policy(source: ModelSource, folder: Path, args: SEALConfig) -> PeftModel:
    """The base model where the launch wants it, with the policy that is in a folder, to be trained."""
    device, quantization = args.device, source.quantization_config
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION") != "2":
            raise ValueError("The SFT is sharded by FSDP2 alone; set fsdp_version: 2 in the config of accelerate.")
        if quantization is None:
            device = torch.device("cpu")  # from where each process takes its share
        else:
            # Bytes are no parameters that FSDP2 shards; the values are the same in any storage.
            quantization.bnb_4bit_quant_storage = quantization.bnb_4bit_compute_dtype
    if args.deepspeed_plugin is not None and not is_deepspeed_zero3_enabled():
        raise ValueError("Of DeepSpeed the SFT takes ZeRO-3 alone; set zero_stage: 3 in the config of accelerate.")
    base, _, _ = load_causal_lm(
        source.name, load_in_4bit=False, quantization_config=quantization, device=device, **source.options
    )
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    # ZeRO-3 wants one dtype for all parameters, and keeps a copy in fp32 of those that it trains.
    dtype = activation_dtype(base) if is_deepspeed_zero3_enabled() and quantization is None else torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def _gathered(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trained parameters in full, by name. All processes take part."""
    return {name: _full(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}


def _full(parameter: torch.nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return parameter
