"""The packed batch, which models take it, and the adapters' products over it, against the plain form of each."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from helpers.inner_updates import hooked_modules
from helpers.operators import Operators
from helpers.tiny_models import KINDS, VOCAB_SIZE, tiny_llama, tiny_model
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop import (
    forward as packed_forward,
)
from seal_hf.inner_loop.attention import PackedAttention
from seal_hf.inner_loop.blocks import Block, cut_into_blocks, share_out
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.lora import LoraParameters
from seal_hf.inner_loop.packing import PackedBatch
from seal_hf.inner_loop.update import TrainingSequence


CPU = torch.device("cpu")


def sequence(length: int, prompt_length: int = 0, seed: int = 0) -> TrainingSequence:
    generator = random.Random(seed)
    return TrainingSequence(tuple(generator.randrange(4, VOCAB_SIZE) for _ in range(length)), prompt_length)


def forward_of(model: nn.Module) -> TrainingForward:
    model = model.eval().requires_grad_(False)
    return TrainingForward(model, lora_layout(model, LoraConfig(target_modules="all-linear")))


def random_weights(forward: TrainingForward, num_adapters: int) -> torch.Tensor:
    shape = (num_adapters, forward.layout.num_parameters)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def parameters_of(
    forward: TrainingForward, weights: torch.Tensor, dtype: torch.dtype = torch.float32
) -> LoraParameters:
    parameters = LoraParameters(forward.layout, dtype, CPU, len(weights))
    for number, own in enumerate(weights):
        for target, source in zip(parameters.weights.segments_of(number), forward.layout.split(own), strict=True):
            target.copy_(source)
    return parameters


def gradients_of(parameters: LoraParameters) -> torch.Tensor:
    """As vectors of shape `(K, num_parameters)`, fp32."""
    return torch.stack(
        [
            torch.cat([segment.flatten() for segment in parameters.grads.segments_of(number)]).float()
            for number in range(parameters.grads.num_adapters)
        ]
    )


def batches_of_lengths(*lengths: tuple[int, ...]) -> dict[int, list[TrainingSequence]]:
    return {k: [TrainingSequence(tuple(range(n))) for n in batch] for k, batch in enumerate(lengths)}


def padded_cost(blocks: list[list[int]], batches: dict[int, list[TrainingSequence]], block_cost: int) -> int:
    cost = 0
    for adapters in blocks:
        length = max(len(sequence.input_ids) for adapter in adapters for sequence in batches[adapter])
        num_rows = max(len(batches[adapter]) for adapter in adapters)
        cost += len(adapters) * num_rows * length + block_cost
    return cost


@pytest.mark.parametrize(
    ("lengths", "block_cost", "expected"),
    [
        # One block costs 4 * 100 + 64 = 464; {100, 90} and {10, 10} cost 200 + 64 + 20 + 64 = 348.
        ([(10,), (100,), (10,), (90,)], 64, [{1, 3}, {0, 2}]),
        # Apart: 100 + 90 + 10 + 10 = 210 and no charge for blocks.
        ([(10,), (100,), (10,), (90,)], 0, [{1}, {3}, {0, 2}]),
        ([(10,), (100,), (10,), (90,)], 1000, [{0, 1, 2, 3}]),
        # Rows of one adapter stay together, and 4 of each fill a common block: 2 * 50 + 4 * 8 + 2 * 64 = 260
        # against 8 * 50 + 64 = 464.
        ([(8, 3, 8, 8), (50, 2)], 64, [{1}, {0}]),
        ([(5, 7)], 64, [{0}]),
    ],
)
def test_cuts_by_hand(lengths, block_cost, expected):
    blocks = cut_into_blocks(batches_of_lengths(*lengths), block_cost)
    if block_cost:
        assert sorted(map(sorted, blocks)) == sorted(map(sorted, expected))
    else:  # without a charge the two of length 10 may be together or apart
        batches = batches_of_lengths(*lengths)
        assert padded_cost(blocks, batches, 0) == padded_cost([sorted(part) for part in expected], batches, 0) == 210


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_a_partition_of_least_cost(seed):
    generator = random.Random(seed)
    count = generator.randint(1, 7)
    batches = batches_of_lengths(
        *(tuple(generator.randint(2, 80) for _ in range(generator.randint(1, 3))) for _ in range(count))
    )
    block_cost = generator.choice([0, 16, 64, 400])
    blocks = cut_into_blocks(batches, block_cost)
    assert sorted(adapter for adapters in blocks for adapter in adapters) == list(range(count))
    cost = padded_cost(blocks, batches, block_cost)
    assert cost <= padded_cost([list(batches)], batches, block_cost)
    # Every way to cut the adapters, in order of their longest sequence, into blocks.
    order = sorted(batches, key=lambda k: -max(len(sequence.input_ids) for sequence in batches[k]))
    for cuts in itertools.product([False, True], repeat=count - 1):
        runs = [[order[0]]]
        for adapter, cut in zip(order[1:], cuts, strict=True):
            if cut:
                runs.append([])
            runs[-1].append(adapter)
        assert cost <= padded_cost(runs, batches, block_cost)


def test_packed_batch():
    first, second, third = TrainingSequence((5, 6, 7), 2), TrainingSequence((8, 9), 0), TrainingSequence((4, 3, 2, 1))
    packed = PackedBatch([[[first, second], [third]]], CPU)
    assert packed.blocks == (Block(first=0, num_adapters=2, lengths=(4, 4), start=0),)
    assert packed.num_adapters == 2
    assert packed.input_ids.tolist() == [5, 6, 7, 0, 8, 9, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]
    assert packed.position_ids.tolist() == [0, 1, 2, 3] * 4
    assert packed.positions.tolist() == [1, 4, 8, 9, 10]
    assert packed.labels.tolist() == [7, 9, 3, 2, 1]
    assert packed.owners.tolist() == [0, 0, 1, 1, 1]
    assert packed.shares.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])


def test_second_block_of_a_packed_batch_begins_where_the_first_ends():
    packed = PackedBatch([[[sequence(5)]], [[sequence(2)], [sequence(3)]]], CPU)
    assert packed.blocks == (Block(0, 1, (5,), 0), Block(1, 2, (3,), 5))
    assert packed.blocks[1].adapters == slice(1, 3) and packed.blocks[1].tokens == slice(5, 11)
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]


def test_ends_are_those_of_adapters_and_of_sequences():
    batches = [[[sequence(5)]], [[sequence(2), sequence(3)], [sequence(3)]], [[sequence(4)]]]
    packed = PackedBatch(batches, CPU)
    assert packed.num_tokens == 21 and packed.num_adapters == 4
    assert packed.adapter_ends.tolist() == [5, 11, 17, 21]  # with what the second is filled up with
    assert packed.sequence_ends.tolist() == [0, 5, 8, 11, 14, 17, 21]
    assert packed.adapter_ends.dtype == packed.sequence_ends.dtype == torch.int32


@pytest.mark.parametrize("kind", KINDS)
def test_which_models_pack(kind):
    forward = forward_of(tiny_model(kind))
    # Gemma 2 caps the scores of its attention and its logits
    assert forward.packs == (kind != "gemma2")
    assert forward.loss.takes_logits == (kind == "gemma2")


def test_model_that_mixes_tokens_outside_attention_does_not_pack():
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=2)
    assert not forward_of(MambaForCausalLM(config)).packs


def test_model_whose_values_are_smaller_than_its_queries_trains_without_packing():
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            first_k_dense_replace=2,  # no experts
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=6,
        )
    )
    forward = forward_of(model)
    assert not forward.packs
    parameters = parameters_of(forward, random_weights(forward, 2))
    losses = forward.backward(parameters, [[[sequence(9)], [sequence(7)]]])
    assert losses.isfinite().all() and gradients_of(parameters).abs().sum(1).min() > 0


def test_model_with_learned_positions_packs():
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    layout = lora_layout(tiny_llama(), LoraConfig(target_modules="all-linear"))
    assert TrainingForward(model, layout).packs


def test_window_that_only_the_mask_knows_keeps_a_model_from_packing():
    """The probe is shorter than most windows, so it cannot tell by the logits."""
    model = tiny_llama()
    model.config.sliding_window = 4096
    assert not forward_of(model).packs


def test_sequences_that_see_each_other_keep_a_model_from_packing(monkeypatch):
    def see_all(self, query, key, value, scale, window):
        groups = query.shape[1] // key.shape[1]
        key, value = (rows.repeat_interleave(groups, dim=1) for rows in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale).transpose(1, 2)

    monkeypatch.setattr(PackedAttention, "__call__", see_all)
    assert not forward_of(tiny_llama()).packs


def test_attention_setting_is_restored():
    model = tiny_llama()
    own = model.config._attn_implementation
    forward = forward_of(model)
    forward.backward(parameters_of(forward, torch.zeros(1, forward.layout.num_parameters)), [[[sequence(6)]]])
    assert model.config._attn_implementation == own


needs_grouped = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped products")


@pytest.fixture(params=[False, pytest.param(True, marks=needs_grouped)], ids=["by block", "grouped"])
def grouped(request, monkeypatch):
    """Products by block as on a CPU, or the grouped ones of a GPU, which torch has for a CPU too."""
    monkeypatch.setattr(packed_forward, "has_grouped_products", lambda *args: request.param)
    return request.param


def test_module_that_the_model_does_not_use_gets_no_gradient(grouped):
    model = tiny_llama()
    model.model.layers[1].spare_proj = nn.Linear(32, 32)
    forward = forward_of(model)
    parameters = parameters_of(forward, random_weights(forward, 2))
    for piece in (*parameters.grads.segments_of(0), *parameters.grads.segments_of(1)):
        piece.fill_(torch.nan)
    forward.backward(parameters, [[[sequence(6)]], [[sequence(4)]]])
    grads = parameters.grads.matrices()
    assert all((grad == 0).all() for grad in grads["model.layers.1.spare_proj"])
    assert all((grad != 0).any() and grad.isfinite().all() for grad in grads["model.layers.1.self_attn.q_proj"])


def test_module_that_is_used_twice_adds_up_its_gradients(grouped):
    """Two layers that share their modules against two that are equal: the shared gradient is the sum."""
    apart, shared = tiny_llama(), tiny_llama()
    apart.model.layers[1].load_state_dict(apart.model.layers[0].state_dict())
    shared.model.layers[1] = shared.model.layers[0]
    gradients = {}
    for name, model in (("apart", apart), ("shared", shared)):
        forward = forward_of(model)
        parameters = parameters_of(forward, torch.zeros(2, forward.layout.num_parameters))
        for lora_a, lora_b in parameters.weights.matrices().values():
            generator = torch.Generator().manual_seed(lora_b.shape[1])
            lora_a.copy_(torch.randn(lora_a.shape, generator=generator))
            lora_b.copy_(torch.randn(lora_b.shape, generator=generator))
        forward.backward(parameters, [[[sequence(9)]], [[sequence(8, seed=1)]]])
        gradients[name] = parameters.grads.matrices()
    for name, found in gradients["shared"].items():
        other = gradients["apart"][name.replace("layers.0", "layers.1")]
        for a, b, c in zip(found, gradients["apart"][name], other, strict=True):
            torch.testing.assert_close(a, b + c, rtol=1e-3, atol=1e-4)


def test_share_out_splits_blocks_between_passes_of_equal_size():
    batches = {i: [sequence(length)] for i, length in enumerate([30, 30, 10, 10, 10, 10, 10, 10])}
    blocks = [[0, 1], [2, 3, 4, 5, 6, 7]]
    assert share_out(batches, blocks, 1000) == [blocks]
    assert share_out(batches, blocks, 60) == [[[0, 1]], [[2, 3, 4, 5, 6, 7]]]
    assert share_out(batches, blocks, 40) == [[[0]], [[1], [2, 3]], [[4, 5, 6, 7]]]  # 30, 50 and 40 tokens


def test_share_out_never_splits_an_adapter():
    batches = {0: [sequence(50)] * 3, 1: [sequence(50)]}
    assert share_out(batches, [[0], [1]], 60) == [[[0]], [[1]]]


def test_share_out_gives_a_pass_fewer_adapters_than_grouped_products_take():
    batches = {i: [sequence(2)] for i in range(2500)}
    passes = share_out(batches, [[i] for i in range(2500)], 16384)
    assert [len(blocks) for blocks in passes] == [833, 834, 833]
    assert len(share_out(dict(list(batches.items())[:900]), [[i] for i in range(900)], 16384)) == 1


def test_number_of_passes_does_not_change_the_gradients(monkeypatch):
    model = tiny_llama()
    batches = {i: [sequence(5 + i, seed=i)] for i in range(4)}
    gradients = []
    for most_tokens in (10**6, 12):
        monkeypatch.setattr("seal_hf.inner_loop.passes._PASS_TOKENS", most_tokens)
        forward = forward_of(model)
        passes = forward.plan.cut(batches)
        assert len(passes) == (1 if most_tokens == 10**6 else 3)
        weights, found = random_weights(forward, 4), torch.empty(4, forward.layout.num_parameters)
        for blocks in passes:
            order = [adapter for block in blocks for adapter in block]
            parameters = parameters_of(forward, weights[order])
            forward.backward(parameters, [[batches[adapter] for adapter in block] for block in blocks])
            found[order] = gradients_of(parameters)
        gradients.append(found)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@needs_grouped
@pytest.mark.parametrize("by_adapter", [False, True], ids=["blocks", "a block each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_equal_those_by_block(monkeypatch, dtype, by_adapter):
    """The products that a GPU uses, in its order of the weights, against those of a CPU."""
    model = tiny_llama(dtype=dtype).requires_grad_(False)
    sequences = [[sequence(9, seed=1), sequence(4)], [sequence(7, 2, seed=2)], [sequence(4, seed=3)]]
    gradients = []
    for grouped in (False, True):
        monkeypatch.setattr(packed_forward, "has_grouped_products", lambda *args, grouped=grouped: grouped)
        monkeypatch.setattr("seal_hf.adapters.layout._reads_vectors", lambda device, grouped=grouped: grouped)
        forward = TrainingForward(model, lora_layout(model, LoraConfig(r=8, target_modules="all-linear")))
        parameters = parameters_of(forward, 0.3 * random_weights(forward, 5), dtype)
        batches = [[own] for own in sequences] if grouped and by_adapter else [sequences[:2], sequences[2:]]
        losses = forward.backward(parameters, batches, first=1)
        gradients.append((losses, gradients_of(parameters)[1:4]))
    (losses, grads), (other_losses, other_grads) = gradients
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(other_losses, losses, rtol=tolerance, atol=tolerance)
    if dtype == torch.float32:
        torch.testing.assert_close(other_grads, grads, rtol=1e-4, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(other_grads, grads, dim=1).min() > 0.99


def test_forward_pass_without_options_keeps_a_model_from_packing(monkeypatch):
    model = tiny_llama()
    own = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, position_ids=None, use_cache=None: own(
            input_ids=input_ids, position_ids=position_ids, use_cache=use_cache
        ),
    )
    assert not forward_of(model).packs


@pytest.mark.parametrize("kind", ["llama", "qwen2"], ids=["no bias", "bias"])
def test_a_plain_module_is_one_product_with_its_adapters(kind):
    """It gives what a module gives whose output the adapters are added to, as that of one that is moved about."""
    forward = forward_of(tiny_model(kind))
    weights = random_weights(forward, 3)
    batches = [[[sequence(9, seed=0)], [sequence(9, seed=1)]], [[sequence(5, seed=2), sequence(4, seed=3)]]]
    found = []
    for moved in (False, True):
        parameters = parameters_of(forward, weights)
        if moved:
            for module in forward.modules.values():
                module.forward = module.forward
        with Operators() as operators:
            losses = forward.backward(parameters, batches)
        assert all(("forward" in vars(module)) == moved for module in forward.modules.values())
        assert hooked_modules(forward.model) == []
        found.append((losses, gradients_of(parameters), operators.names.count("add")))
    (losses, gradients, num_sums), (other_losses, other_gradients, more_sums) = found
    torch.testing.assert_close(losses, other_losses)
    torch.testing.assert_close(gradients, other_gradients, atol=1e-5, rtol=1e-4)
    # The gradient of a module's input is one sum fewer, but for the first layer's three, whose input needs none.
    assert more_sums - num_sums == len(forward.modules) - 3
