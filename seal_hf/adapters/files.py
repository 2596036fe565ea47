"""An adapter's files in PEFT's format: from a folder, a zip file or the Hub, checked before any weight is read."""

import errno
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..hub.errors import HubError, explaining_hub_errors
from ..hub.transfer import download, hub_api, is_hub_id


WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
TRAINING_NAME = "seal_training.json"
# An archive may become this much larger than it is; an untrained half of an adapter is all zeros.
_UNPACKED_BYTES, _UNPACKED_RATIO = 2**26, 20
_MOST_REPETITIONS = 6
_MODULE_NAME = re.compile(r"[\w.]+")
_PICKLES = (".bin", ".pt", ".pth", ".pkl")


@contextmanager
def adapter_folder(
    source: str | Path,
    base_model_id: str,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
) -> Iterator[tuple[Path, str]]:
    """
    The folder with an adapter's files, for the length of the block, and its name for messages.

    From a repository, the configuration is fetched and checked before the weights, which are taken from the same commit.

    Raises:
        FileNotFoundError: No such folder or zip file, or no adapter in it.
        HubError: No such repository, one that the token may not see, or the Hub could not be reached.
        ValueError: Not a LoRA adapter, one for another base, a pickle in place of safetensors, or `revision` for files
            of this machine.
    """
    path = Path(source)
    if not path.exists() and isinstance(source, str) and is_hub_id(source):
        yield _fetch(source, base_model_id, revision, subfolder, token)
        return
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is for a repository on the Hub, but {source} is on this machine; leave it out."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no adapter at {path}; give a folder or a zip file of a PEFT adapter.")
    if path.is_dir():
        folder = path / (subfolder or "")
        _check(folder, str(folder), base_model_id)
        _require_weights(folder, str(folder), [file.name for file in folder.iterdir()])
        yield folder, str(folder)
        return
    if subfolder is not None:
        raise ValueError(f"subfolder={subfolder!r} was given with the zip file {path}, which must hold one adapter.")
    with tempfile.TemporaryDirectory() as extracted:
        folder = Path(extracted)
        names = _extract(path, folder)
        _check(folder, str(path), base_model_id)
        _require_weights(folder, str(path), names)
        yield folder, str(path)


def _fetch(
    repo_id: str, base_model_id: str, revision: str | None, subfolder: str | None, token: str | None
) -> tuple[Path, str]:
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        folder, commit = download(repo_id, [prefix + CONFIG_NAME], revision=revision, token=token)
    except HubError as error:
        error.add_note(f"There is no folder or zip file {repo_id} on this machine either.")
        raise
    name = f"{repo_id}@{commit}" + (f"/{subfolder}" if subfolder else "")
    _check(folder / prefix, name, base_model_id)
    patterns = [prefix + file for file in (CONFIG_NAME, WEIGHTS_NAME, TRAINING_NAME)]
    folder, _ = download(repo_id, patterns, revision=commit, token=token)
    if not (folder / prefix / WEIGHTS_NAME).is_file():
        with explaining_hub_errors(f"The download of {repo_id}", repo_id):
            _require_weights(folder / prefix, name, hub_api(token).list_repo_files(repo_id, revision=commit))
    return folder / prefix, name


def _check(folder: Path, source: str, base_model_id: str) -> None:
    """Whether the configuration is a LoRA adapter's for this base."""
    config_file = folder / CONFIG_NAME
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{source} has no {CONFIG_NAME}, so it is not a PEFT adapter; give the folder that holds it."
        )
    try:
        fields = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: {CONFIG_NAME} is not valid JSON ({error}); save the adapter again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{source}: {CONFIG_NAME} is not a JSON object; save the adapter again.")
    if fields.get("peft_type") != "LORA":
        raise ValueError(
            f"{source} is a {fields.get('peft_type')} adapter; only LoRA adapters can be loaded, so train it as one."
        )
    for name in ("target_modules", "exclude_modules"):
        pattern = fields.get(name)
        # A repeated group, or many repetitions, can take forever on names that do not match.
        if isinstance(pattern, str) and (
            re.search(r"\)\s*[+*{]", pattern) or len(re.findall("[+*{]", pattern)) > _MOST_REPETITIONS
        ):
            raise ValueError(
                f"{source}: {name} is a regular expression with repeated groups or more than {_MOST_REPETITIONS} "
                "repetitions; name the modules in a list."
            )
    patterns = fields.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    # PEFT puts each into a regular expression as it is.
    if not (
        isinstance(patterns, list) and all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in patterns)
    ):
        raise ValueError(
            f"{source}: layers_pattern={patterns!r:.100} is no plain name of a module; name the modules in a list under "
            "target_modules."
        )
    named_base = fields.get("base_model_name_or_path")
    if named_base != base_model_id:
        raise ValueError(
            f"{source} adapts {named_base}, but the loaded base model is {base_model_id}; load {named_base} to use it."
        )


