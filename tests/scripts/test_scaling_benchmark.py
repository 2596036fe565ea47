"""Rounds on simulated workers, and the bytes of large models by counting, checked on tiny ones."""

import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from helpers.folders import BENCHMARKS
from helpers.live_memory import LiveBytes
from helpers.reported_runs import scored
from helpers.tiny_models import tiny_llama, tiny_model
from seal_hf.models.sharding import shard_base
from seal_hf.records.journal import Journal
from seal_hf.rollout.bank_schedule import Work


ARGS = SimpleNamespace(
    num_repeats=1,
    num_generations=2,
    num_rounds=1,
    keep_best=1,
    max_answer_length=1,
    sft_on="round",
    sft_batch_size=4,
    num_train_epochs=2,
)


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def simulation():
    return import_module("simulation")


@pytest.fixture
def capacity():
    return import_module("capacity")


class Plain:
    """A self-edit is written in 1 s and learned in the seconds that it carries; a row of the SFT takes 3 s."""

    size = prompts_per_self_edit = 1

    def bank_size(self, items, num_repeats, num_workers):
        return self.size

    def writing_seconds(self, batch):
        return float(len(batch))

    def bank_seconds(self, bank):
        return sum(item.seconds for item in bank)

    def sft_step_seconds(self, num_rows, num_workers):
        return 3.0 * num_rows


@pytest.fixture
def passages(simulation):
    """Four, with self-edits of 10 to 80 seconds and as many tokens."""
    items = [simulation.Item(5, Work(s, s, s), float(s)) for s in range(10, 90, 10)]
    return [items[first : first + 2] for first in range(0, 8, 2)]


def test_a_round_by_hand(simulation, passages):
    one = simulation.simulate(passages, Plain(), ARGS, 1)
    # 8 self-edits written and learned, and two steps of four rows.
    assert (one.writing, one.scoring, one.sft) == (8.0, 360.0, 24.0)
    assert (one.num_banks, one.adapters_per_bank, one.bound) == (8, 1, "work")
    three = simulation.simulate(passages, Plain(), ARGS, 3)
    # One batch of writing. The most costly first, by tokens and an answer: 80, 30, 20 | 70, 40, 10 | 60, 50; two rows of a step.
    assert (three.writing, three.scoring, three.sft) == (8.0, 130.0, 12.0)
    assert (three.largest_bank, three.even_share) == (80.0, 120.0)
    many = simulation.simulate(passages, Plain(), ARGS, 100)
    assert (many.scoring, many.sft, many.bound) == (80.0, 6.0, "largest bank")


def test_banks_and_batches_are_those_of_a_run(simulation, passages):
    machine = Plain()
    machine.size = 4
    time = simulation.simulate(passages, machine, ARGS, 2)
    assert (time.num_banks, time.adapters_per_bank, time.scoring) == (2, 4, 50.0 + 60 + 70 + 80)
    # 64 prompts in a batch: 32 passages.
    assert simulation.simulate(passages * 10, machine, ARGS, 2).writing == 64.0
    machine.prompts_per_self_edit = 32
    assert simulation.simulate(passages * 10, machine, ARGS, 2).writing == 40.0


def test_a_failure_loses_the_banks_that_are_not_finished(simulation, monkeypatch):
    failures = iter([math.inf, 15.0, math.inf, 4.0, math.inf])  # writing; two tries of scoring; two of the SFT
    monkeypatch.setattr(simulation._Clock, "_next_failure", lambda self: next(failures))
    passages = [[simulation.Item(5, Work(10, 10, 10), 10.0)] * 2]
    time = simulation.simulate(passages, Plain(), ARGS, 1, simulation.Faults(restart_seconds=5.0))
    assert (time.scoring, time.sft, time.num_failures) == (15 + 5 + 10, 4 + 5 + 24, 2)


def test_faults_are_drawn_from_the_seed(simulation, passages):
    slow = simulation.Faults(slow_share=1.0, slow_factor=2.0)
    assert simulation.simulate(passages, Plain(), ARGS, 1, slow).seconds == 2 * (8 + 360 + 24)
    faults = simulation.Faults(spread=0.3, slow_share=0.5, slow_factor=3.0, hours_between=0.1, restart_seconds=1.0)
    times = [simulation.simulate(passages, Plain(), ARGS, 2, faults, seed) for seed in (0, 0, 1)]
    assert times[0] == times[1] != times[2]
    never = simulation.Faults(hours_between=1 / 3600)
    assert math.isinf(simulation.simulate(passages, Plain(), ARGS, 1, never).sft)


def test_a_run_is_read(simulation, tmp_path):
    machines = import_module("machines")
    with pytest.raises(ValueError, match="holds no scored round; give the output_dir of a run"):
        machines.read_run(tmp_path)
    record = scored(0, 0, 1.0, losses=(0.5, 0.5), tokens=60, seconds=8.0)
    malformed = scored(3, 1, 0.0, well_formed=False)
    Journal(tmp_path).write_scored(0, [record, replace(record, edit=1), replace(record, example=3), malformed])
    passages, size = machines.read_run(tmp_path)
    assert [len(own) for own in passages] == [2, 1] and size == 1
    assert passages[0][0] == (10, Work(30, 30, 30), 4.0)  # of one repeat


