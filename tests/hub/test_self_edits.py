"""A run's self-edits as a dataset: columns and values, the card, folders, and what TRL makes of it."""

import json
import subprocess
import sys
from dataclasses import replace

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from pyarrow import parquet
from trl import SFTConfig, SFTTrainer

from helpers.outer_loop import child_environment
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.written_runs import CHAT, COLUMNS, PLAIN, expected_rows, scored, two_rounds, write_run
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.hub import load_self_edits, save_self_edits
from seal_hf.hub.__main__ import main
from seal_hf.records.files import RUN_FILE
from seal_hf.records.journal import Journal
from seal_hf.records.schema import TrialResult


ALONE = ["README.md", "data/train-00000-of-00001.parquet"]


@pytest.fixture
def written(tmp_path):
    return two_rounds(tmp_path / "run")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets cache"))


def card(folder):
    return DatasetCard.load(folder / "README.md", ignore_metadata_errors=False)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_values_of_a_run(run, tmp_path):
    folder = save_self_edits(run.folder, tmp_path / "saved")
    assert files(folder) == ALONE
    rows = expected_rows(run.folder)
    assert len(rows) == 24 and sum(row["kept"] for row in rows) == 8
    loaded, plain = load_self_edits(folder), datasets.load_dataset(str(folder), split="train")
    assert loaded.column_names == COLUMNS
    assert loaded.features == plain.features == load_self_edits(run.folder).features
    assert loaded.to_list() == plain.to_list() == load_self_edits(run.folder).to_list() == rows


def test_only_scored_rounds_and_kept_once_it_is_selected(written):
    Journal(written).write_bank(2, 0, [TrialResult(SELF_EDITS, 0, 0, 0, 1, 1.0, ["a"], [True], 1.0, 3, 1.0)])
    assert set(load_self_edits(written)["round"]) == {0, 1}
    assert load_self_edits(written)["kept"] == [False, True, False, None]
    assert load_self_edits(written, kept=True)["completion"] == ["Bees 0\n---\n1 hum."]
    assert load_self_edits(written, kept=False)["edit"] == [0, 0]
    assert load_self_edits(written).to_list() == expected_rows(written)


def test_chats_are_conversational(tmp_path):
    edits = [scored(0, 0, 0.5, prompt=CHAT), scored(0, 1, 1.0, prompt=CHAT[1:])]
    folder = save_self_edits(write_run(tmp_path / "run", [edits], [edits[1:]]), tmp_path / "saved")
    loaded, plain = load_self_edits(folder), datasets.load_dataset(str(folder), split="train")
    assert loaded["prompt"] == [CHAT, CHAT[1:]]
    assert loaded["completion"][1] == [{"role": "assistant", "content": edits[1].completion}]
    assert plain.features == loaded.features and plain.to_list() == loaded.to_list()
    assert "chat messages" in card(folder).text


