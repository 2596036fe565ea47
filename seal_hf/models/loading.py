"""Loads base models: from the Hub, from a folder, quantized, or an embedded one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_bitsandbytes_available

from .access import unwrap
from .embedded import EMBEDDED, EMBEDDED_MODELS, embedded_model_path
from .fit import DoesNotFit, check_fits
from .identity import base_fingerprint


def load_causal_lm(
    model_name_or_path: str | Path,
    *,
    load_in_4bit: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    quantization_config: BitsAndBytesConfig | None = None,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """
    Load a causal LM and its tokenizer.

    Args:
        model_name_or_path (`str` or `Path`):
            A Hub id, a folder, or one of the small models that need no Hub: `"embedded"` (0.5B parameters) or
            `"embedded-tiny"` (135M).
        load_in_4bit (`bool`, *optional*):
            Whether to quantize the base to NF4 with double quantization (QLoRA); needs the extra `quantization`. Where
            absent: on CUDA if that extra is installed, and not elsewhere, since it is slower there than bf16.
        dtype (`str` or `torch.dtype`, *optional*):
            Dtype of the weights, or of the activations where the weights are quantized. Defaults to [`default_dtype`].
        device (`str` or `torch.device`, *optional*):
            Defaults to the accelerator where there is one, else the CPU. `"cuda"` is the card of this process: torch's
            current one, or that of its local rank in a run of many processes.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code from the model's repository may run.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            Another quantization than that of `load_in_4bit`.
        **model_kwargs:
            Passed to `AutoModelForCausalLM.from_pretrained`, such as `attn_implementation`.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase, str]`: model, tokenizer, and the base model's identity for cards and
        adapters: its name, or the Hub id of an embedded one.

    Raises:
        ValueError: An unknown dtype.
        OSError: The model does not exist or cannot be reached.
        ImportError: `load_in_4bit` without bitsandbytes.
        DoesNotFit: The weights do not fit into the free memory, by the model's files; an `OSError`.
    """
    if (load_in_4bit or quantization_config is not None) and not is_bitsandbytes_available():
        raise ImportError("A quantized model needs bitsandbytes; run `pip install 'seal-hf[quantization]'`.")
    device = _of_this_process(torch.device(device) if device is not None else _default_device())
    if dtype is None:
        dtype = default_dtype(device)
    elif isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype={dtype!r} is not one of torch's; use 'bfloat16' or 'float32'.")
        dtype = getattr(torch, dtype)
    model_name_or_path = str(model_name_or_path)
    embedded = EMBEDDED_MODELS.get(model_name_or_path)
    path = model_name_or_path if embedded is None else str(embedded_model_path(model_name_or_path))
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(f"{path} has no config.json.")
        if load_in_4bit is None:
            load_in_4bit = _is_quantized_by_default(path, device, shared)
        if load_in_4bit and quantization_config is None:
            quantization_config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        is_quantized = bool(getattr(quantization_config, "load_in_4bit", False))
        # Then each process loads its share to where DeepSpeed wants it.
        is_shared = is_deepspeed_zero3_enabled()
        if embedded is None and not is_shared and (quantization_config is None or is_quantized):
            check_fits(path, revision, dtype, is_quantized=is_quantized, device=device)
        tokenizer = AutoTokenizer.from_pretrained(path, **shared)
        with _loaded_in_this_thread():
            model = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                quantization_config=quantization_config,
                device_map=None if is_shared else {"": device},
                **shared,
                **model_kwargs,
            )
    except DoesNotFit:
        raise
    except (OSError, ValueError, HfHubHTTPError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"The model {model_name_or_path!r} (revision {revision!r}) could not be loaded from a folder or the Hub; check "
            f"its name and the network (a gated one needs `hf auth login`), or use {EMBEDDED!r}, which needs no Hub. "
            f"The cause was: {cause}"
        ) from error
    return model, tokenizer, model_name_or_path if embedded is None else embedded.model_id


def default_dtype(device: torch.device) -> torch.dtype:
    """
    The dtype that a device computes in fast: bfloat16, but float32 on a CPU without instructions for bfloat16 (such as x86
    without AVX-512), where products of matrices in bfloat16 take several times as long.
    """
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16


def base_facts(model: PreTrainedModel | PeftModel) -> dict[str, str | None]:
    """Which base a model is, for those who want to train the same again: its commit, dtype, quantization, architecture."""
    config = unwrap(model).config
    found, quantization = getattr(config, "quantization_config", None), "none"
    if found is not None:
        settings = found if isinstance(found, dict) else found.to_dict()
        kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else settings.get("quant_method")
        quantization = f"{kind}{', double quantization' if settings.get('bnb_4bit_use_double_quant') else ''}"
    return {
        "base_revision": getattr(config, "_commit_hash", None),
        "base_dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "quantization": quantization,
        "base_fingerprint": base_fingerprint(model),
    }


def _is_quantized_by_default(path: str, device: torch.device, shared: Mapping[str, Any]) -> bool:
    if device.type != "cuda" or not is_bitsandbytes_available():
        return False
    # A checkpoint that is quantized already stays as it is.
    return getattr(AutoConfig.from_pretrained(path, **shared), "quantization_config", None) is None


def _default_device() -> torch.device:
    if torch.cuda.is_available():  # asked first: what emulates CUDA on ZeroGPU need not be an accelerator for torch
        return torch.device("cuda")
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _of_this_process(device: torch.device) -> torch.device:
    """A device with its index where it is CUDA: without one, the modules of a quantized model are put on card 0."""
    if device.type != "cuda" or device.index is not None:
        return device
    index = torch.cuda.current_device()
    if index == 0:  # nothing has chosen another card, as accelerate does in each process of a run
        index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    return torch.device("cuda", index)


@contextmanager
def _loaded_in_this_thread() -> Iterator[None]:
    """
    Keep transformers from loading weights in other threads on ZeroGPU.

    There the package `spaces` emulates CUDA until the first call, in the thread that imported it alone (spaces 0.51;
    transformers 5.19 reads the variable at every load).
    """
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    if not os.environ.get("SPACES_ZERO_GPU") or name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
