"""A run's folder: the same settings go on, any other is refused by name, and policies appear whole."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from peft import LoraConfig
from transformers import TrainerState

from helpers.outer_loop import HashGrader, tiny_config, tiny_examples
from helpers.tiny_models import tiny_policy_model, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import SELF_EDITS
from seal_hf.outer_loop.run_settings import run_settings
from seal_hf.outer_loop.stages import examples_per_round
from seal_hf.records.files import SCHEMA_VERSION
from seal_hf.records.journal import Proposal
from seal_hf.records.run_folder import RunFolder


PROPOSAL = Proposal(0, SELF_EDITS, 0, "0", 0, "prompt", "text", 1, True, 8, [0])
POLICY = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


class OtherDomain(KnowledgeDomain):
    pass


class OtherGrader(HashGrader):
    pass


@pytest.fixture
def settings(tmp_path):
    """The settings of a run; each keyword changes one thing."""

    def settings(
        *,
        policy=None,
        model=None,
        base="tiny",
        domain=KnowledgeDomain,
        style="{title}: {context}",
        chat=False,
        **options,
    ):
        train = options.pop("train", tiny_examples(3))
        evaluation = options.pop("evaluation", tiny_examples(2, first=100))
        lm = SelfAdaptingLM(
            tiny_policy_model(peft_config=LoraConfig(**{**POLICY, **(policy or {})}), **(model or {})),
            tiny_tokenizer(),
            domain=domain(style, grader=options.pop("grader", HashGrader()), chat=chat),
            base_model_id=base,
        )
        args = tiny_config(tmp_path / "any", **options)
        return run_settings(args, lm, train, evaluation, examples_per_round(args, len(train)), lm)

    return settings


@pytest.fixture
def run(tmp_path, settings):
    """A folder with a run in it."""
    folder = RunFolder(tmp_path / "run", settings())
    folder.open(False, 0)
    folder.journal.write_proposals(0, [PROPOSAL])
    return folder


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refusal(run, settings, resume=True):
    """The message with which other settings are refused; nothing is changed by that."""
    before = contents(run.path)
    with pytest.raises(ValueError) as error:
        RunFolder(run.path, settings).open(resume, 0)
    assert contents(run.path) == before
    return str(error.value)


def test_settings_are_written_down_and_read_back(run, settings):
    record = json.loads((run.path / "run.json").read_text())
    assert record == {"schema_version": SCHEMA_VERSION, "settings": settings()}


def test_settings_are_flat_and_say_what_they_are(settings):
    found = settings(seed=5, learning_rate=0.25)
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


def test_equal_settings_go_on(run, settings):
    before = contents(run.path)
    RunFolder(run.path, settings()).open(True, 0)
    assert contents(run.path) == before


def test_a_run_is_gone_on_with_only_when_asked(run, settings):
    message = refusal(run, settings(), resume=False)
    assert message.startswith(f"{run.path} holds a run with these settings; resume it with resume_from_checkpoint=T")
    assert message.endswith("or give another output_dir. Nothing was changed.")


def test_a_folder_in_which_nothing_was_begun_is_taken(tmp_path, settings):
    for resume in (True, False, True):
        RunFolder(tmp_path / "run", settings()).open(resume, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    RunFolder(tmp_path / "mine", settings()).open(False, 0)
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
def test_every_difference_is_refused_and_named(run, settings, change, named):
    for resume in (True, False):
        message = refusal(run, settings(**change), resume)
        assert message.startswith(f"{run.path} holds a run with other settings: ")
        assert message.endswith("; give another output_dir, or these settings.")
        assert named in message


def test_the_same_model_by_another_name_goes_on_with_a_warning(run, settings, caplog):
    RunFolder(run.path, settings(base="moved/tiny")).open(True, 0)
    assert "begun with the model tiny, and goes on with moved/tiny, whose weights are the same" in caplog.text
    record = json.loads((run.path / "run.json").read_text())
    assert record["settings"] == settings(base="moved/tiny") and "former" not in record


def test_a_run_that_does_not_tell_its_weights_goes_on_by_the_name(run, settings):
    record = json.loads((run.path / "run.json").read_text())
    del record["settings"]["model.weights"]
    (run.path / "run.json").write_text(json.dumps(record))
    assert "model ('tiny' there, 'other' here)" in refusal(run, settings(base="other"))
    RunFolder(run.path, settings()).open(True, 0)
    assert json.loads((run.path / "run.json").read_text())["settings"] == settings()


def test_an_answer_alone_is_a_difference(run, settings):
    examples = tiny_examples(3)
    examples[1]["questions"][2]["answer"] = "dogs"
    assert "train_dataset ('3 examples, " in refusal(run, settings(train=examples))


def test_of_many_differences_five_are_shown(run, settings):
    options = {"num_generations": 9, "top_p": 0.5, "inner_lora_r": 9, "inner_batch_size": 9, "keep_best": 9}
    message = refusal(run, settings(**options, seed=9, max_answer_length=9))
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
def test_what_changes_no_result_may_differ(run, settings, change):
    RunFolder(run.path, settings(**change)).open(True, 0)


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
def test_a_damaged_run_file_is_refused(run, settings, content):
    (run.path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(run, settings())
    assert message.startswith(f"{run.path / 'run.json'} is not a run of seal-hf (")
    assert message.endswith("); give another output_dir, so that nothing is lost.")


def test_a_run_of_a_newer_version_is_refused(run, settings):
    (run.path / "run.json").write_text(
        json.dumps({"schema_version": SCHEMA_VERSION + 1, "settings": settings(), "more": 1})
    )
    assert f"(schema {SCHEMA_VERSION + 1}, this one reads up to {SCHEMA_VERSION}); upgrade" in refusal(run, settings())


def test_a_run_of_an_older_version_is_not_gone_on_with(run, settings):
    """Its proposals lack the tokens that the outer SFT trains on, and its rewards are by another grader."""
    (run.path / "run.json").write_text(json.dumps({"schema_version": 1, "settings": settings()}))
    assert refusal(run, settings()).endswith(
        f"run.json was written by an older seal-hf (schema 1, this one writes {SCHEMA_VERSION}), whose rewards mean "
        "something else; finish the run with that version, or give another output_dir."
    )


def test_a_folder_below_a_file_cannot_be_written(tmp_path, settings):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError) as error:
            RunFolder(path, settings()).open(False, 0)
        assert str(error.value).startswith(f"output_dir='{path}' cannot be written")
        assert str(error.value).endswith("give another one.")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_cannot_be_written(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OSError, match="cannot be written.*give another one"):
        RunFolder(tmp_path / "run", settings()).open(False, 0)
    assert contents(tmp_path) == {}


def test_a_disk_without_room_is_refused_with_numbers(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OSError) as error:
        RunFolder(tmp_path / "run", settings()).open(False, 6_000_000)
    assert str(error.value) == (
        f"The disk of {tmp_path / 'run'} has 5 MB left, but the run needs about 6 MB for its policies; make room or give "
        "another output_dir."
    )
    assert contents(tmp_path) == {}
    RunFolder(tmp_path / "run", settings()).open(False, 5_000_000)


def test_checking_writes_nothing(tmp_path, settings):
    RunFolder(tmp_path / "run", settings()).check(False, 0)
    assert contents(tmp_path) == {}


def test_a_policy_appears_whole(tmp_path):
    folder = RunFolder(tmp_path, {})
    partial = folder.begin_policy(1)
    (partial / "adapter_model.safetensors").write_bytes(b"half")
    assert partial.is_dir() and not folder.policy(1).exists()
    assert folder.load_state() == {}
    # Begun anew, as after a crash, it has nothing of before.
    partial = folder.begin_policy(1)
    assert list(partial.iterdir()) == []
    (partial / "adapter_model.safetensors").write_bytes(b"whole")
    folder.finish_policy(1)
    assert not partial.exists()
    assert folder.policy(1) == tmp_path / "policy" / "round_001"
    assert contents(folder.policy(1)) == {"adapter_model.safetensors": b"whole"}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_policy_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch, function):
    folder = RunFolder(tmp_path, {})
    (folder.begin_policy(0) / "adapter_config.json").write_text("{}")

    def failing(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(OSError):
        folder.finish_policy(0)
    assert not folder.policy(0).exists()


def trainer_state(step, entries):
    return TrainerState(global_step=step, epoch=step / 4, log_history=[{"loss": i, "step": i} for i in range(entries)])


def test_state_round_trip(tmp_path):
    folder = RunFolder(tmp_path, {})
    assert folder.load_state() == {}
    folder.save_state(trainer_state(6, 2))
    log = [{"loss": 0, "step": 0}, {"loss": 1, "step": 1}]
    assert folder.load_state() == {"global_step": 6, "epoch": 1.5, "log_history": log, "best_metric": None}


@pytest.mark.parametrize(
    ("own", "first", "second", "furthest"),
    [
        ((6, 2), (4, 9), (5, 9), (6, 2)),
        ((6, 2), (7, 1), (5, 9), (7, 1)),
        ((6, 2), (6, 3), (8, 1), (8, 1)),
        ((6, 4), (6, 3), (6, 2), (6, 4)),  # of as many steps, the one that has logged more
        ((6, 2), (6, 3), (6, 5), (6, 5)),
        (None, (2, 1), (3, 1), (3, 1)),
    ],
)
def test_the_furthest_state_is_loaded(tmp_path, own, first, second, furthest):
    folder = RunFolder(tmp_path, {})
    if own is not None:
        folder.save_state(trainer_state(*own))
    for round_index, entry in enumerate((first, second)):
        partial = folder.begin_policy(round_index)
        folder.save_state(trainer_state(*entry), partial)
        folder.finish_policy(round_index)
    folder.save_state(trainer_state(99, 99), folder.begin_policy(2))  # never finished
    found = folder.load_state()
    assert (found["global_step"], len(found["log_history"])) == furthest


class Killed(BaseException):
    """Ends a process in which nothing else comes to be done."""


@pytest.fixture
def cached(run, tmp_path):
    """A complete run as the Hub's cache has it: links, beside files that others fetched."""
    run.journal.write_selected(0, [])
    run.begin_policy(0).joinpath("adapter_model.safetensors").write_bytes(b"weights")
    run.finish_policy(0)
    for name in ("policy/round_000/adapter_model.bin", "notes.txt", "elsewhere/run.json"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("of others")
    folder = tmp_path / "cached"
    for name in contents(run.path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(run.path / name)
    names = {"run.json", "proposals/round_000.jsonl", "selected/round_000.jsonl"}
    files = {name: data for name, data in contents(folder).items() if name in names or name.endswith(".safetensors")}
    assert len(files) == 4
    return SimpleNamespace(path=folder, files=files)


def test_a_copy_has_the_files_of_a_run(cached, settings, tmp_path):
    copied = RunFolder(tmp_path / "copied", settings())
    copied.copy_from(cached.path)
    assert contents(copied.path) == cached.files and copied.holds_a_run()
    assert not any(path.is_symlink() for path in copied.path.rglob("*"))
    copied.open(True, 0)


@pytest.mark.parametrize("num_renamed", [0, 1, 3, 4])
def test_a_copy_that_was_killed_is_made_again(cached, settings, tmp_path, monkeypatch, num_renamed):
    copied = RunFolder(tmp_path / "copied", settings())
    renamed = []

    def replace(source, target):
        if len(renamed) == num_renamed:
            raise Killed
        os.rename(source, target)
        renamed.append(target)

    with monkeypatch.context() as killed:
        killed.setattr("seal_hf.records.run_folder.os.replace", replace)
        killed.setattr("pathlib.Path.rmdir", lambda path: replace(path, path))
        with pytest.raises(Killed):
            copied.copy_from(cached.path)
    copied = RunFolder(tmp_path / "copied", settings())
    if num_renamed == len(cached.files):  # all but the removal of an empty folder
        assert copied.holds_a_run()
    else:
        assert not copied.holds_a_run()
        for resume in (True, False):
            message = "holds half of a run from the Hub; .*='last-checkpoint', or give another"
            with pytest.raises(ValueError, match=message):
                copied.check(resume, 0)
        (copied.path / "policy" / "round_009").mkdir(parents=True)  # of a commit that is no longer the last
        copied.copy_from(cached.path)
    copied.open(True, 0)
    copied.remove_staged()
    assert contents(copied.path) == cached.files
    assert {path.name for path in copied.path.iterdir()} == {"run.json", "policy", "proposals", "selected"}
    assert copied.num_policies() == 1


def test_a_copy_for_which_there_is_no_room_leaves_nothing(cached, settings, tmp_path, monkeypatch):
    def copyfile(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copied = RunFolder(tmp_path / "copied", settings())
    with monkeypatch.context() as full:
        full.setattr("shutil.copyfile", copyfile)
        with pytest.raises(OSError, match="copied could not be written .*No space left.*; make room"):
            copied.copy_from(cached.path)
    assert list(copied.path.iterdir()) == []
    copied.copy_from(cached.path)
    assert contents(copied.path) == cached.files
