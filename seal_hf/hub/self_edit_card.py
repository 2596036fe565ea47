"""The dataset card of a run's self-edits."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData

from ..records.report import results_table
from .errors import without_tokens
from .transfer import is_hub_id


_SIZES = {"n<1K": 1000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": 1_000_000}


def write_self_edit_card(
    folder: Path, name: str, output_dir: Path, settings: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> None:
    """
    Write `README.md`, a dataset card with metadata of the Hub.

    Parameters:
        folder (`Path`):
            Where to.
        name (`str`):
            The dataset's repository or folder.
        output_dir (`Path`):
            The run's output directory, for its results.
        settings (`Mapping[str, Any]`):
            The run's settings. Paths and addresses among them are left out.
        tables (`Mapping[str, pa.Table]`):
            The self-edits by split, the training's first.
    """
    own, num_rows = next(iter(tables.values())), sum(map(len, tables.values()))
    rounds, kept = set(own["round"].to_pylist()), own["kept"].to_pylist()
    model = str(settings.get("model") or "a model")
    shown = model if is_hub_id(model) else Path(model).name
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in tables]
    data = DatasetCardData(
        pretty_name=f"Self-edits of {shown.rpartition('/')[2]}",
        task_categories=["text-generation", "question-answering"],
        tags=["seal", "trl", "self-edits", "synthetic"],
        size_categories=next((size for size, bound in _SIZES.items() if num_rows < bound), "1M<n<10M"),
        configs=[{"config_name": "default", "data_files": splits}],
    )
    template = resources.files(__package__) / "templates" / "dataset_card.md.jinja"
    card = DatasetCard.from_template(
        data,
        template_str=template.read_text(encoding="utf-8"),
        name=name,
        model=shown,
        is_on_hub=is_hub_id(model),
        num_self_edits=len(own),
        num_rounds=len(rounds),
        num_kept=sum(flag is True for flag in kept),
        is_selected=None not in kept,
        is_chat=not pa.types.is_string(own.schema.field("prompt").type),
        has_evaluation=len(tables) > 1,
        results=results_table(output_dir).strip(),
        settings=without_tokens(json.dumps(_publishable(settings), indent=2, ensure_ascii=False)),
    )
    card.save(folder / "README.md")


def _publishable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are set, without what may be a path or an address of this machine."""
    return {
        name: value
        for name, value in settings.items()
        if value not in (None, "")
        and not (isinstance(value, str) and ("/" in value or "\\" in value) and not is_hub_id(value))
    }
