"""Whether a model's weights fit into the free memory, by its files alone."""

import json
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .memory import free_memory


# Of a model in NF4 with double quantization, in bytes a weight; embeddings stay as they are, which this allows for.
_FOUR_BIT_BYTES = 0.7
_LARGEST_HEADER = 2**26


class DoesNotFit(OSError):
    """A model's weights are more than the memory that is free."""


def check_fits(
    model_name_or_path: str, revision: str, dtype: torch.dtype, *, is_quantized: bool, device: torch.device
) -> None:
    """
    Compare the weights of a model, by its index file or the header of its only file, with the memory that is free.

    Nothing is said of a model on the Hub in a single file, which is not there yet, of one in another format, or of one that is
    quantized already, whose tensors hold several weights in a number.

    Args:
        model_name_or_path (`str`):
            A folder, or a repository on the Hub.
        revision (`str`):
            Branch, tag or commit on the Hub.
        dtype (`torch.dtype`):
            What the weights are loaded as.
        is_quantized (`bool`):
            Whether they become 4-bit.
        device (`torch.device`):
            Where to.

    Raises:
        DoesNotFit: They do not fit; the message says what would.
    """
    config = _read_json(model_name_or_path, CONFIG_NAME, revision) or {}
    num_weights = _num_weights(model_name_or_path, revision)
    if num_weights is None or config.get("quantization_config"):
        return
    needed = int(num_weights * (_FOUR_BIT_BYTES if is_quantized else dtype.itemsize))
    free = free_memory(device)
    if needed <= free:
        return
    in_four_bits = num_weights * _FOUR_BIT_BYTES
    if not is_quantized and in_four_bits <= free:
        remedy = f"with load_in_4bit=True it takes about {in_four_bits / 1e9:.1f} GB"
        if 2 * num_weights <= free and dtype.itemsize > 2:
            remedy = f"with dtype='bfloat16' it takes about {2 * num_weights / 1e9:.1f} GB, {remedy}"
    else:
        fitting = free / (_FOUR_BIT_BYTES if is_quantized else dtype.itemsize) / 1e9
        remedy = f"take one of at most {fitting:.1f}B parameters, or a larger device"
    raise DoesNotFit(
        f"{model_name_or_path} has {num_weights / 1e9:.1f}B parameters, which take {needed / 1e9:.1f} GB"
        f"{' in 4 bits' if is_quantized else f' as {dtype}'.replace('torch.', '')}, but {device} has {free / 1e9:.1f} GB free; "
        f"{remedy}."
    )


def _num_weights(model_name_or_path: str, revision: str) -> int | None:
    """The parameters in a model's files; `None` where that is not known before they are fetched."""
    folder = Path(model_name_or_path)
    if (single := folder / SAFE_WEIGHTS_NAME).is_file():
        return _in_header(single)
    if folder.is_dir():
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        if not index.is_file():
            return None
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sum(_in_header(folder / shard) for shard in shards if (folder / shard).is_file())
    if (index := _read_json(model_name_or_path, SAFE_WEIGHTS_INDEX_NAME, revision)) is None:
        return None
    metadata = index["metadata"]
    # The index of older files states bytes alone; nearly all of those hold two for each weight.
    return metadata.get("total_parameters") or metadata["total_size"] // 2


def _read_json(model_name_or_path: str, name: str, revision: str) -> dict | None:
    """A JSON file of a folder or a repository; `None` where there is none, or no Hub."""
    file = cached_file(
        model_name_or_path,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _in_header(path: Path) -> int:
    """The elements of all tensors of a safetensors file, which begins with their description."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _LARGEST_HEADER)))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(torch.Size(shape).numel() for shape in shapes)
