"""An SFT that is left to processes of its own comes to the policy that the trainer itself would have come to."""

import json
import os
import shutil
import signal
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load, load_file
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig

from helpers.folders import TRAINERS
from helpers.outer_loop import results, tiny_trainer
from helpers.processes import assert_same_results, side_by_side
from helpers.scripts import run_main
from helpers.tiny_models import save_tiny_model, tiny_llama
from seal_hf import SEALConfig
from seal_hf.outer_loop import separate_sft
from seal_hf.outer_loop.outer_sft import PolicyNotFinite
from seal_hf.outer_loop.separate_sft import ModelSource


FSDP2 = TRAINERS / "configs" / "accelerate" / "fsdp2.yaml"
OPTIONS = {"num_train": 3, "num_eval": 0, "num_repeats": 1, "num_rounds": 2, "adapters_per_bank": 8}


def trainer(model, output_dir, **options):
    return tiny_trainer(output_dir, model=str(model), model_init_kwargs={"dtype": "float32"}, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, without_pictures):
    """An unbroken run, and one that waits for the SFT of its first round."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_model(folder / "model")
    trainer(folder / "model", folder / "whole").train()
    waiting = trainer(folder / "model", folder / "waiting", separate_sft=True)
    waiting.train()
    assert waiting.waits_for_sft
    return SimpleNamespace(model=folder / "model", whole=results(folder / "whole"), waiting=folder / "waiting")


@pytest.fixture
def waiting(runs, tmp_path):
    return shutil.copytree(runs.waiting, tmp_path / "run")


def assert_policy_of(output_dir, whole):
    """The first round's policy is that of the unbroken run, in PEFT's format, and what the SFT was given is gone."""
    name = "policy/round_000/adapter_model.safetensors"
    torch.testing.assert_close(load_file(output_dir / name), load(whole[name]), atol=1e-6, rtol=0)
    assert (output_dir / "policy/round_000/adapter_config.json").is_file()
    assert not list((output_dir / "sft").iterdir())


def fit(rank, output_dir, environment=None, die_at_step=None):
    """Do the SFT in this process of a group; returns how many of the model's parameters are sharded, and how many it has."""
    torch.set_num_threads(1)
    os.environ.update(environment or {})
    begin = PartialState.__init__

    def as_gpu(state, *args, **kwargs):
        """accelerate shards no model on a CPU, unless it takes it for a GPU."""
        begin(state, *args, **kwargs)
        if environment:
            state._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    gathered, step, found = separate_sft._gathered, separate_sft.ForwardingCallback.on_step_end, []
    num_steps = 0

    def noted(model):
        found.extend(isinstance(parameter, DTensor) for parameter in model.parameters())
        return gathered(model)

    def mortal(*args, **kwargs):
        nonlocal num_steps
        num_steps += 1
        if rank == 1 and num_steps == die_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)

    with (
        mock.patch.object(PartialState, "__init__", as_gpu),
        mock.patch.object(separate_sft, "_gathered", noted),
        mock.patch.object(separate_sft.ForwardingCallback, "on_step_end", mortal),
    ):
        assert separate_sft.fit_waiting(output_dir) == 0
    return [sum(found), len(found)]


