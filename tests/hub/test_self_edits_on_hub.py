"""A run's self-edits on the Hub and back, and what is said where that fails."""

import traceback

import datasets
import pytest
from huggingface_hub import DatasetCard, HfApi, constants

from helpers.written_runs import CHAT, COLUMNS, expected_rows, scored, two_rounds, write_run
from seal_hf.hub.__main__ import main
from seal_hf.hub.errors import HubError
from seal_hf.hub.self_edits import load_self_edits, push_self_edits


@pytest.fixture
def written(tmp_path):
    return two_rounds(tmp_path / "run")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub cache"))


@pytest.fixture
def hub_is_down(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def entries_of(repo_id, token):
    return datasets.load_dataset(repo_id, split="train", token=token).to_list()


def pushed_files(repo_id, token):
    return sorted(set(HfApi(token=token).list_repo_files(repo_id, repo_type="dataset")) - {".gitattributes"})


def test_round_trip_over_the_hub(run, hub, token, xet_or_lfs, tmp_path):
    url = push_self_edits(run.folder, "tester/edits", token=token)
    assert url == f"{constants.ENDPOINT}/datasets/tester/edits"
    assert pushed_files("tester/edits", token) == ["README.md", "data/train-00000-of-00001.parquet"]
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
    assert HfApi(token=token).dataset_info("tester/edits").private
    with pytest.raises(HubError, match="tester/edits failed: .*log in with .* not here either") as error:
        load_self_edits("tester/edits", token=False)
    assert error.value.is_refusal
    push_self_edits(written, "tester/open", private=False, token=token)
    assert load_self_edits("tester/open", token=False).num_rows == 4
    # What is public is never written to unasked.
    with pytest.raises(
        HubError, match=f"is public, but private=True .*Nothing was uploaded. Everything is still in {written}"
    ):
        push_self_edits(written, "tester/open", token=token)


def test_pushing_again_replaces(run, written, hub, token):
    push_self_edits(run.folder, "tester/edits", token=token, include_evaluation=True, commit_message="With evaluation")
    first = HfApi(token=token).dataset_info("tester/edits").sha
    assert "data/evaluation-00000-of-00001.parquet" in pushed_files("tester/edits", token)
    assert load_self_edits("tester/edits", token=token).num_rows == 24
    push_self_edits(written, "tester/edits", token=token)
    assert pushed_files("tester/edits", token) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert load_self_edits("tester/edits", token=token).to_list() == expected_rows(written)
    assert entries_of("tester/edits", token) == expected_rows(written)
    assert load_self_edits("tester/edits", token=token, revision=first).num_rows == 24
    assert hub.titles("tester/edits", "dataset")[1:] == ["With evaluation", "Upload self-edits"]


def test_chats_over_the_hub(tmp_path, hub, token):
    run = write_run(tmp_path / "run", [[scored(0, 0, 0.5, prompt=CHAT)]])
    push_self_edits(run, "chats", token=token)  # in the namespace of the token
    assert 'load_dataset("tester/chats"' in DatasetCard.load("tester/chats", token=token).text
    (entry,) = entries_of("tester/chats", token)
    assert entry["prompt"] == CHAT and [message["role"] for message in entry["completion"]] == ["assistant"]
    assert load_self_edits("tester/chats", token=token).to_list() == [entry]


def test_no_token_is_pushed(run, hub, token):
    push_self_edits(run.folder, "tester/edits", token=token, include_evaluation=True)
    contents = hub.files("tester/edits", "dataset")
    assert {"README.md", "data/evaluation-00000-of-00001.parquet"} < set(contents)
    for content in contents.values():
        assert token.encode() not in content and str(run.folder).encode() not in content


def test_a_wrong_token_is_named_and_not_shown(written, hub):
    wrong = "hf_" + "wrong" * 5
    for attempt in (
        lambda: push_self_edits(written, "tester/edits", token=wrong),
        lambda: push_self_edits(written, "edits", token=wrong),
        lambda: load_self_edits("tester/edits", token=wrong),
    ):
        with pytest.raises(HubError, match="failed: .*log in with") as error:
            attempt()
        assert error.value.is_refusal and wrong not in "".join(traceback.format_exception(error.value))


def test_hub_that_is_down(written, tmp_path, hub_is_down):
    for name in ("tester/edits", "edits"):
        with pytest.raises(FileNotFoundError, match="holds no run"):  # the Hub is not asked
            push_self_edits(tmp_path, name)
    with pytest.raises(HubError, match=f"could not be reached .*try again later.* still in {written}") as error:
        push_self_edits(written, "tester/edits", token="hf_some")
    assert not error.value.is_refusal
    with pytest.raises(HubError, match="could not be reached .* not here either"):
        load_self_edits("tester/edits")


def test_other_repositories_are_refused(written, hub, token, tmp_path):
    with pytest.raises(HubError, match="no repository tester/nothing .* A folder of this name is not here either"):
        load_self_edits("tester/nothing", token=token)
    api = HfApi(token=token)
    api.create_repo("tester/other", repo_type="dataset")
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
    assert [HfApi(token=token).dataset_info(f"tester/{name}").private for name in ("edits", "open")] == [True, False]
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 5)
    with pytest.raises(SystemExit, match="error: The upload to tester/edits failed: .*log in") as end:
        main([str(written), "--repo_id", "tester/edits"])
    assert "wrongwrong" not in str(end.value)
