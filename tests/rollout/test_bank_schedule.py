"""Banks: every update of every repeat once, similar lengths together, and the work shared out evenly."""

import random
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_model, tiny_policy_model
from seal_hf.adapters.layout import LoraLayout, LoraModule, lora_layout
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate, TrainingSequence
from seal_hf.models.memory import activation_bytes_per_token
from seal_hf.rollout.bank_schedule import (
    Work,
    adapters_per_bank,
    bank_bytes,
    compose_banks,
    share_banks,
    work_of,
)


def random_work(seed):
    draw = random.Random(seed)
    return [(draw.randint(1, 30), draw.randint(2, 900)) for _ in range(draw.randint(1, 40))]


def members(banks):
    """(update, repeat) of every bank, by the bank's number."""
    found = {}
    for update, own in enumerate(banks):
        for repeat, bank in enumerate(own):
            found.setdefault(bank, []).append((update, repeat))
    return found


@pytest.mark.parametrize("num_repeats", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 16, 50])
@pytest.mark.parametrize("seed", range(4))
def test_every_update_has_one_bank_per_repeat(seed, size, num_repeats):
    work = random_work(seed)
    banks = compose_banks(work, num_repeats, size)
    assert [len(own) for own in banks] == [num_repeats] * len(work)
    found = members(banks)
    assert sorted(found) == list(range(num_repeats * -(-len(work) // size)))
    for trials in found.values():
        assert 1 <= len(trials) <= size
        assert len({repeat for _, repeat in trials}) == 1
        assert len({update for update, _ in trials}) == len(trials)


@pytest.mark.parametrize("seed", range(4))
def test_updates_of_like_length_share_a_bank_of_even_size(seed):
    work = random_work(seed)
    found = members(compose_banks(work, 2, 3))
    for repeat in range(2):
        in_order = sorted(
            ([work[update] for update, _ in trials] for trials in found.values() if trials[0][1] == repeat),
            key=max,
            reverse=True,
        )
        # The ranges of steps and tokens of two banks do not overlap.
        assert all(min(longer) >= max(shorter) for longer, shorter in zip(in_order, in_order[1:], strict=False))
        sizes = list(map(len, in_order))
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("number", "size", "sizes"), [(40, 16, [14, 13, 13]), (32, 16, [16, 16]), (17, 16, [9, 8]), (5, 16, [5])]
)
def test_sizes_by_hand(number, size, sizes):
    found = members(compose_banks([(10, 300)] * number, 1, size))
    assert [len(found[bank]) for bank in sorted(found)] == sizes


def test_composition_by_hand():
    # By steps, then tokens: 3, 1, 4 | 0, 2.
    work = [(10, 300), (90, 900), (10, 200), (90, 901), (20, 1)]
    assert compose_banks(work, 1, 3) == [[1], [0], [1], [0], [0]]
    assert compose_banks(work, 3, 3) == [[1, 3, 5], [0, 2, 4], [1, 3, 5], [0, 2, 4], [0, 2, 4]]


def test_composition_depends_on_the_arguments_alone():
    work = random_work(7)
    first = compose_banks(work, 3, 4)
    random.seed(1)
    torch.manual_seed(1)
    assert compose_banks(tuple(work), 3, 4) == first
    assert compose_banks([(1, 5)] * 6, 1, 4) == [[0]] * 3 + [[1]] * 3  # of equals the first


def test_repeats_have_the_same_composition():
    banks = compose_banks(random_work(3), 3, 4)
    (distance,) = {own[1] - own[0] for own in banks}
    assert distance == 1 + max(own[0] for own in banks)
    assert {tuple(bank - own[0] for bank in own) for own in banks} == {(0, distance, 2 * distance)}


def test_no_work_has_no_banks():
    assert compose_banks([], 3, 4) == []


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(5))
def test_banks_are_shared_out_once_and_evenly(seed, num_processes):
    draw = random.Random(seed)
    costs = {bank: draw.randint(1, 1000) for bank in draw.sample(range(100), draw.randint(1, 30))}
    shares = share_banks(costs, num_processes)
    assert len(shares) == num_processes
    assert sorted(bank for share in shares for bank in share) == sorted(costs)
    loads = [sum(costs[bank] for bank in share) for share in shares]
    # A process gets a bank only while it has the least work, so the others have had as much without that bank.
    assert max(loads) <= sum(loads) / num_processes + max(costs.values())
    for share, load in zip(shares, loads, strict=True):
        if share:
            assert load - costs[share[-1]] <= min(loads)
        assert [costs[bank] for bank in share] == sorted((costs[bank] for bank in share), reverse=True)
    shuffled = list(costs.items())
    draw.shuffle(shuffled)
    assert share_banks(dict(shuffled), num_processes) == shares


def test_shares_by_hand():
    # 9 -> first, 7 -> second, 6 -> second (7 < 9), 5 -> first (9 < 13), 4 -> second (13 < 14): loads 14 and 17.
    assert share_banks({0: 4, 1: 5, 2: 6, 3: 7, 4: 9}, 2) == [[4, 1], [3, 2, 0]]


def test_more_processes_than_banks():
    assert share_banks({5: 2, 3: 9}, 4) == [[3], [5], [], []]
    assert share_banks({}, 2) == [[], []]


SHARE = 0.4  # of the free memory
# Of 1,000 parameters, at 20 bytes each.
LAYOUT = LoraLayout((LoraModule("linear", 1, 999),), r=1, lora_alpha=1, target_modules=("linear",))


# A token of the tiny model keeps in each of 2 layers 4 hidden states of 32, 2 queries of 32, 2 keys of 16, 4 x 48 values of
# the MLP and the attention's weights of 4 heads; and for a moment half as much again in one. Each value has 4 bytes.
def token_bytes(length):
    weights = 4 * length if length < 512 else 3 * 32  # then keys and values of all heads, and what attention gives
    return (2 * (4 * 32 + 2 * 32 + 2 * 16 + 4 * 48 + weights) + 2 * 32 + 3 * 48 + 3 * weights // 2) * 4


TOKEN = token_bytes(10)
# Updates of 10 steps, in each of which an adapter has 10 tokens.
LINES = Work(num_steps=10, num_tokens=100, longest_step=10)
ADAPTER = 1_000 * 20 + 10 * TOKEN


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory, in bytes."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return lambda value: monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(value)))


def test_work_of_an_update():
    lines = tuple(TrainingSequence((5,) * length) for length in (3, 20, 7, 8))
    assert work_of(InnerUpdate(lines, InnerLoopConfig(num_train_epochs=3, batch_size=3))) == (6, 3 * 38, 35)
    assert work_of(InnerUpdate(lines, InnerLoopConfig(num_train_epochs=3))) == (12, 3 * 38, 20)


@pytest.mark.parametrize(
    ("held", "expected"), [(0, 1), (0.99, 1), (1.01, 1), (2.01, 2), (7.01, 6), (11.9, 6), (12.01, 12), (1000, 12)]
)
def test_two_fifths_of_the_memory_hold_a_bank_and_its_activations(model, free, held, expected):
    free(held * ADAPTER / SHARE)
    # Twelve updates: of 7 to 11 that fit, two banks of 6 are made.
    assert adapters_per_bank(model, LAYOUT, [LINES] * 12) == expected


def test_the_longest_sequences_meet_in_one_step(model, free):
    free(4.01 * (1_000 * 20 + 90 * token_bytes(90)) / SHARE)
    work = [LINES] * 11 + [Work(num_steps=10, num_tokens=180, longest_step=90)]
    assert adapters_per_bank(model, LAYOUT, work) == 4
    assert adapters_per_bank(model, LAYOUT, [LINES] * 12) == 12


@pytest.mark.parametrize(
    ("tokens_of_a_step", "number", "expected"),
    [
        (64, 32, 32),  # 2048 tokens in a step
        (64, 33, 17),
        (64, 100, 25),  # four banks of 25 rather than three of 32 and one of 4
        (2048, 10, 1),
        (4000, 10, 1),
        (1, 500, 500),
    ],
)
def test_no_more_adapters_than_keep_two_cores_busy(model, free, tokens_of_a_step, number, expected):
    free(10**15)
    work = [Work(num_steps=20, num_tokens=20 * tokens_of_a_step, longest_step=tokens_of_a_step)] * number
    assert adapters_per_bank(model, LAYOUT, work) == expected


@pytest.mark.parametrize(
    ("num_repeats", "num_processes", "expected"),
    [
        (1, 1, 12),
        (1, 2, 6),
        (1, 3, 4),
        (2, 2, 12),  # a bank of each repeat
        (3, 2, 6),  # six banks rather than three
        (2, 4, 6),
        (1, 40, 1),
    ],
)
def test_processes_have_as_many_banks(model, free, num_repeats, num_processes, expected):
    free(10**15)
    assert adapters_per_bank(model, LAYOUT, [LINES] * 12, num_repeats, num_processes) == expected


def test_the_processes_of_a_machine_share_its_memory(model, free, monkeypatch):
    free(6.01 * ADAPTER / SHARE)
    assert adapters_per_bank(model, LAYOUT, [LINES] * 12) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert adapters_per_bank(model, LAYOUT, [LINES] * 12) == 3


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("held", [7.5, 20, 60])
def test_two_programs_that_ask_at_once_leave_a_fifth_of_the_memory(model, free, monkeypatch, num_processes, held):
    memory = held * num_processes * ADAPTER
    free(memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
    size = adapters_per_bank(model, LAYOUT, [LINES] * 1000)
    taken = num_processes * bank_bytes(model, LAYOUT, size, LINES.longest_step)
    assert 2 * taken <= 0.8 * memory
    free(memory - taken)  # for a second program that starts later, less than before and enough
    assert adapters_per_bank(model, LAYOUT, [LINES] * 1000) <= size


def test_a_policy_and_a_lower_precision_change_the_activations_alone(free):
    free(10.01 * (1_000 * 20 + 10 * TOKEN) / SHARE)
    work = [LINES] * 30
    assert adapters_per_bank(tiny_policy_model(), LAYOUT, work) == 10
    free(15.01 * (1_000 * 16 + 10 * TOKEN / 2) / SHARE)
    assert adapters_per_bank(tiny_llama(dtype=torch.bfloat16), LAYOUT, work) == 15


def test_activations_are_those_of_one_pass(model, free):
    # 32 adapters of 64 tokens are busy enough: two passes, each of at most 1024 tokens and half an adapter's.
    work = [Work(num_steps=10, num_tokens=640, longest_step=64)] * 32
    in_a_pass = (1024 + 32) * token_bytes(64)
    assert bank_bytes(model, LAYOUT, 32, 64) == 32 * 1_000 * 20 + in_a_pass
    assert bank_bytes(model, LAYOUT, 16, 64) == 16 * (1_000 * 20 + 64 * token_bytes(64))
    free((32.01 * 1_000 * 20 + in_a_pass) / SHARE)
    assert adapters_per_bank(model, LAYOUT, work) == 32
    free((31.01 * 1_000 * 20 + in_a_pass) / SHARE)
    assert adapters_per_bank(model, LAYOUT, work) == 16
    free((1_000 * 20 + 4000 * token_bytes(4000)) / SHARE + 1)  # one that is larger than a pass
    assert bank_bytes(model, LAYOUT, 3, 4000) == 3 * 1_000 * 20 + 4000 * token_bytes(4000)


def test_checkpointing_makes_room(model, free):
    checkpointed = (2 * 32 + 416 + 4 * 10 + 2 * 32 + 3 * 48 + 6 * 10) * 4
    assert activation_bytes_per_token(model, checkpointed=True, length=10) == checkpointed
    free(10.01 * (1_000 * 20 + 10 * checkpointed) / SHARE)
    assert adapters_per_bank(model, LAYOUT, [LINES] * 30, checkpointed=True) == 10
    assert adapters_per_bank(model, LAYOUT, [LINES] * 30) < 10


def on_cuda(model, monkeypatch, free):
    """A model that says it is on a GPU with so much free memory."""
    weight = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=torch.bfloat16)
    monkeypatch.setattr(model, "get_input_embeddings", lambda: SimpleNamespace(weight=weight))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def test_a_large_model_in_4_bits_on_80_gb(monkeypatch):
    with torch.device("meta"):
        model = tiny_model(
            "qwen2",
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
        )
    layout = lora_layout(model, LoraConfig(r=32, target_modules="all-linear"))
    on_cuda(model, monkeypatch, free=79e9)  # 85 GB less the weights
    assert layout.num_parameters == 80_740_352
    assert activation_bytes_per_token(model) == 5_633_024  # flash attention keeps no weights
    work = [Work(num_steps=100, num_tokens=10_000, longest_step=200)] * 200
    assert adapters_per_bank(model, layout, work) == 25
    assert adapters_per_bank(model, layout, work, checkpointed=True) == 40


@pytest.mark.parametrize(
    ("gigabytes", "num_processes", "tokens_of_a_step", "expected"),
    [
        (20, 1, 160, 12),  # about what is free of 24
        (20, 2, 160, 8),
        (20, 1, 520, 4),
        (6, 1, 160, 4),  # of 8
        (6, 1, 520, 2),
        (6, 2, 160, 2),
        (6, 2, 520, 1),
        (1, 1, 160, 1),
    ],
)
def test_half_a_billion_parameters_on_a_cpu(free, monkeypatch, gigabytes, num_processes, tokens_of_a_step, expected):
    with torch.device("meta"):
        model = tiny_model(
            "qwen2",
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=151936,
        )
    layout = lora_layout(model, LoraConfig(r=32, target_modules="all-linear"))
    assert layout.num_parameters == 17_596_416
    weight = SimpleNamespace(is_cuda=False, device=torch.device("cpu"), dtype=torch.bfloat16)
    monkeypatch.setattr(model, "get_input_embeddings", lambda: SimpleNamespace(weight=weight))
    free(gigabytes * 1e9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
    work = [Work(num_steps=10, num_tokens=10 * tokens_of_a_step, longest_step=tokens_of_a_step)] * 120
    assert adapters_per_bank(model, layout, work) == expected
    if expected > 1:
        taken = 2 * num_processes * bank_bytes(model, layout, expected, tokens_of_a_step)
        assert taken <= 0.8 * gigabytes * 1e9


def test_nothing_to_train_is_one_bank(model, free):
    free(0)
    assert adapters_per_bank(model, LAYOUT, []) == 1
