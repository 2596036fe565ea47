"""A run's self-edits as a table: its columns, and an entry for each self-edit of the scored rounds."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ..domains.base import SELF_EDITS
from ..records.journal import Journal, ScoredSelfEdit
from ..records.report import kept_flags


_SCHEMA_VERSION = 1
# In the files' own metadata, which a copy made with other tools may lack.
_VERSION_KEY = b"seal_hf.self_edits"
_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_REPEAT = pa.struct(
    [
        ("seed", pa.int64()),
        ("reward", pa.float64()),
        ("loss", pa.float64()),
        ("answers", pa.list_(pa.string())),
        ("verdicts", pa.list_(pa.bool_())),
    ]
)
# The columns with a type that does not depend on the prompts.
_COLUMNS = {
    "kept": pa.bool_(),
    "reward": pa.float64(),
    "base_reward": pa.float64(),
    "well_formed": pa.bool_(),
    "example_id": pa.string(),
    "round": pa.int64(),
    "edit": pa.int64(),
    "completion_tokens": pa.int64(),
    "tokens": pa.int64(),
    "repeats": pa.list_(_REPEAT),
}


def training_table(output_dir: Path) -> pa.Table:
    """
    The self-edits of a run's scored rounds. `prompt` and `completion` are both plain text or both chat messages, as TRL
    wants them; `kept` is null where the selection is not on disk.

    Raises:
        ValueError: No round is scored yet, a record is damaged or of a newer version, or the prompts fit into no column.
    """
    journal = Journal(output_dir)
    rounds = journal.scored_rounds()
    return _table([(edits, kept_flags(edits, journal.selected(i))) for i, edits in enumerate(rounds)], output_dir)


def evaluation_table(output_dir: Path) -> pa.Table:
    """The same for the self-edits about held-out passages; nothing is learned from these."""
    folder = output_dir / "evaluation"
    return _table([(edits, [False] * len(edits)) for edits in Journal(folder).scored_rounds()], folder)


def _table(rounds: Sequence[tuple[Sequence[ScoredSelfEdit], Sequence[bool | None]]], folder: Path) -> pa.Table:
    pairs = [pair for edits, kept in rounds for pair in zip(edits, kept, strict=True)]
    pairs = [(edit, kept) for edit, kept in pairs if edit.condition == SELF_EDITS]
    if not pairs:
        raise ValueError(f"{folder} has no scored round yet; let the run come to the end of one.")
    is_chat = _is_chat([edit for edit, _ in pairs])
    entries = []
    for edit, kept in pairs:
        completion = [{"role": "assistant", "content": edit.completion}] if is_chat else edit.completion
        entries.append(vars(edit) | {"completion": completion, "kept": kept})
    text = _CHAT if is_chat else pa.string()
    schema = pa.schema({"prompt": text, "completion": text, **_COLUMNS})
    return pa.Table.from_pylist(entries, schema=schema.with_metadata({_VERSION_KEY: str(_SCHEMA_VERSION)}))


def _is_chat(edits: Sequence[ScoredSelfEdit]) -> bool:
    """Whether the prompts are chats; a column cannot hold both kinds."""
    plain = [edit for edit in edits if isinstance(edit.prompt, str)]
    if 0 < len(plain) < len(edits):
        raise ValueError(
            f"The run has plain prompts ({len(plain)}) and chats ({len(edits) - len(plain)}), which one column cannot "
            "hold; let the domain's prompt() return one kind."
        )
    for edit in edits if not plain else ():
        for message in edit.prompt:
            if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
                raise ValueError(
                    f"Example {edit.example_id} has a prompt with a message that is more than a role and a text "
                    f"({', '.join(map(str, message))}), which a dataset of self-edits does not hold."
                )
    return not plain


def read_table(file: Path, source: str | Path) -> pa.Table:
    """
    Read a parquet file of self-edits; errors name the dataset as `source`.

    Raises:
        ValueError: It is not such a file, or a newer version wrote it.
    """
    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file ({error}); save or push the run again.") from error
    version = int((table.schema.metadata or {}).get(_VERSION_KEY, _SCHEMA_VERSION))
    if version > _SCHEMA_VERSION:
        raise ValueError(
            f"{source} was written by a newer seal-hf (schema {version}, this one reads up to {_SCHEMA_VERSION}); "
            "upgrade with `pip install --upgrade seal-hf`."
        )
    if missing := [name for name in ("prompt", "completion", *_COLUMNS) if name not in table.column_names]:
        raise ValueError(f"{source} is not a dataset of self-edits: it has no column {', '.join(missing)}.")
    return table
