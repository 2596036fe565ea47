"""
Blocks whose sequences share a prefix, which is computed once, or have several lengths: all comes out as it does from each
sequence alone.
"""

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from helpers.fake_gpu import fake_gpu
from helpers.flash_attention import flash_attention_on_the_cpu
from helpers.inner_updates import ORDER_SEED, greatest_difference, lora_config, train_alone
from helpers.tiny_models import KINDS, VOCAB_SIZE, tiny_llama, tiny_model
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop import attention as packed_attention
from seal_hf.inner_loop import block_attention
from seal_hf.inner_loop.attention import PackedAttention
from seal_hf.inner_loop.blocks import (
    ONE_PART,
    Block,
    Extent,
    PartCosts,
    common_prefix,
    cut_into_blocks,
    padded_sizes,
    share_out,
)
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.lora import LoraParameters
from seal_hf.inner_loop.packing import PackedBatch
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate, TrainingSequence


CPU = torch.device("cpu")
FREE = PartCosts(prefix=0, length=0)


def questions(seed: int, prefix: int, rests: tuple[int, ...], prompt: int = 0) -> list[TrainingSequence]:
    """Sequences with `prefix` common tokens and their own after them, of which `prompt` are without a loss too."""
    generator = random.Random(seed)
    common = [generator.randrange(4, VOCAB_SIZE) for _ in range(prefix)]
    # The first of its own tokens differs, so that no more than the prefix is common.
    first = generator.sample(range(4, VOCAB_SIZE), len(rests))
    return [
        TrainingSequence(
            (*common, own, *(generator.randrange(4, VOCAB_SIZE) for _ in range(rest - 1))),
            prefix + prompt if prompt else 0,
        )
        for own, rest in zip(first, rests, strict=True)
    ]


@pytest.mark.parametrize(
    ("all_ids", "expected"),
    [
        ([(1, 2, 3, 4), (1, 2, 3), (1, 2, 5, 6)], 2),
        ([(7, 2), (1, 2)], 0),
        ([(1, 2, 3), (1, 2, 3), (1, 2, 3)], 2),  # one token is left
        ([(1, 2, 3, 9), (1, 2, 3), (1, 2, 3, 4)], 2),
        ([(1, 2), (1, 2, 0), (1, 2, 9)], 1),
        ([(5, 6, 7, 8)], 3),
    ],
)
def test_common_prefix(all_ids, expected):
    for order in itertools.permutations(all_ids):
        assert common_prefix([TrainingSequence(ids) for ids in order]) == expected


def test_packed_batch():
    one = [TrainingSequence((5, 6, 7, 8, 9), 3), TrainingSequence((5, 6, 4, 3), 3)]
    other = [TrainingSequence((1, 2, 3, 4), 0)]
    packed = PackedBatch([[one, other], [other]], CPU, PartCosts(prefix=0))
    assert packed.blocks == (Block(0, 2, (3, 3), 0, prefix=2), Block(2, 1, (4,), 16))
    assert [block.adapter_tokens for block in packed.blocks] == [8, 4]
    assert packed.blocks[0].tokens == slice(0, 16) and packed.num_tokens == 20
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 9, 4, 3, 0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3, 4]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3, 4] * 2 + [0, 1, 2, 3]
    assert packed.positions.tolist() == [2, 3, 5, 8, 9, 10, 16, 17, 18]
    assert packed.labels.tolist() == [8, 9, 3, 2, 3, 4, 2, 3, 4]
    assert packed.owners.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert packed.shares.tolist() == pytest.approx([1 / 3] * 9)
    assert packed.adapter_ends.tolist() == [8, 16, 20]
    assert packed.sequence_ends.tolist() == [0, 2, 5, 8, 10, 13, 16, 20]


