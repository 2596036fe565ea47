"""
Files that appear whole, and records in JSONL.

A file is written beside its place, synced and renamed. Every record names its schema version; a last line without its end,
as a copy that was cut off has it, is dropped on reading.
"""

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
RUN_FILE = "run.json"
# How what was begun is gone on with: by a trainer, and by an evaluation.
RESUME = "resume with resume_from_checkpoint=True"
RESUME_EVALUATION = "evaluate again with the same arguments"


def remedy_of(resume: str) -> str:
    """What to do where a file of a run cannot be written, after which the run is gone on with."""
    return f"make room or give another output_dir, then {resume}. What was written before is safe"


def write_records(path: Path, records: Iterable[Mapping[str, Any]], remedy: str = remedy_of(RESUME)) -> None:
    """
    Write a JSONL file that is either there in full or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    lines = [json.dumps({"schema_version": SCHEMA_VERSION, **record}, ensure_ascii=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines), remedy)


def write_text(path: Path, text: str, remedy: str = remedy_of(RESUME)) -> None:
    """Write a text file as [`write_bytes`] does."""
    write_bytes(path, text.encode("utf-8"), remedy)


def write_bytes(path: Path, content: bytes, remedy: str = remedy_of(RESUME)) -> None:
    """
    Write a file that is either there in full or not at all: beside its place, synced, then renamed.

    Args:
        path (`Path`):
            The file.
        content (`bytes`):
            What it holds.
        remedy (`str`, *optional*):
            What is said where it cannot be written. Defaults to what to do for the run of a trainer.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with explaining_failed_write(path, remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):  # of a disk that takes nothing any more
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def explaining_failed_write(path: Path, remedy: str = remedy_of(RESUME)) -> Iterator[None]:
    """
    Raises:
        OSError: What could not be written inside the block, and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"{path} could not be written ({reason}); {remedy}",
        ) from error


def read_records(path: Path) -> list[dict[str, Any]] | None:
    """
    The records of a JSONL file, without their schema version; `None` where there is no file.

    Raises:
        ValueError: A record that a newer version wrote, or a damaged one before the last line.
    """
    if not path.is_file():
        return None
    # Not splitlines(): a text may hold other line separators, unescaped.
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        logger.warning("%s: the last line has no end and is dropped.", path)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode("utf-8"))
            version = record.pop("schema_version")
            if not isinstance(version, int):
                raise TypeError(f"schema_version {version!r}")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a record of seal-hf ({error!r}); restore it.") from error
        check_schema_version(version, path)
        records.append(record)
    return records


def check_schema_version(version: int, path: Path) -> None:
    """
    Raises:
        ValueError: A newer version of seal-hf wrote it.
    """
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer seal-hf (schema {version}, this one reads up to {SCHEMA_VERSION}); upgrade "
            "with `pip install --upgrade seal-hf`, or give another output_dir."
        )
