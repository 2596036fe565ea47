"""What a trainer is given, made ready: the model of its run, and how it was launched and resumed."""

import os
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..domains import Domain
from ..generation.vllm_options import vllm_arguments
from ..models.access import context_length
from ..models.sharding import gathering
from ..records.run_folder import LAST_CHECKPOINT
from ..rollout.processes import Processes
from ..self_adapting_lm import SelfAdaptingLM
from .policy import load_options, prepare_policy, prepare_sharded_policy
from .seal_config import SEALConfig
from .separate_sft import ModelSource


def model_source(
    model: str | PreTrainedModel | PeftModel, args: SEALConfig, quantization_config: BitsAndBytesConfig | None
) -> ModelSource | None:
    """
    Where the processes of a separate SFT find the model; `None` where the trainer does the SFT itself.

    Raises:
        ValueError: A model that is not given by its name.
    """
    if not args.separate_sft:
        return None
    if not isinstance(model, str):
        raise ValueError(
            "separate_sft=True needs the model by its name or folder, since other processes load it again; save "
            "the model and give its folder."
        )
    return ModelSource(model, load_options(args), quantization_config)


def prepare_lm(
    model: str | PreTrainedModel | PeftModel,
    args: SEALConfig,
    processing_class: PreTrainedTokenizerBase | None,
    peft_config: LoraConfig | None,
    quantization_config: BitsAndBytesConfig | None,
    domain: Domain | None,
    processes: Processes,
) -> tuple[SelfAdaptingLM, PreTrainedTokenizerBase]:
    """
    The model of a run with its policy adapter, sharded over the processes where the configuration says so.

    Args:
        model, args, processing_class, peft_config, quantization_config, domain:
            As for [`SEALTrainer`].
        processes ([`Processes`]):
            The processes of the run.

    Returns:
        `tuple[SelfAdaptingLM, PreTrainedTokenizerBase]`: the model, and the tokenizer as it was given or loaded, without the
            arguments and the date of this run in its template.

    Raises:
        ValueError: As for [`prepare_policy`], [`prepare_sharded_policy`] and [`SelfAdaptingLM`].
    """
    given = (model, args, processing_class, peft_config, quantization_config)
    model, processing_class, base_model_id = (
        prepare_sharded_policy(*given, processes) if args.shard_base else prepare_policy(*given)
    )
    inner_config = args.inner_config()
    if (context := context_length(model)) is not None:
        inner_config = replace(inner_config, max_length=min(inner_config.max_length, context))
    with gathering(model):  # some models are run on a few tokens
        lm = SelfAdaptingLM(
            model,
            processing_class,
            domain=domain,
            peft_config=args.inner_peft_config(),
            inner_config=inner_config,
            base_model_id=base_model_id,
            inner_gradient_checkpointing=args.inner_gradient_checkpointing,
            student=args.student,
            chat_template_kwargs=args.chat_template_kwargs,
            **vllm_arguments(args),
        )
    return lm, processing_class


def check_launch(args: SEALConfig, is_sharded: bool) -> None:
    """
    Check how the processes were launched.

    Args:
        args ([`SEALConfig`]):
            The run's settings.
        is_sharded (`bool`):
            Whether FSDP or DeepSpeed was asked for.

    Raises:
        ValueError: FSDP or DeepSpeed, or several GPUs in one process.
    """
    if is_sharded:
        raise ValueError(
            "FSDP and DeepSpeed are not supported by SEALTrainer, whose processes each train adapters of their own; launch "
            "with plain data parallelism, shard the SFT alone with separate_sft, and shard or quantize a model that is too "
            "large (shard_base, load_in_4bit)."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start one for each with `accelerate launch`, or show it "
            "one with CUDA_VISIBLE_DEVICES."
        )


def resumes_from_hub(resume_from_checkpoint: bool | str | None, args: SEALConfig) -> bool:
    """
    Whether a run is to be resumed from the Hub.

    Raises:
        ValueError: Another folder than the output directory is named.
    """
    if resume_from_checkpoint == LAST_CHECKPOINT:
        return True
    is_path = isinstance(resume_from_checkpoint, str | os.PathLike)
    if is_path and Path(resume_from_checkpoint).resolve() != Path(args.output_dir).resolve():
        raise ValueError(
            f"resume_from_checkpoint={str(resume_from_checkpoint)!r} is not output_dir={args.output_dir!r}; a "
            "run is resumed in its own output directory."
        )
    return False
