"""A round's self-edits as a table that datasets read."""

import json

import pyarrow.parquet
import pytest
from datasets import load_dataset

from helpers.reported_runs import scored
from seal_hf.records.journal import Journal
from seal_hf.records.samples import save_samples
from seal_hf.records.schema import ScoredSelfEdit


def test_samples(run):
    path = save_samples(run, 0)
    assert path == run / "self_edits" / "round_000.parquet"
    assert not list(run.rglob("*.partial"))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert list(rows[0].items()) == [
        ("round", 0),
        ("example_id", "id 0"),
        ("edit", 0),
        ("prompt", "Write."),
        ("self_edit", "text 0.0"),
        ("well_formed", True),
        ("reward", 0.5),
        ("base_reward", 0.25),
        ("gain", 0.25),
        ("kept", True),
        ("tokens", 300),
        ("answers", ["answer 0"]),
        ("verdicts", [True]),
    ]
    assert [row["kept"] for row in rows] == [True, False, True, False, False]
    assert [row["gain"] for row in rows] == [0.25, -0.25, 0.25, None, None]
    malformed = rows[1]
    assert (malformed["well_formed"], malformed["answers"], malformed["verdicts"]) == (False, None, None)
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(run / "cache"))
    assert dataset.to_list() == rows


def test_samples_have_the_same_columns_without_values(run):
    journal = Journal(run)
    messages = [{"role": "user", "content": "Écris."}]
    empty = scored(0, 0, None)
    journal.write_scored(1, [ScoredSelfEdit(**vars(empty) | {"prompt": messages})])
    journal.write_scored(2, [])
    full, without, none = (pyarrow.parquet.read_table(save_samples(run, number)) for number in range(3))
    assert without.schema == full.schema == none.schema
    assert none.num_rows == 0
    (row,) = without.to_pylist()
    assert json.loads(row["prompt"]) == messages and "É" in row["prompt"]
    missing = {name for name, value in row.items() if value is None}
    assert missing == {"reward", "base_reward", "gain", "kept", "answers", "verdicts"}


def test_samples_of_a_round_that_is_not_scored_are_refused(run):
    with pytest.raises(ValueError, match="round_index=4 is not scored"):
        save_samples(run, 4)
    assert not (run / "self_edits").exists()