def _require_weights(folder: Path, source: str, names: list[str]) -> None:
    if (folder / WEIGHTS_NAME).is_file():
        return
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise ValueError(
            f"{source} holds {pickles[0]}, a pickle, which can run code when it is loaded; save the adapter as "
            f"safetensors ({WEIGHTS_NAME})."
        )
    raise FileNotFoundError(f"{source} has no {WEIGHTS_NAME}; save the adapter again as safetensors.")


def _extract(archive: Path, folder: Path) -> list[str]:
    """
    Write the adapter's files that lie beside the archive's only `adapter_config.json` into `folder`, flat.

    Returns:
        `list[str]`: the names of all files that the archive holds.
    """
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{archive} is neither a folder nor a zip file; give a PEFT adapter as one of the two.")
    with zipfile.ZipFile(archive) as files:
        configs = [name for name in files.namelist() if name.rsplit("/", 1)[-1] == CONFIG_NAME]
        if len(configs) != 1:
            raise ValueError(f"{archive} holds {len(configs)} files named {CONFIG_NAME}; a zip must hold one adapter.")
        parent = configs[0][: -len(CONFIG_NAME)]
        # Only these files, from beside the config: a path in an archive never decides where a file is written.
        wanted = [parent + name for name in (CONFIG_NAME, WEIGHTS_NAME, TRAINING_NAME)]
        infos = [info for info in files.infolist() if info.filename in wanted]
        # A zip file states how large its files become, and zipfile reads no more of them than that.
        if sum(info.file_size for info in infos) > _UNPACKED_BYTES + _UNPACKED_RATIO * archive.stat().st_size:
            raise ValueError(f"{archive} unpacks to far more than it holds; make the zip file again.")
        for info in infos:
            try:
                with files.open(info) as source, (folder / info.filename[len(parent) :]).open("wb") as target:
                    shutil.copyfileobj(source, target)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
                raise ValueError(f"{archive} is damaged or encrypted ({error}); make the zip file again.") from error
        return [name[len(parent) :] for name in files.namelist()]


def read_weights(folder: Path, source: str) -> dict[str, torch.Tensor]:
    """
    The state dict of an adapter's folder.

    Raises:
        ValueError: Its file is not a safetensors file.
    """
    try:
        return load_file(folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise ValueError(
            f"{source}: {WEIGHTS_NAME} is not a safetensors file ({error}); save the adapter again."
        ) from error


def read_training(folder: Path, source: str) -> dict[str, Any]:
    """
    How the adapter was trained; empty for one that other software wrote.

    Raises:
        ValueError: Its file is no JSON object, or its losses are no numbers.
    """
    file = folder / TRAINING_NAME
    if not file.is_file():
        return {}
    try:
        training = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(training, dict):
            raise TypeError("it is no JSON object")
        losses = training.get("losses") or []
        if not (isinstance(losses, list) and all(isinstance(loss, int | float) for loss in losses)):
            raise TypeError("its losses are no list of numbers")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {TRAINING_NAME} is damaged ({error}); remove it, or save it again.") from error
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


def write_adapter_files(
    folder: Path, config: LoraConfig, state_dict: Mapping[str, torch.Tensor], training: Mapping[str, object]
) -> None:
    """Write the weights, the configuration and, where there is any, how it was trained."""
    save_file(dict(state_dict), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    if training:
        text = json.dumps(dict(training), indent=1, default=str)
        (folder / TRAINING_NAME).write_text(f"{text}\n", encoding="utf-8")
