"""Banks: every update of every repeat once, similar lengths together, and the work shared out evenly."""

import random
from types import SimpleNamespace

import psutil
import pytest
import torch

from seal_hf.banks import MAX_ADAPTERS, adapters_that_fit, compose_banks, share_banks
from seal_hf.lora_layout import LoraLayout, LoraModule


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
    banks, num_banks = compose_banks(work, num_repeats, size)
    assert [len(own) for own in banks] == [num_repeats] * len(work)
    assert num_banks == num_repeats * -(-len(work) // size)
    found = members(banks)
    assert sorted(found) == list(range(num_banks))
    for trials in found.values():
        assert 1 <= len(trials) <= size
        assert len({repeat for _, repeat in trials}) == 1
        assert len({update for update, _ in trials}) == len(trials)


@pytest.mark.parametrize("seed", range(4))
def test_updates_of_like_length_share_a_bank(seed):
    work = random_work(seed)
    banks, num_banks = compose_banks(work, 2, 3)
    for repeat in range(2):
        in_order = sorted(
            ([work[update] for update, _ in trials] for trials in members(banks).values() if trials[0][1] == repeat),
            key=max,
            reverse=True,
        )
        # The ranges of steps and tokens of two banks do not overlap, and all but the last are full.
        assert all(min(longer) >= max(shorter) for longer, shorter in zip(in_order, in_order[1:], strict=False))
        assert [len(bank) for bank in in_order[:-1]] == [3] * (num_banks // 2 - 1)


def test_composition_by_hand():
    # By steps, then tokens: 3, 1, 4 | 0, 2.
    work = [(10, 300), (90, 900), (10, 200), (90, 901), (20, 1)]
    assert compose_banks(work, 1, 3) == ([[1], [0], [1], [0], [0]], 2)
    assert compose_banks(work, 3, 3) == ([[1, 3, 5], [0, 2, 4], [1, 3, 5], [0, 2, 4], [0, 2, 4]], 6)


def test_composition_depends_on_the_arguments_alone():
    work = random_work(7)
    first = compose_banks(work, 3, 4)
    random.seed(1)
    torch.manual_seed(1)
    assert compose_banks(tuple(work), 3, 4) == first
    assert compose_banks([(1, 5)] * 6, 1, 4) == ([[0]] * 4 + [[1]] * 2, 2)  # of equals the first


def test_repeats_have_the_same_composition():
    banks, num_banks = compose_banks(random_work(3), 3, 4)
    assert {tuple(bank - own[0] for bank in own) for own in banks} == {(0, num_banks // 3, 2 * num_banks // 3)}


def test_no_work_has_no_banks():
    assert compose_banks([], 3, 4) == ([], 0)


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


def layout_of(num_parameters):
    return LoraLayout((LoraModule("linear", 1, num_parameters - 1),), r=1, lora_alpha=1, target_modules=("linear",))


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (0, 1),
        (39_999, 1),
        (80_000, 2),  # half of it holds two adapters of 1,000 parameters of 20 bytes
        (119_999, 2),
        (120_000, 3),
        (10**12, MAX_ADAPTERS),
    ],
)
def test_adapters_that_fit_into_half_of_the_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert adapters_that_fit(layout_of(1_000), torch.device("cpu")) == expected


def test_fewer_adapters_fit_into_less_memory(monkeypatch):
    counts = []
    for free in range(10**7, 0, -(10**5)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        counts.append(adapters_that_fit(layout_of(10_000), torch.device("cpu")))
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == set(range(1, MAX_ADAPTERS + 1))


def test_an_accelerator_is_asked_for_its_own_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200_000, 10**12))
    assert adapters_that_fit(layout_of(1_000), torch.device("cuda", 0)) == 5
