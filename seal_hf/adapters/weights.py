"""
The weights of an adapter's safetensors file. They are read in the order of the file, straight into a weight vector, once the
header has shown that they are what the layout expects: nothing else is converted or kept.
"""

import json
import math
from typing import Any, BinaryIO

import torch

from .layout import LoraLayout
from .sources import WEIGHTS_NAME, AdapterFiles


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes in a header for each tensor beside its name, and for all that is no tensor.
_HEADER_ENTRY, _HEADER_REST = 256, 2**16


def read_weights(files: AdapterFiles, layout: LoraLayout) -> torch.Tensor:
    """
    The weight vector of an adapter: shape `(num_parameters,)`, fp32, CPU.

    Raises:
        FileNotFoundError: It has no weights.
        ValueError: It has more bytes than the layout allows, is a pickle or no safetensors file, its tensors are not those of
            the layout, or they are no finite numbers of 16 or 32 bits.
    """
    keys = layout.by_peft_key(torch.empty(layout.num_parameters, device="meta"))
    longest_header = sum(len(key) + _HEADER_ENTRY for key in keys) + _HEADER_REST
    with files.opened_weights(8 + longest_header + layout.num_bytes) as (stream, size):
        try:
            entries, num_data_bytes = _header(stream, size, longest_header)
            layout.check_shapes({key: entry["shape"] for key, entry in entries.items()}, files.name)
            _check_dtypes(entries, files.name)
            in_order = _in_order(entries, num_data_bytes)
        except _Damage as error:
            raise ValueError(
                f"{files.name}: {WEIGHTS_NAME} is not a safetensors file ({error}); save the adapter again."
            ) from error
        weights = torch.empty(layout.num_parameters)
        matrices = layout.by_peft_key(weights)
        for key in in_order:
            matrix, dtype = matrices[key], _DTYPES[entries[key]["dtype"]]
            read = matrix if dtype == torch.float32 else torch.empty(matrix.shape, dtype=dtype)
            # A zip file may unpack to less than it says; what lay in the memory before is nobody's business.
            if stream.readinto(read.view(-1).view(torch.uint8).numpy()) != read.nbytes:
                raise ValueError(
                    f"{files.name}: {WEIGHTS_NAME} is not a safetensors file (it is cut short); save the adapter again."
                )
            if read is not matrix:
                matrix.copy_(read)
        stream.read(1)  # the end, where a zip file is checked
    if not all(map(math.isfinite, torch.stack(weights.aminmax()).tolist())):
        key = next(key for key, matrix in matrices.items() if not matrix.isfinite().all())
        raise ValueError(
            f"{files.name}: {key} holds numbers that are not finite (NaN or infinity); train the adapter again, with a lower "
            "learning rate."
        )
    return weights


class _Damage(Exception):
    """Why a file is no safetensors file."""


def _header(stream: BinaryIO, size: int, longest: int) -> tuple[dict[str, dict[str, Any]], int]:
    """What a header says of each tensor, and the number of bytes after it."""
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise _Damage("it is cut short")
    if length > longest:
        raise _Damage(f"its header has {length:,} bytes, more than the {longest:,} of such an adapter")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        raise _Damage("its header is no JSON") from None
    if not isinstance(header, dict):
        raise _Damage("its header is no JSON object")
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("dtype"), str)
            and _are_sizes(entry.get("shape"))
            and _are_sizes(entry.get("data_offsets"))
            and len(entry["data_offsets"]) == 2
        ):
            raise _Damage(f"its header does not describe {key:.300}")
    return header, size - 8 - length


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _check_dtypes(entries: dict[str, dict[str, Any]], source: str) -> None:
    for key, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{source}: {key} is of the type {entry['dtype']:.20}; only {', '.join(_DTYPES)} are read, so save the adapter as "
                "one of these."
            )


def _in_order(entries: dict[str, dict[str, Any]], num_data_bytes: int) -> list[str]:
    """The tensors in the order of their bytes, which follow each other without a gap."""
    keys, place = sorted(entries, key=lambda key: entries[key]["data_offsets"]), 0
    for key in keys:
        begin, end = entries[key]["data_offsets"]
        num_bytes = _DTYPES[entries[key]["dtype"]].itemsize
        for number in entries[key]["shape"]:
            num_bytes *= number
        if begin != place or end - begin != num_bytes:
            raise _Damage(f"its header puts {key} elsewhere")
        place = end
    if place != num_data_bytes:
        raise _Damage(f"it has {num_data_bytes:,} bytes of weights where its header tells of {place:,}")
    return keys
