"""A run's self-edits on the Hub and back, and what is said where that fails."""

import traceback

import datasets
import pytest
from huggingface_hub import DatasetCard, HfApi, constants

from helpers.hub_server import Repo
from helpers.written_runs import COLUMNS, expected_rows, two_rounds
from seal_hf.hub.__main__ import main
from seal_hf.hub.errors import HubError
from seal_hf.hub.self_edits import load_self_edits, push_self_edits


@pytest.fixture
def written(tmp_path):
    return two_rounds(tmp_path / "run")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets cache"))


def entries_of(repo_id, token):
    return datasets.load_dataset(repo_id, split="train", token=token).to_list()


def test_round_trip_over_the_hub(run, hub, token):
    url = push_self_edits(run.folder, "edits", token=token)  # in the namespace of the token
    assert url == f"{constants.ENDPOINT}/datasets/tester/edits"
    pushed = hub.files("tester/edits", "dataset")
    assert set(pushed) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    loaded = load_self_edits("tester/edits", token=token)
    assert loaded.to_list() == entries_of("tester/edits", token) == expected_rows(run.folder)
    assert loaded.column_names == COLUMNS
    kept = load_self_edits("tester/edits", kept=True, token=token)
    assert kept.to_list() == [row for row in expected_rows(run.folder) if row["kept"]]
    card = DatasetCard.load("tester/edits", token=token)
    card.validate()
    assert card.data.tags == ["seal", "trl", "self-edits", "synthetic"]
    assert 'load_dataset("tester/edits", split="train")' in card.text


def test_private_unless_told_otherwise(written, hub, token):
    push_self_edits(written, "tester/edits", token=token)
    assert hub.repo("tester/edits", "dataset").private
    with pytest.raises(HubError, match="tester/edits failed: .*log in with .* not here either") as error:
        load_self_edits("tester/edits", token=False)
    assert error.value.is_refusal
    push_self_edits(written, "tester/open", private=False, token=token)
    assert load_self_edits("tester/open", token=False).num_rows == 4
    # What is public is never written to unasked.
    refusal = f"is public, but private=True .*Nothing was uploaded. Everything is still in {written}"
    with pytest.raises(HubError, match=refusal):
        push_self_edits(written, "tester/open", token=token)


def test_pushing_again_replaces(run, written, hub, token):
    push_self_edits(run.folder, "tester/edits", token=token, include_evaluation=True, commit_message="With evaluation")
    first = HfApi(token=token).dataset_info("tester/edits").sha
    before = hub.files("tester/edits", "dataset")
    assert {"README.md", "data/evaluation-00000-of-00001.parquet"} < set(before)
    for content in before.values():
        assert token.encode() not in content and str(run.folder).encode() not in content
    push_self_edits(written, "tester/edits", token=token)
    assert set(hub.files("tester/edits", "dataset")) == set(before) - {"data/evaluation-00000-of-00001.parquet"}
    assert load_self_edits("tester/edits", token=token).to_list() == expected_rows(written)
    assert entries_of("tester/edits", token) == expected_rows(written)
    both = load_self_edits("tester/edits", token=token, revision=first, include_evaluation=True)
    assert both.to_list() == load_self_edits(run.folder, include_evaluation=True).to_list() and both.num_rows > 24
    assert load_self_edits("tester/edits", token=token, revision=first).num_rows == 24
    assert hub.titles("tester/edits", "dataset")[1:] == ["With evaluation", "Upload self-edits"]


def test_a_wrong_token_is_named_and_not_shown(written, hub):
    wrong = "hf_" + "wrong" * 5
    for function, *arguments in (
        (push_self_edits, written, "tester/edits"),
        (push_self_edits, written, "edits"),
        (load_self_edits, "tester/edits"),
    ):
        with pytest.raises(HubError, match="failed: .*log in with") as error:
            function(*arguments, token=wrong)
        assert error.value.is_refusal and wrong not in "".join(traceback.format_exception(error.value))


def test_hub_that_is_down(written, tmp_path, hub):
    hub.stop()
    with pytest.raises(FileNotFoundError, match="holds no run"):  # the Hub is not asked
        push_self_edits(tmp_path, "edits")
    with pytest.raises(HubError, match=f"could not be reached .*try again later.* still in {written}") as error:
        push_self_edits(written, "tester/edits", token="hf_some")
    assert not error.value.is_refusal
    with pytest.raises(HubError, match="could not be reached .* not here either"):
        load_self_edits("tester/edits")


def test_other_repositories_are_refused(written, hub, token):
    with pytest.raises(HubError, match="no repository tester/nothing .* A folder of this name is not here either"):
        load_self_edits("tester/nothing", token=token)
    hub.add_repo(Repo("tester/other", "dataset"))
    with pytest.raises(ValueError, match="tester/other is not a dataset of self-edits: it has no data/train-"):
        load_self_edits("tester/other", token=token)
    datasets.Dataset.from_dict({"text": ["a"]}).push_to_hub("tester/other", token=token)
    with pytest.raises(ValueError, match="tester/other is not a dataset of self-edits: it has no column prompt"):
        load_self_edits("tester/other", token=token)
    push_self_edits(written, "tester/edits", token=token)
    with pytest.raises(HubError, match="no such revision"):
        load_self_edits("tester/edits", token=token, revision="gone")
    # One that was pushed again with datasets' own means stays one.
    load_self_edits("tester/edits", token=token).push_to_hub("tester/copy", token=token)
    assert load_self_edits("tester/copy", token=token).to_list() == expected_rows(written)


def test_command_pushes(written, hub, token, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    main([str(written), "--repo_id", "tester/edits"])
    main([str(written), "--repo_id", "tester/open", "--public"])
    assert capsys.readouterr().out == "".join(f"{constants.ENDPOINT}/datasets/tester/{n}\n" for n in ("edits", "open"))
    assert [hub.repo(f"tester/{name}", "dataset").private for name in ("edits", "open")] == [True, False]