def fsdp2_environment():
    """What `accelerate launch` sets with the config that ships."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(FSDP2), "sft"]))
    environment = prepare_multi_gpu_env(args)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_come_to_the_policy_of_one(runs, waiting, tmp_path, shards):
    ended = side_by_side(tmp_path, fit, waiting, fsdp2_environment() if shards else None)
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    for _, (num_sharded, number), _ in ended:
        assert num_sharded == (number if shards else 0)
    assert_policy_of(waiting, runs.whole)


@pytest.mark.slow
def test_when_a_process_dies_the_round_goes_on_to_what_an_unbroken_run_comes_to(runs, waiting, tmp_path):
    (code, _, log), (died, _, _) = side_by_side(tmp_path, fit, waiting, None, 2)
    assert (code, died) == (1, -signal.SIGKILL)
    assert "Another process of this run has ended." in log
    assert f"What round 1 learns from is in {waiting / 'sft' / 'round_000'}; start the same command again" in log
    assert not (waiting / "policy").exists()

    for number in (1, 2):
        done = run_main(TRAINERS / "sft.py", waiting)
        assert done.stdout == f"{waiting} has the policy of round {number}.\n", done.stderr
        going_on = trainer(runs.model, waiting, separate_sft=True)
        going_on.train(resume_from_checkpoint=True)
        assert going_on.waits_for_sft is (number == 1)
    assert_same_results(waiting, runs.whole)
    assert run_main(TRAINERS / "sft.py", waiting).stdout == f"{waiting} waits for no SFT.\n"


def test_a_run_that_waits_can_go_on_in_the_trainer(runs, waiting):
    trainer(runs.model, waiting).train(resume_from_checkpoint=True)
    assert_same_results(waiting, runs.whole)


def test_a_policy_that_is_not_finite_is_not_written(waiting):
    job = waiting / "sft" / "round_000" / "job.json"
    content = json.loads(job.read_text())
    content["arguments"] |= {"learning_rate": 1e30, "max_grad_norm": 1e30}
    job.write_text(json.dumps(content))
    with pytest.raises(PolicyNotFinite, match="learning_rate=1e[+]30"):
        separate_sft.fit_waiting(waiting)
    assert job.is_file() and not (waiting / "policy").exists()
    assert json.loads((waiting / "failed_fit.json").read_text()) == {"round": 1}


def test_a_loaded_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="separate_sft=True needs the model by its name or folder"):
        tiny_trainer(tmp_path, model=tiny_llama(), separate_sft=True)


def test_what_the_other_processes_are_told_survives_json():
    args = SEALConfig(
        "unused",
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        gradient_checkpointing=False,
        num_generations=7,
        model_init_kwargs={"dtype": torch.bfloat16},
        hub_token="hf_secret",
    )
    expected = {"learning_rate": 2e-4, "lr_scheduler_type": "cosine", "gradient_checkpointing": False}
    assert json.loads(json.dumps(separate_sft._changed_arguments(args))) == expected
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    source = ModelSource("some/model", {"dtype": torch.bfloat16, "revision": "main"}, quantization)
    found = ModelSource.from_dict(json.loads(json.dumps(source.to_dict())))
    assert (found.name, found.options) == ("some/model", {"dtype": "bfloat16", "revision": "main"})
    assert found.quantization_config.to_dict() == quantization.to_dict()


class Loaded(Exception):
    """Ends a load when its arguments are known."""


def loaded_with(monkeypatch, folder, quantization=None, deepspeed_plugin=None):
    """What the base model is loaded with, in a process on its second GPU."""
    load = mock.Mock(side_effect=Loaded)
    monkeypatch.setattr(separate_sft, "load_causal_lm", load)
    args = SimpleNamespace(device=torch.device("cuda:1"), deepspeed_plugin=deepspeed_plugin)
    with pytest.raises(Loaded):
        separate_sft._load_policy(ModelSource("some/model", {}, quantization), folder, args)
    return load.call_args.kwargs


def test_fsdp2_gets_what_it_can_shard(monkeypatch, tmp_path):
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    given = loaded_with(monkeypatch, tmp_path, four_bits)
    assert (given["device"], four_bits.bnb_4bit_quant_storage) == (torch.device("cuda:1"), torch.uint8)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    given = loaded_with(monkeypatch, tmp_path, four_bits)
    assert given["device"] == torch.device("cuda:1")
    assert given["quantization_config"].bnb_4bit_quant_storage == torch.bfloat16
    assert loaded_with(monkeypatch, tmp_path)["device"] == torch.device("cpu")


def test_what_is_not_supported_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="zero_stage: 3"):
        loaded_with(monkeypatch, tmp_path, deepspeed_plugin=object())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        loaded_with(monkeypatch, tmp_path)
