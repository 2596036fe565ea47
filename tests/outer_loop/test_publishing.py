"""A run that pushes itself to the Hub over real HTTP, what is said where that fails, and a run that continues elsewhere."""

import json
import os
import re
import signal
import threading
import traceback
from concurrent import futures
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load
from transformers import TrainerCallback

from helpers.hub_server import OTHER, READER, Repo
from helpers.observing import small_trainer
from helpers.outer_loop import SMALLEST, noted_trials, results, tiny_trainer
from helpers.processes import TORCHRUN, assert_same_results, assert_shared, launch, wait_for
from helpers.tiny_models import tiny_llama
from seal_hf.hub.errors import HubError
from seal_hf.outer_loop.publishing import Publisher
from seal_hf.outer_loop.seal_config import SEALConfig


REPO, BASE = "tester/policy", "tester/tiny-base"
POLICY = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
}
pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("seal_hf.outer_loop.publishing._RETRY_WAITS", (0.0, 0.0))


@pytest.fixture
def pushing(hub, token, tmp_path):
    def make(folder="run", **options):
        model = tiny_llama()
        model.config.name_or_path = BASE
        defaults = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": token}
        return small_trainer(tmp_path / folder, model=model, **{**defaults, **options})

    return make


class CountPushes(TrainerCallback):
    number = 0

    def on_push_begin(self, args, state, control, **kwargs):
        self.number += 1


def assert_last_policy(hub, trainer):
    pushed = load(hub.files(REPO)["adapter_model.safetensors"])
    state = trainer.model.state_dict()
    own = {name.replace(".default", ""): value for name, value in state.items() if "lora_" in name}
    assert pushed.keys() == own.keys()
    assert all(torch.equal(pushed[name], own[name].cpu()) for name in own)


def test_every_round_arrives(pushing, hub):
    counted = CountPushes()
    trainer = pushing(callbacks=[counted])
    trainer.train()
    assert trainer.failed_push is None and counted.number == trainer.args.num_rounds == 2
    assert set(hub.files(REPO)) == POLICY
    # A push that waited for another one may have given way to a later one.
    assert hub.titles(REPO)[-1] == "End of training" and len(hub.titles(REPO)) >= 3
    assert_last_policy(hub, trainer)
    card = ModelCard.load(REPO, token=trainer.args.hub_token)
    card.validate()
    assert card.data.base_model == BASE and len(card.data.eval_results) >= 3
    assert not list(trainer._folder.path.glob(".push-*"))
    with torch.no_grad():
        ids = torch.arange(4, 20)[None]
        loaded = PeftModel.from_pretrained(tiny_llama(), REPO, token=trainer.args.hub_token).eval()
        expected = trainer.model.eval()(ids).logits.float()
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5)


def test_strategies(pushing, hub, token):
    trainer = pushing("end", hub_strategy="end")
    trainer.train()
    assert set(hub.files(REPO)) == {".gitattributes"}
    counted = CountPushes()
    trainer.add_callback(counted)
    assert trainer.push_to_hub("Two rounds", dataset_name="me/bees").startswith(hub.url)
    assert counted.number == 1 and b"- dataset: me/bees" in hub.files(REPO)["README.md"]
    assert set(hub.files(REPO)) == POLICY and hub.titles(REPO)[-1] == "Two rounds"
    trainer.processing_class.chat_template = "{{ messages }}"
    assert trainer.push_to_hub(blocking=False).result(timeout=60).startswith(hub.url)
    assert hub.files(REPO)["chat_template.jinja"] == b"{{ messages }}"

    trainer = pushing("all", hub_strategy="all_checkpoints", hub_model_id="tester/all", hub_private_repo=True)
    trainer.train()
    files = hub.files("tester/all")
    assert hub.repo("tester/all").private
    for number in (1, 2):
        kept = trainer._folder.policy(number - 1) / "adapter_model.safetensors"
        assert files[f"round_{number:03d}/adapter_model.safetensors"] == kept.read_bytes()
        assert f"round_{number:03d}/adapter_config.json" in files


