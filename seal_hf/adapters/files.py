"""An adapter's configuration, its training and its files in PEFT's format: checked as they are read, and written whole."""

import errno
import json
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..models.identity import same_base
from .sources import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles


logger = logging.getLogger(__name__)

TRAINING_NAME = "seal_training.json"
LARGEST_TEXT = 2**20  # bytes of a configuration, or of a record of training
# How the matrices of an adapter may have begun, which does not matter once it is trained; others, such as LoftQ, may change
# the base model as well.
PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
MAX_RANK = 1024
MAX_ALPHA = 1e6
_MAX_LAYERS, _MAX_PATTERNS = 4096, 16
_MAX_LOSSES, _MAX_LOSS = 100_000, 1e9  # of a training, one for each step
_MODULE_NAME = re.compile(r"[\w.-]{1,300}", re.ASCII)
_PATTERN_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)


def read_config(files: AdapterFiles, base_model_id: str, base_fingerprint: str) -> LoraConfig:
    """
    The configuration of a LoRA adapter for this base. What comes from a file is plain: names and numbers, no patterns.

    An adapter that names another base, or none, is taken with a warning where it says that its base was made alike.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, not a LoRA adapter's, for another base, or has a rank, a scaling or names of modules that are
            out of bounds.
    """
    fields = _json_object(files, CONFIG_NAME, "save the adapter again")
    source = files.name
    if fields is None:
        raise FileNotFoundError(
            f"{source} has no {CONFIG_NAME}, so it is not a PEFT adapter; give the folder that holds it."
        )
    if fields.get("peft_type") != "LORA":
        raise ValueError(
            f"{source} is a {fields.get('peft_type')!s:.100} adapter; only LoRA adapters can be loaded, so train it as one."
        )
    _check_base(files, fields.get("base_model_name_or_path"), base_model_id, base_fingerprint)
    _check_numbers(fields, source)
    _check_patterns(fields, source)
    _check_modules(fields, source)
    if (init := fields.get("init_lora_weights", True)) not in PLAIN_INITIALIZATIONS:
        raise ValueError(
            f"{source} was begun with init_lora_weights={init!r:.50}, which may change the base model as well, so that it fits no "
            "plain base; convert it with PEFT (`path_initial_model_for_weight_conversion`), or train it anew without that."
        )
    try:
        return LoraConfig.from_peft_type(**{key: value for key, value in fields.items() if key != "runtime_config"})
    except Exception as error:  # PEFT takes what is in a file as it is
        raise ValueError(
            f"{source}: {CONFIG_NAME} is none that PEFT reads ({error!s:.200}); save the adapter again."
        ) from error


def _check_base(files: AdapterFiles, named_base: object, base_model_id: str, base_fingerprint: str) -> None:
    if isinstance(named_base, str | None) and same_base(named_base, base_model_id):
        return
    shown = f"{named_base!s:.200}"
    is_alike = read_training(files).get("base_fingerprint") == base_fingerprint
    if is_alike or not named_base:
        logger.warning(
            "%s %s; it is used on %s, %s.",
            files.name,
            f"was trained on {shown}" if named_base else "does not name its base model",
            base_model_id,
            "which is made alike" if is_alike else "whose modules its matrices must fit",
        )
        return
    raise ValueError(
        f"{files.name} adapts {shown}, but the loaded base model is {base_model_id}; load {shown} to use it. If the two are "
        f"the same model by two names, load the model with base_model_id={shown!r}."
    )


def _json_object(files: AdapterFiles, name: str, remedy: str) -> dict[str, Any] | None:
    content = files.read(name, LARGEST_TEXT)
    if content is None:
        return None
    try:
        fields = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{files.name}: {name} is nested too deeply; {remedy}.") from error
    except ValueError as error:
        raise ValueError(f"{files.name}: {name} is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{files.name}: {name} is not a JSON object; {remedy}.")
    return fields


def _check_numbers(fields: Mapping[str, Any], source: str) -> None:
    r, lora_alpha = fields.get("r", 8), fields.get("lora_alpha", 8)
    if type(r) is not int or not 1 <= r <= MAX_RANK:
        raise ValueError(
            f"{source}: the LoRA rank r={r!r:.50} must be a whole number from 1 to {MAX_RANK}; train the adapter with such a "
            "rank."
        )
    # NaN is not within bounds either.
    if type(lora_alpha) not in (int, float) or not -MAX_ALPHA <= lora_alpha <= MAX_ALPHA:
        raise ValueError(
            f"{source}: lora_alpha={lora_alpha!r:.50} must be a number within ±{MAX_ALPHA:,.0f}; save the adapter again."
        )


