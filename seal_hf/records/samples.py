"""A training round's self-edits as a table of a file format that datasets read."""

import io
import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from .files import write_bytes
from .journal import Journal
from .round_metrics import gain_of, kept_flags, reward_names


_SAMPLE_SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("example_id", pa.string()),
        ("edit", pa.int64()),
        ("prompt", pa.string()),
        ("self_edit", pa.string()),
        ("well_formed", pa.bool_()),
        ("reward", pa.float64()),
        ("base_reward", pa.float64()),
        ("gain", pa.float64()),
        ("kept", pa.bool_()),
        ("tokens", pa.int64()),
        ("answers", pa.list_(pa.string())),
        ("verdicts", pa.list_(pa.bool_())),
    ]
)


def save_samples(output_dir: str | Path, round_index: int) -> Path:
    """
    Write a training round's self-edits as a table, `self_edits/round_000.parquet`, one a row. `answers` and `verdicts`
    are those of the first repeat; `kept` is empty while the selection is not on disk. Where the labelled reward is not the
    only one, each has a column, such as `reward_rubric`.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
        ValueError: The round is not scored yet.
    """
    journal = Journal(output_dir)
    scored, selected = journal.scored(round_index), journal.selected(round_index)
    if scored is None:
        raise ValueError(f"round_index={round_index} is not scored in {output_dir}; give a round that is.")
    rows = []
    for edit, kept in zip(scored, kept_flags(scored, selected), strict=True):
        first = edit.repeats[0] if edit.repeats else {}
        text = edit.prompt if isinstance(edit.prompt, str) else json.dumps(edit.prompt, ensure_ascii=False)
        row = vars(edit) | {"prompt": text, "self_edit": edit.completion, "gain": gain_of(edit)}
        row |= {f"reward_{name}": value for name, value in (edit.rewards or {}).items()}
        rows.append(row | {"kept": kept, "answers": first.get("answers"), "verdicts": first.get("verdicts")})
    schema = _SAMPLE_SCHEMA
    for name in reward_names(scored):
        schema = schema.append(pa.field(f"reward_{name}", pa.float64()))
    table = pa.Table.from_pylist(rows, schema=schema)
    file = io.BytesIO()
    parquet.write_table(table, file)
    path = Path(output_dir) / "self_edits" / f"round_{round_index:03d}.parquet"
    write_bytes(path, file.getvalue())
    return path