@pytest.mark.parametrize(
    "prompts",
    [
        [PLAIN, CHAT],
        [CHAT, PLAIN],
        [CHAT, [{"role": "user", "content": [{"type": "image"}]}]],
        [CHAT, [{"role": "user", "content": "a", "name": "Ann"}]],
    ],
)
def test_prompts_that_fit_into_no_column_are_refused(tmp_path, prompts):
    run = write_run(tmp_path / "run", [[scored(i, 0, 0.5, prompt=prompt) for i, prompt in enumerate(prompts)]])
    with pytest.raises(ValueError, match="Example id 1 has a prompt that .* of a role and a text"):
        save_self_edits(run, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_evaluation_goes_along_only_when_asked_for(run, tmp_path):
    folder = save_self_edits(run.folder, tmp_path / "saved", include_evaluation=True)
    both = datasets.load_dataset(str(folder))
    assert set(both) == {"train", "evaluation"}
    held_out = both["evaluation"]
    recorded = [edit for edits in Journal(run.folder / "evaluation").scored_rounds() for edit in edits]
    assert {edit.condition for edit in recorded} > {SELF_EDITS, BASE}
    own = [edit for edit in recorded if edit.condition == SELF_EDITS]
    assert held_out["completion"] == [edit.completion for edit in own] and set(held_out["round"]) == {0, 1, 2}
    assert set(held_out["kept"]) == {False}
    assert "held-out" in card(folder).text
    # Training's alone.
    assert load_self_edits(folder).to_list() == expected_rows(run.folder)
    passages = set(held_out["prompt"])
    assert not passages & set(both["train"]["prompt"])
    # Saved again without it, nothing of it is left.
    save_self_edits(run.folder, folder)
    assert files(folder) == ALONE
    for file in folder.rglob("*.*"):
        assert not any(passage.encode() in file.read_bytes() for passage in passages)


def test_a_dataset_stays_when_another_cannot_be_written_in_its_place(run, tmp_path, monkeypatch):
    folder = save_self_edits(run.folder, tmp_path / "saved")
    before = {file: file.read_bytes() for file in folder.rglob("*.*")}

    def full(table, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        save_self_edits(run.folder, folder, include_evaluation=True)
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before


def test_card(run, tmp_path):
    saved = card(save_self_edits(run.folder, tmp_path / "saved", name="me/edits"))
    assert saved.data.to_dict() == {
        "pretty_name": "Self-edits of tiny-llama",
        "task_categories": ["text-generation", "question-answering"],
        "tags": ["seal", "trl", "self-edits", "synthetic"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
        ],
    }
    text = saved.text
    assert "[someone/tiny-llama](https://huggingface.co/someone/tiny-llama)" in text
    assert "24 self-edits" in text and "finetuned on 8 of them." in text and "2 rounds" in text
    assert "best of k | base reward |" in text and "Evaluation on 3 passages" in text
    assert 'load_dataset("me/edits", split="train")' in text
    assert "licence" in text and "held-out" not in text
    settings = json.loads(text.partition("```json\n")[2].partition("```")[0])
    there = json.loads((run.folder / RUN_FILE).read_text())["settings"]
    assert settings == {name: value for name, value in there.items() if value is not None}
    assert all(f"`{column}`" in text for column in COLUMNS)


def test_card_of_few_with_a_model_of_this_machine(tmp_path):
    own = {
        "model": "/home/someone/models/mine",
        "domain.prompt_style": "prompts\\mine.txt",
        "domain.grader.base_url": "http://10.0.0.7/v1",
        "domain.grader.model": "openai/gpt",
        "domain.note": "hf_" + "x" * 20,
    }
    run = write_run(tmp_path / "run", [[scored(0, 0, 0.5)]], settings=own)
    text = (save_self_edits(run, tmp_path / "saved") / "README.md").read_text()
    assert "1 self-edit that mine\nwrote in 1 round of" in text
    assert "on 0 of them; those of the last round were not chosen yet." in text
    assert 'load_dataset("saved", split="train")' in text and '"domain.grader.model": "openai/gpt"' in text
    for private in ("/home", "mine.txt", "10.0.0.7", "hf_x", str(tmp_path)):
        assert private not in text


@pytest.mark.parametrize("chat", [False, True])
def test_sft_trainer_trains_on_what_was_kept(tmp_path, chat):
    edits = [scored(i, 0, 0.5, prompt=CHAT if chat else PLAIN) for i in range(4)]
    edits[2] = replace(edits[2], completion="left out")
    folder = save_self_edits(write_run(tmp_path / "run", [edits], [edits[:2] + edits[3:]]), tmp_path / "saved")
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    before = {name: value.clone() for name, value in model.named_parameters()}
    options = {"max_steps": 1, "per_device_train_batch_size": 3, "bf16": False, "report_to": [], "use_cpu": True}
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path / "sft"), save_strategy="no", disable_tqdm=True, learning_rate=0.1, **options),
        train_dataset=load_self_edits(folder, kept=True),
        processing_class=tokenizer,
    )
    learned = []
    for row in trainer.train_dataset:
        labels = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        learned.append(tokenizer.decode(labels))
    # Only the completion, and nothing that was dropped.
    assert learned == [f"{edits[i].completion}" + ("\n" if chat else "</s>") for i in (0, 1, 3)]
    trainer.train()
    assert any(not value.equal(before[name]) for name, value in model.named_parameters())