def test_a_run_goes_on_elsewhere(pushing, hub, token, monkeypatch):
    unbroken = pushing("unbroken", push_to_hub=False)
    unbroken.train()
    # Stopped in the second round, after the push of the first, which is all that the other machine sees.
    here = pushing("here", hub_strategy="checkpoint", num_rounds=1)
    here.train()
    files = hub.files(REPO)
    pushed = {name.removeprefix("last-checkpoint/") for name in files if name.startswith("last-checkpoint/")}
    assert {"run.json", "trainer_state.json", "journal/round_000.jsonl", "selected/round_000.jsonl"} <= pushed
    assert "evaluation/journal/round_001.jsonl" in pushed and not any("partial" in name for name in pushed)

    there = pushing("there", hub_strategy="checkpoint")
    rename = os.replace

    def rename_in_part(source, target):
        if target == there._folder.path / "policy":
            raise MemoryError("of this test")
        rename(source, target)

    with monkeypatch.context() as killed:
        killed.setattr("os.replace", rename_in_part)
        with pytest.raises(MemoryError):
            there.train(resume_from_checkpoint="last-checkpoint")
    with pytest.raises(ValueError, match="there holds half of a run from the Hub"):
        there.train(resume_from_checkpoint=True)
    there.train(resume_from_checkpoint="last-checkpoint")
    assert results(there._folder.path) == results(unbroken._folder.path)
    assert_last_policy(hub, there)
    files = hub.files(REPO)
    assert "last-checkpoint/policy/round_001/adapter_model.safetensors" in files
    # The last evaluation is part of what every push after it holds.
    assert "last-checkpoint/evaluation/journal/round_002.jsonl" in files
    # What is here already is resumed from here.
    hub.log.clear()
    again = pushing("there", hub_strategy="end")
    again.train(resume_from_checkpoint="last-checkpoint")
    assert not hub.requests("last-checkpoint")


def test_there_must_be_a_run_to_resume(pushing, hub, tmp_path):
    with pytest.raises(ValueError, match=f'{REPO} has no last-checkpoint/run.json at .*hub_strategy="checkpoint"'):
        pushing().train(resume_from_checkpoint="last-checkpoint")
    with pytest.raises(ValueError, match="needs hub_model_id"):
        pushing(push_to_hub=False, hub_model_id=None).train(resume_from_checkpoint="last-checkpoint")
    with pytest.raises(HubError, match="there is no repository tester/nothing"):
        pushing(push_to_hub=False, hub_model_id="tester/nothing").train(resume_from_checkpoint="last-checkpoint")
    assert not (tmp_path / "run" / "run.json").exists()
    one = pushing("one", hub_strategy="checkpoint", num_rounds=1)
    one.train()
    # By the name alone it is the user's own, as for the pushes.
    named = pushing("three", push_to_hub=False, hub_model_id=REPO.partition("/")[2], num_rounds=1)
    named.train(resume_from_checkpoint="last-checkpoint")
    assert results(named._folder.path) == results(one._folder.path)
    other = pushing("two", push_to_hub=False, seed=99)
    with pytest.raises(ValueError, match="holds a run with other settings: .*seed"):
        other.train(resume_from_checkpoint="last-checkpoint")


TRIED_AGAIN = "Training continues, and the push is tried again."


