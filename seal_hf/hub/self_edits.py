"""
A run's self-edits as a dataset, in a folder or on the Hub, in the form that TRL's `SFTTrainer` trains on.

An entry is one self-edit with its rewards. What the policy was trained on is the split `train`; the passages of the
evaluation are held out, and their self-edits are left out unless they are asked for.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData, constants
from pyarrow import compute, parquet

from ..domains.base import SELF_EDITS
from ..records.files import RUN_FILE, check_schema_version
from ..records.journal import Journal
from ..records.round_metrics import kept_flags
from ..records.tables import results_table
from .errors import explaining_hub_errors, without_tokens
from .transfer import download, is_hub_id, upload, with_namespace


if TYPE_CHECKING:
    from datasets import Dataset


TRAIN, EVALUATION = "train", "evaluation"
_TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md.jinja"
_CHAT = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_REPEAT = {"seed": pa.int64(), "reward": pa.float64(), "loss": pa.float64()}
_REPEAT |= {"answers": pa.list_(pa.string()), "verdicts": pa.list_(pa.bool_())}
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
    "repeats": pa.list_(pa.struct(_REPEAT)),
}


def save_self_edits(
    output_dir: str | Path, folder: str | Path, *, include_evaluation: bool = False, name: str | None = None
) -> Path:
    """
    Write the self-edits of all scored rounds of a run as a dataset: parquet files in `data/`, and a card.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.
        folder (`str` or `Path`):
            Where to: a new or empty folder, or one that holds such a dataset, which is replaced.
        include_evaluation (`bool`, *optional*, defaults to `False`):
            Whether to add the self-edits about held-out passages, as the split `evaluation`.
        name (`str`, *optional*):
            What the card calls the dataset. Defaults to the folder's name.

    Returns:
        `Path`: the folder.

    Raises:
        FileNotFoundError: `output_dir` holds no run.
        ValueError: No round is scored yet, the run is damaged or of a newer version, its prompts fit into no column, or
            `folder` holds something else.
        OSError: The folder cannot be written.
    """
    output_dir, folder = Path(output_dir), Path(folder)
    settings = _settings(output_dir)
    splits = (TRAIN, EVALUATION) if include_evaluation else (TRAIN,)
    tables = {split: _table(output_dir, split) for split in splits}
    if files := _data_files(folder):
        _read_table(files, folder)  # it refuses those of another dataset
    elif folder.is_file() or folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise ValueError(f"{folder} holds something else than self-edits; give a new folder. Nothing was changed.")
    earlier = {*files, *_data_files(folder, EVALUATION)}
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    new = {split: data / f"{split}-00000-of-00001.parquet" for split in splits}
    # All are written before one takes the place of an earlier one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as partial:
        for split, table in tables.items():
            parquet.write_table(table, Path(partial) / new[split].name)
        for file in new.values():
            (Path(partial) / file.name).replace(file)
    for file in earlier.difference(new.values()):
        file.unlink()
    _write_card(folder, name or folder.resolve().name, output_dir, settings, tables)
    return folder


def push_self_edits(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    include_evaluation: bool = False,
    token: str | None = None,
    commit_message: str = "Upload self-edits",
) -> str:
    """
    Upload the self-edits of a run to the Hub, in place of those that were pushed to the same repository before.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.
        repo_id (`str`):
            `"user/name"`, or `"name"` in the token's own namespace.
        private (`bool`, *optional*, defaults to `True`):
            Visibility of a new repository. The prompts hold the passages' text: check its licence before it is public. A
            repository that is private already stays so.
        include_evaluation (`bool`, *optional*, defaults to `False`):
            As for [`save_self_edits`].
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`.
        commit_message (`str`, *optional*, defaults to `"Upload self-edits"`):
            First line of the commit's message.

    Returns:
        `str`: URL of the dataset.

    Raises:
        HubError: The Hub refused or could not be reached, or the repository is public and `private` is set.
        FileNotFoundError, ValueError: As for [`save_self_edits`].
    """
    with tempfile.TemporaryDirectory() as folder:
        _settings(Path(output_dir))  # its errors need no Hub
        repo_id = with_namespace(repo_id, token)
        save_self_edits(output_dir, folder, include_evaluation=include_evaluation, name=repo_id)
        upload(
            folder,
            repo_id,
            commit_message=commit_message,
            repo_type="dataset",
            private=private,
            delete_patterns=[f"data/{split}-*.parquet" for split in (TRAIN, EVALUATION)],
            safe=f"Everything is still in {output_dir}.",
            token=token,
        )
    return f"{constants.ENDPOINT}/datasets/{repo_id}"


def load_self_edits(
    source: str | Path,
    *,
    kept: bool | None = None,
    include_evaluation: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> "Dataset":
    """
    Load self-edits, ready as `train_dataset` of TRL's `SFTTrainer`.

    Args:
        source (`str` or `Path`):
            A repository of the Hub, a folder of [`save_self_edits`], or the output directory of a run.
        kept (`bool`, *optional*):
            `True` for self-edits that the policy was finetuned on, `False` for dropped ones. Defaults to all.
        include_evaluation (`bool`, *optional*, defaults to `False`):
            Whether to add the self-edits about held-out passages, as far as there are some. Nothing is to be trained on them.
        revision (`str`, *optional*):
            A branch, tag or commit of the Hub. Defaults to `main`.
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`.

    Returns:
        `datasets.Dataset`: `prompt` and `completion` (both chat messages, or both plain text), `kept`, `reward`,
            `base_reward`, `well_formed`, `example_id`, `round`, `edit`, `completion_tokens`, `tokens` and `repeats`.

    Raises:
        FileNotFoundError: There is no such folder, or neither a run nor a dataset in it.
        HubError: No such repository or revision, one that this token may not see, or the Hub could not be reached.
        ValueError: No round is scored yet, none is kept, or it is another dataset.
    """
    import datasets  # it takes a second

    folder, splits = Path(source), (TRAIN, EVALUATION) if include_evaluation else (TRAIN,)
    if not folder.exists() and is_hub_id(str(source)):
        patterns = [f"data/{split}-*.parquet" for split in splits]
        with explaining_hub_errors("The download", str(source), "A folder of this name is not here either."):
            folder, _ = download(str(source), patterns, repo_type="dataset", revision=revision, token=token)
        if not _data_files(folder):
            raise ValueError(f"{source} is not a dataset of self-edits: it has no data/{TRAIN}-*.parquet.")
    if (folder / RUN_FILE).is_file():
        _settings(folder)
        there = [split for split in splits if Journal(_journal_folder(folder, split)).scored(0) is not None]
        table = pa.concat_tables([_table(folder, split) for split in there or splits])
    elif files := [file for split in splits for file in _data_files(folder, split)]:
        table = _read_table(files, source)
    else:
        raise FileNotFoundError(
            f"{source} holds neither a run of seal-hf ({RUN_FILE}) nor self-edits; check the name."
        )
    if kept is not None:
        table = table.filter(compute.field("kept") == kept)  # null is neither
        if not table.num_rows:
            raise ValueError(f"{source} has no self-edits with kept={kept} yet; load all with kept=None.")
    return datasets.Dataset(table.replace_schema_metadata())


def _settings(output_dir: Path) -> dict[str, Any]:
    """The run's settings."""
    file = output_dir / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{output_dir} holds no run of seal-hf (no {RUN_FILE}); give the output_dir of a run, or restore the file."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version, settings = record["schema_version"], dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a run of seal-hf ({error!r}); restore it.") from error
    check_schema_version(version, file)
    return settings