def test_packed_batch_of_several_lengths():
    one = [TrainingSequence((5, 6), 1), TrainingSequence((5, 7, 8, 9), 3), TrainingSequence((5, 4, 3), 1)]
    other = [TrainingSequence((1, 2, 3), 2)]
    packed = PackedBatch([[one, other]], CPU, FREE)
    assert packed.blocks == (Block(0, 2, (3, 2, 1), 0, prefix=1),)
    assert packed.input_ids.tolist() == [5, 7, 8, 9, 4, 3, 6, 1, 2, 3, 0, 0, 0, 0]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 1, 2, 1] * 2
    assert packed.positions.tolist() == [2, 0, 4, 0, 8]
    assert packed.labels.tolist() == [9, 4, 3, 6, 3]
    assert packed.owners.tolist() == [0, 0, 0, 0, 1]
    assert packed.adapter_ends.tolist() == [7, 14]
    assert packed.sequence_ends.tolist() == [0, 1, 4, 6, 7, 8, 11, 13, 14]
    apart = PackedBatch([[one, other]], CPU, PartCosts(length=0))
    assert apart.blocks == (Block(0, 2, (4, 3, 2), 0),)
    assert PackedBatch([[one, other]], CPU).blocks == (Block(0, 2, (4, 4, 4), 0),)


@pytest.mark.parametrize("seed", range(10))
def test_lengths_of_a_block_are_of_least_cost(seed):
    generator = random.Random(seed)
    lengths = tuple(sorted((generator.randint(1, 40) for _ in range(generator.randint(1, 7))), reverse=True))
    num_adapters, cost = generator.randint(1, 3), generator.choice([0, 5, 20, 100])

    def total(padded: tuple[int, ...]) -> float:
        return num_adapters * sum(padded) + cost * (len(set(padded)) - 1)

    extent = Extent(num_adapters, lengths, prefix=0)
    found = extent.padded_lengths(PartCosts(length=cost))
    assert extent.cost(PartCosts(length=cost)) == total(found)
    assert all(own >= length for own, length in zip(found, lengths, strict=True))
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        padded = [lengths[0]]
        for length, cut in zip(lengths[1:], cuts, strict=True):
            padded.append(length if cut else padded[-1])
        assert total(found) <= total(tuple(padded))
    assert extent.padded_lengths(ONE_PART) == lengths[:1] * len(lengths)


def test_labels_in_and_right_after_a_prefix_are_those_of_every_sequence():
    batch = [TrainingSequence((5, 6, 7, 8), 1), TrainingSequence((5, 6, 7, 9, 4), 3)]
    packed = PackedBatch([[batch]], CPU, FREE)
    assert packed.input_ids.tolist() == [5, 6, 7, 9, 4, 8]
    assert packed.positions.tolist() == [2, 3, 0, 1, 2]
    assert packed.labels.tolist() == [9, 4, 6, 7, 8]


def test_prefix_is_shared_where_that_saves_more_tokens_than_it_costs():
    batch = questions(0, 4, (3, 5, 2))
    for prefix_cost, prefix in ((7, 4), (8, 0), (math.inf, 0)):
        costs = PartCosts(prefix=prefix_cost)
        packed = PackedBatch([[batch]], CPU, costs)
        assert packed.blocks[0].prefix == prefix and packed.num_tokens == 27 - 2 * prefix
        assert padded_sizes({3: batch}, [[3]], costs) == [packed.num_tokens]
    # Two adapters save as much together, by the prefix that both have.
    two = PackedBatch([[batch, questions(1, 6, (1, 1, 1))]], CPU, PartCosts(prefix=15))
    assert two.blocks == (Block(0, 2, (5, 5, 5), 0, prefix=4),)
    # One sequence alone has nothing to share.
    assert PackedBatch([[questions(0, 4, (3,))]], CPU, FREE).blocks == (Block(0, 1, (7,), 0),)