def full_disk_at_first(hub, monkeypatch):
    stage, errors = Publisher._stage, [OSError("full")]

    def staged(self):
        if errors:
            raise errors.pop()
        return stage(self)

    monkeypatch.setattr(Publisher, "_stage", staged)


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        (lambda hub, _: hub.answer(503, "/commit/"), (f"upload to {REPO} failed: the Hub answered 503", TRIED_AGAIN)),
        (lambda hub, _: hub.stop(), ("could not be reached", "Training starts anyway", TRIED_AGAIN)),
        (full_disk_at_first, (f"The policy was not pushed: full. {TRIED_AGAIN}",)),
        # Something else answers in the Hub's place, where the base's licence is asked for.
        (lambda hub, _: hub.answer(200, f"^/api/models/{BASE}$"), ()),
    ],
    ids=["refused", "down from the start", "full disk", "no licence"],
)
def test_what_fails_for_a_while_does_not_stop_the_training(pushing, hub, caplog, monkeypatch, fault, texts):
    fault(hub, monkeypatch)
    trainer = pushing()

    class Recover(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch == 2:
                futures.wait([push for push, _ in filter(None, [trainer._publisher._latest])])
                hub.reset_faults()
                hub.start()

    trainer.add_callback(Recover())
    trainer.train()
    assert trainer.failed_push is None
    assert all(text in caplog.text for text in texts)
    assert_last_policy(hub, trainer)


def test_the_last_push_is_tried_again(pushing, hub, caplog):
    hub.answer(503, "/commit/", "POST", times=2)
    trainer = pushing(num_rounds=1)
    trainer.train()
    assert caplog.text.count("the Hub answered 503") == caplog.text.count("It is tried again in 0 s.") == 2
    assert trainer.failed_push is None
    assert_last_policy(hub, trainer)


def test_no_attempt_is_begun_after_minutes(pushing, hub, caplog, monkeypatch):
    monkeypatch.setattr("seal_hf.outer_loop.publishing._PATIENCE", -1.0)
    hub.answer(503, "/commit/", "POST", times=1)
    trainer = pushing(num_rounds=1, num_eval=0)
    trainer.train()
    assert "the Hub answered 503" in trainer.failed_push and "It is tried again" not in caplog.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda hub: hub.answer(403, "/commit/", "POST"), "this token may not write to tester/policy"),
        (lambda hub: hub.stop(), r"the Hub \(http://.*\) could not be reached"),
        (lambda hub: hub.hang_up("^/_lfs/"), r"the Hub \(http://.*\) could not be reached"),
        (lambda hub: hub.fall_silent(), r"the Hub \(http://.*\) could not be reached \(.*timed out"),
    ],
    ids=["refused", "down", "cut", "silent"],
)
def test_a_hub_that_fails_to_the_end(pushing, hub, caplog, token, tmp_path, short_silence, fault, message):
    caplog.set_level("INFO", "seal_hf")
    fault(hub)
    trainer, folder = pushing(num_rounds=1, num_eval=0), tmp_path / "run"
    assert trainer.train().global_step > 0 and (folder / "policy" / "round_000").is_dir()
    waiting = f"the run's last state to {REPO}. Ctrl+C, pressed twice, ends the wait: everything is in {folder}"
    assert waiting in caplog.text
    for text in (f"The policy is not on the Hub as {REPO}.", "trainer.push_to_hub()", f"Everything is in {folder}"):
        assert text in trainer.failed_push
    assert re.search(message, trainer.failed_push)
    assert [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"] == [trainer.failed_push]
    with pytest.raises(HubError, match=message) as raised:
        trainer.push_to_hub()
    assert token not in "".join(traceback.format_exception(raised.value)) and token not in caplog.text
    assert "Training continues" not in str(raised.value) + caplog.records[-1].getMessage()
    hub.reset_faults()
    hub.start()
    trainer.push_to_hub()
    assert trainer.failed_push is None
    assert_last_policy(hub, trainer)


@pytest.fixture
def ctrl_c():
    """Ctrl+C raises, as in a terminal; a shell lets the commands that it starts in the background ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_wait_for_the_last_push(pushing, hub, tmp_path):
    hub.fall_silent("/commit/")
    is_over = threading.Event()

    class Interrupt(TrainerCallback):
        """Presses Ctrl+C, and again every second where one was taken as a wish to stop after the step, or came too early."""

        presser = None

        def on_push_begin(self, args, state, control, **kwargs):
            if self.presser is None:
                self.presser = threading.Thread(target=self.press, daemon=True)
                self.presser.start()

        def press(self):
            wait_for(lambda: hub.requests("/commit/"))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            while not is_over.wait(1):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    trainer = pushing(num_rounds=1, num_eval=0, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        try:
            trainer.train()
        finally:
            is_over.set()
    assert (tmp_path / "run" / "policy" / "round_000").is_dir()
    hub.reset_faults()
    again = pushing(num_rounds=1, num_eval=0)
    again.train(resume_from_checkpoint=True)
    assert again.failed_push is None and "adapter_model.safetensors" in hub.files(REPO)
    assert not list((tmp_path / "run").glob(".push-*"))


def test_a_push_that_the_configuration_does_not_name(pushing, hub, caplog):
    trainer = pushing(num_rounds=1, push_to_hub=False)
    trainer.train()
    hub.stop()
    with pytest.raises(HubError, match="could not be reached") as raised:
        trainer.push_to_hub()
    assert "Nothing was trained" not in str(raised.value) and "Training" not in caplog.text
    hub.start()
    trainer.push_to_hub()
    assert_last_policy(hub, trainer)


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_the_script_tells_last_what_is_not_on_the_hub(pushing, hub, monkeypatch, capsys, strategy):
    from trainers import knowledge

    trainer = pushing(num_rounds=1, hub_strategy=strategy)
    monkeypatch.setattr("trainers.outer_loop.SEALTrainer", lambda **options: trainer)
    hub.answer(403, "/commit/", "POST")
    with pytest.raises(SystemExit, match=f"error: .*may not write to {REPO}.*Everything is in {trainer._folder.path}"):
        knowledge.main(knowledge.KnowledgeArguments(), trainer.args, knowledge.PolicyModelConfig())
    assert "| self-edits after round 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hub_token": "hf_WrongAndSecret"}, "the Hub answered 401 .*hf auth login.* Nothing was trained."),
        ({"hub_token": READER.token}, "the Hub answered 403 .*use a token that may write.* Nothing was trained."),
        ({"hub_token": OTHER.token}, "the Hub answered 403 .*may not write to tester/policy"),
        ({"hub_private_repo": True}, "exists and is public, but private=True"),
    ],
    ids=["token", "right", "name", "public"],
)
def test_refusals_come_before_training(pushing, hub, tmp_path, options, message):
    hub.add_repo(Repo(REPO))
    with pytest.raises(HubError, match=message) as raised:
        pushing(**options)
    assert raised.value.is_refusal
    assert "WrongAndSecret" not in "".join(traceback.format_exception(raised.value))
    assert not (tmp_path / "run").exists()


def test_no_token_is_written_anywhere(pushing, hub, token, tmp_path, capfd, caplog):
    caplog.set_level("INFO")
    pushing(hub_strategy="checkpoint", num_rounds=1).train()
    assert all(token.encode() not in data for data in hub.files(REPO).values())
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or token.encode() not in file.read_bytes(), file
    assert token not in caplog.text and token not in "".join(capfd.readouterr())


def test_metrics_stay_on_this_machine_unless_asked(tmp_path):
    assert SEALConfig(str(tmp_path), push_to_hub=True).trackio_static_space_id is False
    assert SEALConfig(str(tmp_path), trackio_static_space_id="me/metrics").trackio_static_space_id == "me/metrics"


def test_the_latest_of_those_that_wait_is_pushed(pushing, monkeypatch):
    begun, may_go_on, uploaded = threading.Event(), threading.Event(), []

    def upload(staged, repo_id, *, commit_message, **options):
        begun.set()
        assert may_go_on.wait(60)
        uploaded.append(commit_message)
        if commit_message == "third":
            raise HubError("refused")
        return SimpleNamespace(commit_url=commit_message)

    monkeypatch.setattr("seal_hf.outer_loop.publishing.upload", upload)
    trainer = pushing(push_to_hub=False)
    first = trainer.push_to_hub("first", blocking=False)
    assert begun.wait(60)
    assert not first.cancel()  # it is under way
    second, third = (trainer.push_to_hub(title, blocking=False) for title in ("second", "third"))
    assert second.cancelled() and len(list(trainer._folder.path.glob(".push-*"))) == 2
    may_go_on.set()
    assert isinstance(third.exception(60), HubError) and first.result() == "first"
    assert uploaded == ["first", "third"] and not list(trainer._folder.path.glob(".push-*"))


@pytest.mark.slow
def test_two_processes_push_once_and_continue_elsewhere(hub, token, tmp_path):
    options = {"hub_model_id": REPO, "hub_token": token, "num_eval": 0}
    pushed = {**options, "push_to_hub": True, "hub_strategy": "checkpoint", "num_rounds": 1}
    here, there, record = tmp_path / "here", tmp_path / "there", tmp_path / "record"
    first = launch(TORCHRUN, here, "--options", json.dumps(pushed))
    assert first.returncode == 0, first.stderr
    assert hub.titles(REPO) == ["initial commit", "End of training"]
    assert POLICY < set(hub.files(REPO)) and "last-checkpoint/run.json" in hub.files(REPO)
    tiny_trainer(here, **{**SMALLEST, "num_eval": 0}).train(resume_from_checkpoint=True)
    hub.log.clear()
    resume = ["--resume", "last-checkpoint", "--record", record, "--options", json.dumps(options)]
    done = launch(TORCHRUN, there, *resume)
    assert done.returncode == 0, done.stderr
    # One look at the repository, one in snapshot_download: the second process asks for nothing.
    looks = hub.requests(f"^/api/models/{REPO}(/revision/.*)?$")
    fetched = hub.requests(f"{REPO}/resolve/.*/last-checkpoint/run.json", "GET")
    assert (len(looks), len(fetched)) == (2, 1)
    assert_shared(record)
    assert {number for _, number, *_ in noted_trials(record)} == {1}
    assert_same_results(there, {**results(here), "rewards.png": None})
    assert token not in first.stdout + first.stderr + done.stdout + done.stderr
