"""Where stored self-edits are read from."""

import json
from dataclasses import replace

import pytest

from helpers.written_runs import expected_rows, scored, two_rounds, write_run
from seal_hf.domains.base import BASE
from seal_hf.hub import load_self_edits, save_self_edits
from seal_hf.hub.stored_self_edits import load_stored_self_edits
from seal_hf.records.journal import Journal


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets cache"))


def test_files_of_rows(tmp_path):
    rows = [{"context": "Bees\u2028hum.", "completion": "Hum."}, {"context": "Moths fly.", "completions": ["a", "b"]}]
    (tmp_path / "some.json").write_text(json.dumps(rows))
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name in ("some.json", "some.jsonl"):
        assert load_stored_self_edits(tmp_path / name) == rows


def test_a_run_and_its_dataset_with_those_of_the_evaluation(tmp_path):
    run = two_rounds(tmp_path / "run")
    held_out = [scored(5, 0, 1.0, prompt="Passage: moths."), scored(5, 0, 1.0, prompt="", condition=BASE)]
    graded = [{**held_out[0].repeats[0], "verdicts": [True, True]}]
    Journal(run / "evaluation").write_scored(0, [replace(one, repeats=graded) for one in held_out])
    folder = save_self_edits(run, tmp_path / "saved", include_evaluation=True)
    # Nothing of the evaluation is kept, and its base model wrote nothing.
    expected = [*expected_rows(run), {**expected_rows(run / "evaluation")[0], "kept": False}]
    assert len(expected) == 5
    for source in (run, folder):
        assert list(load_stored_self_edits(source)) == load_self_edits(source, include_evaluation=True).to_list()
        assert list(load_stored_self_edits(source)) == expected
        assert load_self_edits(source).to_list() == expected_rows(run)
    (file,) = (folder / "data").glob("evaluation-*.parquet")
    assert load_stored_self_edits(file) == expected[4:]


def test_a_run_of_training_alone_and_of_an_evaluation_alone(tmp_path):
    trained = two_rounds(tmp_path / "trained")
    assert list(load_stored_self_edits(trained)) == expected_rows(trained)
    evaluated = write_run(tmp_path / "evaluated", [])
    with pytest.raises(ValueError, match="evaluated has no scored round yet"):
        load_stored_self_edits(evaluated)
    Journal(evaluated / "evaluation").write_scored(0, [scored(5, 0, 1.0)])
    assert [row["example_id"] for row in load_stored_self_edits(evaluated)] == ["id 5"]
    with pytest.raises(ValueError, match="evaluated has no scored round yet"):
        load_self_edits(evaluated)


def test_errors_tell_the_form_of_a_row(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "one.json").write_text("{}")
    (tmp_path / "broken.jsonl").write_text("{\n")
    for name in ("none.jsonl", "one.json", "broken.jsonl"):
        with pytest.raises(ValueError, match=f'{name}.*"context": ..., "completion": ...'):
            load_stored_self_edits(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
        load_stored_self_edits("nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match="holds neither a run of seal-hf"):
        load_stored_self_edits(tmp_path / "nowhere")
