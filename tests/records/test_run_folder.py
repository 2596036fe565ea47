"""A run's folder: the same settings go on, and any other is refused by name."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from helpers.outer_loop import HashGrader, tiny_examples
from helpers.run_folders import PROPOSAL, begun_run, contents, tiny_settings
from seal_hf.domains import KnowledgeDomain
from seal_hf.grading import JudgeGrader
from seal_hf.records import files
from seal_hf.records.files import RESUME_EVALUATION, SCHEMA_VERSION
from seal_hf.records.run_folder import RunFolder


class OtherDomain(KnowledgeDomain):
    pass


class OtherGrader(HashGrader):
    pass


@pytest.fixture
def run(tmp_path):
    return begun_run(tmp_path / "run")


def refusal(run, settings, resume=True):
    """The message with which other settings are refused; nothing is changed by that."""
    before = contents(run.path)
    with pytest.raises(ValueError) as error:
        RunFolder(run.path, settings).open(resume, 0)
    assert contents(run.path) == before
    return str(error.value)


def test_settings_are_written_down_and_read_back(run):
    record = json.loads((run.path / "run.json").read_text())
    assert record == {"schema_version": SCHEMA_VERSION, "settings": tiny_settings()}


def test_settings_are_flat_and_say_what_they_are():
    found = tiny_settings(seed=5, learning_rate=0.25)
    expected = {
        "seed": 5,
        "learning_rate": 0.25,
        "inner_lora_r": 2,
        "lr_scheduler_type": "linear",
        "model": "tiny",
        "model.dtype": "torch.float32",
        "model.quantization": None,
        "peft.r": 3,
        "peft.lora_alpha": 6,
        "peft.target_modules": ["q_proj", "v_proj"],
        "domain": "KnowledgeDomain",
        "domain.chat": False,
        "domain.split_newlines": True,
        "domain.grader": "HashGrader",
    }
    assert {name: found[name] for name in expected} == expected
    assert found["train_dataset"].startswith("3 examples, ")
    assert found["eval_dataset"].startswith("2 examples, ")


def test_equal_settings_go_on(run):
    before = contents(run.path)
    RunFolder(run.path, tiny_settings()).open(True, 0)
    assert contents(run.path) == before


def test_a_run_is_gone_on_with_only_when_asked(run):
    message = refusal(run, tiny_settings(), resume=False)
    assert message.startswith(f"{run.path} holds a run with these settings; resume it with resume_from_checkpoint=T")
    assert message.endswith("or give another output_dir. Nothing was changed.")


def test_a_folder_in_which_nothing_was_begun_is_taken(tmp_path):
    for resume in (True, False, True):
        RunFolder(tmp_path / "run", tiny_settings()).open(resume, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    RunFolder(tmp_path / "mine", tiny_settings()).open(False, 0)
    assert set(contents(tmp_path / "mine")) == {"notes.txt", "run.json"}


CHANGES = [
    ({"num_generations": 4}, "num_generations (3 there, 4 here)"),
    ({"temperature": 1.0}, "temperature (1.5 there, 1.0 here)"),
    ({"inner_learning_rate": 2e-2}, "inner_learning_rate (0.01 there, 0.02 here)"),
    ({"inner_target_modules": ["q_proj"]}, "inner_target_modules (['all-linear'] there, ['q_proj'] here)"),
    ({"num_repeats": 1}, "num_repeats (2 there, 1 here)"),
    ({"keep_best": None}, "keep_best (1 there, None here)"),
    ({"min_reward": 0.5}, "min_reward (None there, 0.5 here)"),
    ({"sft_on": "all"}, "sft_on ('round' there, 'all' here)"),
    ({"sft_batch_size": 3}, "sft_batch_size (2 there, 3 here)"),
    ({"learning_rate": 2e-2}, "learning_rate (0.01 there, 0.02 here)"),
    ({"num_train_epochs": 3}, "num_train_epochs (2.0 there, 3 here)"),
    ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type ('linear' there, 'cosine' here)"),
    ({"weight_decay": 0.5}, "weight_decay (0.0 there, 0.5 here)"),
    ({"max_length": 99}, "max_length (2048 there, 99 here)"),
    ({"bf16": True}, "bf16 (False there, True here)"),
    ({"seed": 4}, "seed (3 there, 4 here)"),
    ({"base": "other", "model": {"initializer_range": 0.3}}, "model ('tiny' there, 'other' here)"),
    ({"model": {"initializer_range": 0.3}}, "model.weights ('"),
    ({"model": {"dtype": "bfloat16"}}, "model.dtype ('torch.float32' there, 'torch.bfloat16' here)"),
    ({"policy": {"r": 4}}, "peft.r (3 there, 4 here)"),
    ({"policy": {"lora_alpha": 8}}, "peft.lora_alpha (6 there, 8 here)"),
    ({"policy": {"use_rslora": True}}, "peft.use_rslora (False there, True here)"),
    ({"policy": {"target_modules": ["q_proj"]}}, "peft.target_modules (['q_proj', 'v_proj'] there, ['q_proj'] here)"),
    ({"domain": OtherDomain}, "domain ('KnowledgeDomain' there, 'OtherDomain' here)"),
    ({"grader": OtherGrader()}, "domain.grader ('HashGrader' there, 'OtherGrader' here)"),
    ({"chat": True}, "domain.chat (False there, True here)"),
    ({"style": "{title} - {context}"}, "train_dataset ('3 examples, "),  # the prompts that it makes
    ({"train": tiny_examples(4)}, "train_dataset ('3 examples, "),
    ({"train": tiny_examples(3)[::-1]}, "train_dataset ('3 examples, "),
    ({"evaluation": tiny_examples(2, first=101)}, "eval_dataset ('2 examples, "),
    ({"evaluation": None}, "eval_dataset ('2 examples, "),
]


@pytest.mark.parametrize(
    ("change", "named"), CHANGES, ids=lambda part: "-".join(part) if isinstance(part, dict) else ""
)
def test_every_difference_is_refused_and_named(run, change, named):
    for resume in (True, False):
        message = refusal(run, tiny_settings(**change), resume)
        assert message.startswith(f"{run.path} holds a run with other settings: ")
        assert message.endswith("; give another output_dir, or these settings.")
        assert named in message


def test_the_same_model_by_another_name_goes_on_with_a_warning(run, caplog):
    RunFolder(run.path, tiny_settings(base="moved/tiny")).open(True, 0)
    assert "begun with the model tiny, and goes on with moved/tiny, whose weights are the same" in caplog.text
    record = json.loads((run.path / "run.json").read_text())
    assert record["settings"] == tiny_settings(base="moved/tiny") and "former" not in record


def test_a_run_that_does_not_tell_its_weights_goes_on_by_the_name(run):
    record = json.loads((run.path / "run.json").read_text())
    del record["settings"]["model.weights"]
    (run.path / "run.json").write_text(json.dumps(record))
    assert "model ('tiny' there, 'other' here)" in refusal(run, tiny_settings(base="other"))
    RunFolder(run.path, tiny_settings()).open(True, 0)
    assert json.loads((run.path / "run.json").read_text())["settings"] == tiny_settings()


JUDGE = {"base_url": "http://10.0.0.7/v1"}


def test_where_a_judge_is_asked_is_a_setting_and_how_often_at_a_time_is_not(tmp_path):
    def settings(**options):
        return tiny_settings(grader=JudgeGrader("them/judge", **JUDGE | options))

    folder = RunFolder(tmp_path, settings())
    folder.open(False, 0)
    folder.journal.write_proposals(0, [PROPOSAL])
    assert settings(max_workers=2, timeout=5.0) == settings()
    assert "10.0.0.7" not in (tmp_path / "run.json").read_text()
    message = refusal(folder, settings(base_url="http://10.0.0.8/v1"))
    assert "domain.grader.endpoint ('address " in message and "10.0.0" not in message
    assert "'provider nebius' here" in refusal(folder, settings(base_url=None, provider="nebius"))
    # An earlier version had it the other way round.
    record = json.loads((tmp_path / "run.json").read_text())
    del record["settings"]["domain.grader.endpoint"]
    record["settings"]["domain.grader.max_workers"] = 8
    (tmp_path / "run.json").write_text(json.dumps(record))
    RunFolder(tmp_path, settings()).open(True, 0)


def test_messages_name_how_the_work_is_gone_on_with(tmp_path, monkeypatch):
    def failing(*arguments):
        raise OSError(errno.ENOSPC, "full")

    evaluating = RunFolder(tmp_path, tiny_settings(), resume=RESUME_EVALUATION)
    evaluating.open(True, 0)
    with evaluating.held(), pytest.raises(ValueError, match="end it, and evaluate again with the same arguments[.]"):
        evaluating.held().__enter__()
    monkeypatch.setattr(files.os, "fsync", failing)
    for write in (
        lambda: evaluating.evaluation.write_proposals(0, [PROPOSAL]),
        lambda: RunFolder(tmp_path / "other", {}, resume=RESUME_EVALUATION).open(True, 0),
    ):
        with pytest.raises(OSError, match="make room or give another output_dir, then evaluate again with the same"):
            write()
    with pytest.raises(OSError, match="then resume with resume_from_checkpoint=True[.] What was"):
        RunFolder(tmp_path / "other", {}).open(True, 0)


def test_an_answer_alone_is_a_difference(run):
    examples = tiny_examples(3)
    examples[1]["questions"][2]["answer"] = "dogs"
    assert "train_dataset ('3 examples, " in refusal(run, tiny_settings(train=examples))


def test_of_many_differences_five_are_shown(run):
    options = {"num_generations": 9, "top_p": 0.5, "inner_lora_r": 9, "inner_batch_size": 9, "keep_best": 9}
    message = refusal(run, tiny_settings(**options, seed=9, max_answer_length=9))
    shown = sorted((*options, "seed", "max_answer_length"))
    assert [name for name in shown if f"{name} (" in message] == shown[:5]
    assert "here) and 2 more; give" in message


@pytest.mark.parametrize(
    "change",
    [
        {"num_rounds": 7},
        {"adapters_per_bank": 9},
        {"adapters_per_bank": None},
        {"inner_gradient_checkpointing": True},
        {"logging_steps": 5, "ddp_timeout": 60, "per_device_train_batch_size": 1, "gradient_checkpointing": False},
        {"separate_sft": True},
        {"train": [dict(reversed(example.items())) for example in tiny_examples(3)]},
    ],
    ids=str,
)
def test_what_changes_no_result_may_differ(run, change):
    RunFolder(run.path, tiny_settings(**change)).open(True, 0)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", "null", '"text"', "{}", '{"schema_version": 1}', '{"settings": {}}'),
        '{"schema_version": null, "settings": {}}',
        '{"schema_version": 1, "settings": null}',
        '{"schema_version": 1, "settings": "text"}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_run_file_is_refused(run, content):
    (run.path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(run, tiny_settings())
    assert message.startswith(f"{run.path / 'run.json'} is not a run of seal-hf (")
    assert message.endswith("); give another output_dir, so that nothing is lost.")


def test_a_run_of_a_newer_version_is_refused(run):
    (run.path / "run.json").write_text(
        json.dumps({"schema_version": SCHEMA_VERSION + 1, "settings": tiny_settings(), "more": 1})
    )
    assert f"(schema {SCHEMA_VERSION + 1}, this one reads up to {SCHEMA_VERSION}); upgrade" in refusal(
        run, tiny_settings()
    )


def test_a_run_of_an_older_version_is_not_gone_on_with(run):
    """Its proposals lack the tokens that the outer SFT trains on, and its rewards are by another grader."""
    (run.path / "run.json").write_text(json.dumps({"schema_version": 1, "settings": tiny_settings()}))
    assert refusal(run, tiny_settings()).endswith(
        f"run.json was written by an older seal-hf (schema 1, this one writes {SCHEMA_VERSION}), whose rewards mean "
        "something else; finish the run with that version, or give another output_dir."
    )


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError) as error:
            RunFolder(path, tiny_settings()).open(False, 0)
        assert str(error.value).startswith(f"output_dir='{path}' cannot be written")
        assert str(error.value).endswith("give another one.")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OSError, match="cannot be written.*give another one"):
        RunFolder(tmp_path / "run", tiny_settings()).open(False, 0)
    assert contents(tmp_path) == {}


def test_a_disk_without_room_is_refused_with_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OSError) as error:
        RunFolder(tmp_path / "run", tiny_settings()).open(False, 6_000_000)
    assert str(error.value) == (
        f"The disk of {tmp_path / 'run'} has 5 MB left, but the run needs about 6 MB for its policies; make room or give "
        "another output_dir."
    )
    assert contents(tmp_path) == {}
    RunFolder(tmp_path / "run", tiny_settings()).open(False, 5_000_000)


def test_checking_writes_nothing(tmp_path):
    RunFolder(tmp_path / "run", tiny_settings()).check(False, 0)
    assert contents(tmp_path) == {}
