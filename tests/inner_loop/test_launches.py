"""What a step asks of a GPU, counted on one that is not there."""

import threading
from collections import Counter

import pytest
import torch

from helpers.fake_gpu import AMPERE, HOPPER, FakeGpu, fake_gpu
from helpers.inner_updates import ATTENTION, lora_config, random_update
from helpers.tiny_models import tiny_llama, tiny_model
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerUpdate, TrainingSequence
from seal_hf.models.memory import activation_bytes_per_token


def counts_of_a_step(gpu: FakeGpu, updates: list[InnerUpdate], target_modules="all-linear", kind="llama"):
    """Launches, waits and transfers of the second step."""
    model = tiny_model(kind, dtype=torch.bfloat16)
    layout = lora_layout(model, lora_config(target_modules, r=8))
    bank = AdapterBank(model.to("meta"), layout, torch.empty(len(updates), layout.num_parameters, device="cuda"))
    counts, stop = [], threading.Event()

    def on_step(step):
        assert len(step.losses) == len(updates)
        counts.append((gpu.launches, gpu.waits, gpu.transfers))
        gpu.clear()
        if len(counts) == 2:
            stop.set()

    train(bank, updates, on_step=on_step, stop=stop)
    return counts[1]


@pytest.fixture
def large_model(monkeypatch):
    """A launch costs a tiny model as little as a large one, so that grouped products are worth theirs."""
    monkeypatch.setattr("seal_hf.inner_loop.passes._LAUNCH_PRODUCTS", 0)


def updates_of(count: int, **options) -> list[InnerUpdate]:
    return [random_update(seed, 3, **options) for seed in range(count)]


def test_what_a_gpu_is_asked_for_is_counted():
    with fake_gpu() as gpu:
        states = torch.zeros(3, 4, device="cuda")
        assert states.is_cuda and states.device == torch.device("cuda:0")
        assert not torch.zeros(3).is_cuda
        weight = torch.empty(5, 4, device=states.device, requires_grad=True)
        (states @ weight.mT).view(-1).sum().backward()
        # The two products are forward and backward; there are views and an allocation besides.
        assert gpu.launches == {"zeros": 1, "mm": 2, "sum": 1, "ones_like": 1}
        assert not gpu.waits and not gpu.transfers
        assert weight.grad.is_cuda

        host = torch.arange(4)
        assert host.pin_memory().to("cuda", non_blocking=True).is_cuda and gpu.transfers == 1 and not gpu.waits
        host.to(states.device)
        torch.tensor([1], device="cuda")
        assert states[0].tolist() == [1.0] * 4 and states.sum().item() == 1
        gpu.values = lambda shape: torch.full(shape, 2.0)
        assert states[0].tolist() == [2.0] * 4
        assert gpu.waits == {"to": 1, "tensor": 1, "tolist": 2, "item": 1} and gpu.transfers == 1
        with pytest.raises(RuntimeError, match="of the host and of the device"):
            states + host
        gpu.clear()
        assert not gpu.launches and not gpu.waits and not gpu.transfers


@pytest.mark.parametrize("target_modules", [ATTENTION, "all-linear"], ids=["attention", "all-linear"])
def test_a_step_of_many_adapters_launches_what_one_of_few_does(large_model, target_modules):
    """Sequences of any lengths. The second transfer is that of the clipping factors."""
    with fake_gpu() as gpu:
        few, waits, transfers = counts_of_a_step(gpu, updates_of(4), target_modules)
        assert waits == {"tolist": 1} and transfers == 2
        assert few["_grouped_mm"] > 0 and few["_fused_adamw_"] == 1
        assert counts_of_a_step(gpu, updates_of(16), target_modules) == (few, waits, transfers)


def test_one_block_launches_less_than_grouped_products(monkeypatch):
    """So little padding that a tiny model has them all in one block."""
    with fake_gpu() as gpu:
        one, *others = counts_of_a_step(gpu, updates_of(4))
        assert one["_grouped_mm"] == 0 and counts_of_a_step(gpu, updates_of(16)) == (one, *others)
        monkeypatch.setattr("seal_hf.inner_loop.passes._LAUNCH_PRODUCTS", 0)
        grouped, *same = counts_of_a_step(gpu, updates_of(4))
    assert same == others
    assert grouped.total() - one.total() == 5 * 14  # a block takes a module 6 launches, grouped products 11


def test_each_learning_rate_and_each_group_of_adapters_is_one_more_call(monkeypatch):
    with fake_gpu() as gpu:
        one, *others = counts_of_a_step(gpu, updates_of(8))
        rates = [random_update(seed, 3, learning_rate=1e-3 * (1 + seed % 3)) for seed in range(8)]
        three, *same = counts_of_a_step(gpu, rates)
        assert same == others and three - one == Counter({"_fused_adamw_": 2, "_foreach_add_": 2})
        layout = lora_layout(tiny_llama(), lora_config(r=8))
        monkeypatch.setattr("seal_hf.inner_loop.optimizer._GRADIENT_VALUES", 3 * layout.num_parameters)
        grouped, *same = counts_of_a_step(gpu, updates_of(8))
        assert same == others and grouped - one == Counter({"mul": 2, "_fused_adamw_": 2, "_foreach_add_": 2})