def test_cuts_keep_adapters_apart_that_share_different_prefixes():
    batches = {k: questions(k, prefix, (30 - prefix,) * 4) for k, prefix in enumerate((20, 2, 20, 0))}
    # Apart the two are 20 + 4 * 10 tokens each, with the others they are 4 * 30.
    assert cut_into_blocks(batches, 24) == [[0, 1, 2, 3]]
    assert sorted(map(sorted, cut_into_blocks(batches, 24, PartCosts(8, 8)))) == [[0], [1], [2], [3]]
    batches = {k: questions(k, prefix, (30 - prefix,) * 4) for k, prefix in enumerate((20, 19, 20, 18))}
    assert cut_into_blocks(batches, 24, PartCosts(8, 8)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("seed", range(10))
def test_cuts_are_of_least_cost(seed):
    generator = random.Random(seed)
    batches = {
        k: questions(
            k, generator.randint(0, 30), tuple(generator.randint(2, 9) for _ in range(generator.randint(1, 4)))
        )
        for k in range(generator.randint(2, 6))
    }
    block_cost = generator.choice([0, 20, 60])
    costs = PartCosts(*(generator.choice([0, 10, 40, math.inf]) for _ in range(2)))

    def cost(blocks: list[list[int]]) -> float:
        packed = PackedBatch([[batches[k] for k in block] for block in blocks], CPU, costs)
        total = packed.num_tokens + len(blocks) * block_cost
        for block in packed.blocks:
            total += costs.prefix if block.prefix else 0
            total += costs.length * num_more if (num_more := len(set(block.lengths)) - 1) else 0
        return total

    found = cut_into_blocks(batches, block_cost, costs)
    order = [k for block in found for k in block]
    assert sorted(order) == list(batches)
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        blocks = [[order[0]]]
        for k, cut in zip(order[1:], cuts, strict=True):
            if cut:
                blocks.append([])
            blocks[-1].append(k)
        assert cost(found) <= cost(blocks)


def test_passes_are_filled_by_the_tokens_that_are_computed():
    batches = {k: questions(k, 20, (5,) * 4) for k in range(4)}  # 40 tokens each, apart 100
    assert share_out(batches, [[0, 1, 2, 3]], 80, PartCosts(prefix=8)) == [[[0, 1]], [[2, 3]]]
    assert len(share_out(batches, [[0, 1, 2, 3]], 80)) == 4


BLOCKS = (
    Block(0, 2, (4, 4, 4), 0, prefix=5),
    Block(2, 1, (6, 6), 34),
    Block(3, 1, (3, 3), 46, prefix=1),
    Block(4, 2, (7, 7, 3, 1, 1), 53, prefix=2),
    Block(6, 3, (8, 5), 95),
)
NUM_TOKENS = 134


def apart(blocks: tuple[Block, ...]) -> list[torch.Tensor]:
    """The positions of the tokens of each sequence, with the prefix that it shares."""
    positions = []
    for block in blocks:
        for own in torch.arange(block.tokens.start, block.tokens.stop).view(block.num_adapters, -1):
            prefix, *rests = own.split([block.prefix, *block.lengths])
            positions += [torch.cat([prefix, rest]) for rest in rests]
    return positions


@pytest.mark.parametrize("window", [None, 3, 7, 100])
@pytest.mark.parametrize("long", [600, 9, 6, 2])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
def test_attention(monkeypatch, heads, long, window):
    monkeypatch.setattr(block_attention, "_LONG", long)
    monkeypatch.setattr(packed_attention, "_takes_flash", lambda *args: pytest.fail("flash attention was asked"))
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, n, NUM_TOKENS, 8, generator=generator).requires_grad_() for n in (heads[0], *heads[1:] * 2)
    ]
    weights = torch.randn(1, NUM_TOKENS, heads[0], 8, generator=generator)
    attended = PackedAttention(BLOCKS, torch.empty(0))(*states, scale=0.3, window=window)
    assert attended.shape == weights.shape
    expected = torch.empty_like(attended)
    for positions in apart(BLOCKS):
        distance = torch.arange(len(positions))[:, None] - torch.arange(len(positions))
        mask = (distance >= 0) & (distance < (window or NUM_TOKENS))
        parts = [rows[:, :, positions] for rows in states]
        alone = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3, enable_gqa=True)
        expected = expected.index_copy(1, positions, alone.transpose(1, 2))
    torch.testing.assert_close(attended, expected)
    grads, others = (torch.autograd.grad((output * weights).sum(), states) for output in (attended, expected))
    # In the expected output a prefix is that of its last sequence, so that no gradient counts twice.
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