def test_errors_name_what_is_missing(written, tmp_path):
    unscored, saved = write_run(tmp_path / "unscored", []), tmp_path / "saved"
    unselected = write_run(tmp_path / "unselected", [[scored(0, 0, 0.5)]])
    (tmp_path / "empty").mkdir()
    missing, empty = FileNotFoundError, ValueError
    for error, message, function, *arguments, options in (
        (missing, "holds no run .*give the output_dir", save_self_edits, tmp_path / "nowhere", saved, {}),
        (missing, "neither a run of .* nor self-edits", load_self_edits, tmp_path / "nowhere", {}),
        (missing, "neither a run of .* nor self-edits", load_self_edits, tmp_path / "empty", {}),
        (empty, "unscored has no scored round yet", load_self_edits, unscored, {}),
        (empty, "unscored has no scored round yet", save_self_edits, unscored, saved, {}),
        (empty, "evaluation has no scored round", save_self_edits, written, saved, {"include_evaluation": True}),
        (empty, "no self-edits with kept=True yet", load_self_edits, unselected, {"kept": True}),
    ):
        with pytest.raises(error, match=message):
            function(*arguments, **options)
    for content, message in (
        ("{", "is not a run of seal-hf .*restore it"),
        ('{"settings": {}}', "is not a run of seal-hf .*schema_version"),
        ('{"schema_version": 3, "settings": {}}', "written by a newer seal-hf"),
    ):
        (written / RUN_FILE).write_text(content)
        with pytest.raises(ValueError, match=message):
            save_self_edits(written, saved)
        with pytest.raises(ValueError, match=message):
            load_self_edits(written)
    assert not saved.exists()


def test_other_datasets_are_refused(written, tmp_path):
    folder = save_self_edits(written, tmp_path / "saved")
    (file,) = folder.glob("data/*.parquet")
    table = parquet.read_table(file)
    # One that other tools wrote again, in two files and with a further column.
    more = table.append_column("note", pa.array(["x"] * len(table)))
    for number, part in enumerate((more.slice(0, 2), more.slice(2))):
        parquet.write_table(part, folder / "data" / f"train-{number:05d}-of-00002.parquet")
    file.unlink()
    assert load_self_edits(folder).remove_columns("note").to_list() == expected_rows(written)
    # And saving again leaves one.
    assert files(save_self_edits(written, folder)) == ALONE
    parquet.write_table(table.drop_columns(["kept", "repeats"]), file)
    with pytest.raises(ValueError, match="not a dataset of self-edits: it has no column kept, repeats"):
        load_self_edits(folder)
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="holds no readable parquet files"):
        load_self_edits(folder)


def test_folders_that_hold_something_else_are_left_alone(written, tmp_path):
    project, other, clone = tmp_path / "project", tmp_path / "other" / "data", tmp_path / "clone"
    project.mkdir()
    (project / "README.md").write_text("mine")
    other.mkdir(parents=True)
    parquet.write_table(pa.table({"text": ["mine"]}), other / "train-0.parquet")
    for folder in (project, project / "README.md", written):
        with pytest.raises(ValueError, match="something else than self-edits"):
            save_self_edits(written, folder)
    with pytest.raises(ValueError, match="not a dataset of self-edits"):
        save_self_edits(written, other.parent)
    assert files(project) == ["README.md"] and files(other) == ["train-0.parquet"]
    assert (project / "README.md").read_text() == "mine"
    (clone / ".git").mkdir(parents=True)
    assert files(save_self_edits(written, clone)) == ALONE


def test_command_saves(written, tmp_path, capsys):
    main([str(written), "--folder", str(tmp_path / "saved")])
    assert capsys.readouterr().out == f"{tmp_path / 'saved'}\n"
    assert load_self_edits(tmp_path / "saved").num_rows == 4
    with pytest.raises(SystemExit, match="error: .*nowhere holds no run"):
        main([str(tmp_path / "nowhere"), "--folder", str(tmp_path / "more")])
    for wrong in ([], ["--folder", "a", "--repo_id", "me/a"], ["--folder", "a", "--public"]):
        with pytest.raises(SystemExit) as end:
            main([str(written), *wrong])
        assert end.value.code == 2


@pytest.mark.slow
def test_the_command_warns_of_nothing_and_torch_is_not_imported(written, tmp_path):
    code = (
        "import runpy, sys\n"
        "runpy.run_module('seal_hf.hub', run_name='__main__', alter_sys=True)\n"
        "from seal_hf.hub import load_self_edits\nprint(len(load_self_edits(sys.argv[-1])))\n"
        "print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    )
    arguments = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, written, "--folder", tmp_path / "saved"]
    done = subprocess.run(arguments, env=child_environment(), capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'saved'}\n4\nset()\n", done.stderr