def _journal_folder(output_dir: Path, split: str) -> Path:
    return output_dir if split == TRAIN else output_dir / split


def _data_files(folder: Path, split: str = TRAIN) -> list[Path]:
    return sorted((folder / "data").glob(f"{split}-*.parquet"))


def _read_table(files: Sequence[Path], source: str | Path) -> pa.Table:
    """The self-edits in parquet files; errors name the dataset as `source`."""
    try:
        table = parquet.read_table(files)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source} holds no readable parquet files ({error}); save or push the run again.") from error
    if missing := [name for name in ("prompt", "completion", *_COLUMNS) if name not in table.column_names]:
        raise ValueError(f"{source} is not a dataset of self-edits: it has no column {', '.join(missing)}.")
    return table


def _table(output_dir: Path, split: str = TRAIN) -> pa.Table:
    """
    The self-edits of a run's scored rounds, about the passages of training or those of the evaluation, from which nothing
    is learned. `prompt` and `completion` are both plain text or both chat messages, as TRL wants them.
    """
    folder, pairs = _journal_folder(output_dir, split), []
    journal = Journal(folder)
    for number, edits in enumerate(journal.scored_rounds()):
        pairs += zip(edits, kept_flags(edits, journal.selected(number) if split == TRAIN else ()), strict=True)
    pairs = [(edit, kept) for edit, kept in pairs if edit.condition == SELF_EDITS]
    if not pairs:
        raise ValueError(f"{folder} has no scored round yet; let the run come to the end of one.")
    is_chat = not isinstance(pairs[0][0].prompt, str)
    entries = []
    for edit, kept in pairs:
        messages = edit.prompt if is_chat else [{"role": "user", "content": edit.prompt}]
        if not all(set(one) == {"role", "content"} and isinstance(one["content"], str) for one in messages):
            raise ValueError(
                f"Example {edit.example_id} has a prompt that a dataset of self-edits does not hold: let the domain's "
                "prompt() return plain text for all, or for all messages of a role and a text."
            )
        completion = [{"role": "assistant", "content": edit.completion}] if is_chat else edit.completion
        entries.append(vars(edit) | {"completion": completion, "kept": kept})
    text = _CHAT if is_chat else pa.string()
    return pa.Table.from_pylist(entries, schema=pa.schema({"prompt": text, "completion": text, **_COLUMNS}))


def _write_card(
    folder: Path, name: str, output_dir: Path, settings: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> None:
    """Write `README.md`, a dataset card with metadata of the Hub, for tables by split."""
    own = tables[TRAIN]
    kept, model = own["kept"].to_pylist(), str(settings.get("model") or "a model")
    shown = model if is_hub_id(model) else Path(model).name
    # Without what may be a path or an address of this machine.
    publishable = {
        key: value
        for key, value in settings.items()
        if value not in (None, "")
        and not (isinstance(value, str) and ("/" in value or "\\" in value) and not is_hub_id(value))
    }
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in tables]
    DatasetCard.from_template(
        DatasetCardData(
            pretty_name=f"Self-edits of {shown.rpartition('/')[2]}",
            task_categories=["text-generation", "question-answering"],
            tags=["seal", "trl", "self-edits", "synthetic"],
            configs=[{"config_name": "default", "data_files": files}],
        ),
        template_path=str(_TEMPLATE),
        name=name,
        model=shown,
        is_on_hub=is_hub_id(model),
        num_self_edits=len(own),
        num_rounds=len(set(own["round"].to_pylist())),
        num_kept=sum(flag is True for flag in kept),
        is_selected=None not in kept,
        is_chat=not pa.types.is_string(own.schema.field("prompt").type),
        has_evaluation=EVALUATION in tables,
        results=results_table(output_dir).strip(),
        settings=without_tokens(json.dumps(publishable, indent=2, ensure_ascii=False)),
    ).save(folder / "README.md")
