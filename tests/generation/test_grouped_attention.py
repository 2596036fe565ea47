"""Attention in generation: its kernels, what padding sees, one mask for all layers, and shapes that stay."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.adapters import BASE_ID
from helpers.generating import adapters_of, generate, generate_with, random_bank
from helpers.tiny_models import KINDS, PAD_ID, tiny_model, tiny_tokenizer
from seal_hf.generation import decoder as decoding
from seal_hf.generation.base import Sampling
from seal_hf.generation.decoder import Decoder
from seal_hf.generation.transformers_generation import TransformersGenerator


COMMON = "Answer the question about the keeper of the bees in one word, as briefly as you can: "
PROMPTS = [COMMON + "who keeps them?", COMMON + "where?", "moth", COMMON + "w", "Ann", "A lamp upon a reef is seen."]
ADAPTERS = [0, 0, 0, 1, None, 1]
KERNEL = F.scaled_dot_product_attention


class Attended(TorchFunctionMode):
    """Keeps the shape of the keys and where the mask lies in memory, for every call of torch's attention."""

    def __init__(self):
        super().__init__()
        self.shapes, self.masks = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is KERNEL:
            self.shapes.append(tuple(args[1].shape))
            self.masks.append(kwargs["attn_mask"])
        return function(*args, **(kwargs or {}))


class MaskOperations(TorchDispatchMode):
    """Counts the operations that read or make a bool tensor."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        self.number += any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in leaves)
        return result


def kernel_with_nan(query, key, value, attn_mask=None, **options):
    """torch's attention, but not a number for a query that sees no key, as some of its kernels for GPUs give."""
    attended = KERNEL(query, key, value, attn_mask=attn_mask, **options)
    if attn_mask is None:
        return attended
    seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
    return attended.masked_fill(~seen.any(-1, keepdim=True), torch.nan)


def kernel_with_tokens_first(*args, **options):
    """torch's attention, laid out in memory as `(R, T, H, D)`, as its kernels for GPUs give it where there is a mask."""
    return KERNEL(*args, **options).transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_kernel_lays_out_its_result_changes_nothing(monkeypatch, kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    bank = random_bank(model)
    expected = generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=20)
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel_with_tokens_first)
    assert generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=20) == expected


@pytest.mark.parametrize("tokens_per_pass", [1024, 100], ids=["one-pass", "passes"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_that_sees_no_key_changes_nothing(monkeypatch, kind, tokens_per_pass):
    monkeypatch.setattr(decoding, "tokens_per_pass", lambda model: tokens_per_pass)
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    bank, prompts = random_bank(model), [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]

    def logits():
        with Decoder(model, PAD_ID, [None] * len(prompts)) as decoder:
            return [decoder.read(prompts), decoder.step(torch.arange(len(prompts)) + 10)]

    expected = logits(), generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=20)
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel_with_nan)
    for found, other in zip(logits(), expected[0], strict=True):
        assert torch.equal(found, other)
    assert generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=20) == expected[1]


@pytest.mark.parametrize("heads", [2, 4], ids=["grouped", "a key head each"])
def test_a_mask_is_prepared_once_for_all_layers(heads):
    tokenizer, counts = tiny_tokenizer(), []
    for num_layers in (2, 5):
        model = tiny_model(num_hidden_layers=num_layers, num_key_value_heads=heads)
        prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        with MaskOperations() as operations, Decoder(model, PAD_ID, [None] * len(prompts)) as decoder:
            decoder.read(prompts)
            with Attended() as attended:
                decoder.step(torch.arange(len(prompts)))
        assert len(attended.masks) == num_layers
        assert attended.masks[0].dtype == torch.float32
        assert all(mask is attended.masks[0] for mask in attended.masks)
        counts.append(operations.number)
    assert counts[0] == counts[1] > 0


def test_layers_with_a_window_share_a_mask_of_their_own():
    model, tokenizer = tiny_model("gemma3", num_hidden_layers=12), tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with Decoder(model, PAD_ID, [None] * len(prompts)) as decoder:
        decoder.read(prompts)
        with Attended() as attended:
            decoder.step(torch.arange(len(prompts)))
    assert len(attended.masks) == 12 and len(set(map(id, attended.masks))) == 2
    assert len(set(model.config.layer_types)) == 2


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setitem(decoding._WIDTHS, "cpu", 32)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_width_changes_no_text(monkeypatch, kind):
    """Over more steps than the width, with rows that leave and beginnings that are read once."""
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    bank, limits = random_bank(model), [70, 3, 70, 20, 40, 3]
    seeds = Sampling(tuple(range(len(PROMPTS))))
    results = []
    for width in (1, 32):
        for tokens_per_pass in (1024, 100):
            monkeypatch.setitem(decoding._WIDTHS, "cpu", width)
            monkeypatch.setattr(decoding, "tokens_per_pass", lambda model, number=tokens_per_pass: number)
            results.append(
                [
                    generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=limits, sampling=sampling)
                    for sampling in (None, seeds)
                ]
            )
    assert results[1:] == results[:1] * 3
    assert len({generation.text for generation in results[0][0]}) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_padded_width_changes_no_logits(monkeypatch, kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    results = []
    for width in (1, 32):
        monkeypatch.setitem(decoding._WIDTHS, "cpu", width)
        with Decoder(model, PAD_ID, [None] * len(prompts)) as decoder:
            logits = [decoder.read(prompts)]
            logits += [decoder.step(torch.arange(len(prompts)) + step) for step in range(40)]
            decoder.keep([4, 1, 2])
            logits += [decoder.step(torch.arange(3) + step) for step in range(40)]
        results.append(logits)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=2e-5)


def test_shapes_stay_for_as_many_steps_as_the_width(wide):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in ("Ann keeps bees", "moths")]
    with Decoder(model, PAD_ID, [None, None]) as decoder:
        decoder.read(prompts)
        with Attended() as attended:
            for step in range(40):
                decoder.step(torch.tensor([step, 50]))
        cache = decoder.cache
    widths = [shape[2] for shape in attended.shapes[::2]]
    assert widths == [32] * 18 + [64] * 22
    assert [mask.shape[-1] for mask in attended.masks[::2]] == widths
    assert cache.get_seq_length() == 14 + 40
    for layer in cache.layers:
        assert layer.keys[:, :, 53].abs().sum() > 0 and not layer.keys[:, :, 54:].any()


def test_rows_of_one_length_have_no_mask_and_no_padded_width(wide):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in ("Ann", "Bob")]
    with Decoder(model, PAD_ID, [None, None]) as decoder, Attended() as attended:
        decoder.read(prompts)
        decoder.step(torch.tensor([20, 50]))
    assert attended.masks == [None] * 4
    assert [shape[2] for shape in attended.shapes] == [3, 3, 4, 4]


def test_width_on_the_cpu_is_exact():
    assert "cpu" not in decoding._WIDTHS and decoding._WIDTHS["cuda"] == 32


def test_cudnn_is_never_used():
    model, tokenizer, seen = tiny_model(), tiny_tokenizer(), []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    assert torch.backends.cuda.cudnn_sdp_enabled()
    generate(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert len(seen) > 1 and not any(seen)
    seen.clear()
    generator = TransformersGenerator(model, tokenizer, BASE_ID)
    generator.answer_log_likelihoods(["Who?\n"], [["Ann"]], adapters_of(random_bank(model), [1]))
    assert seen == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()
