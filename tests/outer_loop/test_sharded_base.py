"""Adapters on a frozen base that is sharded over two processes are those that each process trains on the whole base."""

import hashlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from helpers.inner_updates import random_update
from helpers.outer_loop import SMALLEST, tiny_config, tiny_trainer
from helpers.processes import side_by_side
from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import SEALConfig, SelfAdaptingLM
from seal_hf.models import sharding
from seal_hf.models.access import checkpointable_layers, policy_parameters, unwrap
from seal_hf.models.identity import weights_fingerprint
from seal_hf.models.sharding import gathering, shard_base
from seal_hf.outer_loop.separate_sft import fit_waiting
from seal_hf.records.files import read_records
from seal_hf.rollout.processes import ProcessEnded, Processes


SIZES = {"intermediate_size": 49}  # no multiple of two processes
# Biases and tied embeddings; logits that are changed after the output embedding; matrices that are not tied.
MODELS = {
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {},
    "llama": {"tie_word_embeddings": False},
}
QUESTIONS = ["What is it?", "Who was there, and why?", "When?"]


def tiny_lm(kind, checkpointing=False):
    return SelfAdaptingLM(
        tiny_policy_model(kind, **SIZES, **MODELS[kind]),
        tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
        base_model_id="tiny",
        inner_gradient_checkpointing=checkpointing,
    )


def results_of(lm, rank):
    """What a process trains and asks: the first one two banks and long answers, the second one less of both."""
    found = []
    options = {"learning_rate": 1e-2, "num_train_epochs": 1}
    for bank in range(2 - rank):
        updates = [random_update(10 * rank + bank + i, 2 - rank, longest=12, **options) for i in range(2)]
        adapters = lm.adapt(updates, seed=bank)
        prompts = QUESTIONS[rank:]
        answers = lm.answer_prompts(
            prompts * 2, [adapters[0]] * len(prompts) + [None] * len(prompts), max_answer_length=5 - 2 * rank
        )
        likelihoods = lm.generator.answer_log_likelihoods(prompts, [["cats", "a dog"]] * len(prompts))
        digests = [hashlib.sha256(adapter.weights.numpy().tobytes()).hexdigest() for adapter in adapters]
        found.append([digests, [list(adapter.training["losses"]) for adapter in adapters], answers, likelihoods])
    return found


def is_base_matrix(name, parameter):
    return "lora_" not in name and parameter.dim() > 1


class WholeWeights:
    """The weights that modules were called with, and the most bytes of them that were there at one call."""

    def __init__(self, model):
        self.seen, self.most = {}, 0
        for name, module in unwrap(model).named_modules():
            if "lora_" not in name and isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.register_forward_pre_hook(self.look)

    def look(self, module, args):
        assert not isinstance(module.weight, DTensor)
        self.seen[id(module.weight)] = module.weight
        self.most = max(self.most, self.num_bytes())

    def num_bytes(self):
        return sum(weight.untyped_storage().nbytes() for weight in self.seen.values())


def shard(folder, lm):
    """Keep this process's share of a model's base alone."""
    processes = Processes(folder, timeout=60)
    shard_base(lm.model, init_device_mesh("cpu", (processes.count,)), processes.group)
    return processes


def gathered_in_passes(lm, rank):
    """What the first process gathers, by number, in a forward pass and in the first one of a bank with a backward pass."""
    told = []
    tell = sharding._ShardedBase._tell
    with (
        mock.patch.object(
            sharding._ShardedBase, "_tell", lambda base, wanted: told.append(wanted) or tell(base, wanted)
        ),
        gathering(lm.model),
    ):
        if rank == 0:
            with torch.no_grad():
                lm.model(input_ids=torch.tensor([[5, 6, 7]]))
            forward = told[1:]
            lm.adapt([random_update(0, 1, num_train_epochs=1)])
            return [forward, told[len(told) - told[::-1].index(sharding._BEGINS) :]]