CASES = {
    "several adapters": [questions(k, 9 + k, (4, 7, 5, 6), prompt=2) for k in range(3)],
    "any lengths": [questions(k, 3 * k, tuple(range(2, 4 + 2 * k)), prompt=1) for k in range(1, 4)],
    "one token": [questions(0, 1, (6, 5, 6, 6, 7, 6, 5, 5, 9, 3))],
    "labels in the prefix": [questions(0, 6, (3, 4, 5)), questions(1, 8, (3, 1, 2))],
    "the prompt is the prefix": [
        [TrainingSequence(one.input_ids, 7) for one in questions(k, 7, (5, 3, 4))] for k in range(2)
    ],
    "the same sequence again": [questions(0, 6, (3,)) * 3 + questions(0, 6, (5,)), questions(1, 9, (4,)) * 2],
    "nothing in common": [questions(0, 0, (6, 9, 7)), questions(1, 8, (6, 9, 7), prompt=1)],
    "one sequence": [questions(0, 9, (6,)), questions(1, 9, (5, 6), prompt=3), questions(2, 4, (2,))],
}


def backward(
    forward: TrainingForward, weights: torch.Tensor, batches: list[list[TrainingSequence]], blocks: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Losses, gradients, and how many tokens the model was given."""
    parameters = LoraParameters(forward.layout, torch.float32, CPU, len(batches))
    order = [k for block in blocks for k in block]
    parameters.weights.write([weights[k] for k in order])
    counts = []
    handle = forward.base.get_input_embeddings().register_forward_hook(
        lambda module, args, output: counts.append(args[0].numel())
    )
    losses = forward.backward(parameters, [[batches[k] for k in block] for block in blocks])
    handle.remove()
    gradients = torch.stack(
        [torch.cat([part.flatten() for part in parameters.grads.segments_of(n)]) for n in range(len(order))]
    )
    places = torch.tensor(order).argsort()
    return losses[places], gradients[places], counts[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "checkpointed", "grouped"),
    [
        ("llama", False, False),
        ("llama", True, False),
        ("qwen2", False, True),
        ("gemma3", False, False),
        ("mistral", True, False),
    ],
)
def test_losses_and_gradients_are_those_of_sequences_apart(monkeypatch, kind, checkpointed, grouped, case):
    """Gemma 3 and Mistral have windows of 8 tokens."""
    if grouped and not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped products")
    monkeypatch.setattr("seal_hf.inner_loop.forward.has_grouped_products", lambda *args: grouped)
    model = tiny_model(kind).eval().requires_grad_(False)
    layout = lora_layout(model, LoraConfig(target_modules="all-linear"))
    forward = TrainingForward(model, layout, checkpointed)
    batches = CASES[case]
    weights = 0.3 * torch.randn(len(batches), layout.num_parameters, generator=torch.Generator().manual_seed(0))
    all_blocks = [[list(range(len(batches)))], [[k] for k in range(len(batches))]]
    forward.plan.part_costs = ONE_PART
    losses, gradients, num_apart = backward(forward, weights, batches, all_blocks[1])
    assert num_apart == sum(len(batch) * max(len(one.input_ids) for one in batch) for batch in batches)
    for costs, blocks in itertools.product((PartCosts(prefix=0), PartCosts(length=0), FREE), all_blocks):
        forward.plan.part_costs = costs
        other_losses, other_gradients, num_tokens = backward(forward, weights, batches, blocks)
        torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-4)
        packed = PackedBatch([[batches[k] for k in block] for block in blocks], CPU, costs)
        assert num_tokens == packed.num_tokens
    # The last: every token once, and no padding.
    saved = sum((len(batch) - 1) * common_prefix(batch) for batch in batches)
    assert num_tokens == sum(len(one.input_ids) for batch in batches for one in batch) - saved < num_apart


@pytest.mark.parametrize("kind", KINDS)
def test_trained_adapters_are_those_of_a_plain_loop(kind):
    """The plain loop knows nothing of prefixes; the tokens that are reported are those of whole sequences."""
    config = InnerLoopConfig(learning_rate=1e-3, num_train_epochs=4, batch_size=5)
    updates = [
        InnerUpdate(tuple(questions(50 + k, 30 + k, (6, 8, 7, 9, 5, 7, 8, 6), prompt=3)), config) for k in range(3)
    ]
    model = tiny_model(kind)
    bank = AdapterBank.initialize(model, lora_config(), seeds=range(3))
    initial, counts = bank.weights.clone(), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
    results = train(bank, updates, order_seed=ORDER_SEED)
    computed = sum(counts[-8:])
    reported = [sum(len(one.input_ids) for one in update.sequences) * 4 for update in updates]
    assert [result.num_tokens for result in results] == reported
    assert computed > sum(reported) if kind == "gemma2" else computed < 0.5 * sum(reported)
    for k, update in enumerate(updates):
        expected, losses = train_alone(tiny_model(kind), lora_config(), bank.layout, initial[k], update)
        assert greatest_difference(bank.layout, bank.weights[k], expected) < 1e-4
        assert results[k].losses == pytest.approx(losses, rel=1e-4)


def test_flash_attention_takes_sequences_of_several_lengths(monkeypatch):
    model = tiny_llama().requires_grad_(False)
    layout = lora_layout(model, LoraConfig(target_modules="all-linear"))
    batches = CASES["any lengths"]
    weights = 0.3 * torch.randn(len(batches), layout.num_parameters, generator=torch.Generator().manual_seed(0))
    blocks = [[0], [1, 2]]
    forward = TrainingForward(model, layout)
    forward.plan.part_costs = ONE_PART
    losses, gradients, num_apart = backward(forward, weights, batches, blocks)
    monkeypatch.setattr(packed_attention, "_takes_flash", lambda *args: True)
    with flash_attention_on_the_cpu() as calls:
        forward = TrainingForward(model, layout)
        calls.clear()
        other_losses, other_gradients, num_tokens = backward(forward, weights, batches, blocks)
    assert len(calls) == 2 * 2  # layers, forward and backward
    assert num_tokens == PackedBatch([batches[:1], batches[1:]], CPU, PartCosts(length=0)).num_tokens < num_apart
    torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-4)


def test_what_parts_cost():
    layout = lora_layout(tiny_llama(), LoraConfig(r=8, target_modules="all-linear"))
    assert TrainingForward(tiny_llama().requires_grad_(False), layout).plan.part_costs == PartCosts(8, 8)
    gemma = tiny_model("gemma2").requires_grad_(False)  # is not packed
    assert TrainingForward(gemma, layout).plan.part_costs == ONE_PART
    batches = {k: questions(k, 40, (9,) * 8) for k in range(3)}
    with fake_gpu():
        plans = []
        for dtype in (torch.bfloat16, torch.float32):
            model = tiny_llama(dtype=dtype).requires_grad_(False)
            plans.append(TrainingForward(model.to("meta"), layout).plan)
            assert sorted(k for blocks in plans[-1].cut(batches) for block in blocks for k in block) == [0, 1, 2]
    assert plans[0].part_costs == PartCosts(length=0)
    # Flash attention takes no fp32. By block the attention of 2 layers takes 20 launches.
    assert (
        plans[1].part_costs.prefix
        == plans[1].part_costs.length
        == pytest.approx(plans[1].block_cost * 40 / 124, rel=1e-3)
    )