def _check_patterns(fields: Mapping[str, Any], source: str) -> None:
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = fields.get(option, {})
        if not isinstance(pattern, dict) or not all(type(value) in (int, float) for value in pattern.values()):
            raise ValueError(
                f"{source}: {option}={pattern!r:.100} gives no number for each name of a module; set it to {{}}, or save the "
                "adapter again."
            )


def _check_modules(fields: Mapping[str, Any], source: str) -> None:
    """No name is a pattern: matching one can take for ever, and PEFT puts some into a regular expression as they are."""
    remedy = "name the modules in a list under target_modules"
    for option in ("target_modules", "exclude_modules"):
        value = fields.get(option)
        if value is None or option == "target_modules" and value == "all-linear":
            continue
        if not (
            isinstance(value, list)
            and all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) is not None for name in value)
        ):
            raise ValueError(
                f"{source}: {option}={value!r:.100} is no list of plain names of modules, and no pattern is taken from a file; "
                f"{remedy}."
            )
    layers = fields.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if len(numbers) > _MAX_LAYERS or not all(type(number) is int for number in numbers):
        raise ValueError(f"{source}: layers_to_transform={layers!r:.100} is no list of numbers of layers; {remedy}.")
    patterns = fields.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not (
        isinstance(patterns, list)
        and len(patterns) <= _MAX_PATTERNS
        and all(isinstance(name, str) and _PATTERN_NAME.fullmatch(name) for name in patterns)
    ):
        raise ValueError(f"{source}: layers_pattern={patterns!r:.100} is no plain name of a module; {remedy}.")


def read_training(files: AdapterFiles) -> dict[str, Any]:
    """
    How the adapter was trained; empty for one that other software wrote.

    Raises:
        ValueError: Its file is too large or no JSON object, or its losses are no finite numbers, or too many.
    """
    remedy = "remove it, or save it again"
    if (training := _json_object(files, TRAINING_NAME, remedy)) is None:
        return {}
    losses = training.get("losses") or []
    # NaN is not within bounds either.
    if not (
        isinstance(losses, list)
        and len(losses) <= _MAX_LOSSES
        and all(type(loss) in (int, float) and -_MAX_LOSS <= loss <= _MAX_LOSS for loss in losses)
    ):
        raise ValueError(
            f"{files.name}: {TRAINING_NAME} is damaged (its losses are no list of at most {_MAX_LOSSES:,} finite numbers); "
            f"{remedy}."
        )
    return training


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """
    A new folder beside `folder`, whose files move there once the block has written all of them.

    Raises:
        OSError: The disk is full, or the folder cannot be written; what was there before is as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
            yield Path(partial)
            for file in Path(partial).iterdir():
                os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = getattr(cause, "strerror", None) or cause
        # safetensors' error has no number.
        number = errno.ENOSPC if "No space left" in str(cause) else errno.EIO
        raise OSError(
            getattr(cause, "errno", None) or number,
            f"{folder} could not be written ({reason}); make room or give another folder, and save again",
        ) from error


def write_zip(folder: Path, file: Path) -> None:
    """
    Make a zip file of all that is in a folder, which is either there in full or not at all.

    Args:
        folder (`Path`):
            The folder.
        file (`Path`):
            The zip file.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.stem}-") as partial:
        archive = Path(partial) / file.name
        # Stored, since weights hardly shrink and compressing them takes seconds.
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as files:
            for one in sorted(folder.rglob("*")):
                files.write(one, one.relative_to(folder))
        archive.replace(file)


def write_adapter_files(
    folder: Path, config: LoraConfig, state_dict: Mapping[str, torch.Tensor], training: Mapping[str, object]
) -> None:
    """Write the weights, the configuration and, where there is any, how it was trained."""
    save_file(dict(state_dict), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    if training:
        text = json.dumps(dict(training), indent=1, default=str)
        (folder / TRAINING_NAME).write_text(f"{text}\n", encoding="utf-8")