def train_and_ask(rank, folder):
    """The results of some models in this process of a group, and what each of them held."""
    torch.set_num_threads(1)
    found = {}
    for kind in MODELS:
        lm = tiny_lm(kind, checkpointing=kind == "llama")
        fingerprint = weights_fingerprint(lm.model)
        processes = shard(folder, lm)
        assert weights_fingerprint(lm.model) == fingerprint
        matrices = [one for name, one in lm.model.named_parameters() if is_base_matrix(name, one)]
        whole = WholeWeights(lm.model)
        with gathering(lm.model):
            results = results_of(lm, rank)
        found[kind] = {
            "results": results,
            "num_sharded": sum(isinstance(one, DTensor) for one in lm.model.parameters()),
            "num_matrices": len(matrices),
            "shares": [list(one.to_local().shape) for one in matrices],
            "local_bytes": sum(one.to_local().nbytes for one in matrices),
            "most_whole": whole.most,
            "whole_at_the_end": whole.num_bytes(),
            "policy": [type(one).__name__ for one in policy_parameters(lm.model)],
            "pass": gathered_in_passes(lm, rank),
        }
        with pytest.raises(RuntimeError, match="call the model inside"):
            lm.answer("What?")
        processes.wait()
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes found, of which each has a share of each base."""
    folder = tmp_path_factory.mktemp("sharded")
    ended = side_by_side(folder, train_and_ask, folder)
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    return [found for _, found, _ in ended]


@pytest.mark.parametrize("kind", MODELS)
def test_each_process_comes_to_what_it_comes_to_on_the_whole_base(sharded, kind):
    for rank, found in enumerate(sharded):
        assert len(found[kind]["results"]) == 2 - rank
        assert found[kind]["results"] == results_of(tiny_lm(kind, checkpointing=kind == "llama"), rank)


@pytest.mark.parametrize("kind", MODELS)
def test_a_process_holds_its_share_and_one_layer(sharded, kind):
    model = tiny_policy_model(kind, **SIZES, **MODELS[kind])
    matrices = {id(one): one for name, one in model.named_parameters() if is_base_matrix(name, one)}.values()
    first, second = (found[kind] for found in sharded)
    for found in (first, second):
        assert found["num_sharded"] == found["num_matrices"] == len(matrices)
        assert set(found["policy"]) == {"Parameter"}
        units = [*checkpointable_layers(model), unwrap(model).get_input_embeddings()]
        assert found["most_whole"] == max(map(padded_bytes, units))
        assert found["whole_at_the_end"] == 0
    for one, upper, lower in zip(matrices, first["shares"], second["shares"], strict=True):
        rows = -(-one.shape[0] // 2)
        assert (upper, lower) == ([rows, *one.shape[1:]], [one.shape[0] - rows, *one.shape[1:]])
    assert first["local_bytes"] + second["local_bytes"] == sum(one.nbytes for one in matrices)
    assert first["local_bytes"] < 0.51 * sum(one.nbytes for one in matrices)


def padded_bytes(module):
    """Of a module's matrices with an even number of rows, as FSDP2 gathers them from two processes."""
    matrices = [one for name, one in module.named_parameters() if is_base_matrix(name, one)]
    return sum(-(-one.shape[0] // 2) * 2 * one.shape[1] * one.itemsize for one in matrices)


def end_early(rank, folder):
    """The second process fails in its bank, and is killed in the next one: what the first one, which has no work, hears of it."""
    torch.set_num_threads(1)
    lm = tiny_lm("llama")
    processes = shard(folder, lm)

    def fail(step):
        raise ArithmeticError("no such step")

    def die(step):
        os.kill(os.getpid(), signal.SIGKILL)

    heard = []
    for on_step in (fail, die):
        try:
            with processes.naming_losses(), gathering(lm.model):
                if rank == 1:
                    lm.adapt([random_update(0, 2)], on_step=on_step)
        except (ProcessEnded, ArithmeticError) as error:
            heard.append(f"{type(error).__name__}: {error}")
        if on_step is fail:
            with processes.naming_losses(), gathering(lm.model):  # they are in step again
                answer = lm.answer("What?", max_answer_length=3 - rank)
            (folder / f"after the failure {rank}").write_text(json.dumps([heard, answer]))
    return heard


def test_a_pass_gathers_every_layer_once_and_its_backward_pass_again(sharded):
    tied, untied = [0, 1, 2, 0], [0, 1, 2, 3]  # input embedding, two layers, output embedding
    for kind, forward in (("qwen2", tied), ("gemma2", tied), ("llama", untied)):
        # The logits of Gemma 2 are changed after the output embedding, whose weights stay for the backward pass.
        assert sharded[0][kind]["pass"] == [forward, [*forward, 2, 1]]


def test_a_process_that_ends_early_ends_the_work_of_the_others(tmp_path):
    (code, heard, log), (died, _, _) = side_by_side(tmp_path, end_early, tmp_path)
    assert (code, died) == (0, -signal.SIGKILL), log
    assert heard == [
        "ProcessEnded: Process 1 of this run has ended its work with an error; its own message says which.",
        "ProcessEnded: Another process of this run has ended.",
    ]
    found = [json.loads((tmp_path / f"after the failure {rank}").read_text()) for rank in range(2)]
    assert found[1][0] == ["ArithmeticError: no such step"]
    answers = [tiny_lm("llama").answer("What?", max_answer_length=3 - rank) for rank in range(2)]
    assert [answer for _, answer in found] == answers


def train_to_the_sft(rank, model, output_dir):
    """A run on a sharded base, as far as its first SFT; returns how many parameters are sharded, and the banks of this process."""
    torch.set_num_threads(1)
    trainer = tiny_trainer(
        Path(output_dir),
        model=model,
        model_init_kwargs={"dtype": "float32"},
        separate_sft=True,
        shard_base=True,
        **SMALLEST,
    )
    banks = []
    run_bank = trainer._rollout._run_bank
    trainer._rollout._run_bank = lambda stage, trials, bar, bank, chain: (
        banks.append([stage.name, bank]) or run_bank(stage, trials, bar, bank, chain)
    )
    trainer.train()
    assert trainer.waits_for_sft and isinstance(trainer.model, PeftModel)
    return [sum(isinstance(one, DTensor) for one in trainer.model.parameters()), banks]


@pytest.mark.slow
def test_a_run_on_a_sharded_base_is_the_small_run(tmp_path, without_pictures):
    """Records, rewards and choices are those that `test_small_run.py` compares the unsharded run with."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    run = tmp_path / "run"
    ended = side_by_side(tmp_path, train_to_the_sft, str(tmp_path / "model"), str(run))
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    (num_sharded, first), (_, second) = (found for _, found, _ in ended)
    assert num_sharded == 16  # seven in each of two layers, and two embeddings
    assert not [bank for bank in first if bank in second]
    counts = [sum(stage == "round 1/2" for stage, _ in own) for own in (first, second)]
    assert counts[0] != counts[1] and min(counts) > 0
    assert_round_of_the_small_run(run, 0)

    assert fit_waiting(run) == 0
    going_on = tiny_trainer(run, model=str(tmp_path / "model"), model_init_kwargs={"dtype": "float32"}, **SMALLEST)
    going_on.train(resume_from_checkpoint=True)  # on the whole base: shards are no part of what a run is
    assert_round_of_the_small_run(run, 1)


def assert_round_of_the_small_run(run, number):
    expected = json.loads((Path(__file__).parent / "small_run.json").read_text(encoding="utf-8"))
    for kind in ("proposals", "selected", "journal", "evaluation/proposals", "evaluation/journal"):
        found = read_records(run / kind / f"round_{number:03d}.jsonl")
        for row, wanted in zip(found, expected[f"{kind}/{number}"], strict=True):
            losses, repeats = wanted.pop("losses", []), wanted.pop("repeats", [])
            assert {name: row[name] for name in wanted} == wanted
            for one, loss, repeat in zip(row.get("repeats", ()), losses, repeats, strict=True):
                assert {name: one[name] for name in repeat} == repeat
                assert one["loss"] == (loss if loss is None else pytest.approx(loss, abs=2e-3))


def test_what_cannot_be_sharded_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="shard_base=True needs separate_sft=True"):
        tiny_config(tmp_path, shard_base=True)
    with pytest.raises(ValueError, match="vllm_mode='colocate' contradict each other"):
        SEALConfig(str(tmp_path), shard_base=True, separate_sft=True, use_vllm=True, vllm_mode="colocate")
    with pytest.raises(ValueError, match="needs two processes at least, and this run has one"):
        tiny_trainer(tmp_path, model="some/model", shard_base=True, separate_sft=True)

    quantized = tiny_llama()
    quantized.is_quantized = True
    with pytest.raises(ValueError, match="cannot shard the quantized weights of LlamaForCausalLM"):
        shard_base(quantized, None, None)
    sharing = tiny_llama()
    sharing.model.layers[1].mlp = sharing.model.layers[0].mlp
    with pytest.raises(ValueError, match="Layers of LlamaForCausalLM share weights"):
        shard_base(sharing, None, None)
    config = OpenAIGPTConfig(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel has no decoder layers"):
        shard_base(OpenAIGPTLMHeadModel(config), None, None)


def test_a_process_that_cannot_hold_a_layer_does_not_try_again(monkeypatch):
    """An error of the memory is caught where a bank is trained in halves, which would leave the other processes waiting."""
    full, group = mock.Mock(), mock.Mock()
    full.unshard.side_effect, group.size.return_value = torch.OutOfMemoryError("tried to allocate"), 1
    monkeypatch.setattr(torch.distributed, "all_gather", lambda found, own, group: found[0].copy_(own))
    base = sharding._ShardedBase(tiny_llama(), [full], [[]], group)
    with pytest.raises(
        RuntimeError, match="does not hold a layer.*lower adapters_per_bank.*tried to allocate"
    ) as raised:
        with base.open():
            base._gather(0)
    assert not isinstance(raised.value, torch.OutOfMemoryError)
    assert full.unshard.call_count == 1


def test_a_model_that_is_not_sharded_is_called_as_ever():
    model = tiny_llama()
    with gathering(model):
        assert model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 104)


def test_a_quantization_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    from seal_hf.outer_loop.policy import prepare_sharded_policy

    with pytest.raises(ValueError, match="cannot shard a quantized base; leave quantization_config out"):
        prepare_sharded_policy("some/model", None, None, None, object(), SimpleNamespace(count=2))
