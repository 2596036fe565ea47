"""Self-edits that somebody else wrote, from wherever they are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..domains.files import FILE_TYPES, read_rows
from ..domains.stored_self_edits import STORED_FORM
from .self_edits import load_self_edits


def load_stored_self_edits(source: str | Path) -> Sequence[Mapping[str, Any]]:
    """
    Load self-edits to be evaluated in place of those that a model would write.

    Args:
        source (`str` or `Path`):
            A `.json`, `.jsonl`, `.ndjson`, `.csv` or `.parquet` file of rows (see
            [`seal_hf.domains.stored_self_edits`]), or what [`load_self_edits`] takes: a dataset of self-edits in a folder
            or on the Hub, or the output directory of a run. Of these the self-edits of the evaluation are loaded, too.

    Returns:
        `Sequence[Mapping[str, Any]]`: the rows.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file is empty, malformed or of another type, or the dataset is another one.
        HubError: The Hub refused or could not be reached.
    """
    if Path(source).suffix.lower() in FILE_TYPES:
        return [row for _, row in read_rows(Path(source), STORED_FORM)]
    return load_self_edits(source, include_evaluation=True)