def test_each_pass_is_one_more_transfer_and_the_host_still_waits_once():
    bytes_per_token = activation_bytes_per_token(tiny_llama(dtype=torch.bfloat16))
    with fake_gpu(free_memory=200 * bytes_per_token) as gpu:
        _, waits, transfers = counts_of_a_step(gpu, updates_of(16))
    assert waits == {"tolist": 1} and transfers > 2
    with fake_gpu(free_memory=400 * bytes_per_token) as gpu:
        _, waits, fewer = counts_of_a_step(gpu, updates_of(16))
    assert waits == {"tolist": 1} and 2 <= fewer < transfers


def test_without_grouped_products_a_block_of_many_launches_what_one_of_few_does():
    sequences = tuple(TrainingSequence(tuple(range(first, first + 9))) for first in range(3))
    with fake_gpu(AMPERE) as gpu:
        few, waits, transfers = counts_of_a_step(gpu, [InnerUpdate(sequences)] * 4)
        assert few["_grouped_mm"] == 0 and few["bmm"] > 0 and waits == {"tolist": 1} and transfers == 2
        assert counts_of_a_step(gpu, [InnerUpdate(sequences)] * 16) == (few, waits, transfers)


def test_a_model_that_is_not_packed_waits_for_its_masks_too():
    with fake_gpu() as gpu:
        _, waits, transfers = counts_of_a_step(gpu, updates_of(4), kind="gemma2")
    # transformers looks whether sequences are packed, once for each of Gemma 2's two kinds of masks.
    assert waits == {"tolist": 1, "__bool__": 2} and transfers == 2


@pytest.mark.parametrize(
    ("capability", "tokens_per_launch", "expected"),
    [
        # One block has 48 tokens of padding; grouped products take 14 modules 70 launches more than one block.
        *((capability, 0.5, [[0], [1], [2], [3]]) for capability in (HOPPER, (10, 0))),
        (HOPPER, 1.0, [[0, 1, 2, 3]]),
        # Without them a block takes 84 launches: two with 2 tokens of padding cost 2 + 2 * 42, one costs 48 + 42.
        *((capability, 0.5, [[1, 3], [2, 0]]) for capability in (AMPERE, (12, 0))),
        (AMPERE, 1.0, [[1, 3, 2, 0]]),
    ],
)
def test_blocks_are_those_that_cost_a_gpu_least(monkeypatch, capability, tokens_per_launch, expected):
    model = tiny_llama(dtype=torch.bfloat16)
    num_weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    monkeypatch.setattr("seal_hf.inner_loop.passes._LAUNCH_PRODUCTS", tokens_per_launch * num_weights)
    layout = lora_layout(model, lora_config(r=8))
    batches = {k: [TrainingSequence(tuple(range(length)))] for k, length in enumerate([5, 30, 7, 30])}
    with fake_gpu(capability):
        forward = TrainingForward(model.to("meta").requires_grad_(False), layout)
        assert forward.packs and forward.grouped == (capability[0] in (9, 10))
        assert forward.plan.cut(batches) == [expected]


@pytest.mark.parametrize(
    ("rank", "dtype", "sizes"),
    [
        (4, torch.bfloat16, {}),
        (8, torch.float32, {}),
        (8, torch.float16, {}),
        (8, torch.bfloat16, {"intermediate_size": 52}),
    ],
)
def test_what_grouped_products_do_not_take_goes_by_block(rank, dtype, sizes):
    model = tiny_llama(dtype=dtype, **sizes)
    layout = lora_layout(model, lora_config(r=rank))
    with fake_gpu():
        assert not TrainingForward(model.to("meta").requires_grad_(False), layout).grouped


@pytest.mark.parametrize("packs", [True, False])
def test_tokens_of_a_pass_on_a_gpu_are_those_that_its_memory_holds(monkeypatch, packs):
    monkeypatch.setattr(TrainingForward, "_can_pack", lambda self: (packs, False))
    model = tiny_llama(dtype=torch.bfloat16)
    layout, per_token = lora_layout(model, lora_config(r=8)), activation_bytes_per_token(model)
    batches = {k: [TrainingSequence(tuple(range(10)))] for k in range(40)}
    model.to("meta").requires_grad_(False)
    with fake_gpu(free_memory=100 * per_token):
        forward = TrainingForward(model, layout)
        passes = forward.plan.cut(batches)
    assert forward.plan.most_tokens == pytest.approx(70, abs=1)
    assert sorted(adapter for blocks in passes for block in blocks for adapter in block) == list(range(40))
    assert len(passes) == 6 and max(len(block) for blocks in passes for block in blocks) <= 7
    with fake_gpu(free_memory=10**9 * per_token):
        plan = TrainingForward(model, layout).plan
        assert plan.most_tokens == 16384 and len(plan.cut(batches)) == 1


def test_what_a_launch_costs_falls_with_the_size_of_the_model():
    sizes = {"0.5B": (896, 4864, 24, 14, 2), "7B": (3584, 18944, 28, 28, 4)}
    costs = {}
    for name, (hidden, intermediate, layers, heads, kv) in sizes.items():
        with torch.device("meta"):
            model = tiny_llama(
                dtype=torch.bfloat16,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv,
            )
        with fake_gpu(AMPERE):
            plan = TrainingForward(model.requires_grad_(False), lora_layout(model, lora_config())).plan
        costs[name] = (plan.block_cost, plan.pass_cost)
    # In tokens: 168 modules of 0.36e9 weights, 6 launches each; 196 modules of 6.5e9.
    assert costs["0.5B"] == pytest.approx((168 * 6 * 0.44, (168 * 6 + 2400) * 0.44), rel=0.03)
    assert costs["7B"] == pytest.approx((196 * 6 * 0.024, (196 * 6 + 2800) * 0.024), rel=0.03)