def test_measured_figures_are_read_from_the_gpu_benchmark():
    measured = import_module("machines").Measured.read("7B")
    assert measured.steps["q,v", 16] == pytest.approx((0.0755, 768, 0.426))
    assert measured.steps["all-linear", 1] == pytest.approx((0.1284, 48, 0.016))
    assert (measured.gemm, measured.before["q,v"]) == pytest.approx((675.6e12, 0.311))
    assert measured.token == 0.806 / 32 / 24


def test_steps_are_counted_near_what_was_measured():
    scaling = import_module("scaling")
    machine = scaling.counted(SimpleNamespace(num_generations=5, max_answer_length=64)).machine
    assert machine.products == 7_615_616_512 - 152064 * 3584 - 28 * (3584 + 2 * 512 + 2 * 3584) - 3584
    assert machine.step_seconds(64, 3072) == pytest.approx(
        4 * machine.products * 3072 / (0.639 * 675.6e12)
        + (2 * 2 * 7_615_616_512 + 64 * 36 * 10_092_544) / machine.gpu.bandwidth
    )
    for (adapted, number), (seconds, tokens, _) in machine.measured.steps.items():
        own = scaling.replace(machine, adapted=adapted, inner=scaling.lora_config(scaling.TARGETS[adapted]))
        assert 0.7 < own.step_seconds(number, tokens) / seconds < 1.1


def test_scaling_prints_all_tables_and_draws(monkeypatch, tmp_path, capsys):
    scaling = import_module("scaling")
    monkeypatch.setattr(scaling, "PASSAGES", (5,))
    scaling.main(["--workers", "1", "2", "8", "--plot", str(tmp_path / "scaling.png")])
    text = capsys.readouterr().out
    assert text.count("| workers | banks of adapters |") == 2
    assert "| as assumed: 44% of the peak FLOPs |" in text and "| 70B | NF4 | ZeRO-3 |" in text
    assert "| 70B | bf16 | shared by 8 |" in text and "| model | GPUs | forward, GB |" in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_bytes_of_the_base(capacity):
    model = tiny_model("qwen2", dtype=torch.bfloat16, num_hidden_layers=3, tie_word_embeddings=False)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert capacity.base_bytes(model, "replica", 4, False) == (weights, 0.0)
    held, gathered = capacity.base_bytes(model, "FSDP2", 4, False)
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert (held, gathered) == (weights / 4, weights - layer)  # two of three layers, and the embeddings
    assert capacity.base_bytes(model, "ZeRO-3", 4, False) == (weights / 4, weights)
    linear = sum(
        module.weight.numel() for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)
    )
    assert capacity.base_bytes(model, "replica", 1, True)[0] == weights - linear * (2 - capacity.NF4_BYTES)
    with pytest.raises(ValueError, match="placement='DDP' must be one of replica, FSDP2, ZeRO-3"):
        capacity.base_bytes(model, "DDP", 1, False)


@contextmanager
def fake_group(num_processes):
    """The first one of so many processes, of which there is no other."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", rank=0, world_size=num_processes, store=FakeStore())
    try:
        yield
    finally:
        destroy_process_group()


def test_shards_of_fsdp2_take_their_share(capacity):
    model = tiny_llama(tie_word_embeddings=False)
    held, _ = capacity.base_bytes(model, "FSDP2", 4, False)
    with fake_group(4):
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=torch.distributed.init_device_mesh("cpu", (4,)))
        assert sum(parameter.to_local().nbytes for parameter in model.parameters()) == held


@pytest.mark.parametrize("is_tied", [False, True], ids=["apart", "tied"])
def test_a_share_of_the_base_takes_what_is_counted(capacity, is_tied):
    model = tiny_model("qwen2", tie_word_embeddings=is_tied)  # with biases
    held, whole = capacity.sharded_bytes(model, 4)
    layer = sum(one.nbytes for one in model.model.layers[0].parameters() if one.dim() > 1)
    embedding = model.model.embed_tokens.weight.nbytes
    assert whole == 2 * max(layer, embedding)
    assert capacity.gathered_per_pass(model, 4) == (0.75 * 2 * (layer + embedding), 0.75 * 2 * (2 * layer + embedding))
    with fake_group(4):
        shard_base(model, torch.distributed.init_device_mesh("cpu", (4,)), None)
        kept = [one.to_local() if isinstance(one, DTensor) else one for one in model.parameters()]
        assert sum(one.nbytes for one in kept) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_of_the_outer_sft(capacity, dtype):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = tiny_model("llama", dtype=dtype, vocab_size=2048, tie_word_embeddings=False, **sizes)
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    estimate = capacity.sft_memory(model, config, 256)
    with LiveBytes() as live:
        adapted = get_peft_model(model, config).train()
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad])
        for _ in range(2):
            ids = torch.arange(256)[None] % 2000
            adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert 0.85 <= (estimate.total - estimate.weights) / live.peak <= 1.25, (estimate, live.peak)
