"""Sampled generations: a row's draws depend on its seed alone and follow the tempered nucleus."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from helpers.generating import generate
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf.generation.base import Sampling, draw_seed


PROMPTS = ["a", "Ann keeps bees in Vell.", "Moths like", "1, 2, 3, 4", "Ann keeps bees in Vell."]


def seeds_of(seed, num_rows):
    return tuple(draw_seed(seed, row) for row in range(num_rows))


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def sample(model, tokenizer, prompts, seeds, **options):
    generations = generate(
        model, tokenizer, prompts, max_new_tokens=24, sampling=Sampling(tuple(seeds), top_p=0.9), **options
    )
    return [(generation.text, generation.num_tokens) for generation in generations]


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    seeds = seeds_of(3, len(PROMPTS))
    return [sample(model, tokenizer, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]


@pytest.mark.parametrize("batch_size", [64, 2])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]], ids=["in order", "shuffled"])
def test_sample_is_that_of_the_row_alone(model, tokenizer, alone, order, batch_size):
    seeds = seeds_of(3, len(PROMPTS))
    samples = sample(
        model, tokenizer, [PROMPTS[row] for row in order], [seeds[row] for row in order], batch_size=batch_size
    )
    assert samples == [alone[row] for row in order]


def test_seeds_decide(model, tokenizer, alone):
    assert alone[1] != alone[4]  # one prompt, two seeds
    samples = sample(model, tokenizer, [PROMPTS[1]] * 6, range(6))
    assert len(set(samples)) == 6
    assert sample(model, tokenizer, [PROMPTS[1]] * 6, range(6)) == samples


def test_global_random_state_is_neither_read_nor_moved(model, tokenizer, alone):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert sample(model, tokenizer, PROMPTS, seeds_of(3, len(PROMPTS))) == alone
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_seeds_are_distinct():
    parts = list(itertools.product(range(8), repeat=3))
    seeds = [draw_seed(*some) for some in parts]
    assert len(set(seeds)) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert [draw_seed(*some) for some in parts] == seeds


def character_tokenizer(num_characters):
    """Token `i` is a character of its own; the last token ends a sequence."""
    vocabulary = {chr(0x4E00 + i): i for i in range(num_characters)} | {"</s>": num_characters}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@contextmanager
def fixed_logits(model, logits):
    """Let the model put out the same logits at every step: `(V,)` for all rows or `(R, V)`."""
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: logits[..., None, :].expand_as(output)
    )
    try:
        yield
    finally:
        handle.remove()


def draw(logits, num_rows, *, num_steps=1, batch_size=2000, **sampling):
    """Tokens drawn from fixed logits of all characters, one row per seed: `(num_rows, num_steps)`."""
    num_characters = logits.shape[-1]
    never = torch.full((*logits.shape[:-1], 1), -torch.inf)
    model = tiny_llama(
        vocab_size=num_characters + 1,
        eos_token_id=num_characters,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
    )
    with fixed_logits(model, torch.cat([logits, never], dim=-1)):
        generations = generate(
            model,
            character_tokenizer(num_characters),
            [chr(0x4E00)] * num_rows,
            max_new_tokens=num_steps,
            sampling=Sampling(seeds_of(5, num_rows), **sampling),
            batch_size=batch_size,
        )
    return np.array([[ord(character) - 0x4E00 for character in generation.text] for generation in generations])


def nucleus_distribution(logits, temperature, top_p):
    scaled = logits.double().numpy() / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    size = np.searchsorted(probabilities[order].cumsum(), top_p - 1e-9) + 1
    kept = np.zeros_like(probabilities)
    kept[order[:size]] = probabilities[order[:size]]
    return kept / kept.sum()


def assert_frequencies(counts, probabilities, num_draws):
    deviation = np.sqrt(probabilities * (1 - probabilities) / num_draws)
    assert np.all(np.abs(counts / num_draws - probabilities) <= 4.5 * deviation)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 0.95), (1.0, 0.6), (0.5, 0.95), (2.5, 0.9), (1.0, 1.0), (1.0, 1e-6)]
)
def test_frequencies_of_a_small_vocabulary(temperature, top_p):
    logits = torch.linspace(2.0, -2.0, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    expected = nucleus_distribution(logits, temperature, top_p)
    counts = np.bincount(draw(logits, 4000, temperature=temperature, top_p=top_p)[:, 0], minlength=24)
    assert np.array_equal(counts > 0, expected > 0)
    assert_frequencies(counts, expected, 4000)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_frequencies_where_the_nucleus_exceeds_the_candidates(top_p):
    logits = torch.linspace(0.5, -0.5, 2000)
    expected = nucleus_distribution(logits, 1.0, top_p)
    assert expected[:1024].sum() < 0.75
    counts = np.bincount(draw(logits, 6000, top_p=top_p)[:, 0], minlength=2000)
    assert counts[expected == 0].sum() == 0
    assert_frequencies(counts.reshape(40, 50).sum(1), expected.reshape(40, 50).sum(1), 6000)


def test_draws_of_a_row_are_independent():
    logits = torch.tensor([1.0, 0.0, 0.5])
    expected = nucleus_distribution(logits, 1.0, 1.0)
    first, second, third = draw(logits, 4000, num_steps=3, top_p=1.0).T
    for one, other in ((first, second), (second, third), (first, third)):
        assert_frequencies(np.bincount(3 * one + other, minlength=9), np.outer(expected, expected).flatten(), 4000)


def test_equal_logits_are_drawn_alike_beside_a_flat_row():
    peaked = torch.randint(0, 12, (1500,), generator=torch.Generator().manual_seed(0)).float()
    flat = torch.zeros(1500)
    assert nucleus_distribution(peaked, 1.0, 0.95)[peaked.argsort(descending=True)[1024:]].sum() == 0
    beside = draw(torch.stack([peaked] * 300 + [flat]), 301)
    assert draw(peaked, 300).tolist() == beside[:300].tolist()


def test_small_temperature_is_greedy(model, tokenizer):
    greedy = [generation.text for generation in generate(model, tokenizer, PROMPTS, max_new_tokens=24)]
    sampling = Sampling(seeds_of(0, len(PROMPTS)), temperature=1e-5)
    cold = generate(model, tokenizer, PROMPTS, max_new_tokens=24, sampling=sampling)
    assert [generation.text for generation in cold] == greedy
    assert all(greedy)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
    ],
)
def test_value_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"{option}={value} must be above 0"):
        Sampling((0,), **{option: value})
