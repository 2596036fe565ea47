"""How often the host waits for a GPU while it generates: once for each token."""

import pytest
import torch
from transformers import masking_utils

from helpers.adapters import BASE_ID
from helpers.fake_gpu import fake_gpu
from helpers.generating import random_bank
from helpers.tiny_models import KINDS, tiny_model, tiny_tokenizer
from seal_hf.adapters.adapter import Adapter
from seal_hf.generation.base import Sampling
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.inner_loop.norm import frozen_norms


PROMPTS = ["Who keeps bees?", "Ann", "Moths like lamps and the", "Where is Vell, and who lives there?", "1, 2, 3"]
SEEDS = Sampling((1, 2, 3, 4, 5))
NUM_TOKENS = 9


def on_gpu(kind: str = "llama", **overrides) -> tuple[TransformersGenerator, list[Adapter]]:
    """A model and the adapters of a bank, to be used as on a GPU; its norms were looked at before, which waits once."""
    model = tiny_model(kind, **overrides)
    with frozen_norms(model):
        pass
    bank = random_bank(model)
    weights = bank.weights.to("meta")
    adapters = [Adapter(bank.layout, own, BASE_ID) for own in weights]
    return TransformersGenerator(model.to("meta"), tiny_tokenizer(), BASE_ID), adapters


@pytest.mark.parametrize("sampling", [None, SEEDS], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_waited_for_once(kind, sampling):
    generator, (first, second) = on_gpu(kind)
    adapters = [first, second, first, None, second]
    with fake_gpu() as gpu:
        gpu.values = torch.zeros
        generator.generate(PROMPTS, adapters, max_new_tokens=NUM_TOKENS, sampling=sampling)
    assert gpu.waits == {"tolist": NUM_TOKENS}
    # Where prompts begin (of the batch and of its one pass), their tokens, the rows of adapters, and what is drawn.
    assert gpu.transfers == 4 + (sampling is not None)


def test_numbers_are_drawn_ahead():
    generator, _ = on_gpu()
    counts = []
    for num_tokens in (32, 33, 64, 65):
        with fake_gpu() as gpu:
            gpu.values = torch.zeros
            generator.generate(PROMPTS, max_new_tokens=num_tokens, sampling=SEEDS)
        counts.append(gpu.transfers)
    assert [count - counts[0] for count in counts] == [0, 1, 1, 2]


def test_more_candidates_are_waited_for_only_where_they_are_needed():
    generator, _ = on_gpu(vocab_size=2000)
    with fake_gpu() as gpu:
        gpu.values = torch.zeros  # enough candidates
        generator.generate(PROMPTS, max_new_tokens=NUM_TOKENS, sampling=SEEDS)
        assert gpu.waits == {"tolist": NUM_TOKENS}
        gpu.clear()
        gpu.values = torch.ones  # too few, twice
        generator.generate(PROMPTS, max_new_tokens=NUM_TOKENS, sampling=SEEDS)
        assert gpu.waits == {"tolist": 3 * NUM_TOKENS}


def test_rows_that_leave_are_not_waited_for():
    generator, (first, second) = on_gpu()
    limits = [2, 9, 4, 6, 2]
    with fake_gpu() as gpu:
        gpu.values = torch.zeros
        found = generator.generate(
            PROMPTS, [first, second, first, None, second], max_new_tokens=limits, sampling=SEEDS
        )
    assert [generation.num_tokens for generation in found] == limits
    assert gpu.waits == {"tolist": 9}


def test_launches_of_a_step_do_not_grow_with_the_rows():
    generator, _ = on_gpu()
    steps = []
    for num_rows in (5, 200):
        launches = []
        for num_tokens in (4, 5):
            with fake_gpu() as gpu:
                gpu.values = torch.zeros
                generator.generate((PROMPTS * 40)[:num_rows], max_new_tokens=num_tokens)
            launches.append(gpu.launches.total())
        steps.append(launches[1] - launches[0])
    assert steps[0] == steps[1] > 0


def test_a_step_uses_the_kernels_for_norms_and_the_short_form_of_positions():
    generator, _ = on_gpu()
    with fake_gpu() as gpu:
        gpu.values = torch.zeros
        generator.generate(PROMPTS, max_new_tokens=3)
    assert gpu.launches["rsqrt"] == 0 and gpu.launches["_fused_rms_norm"] == 3 * 5  # of 2 layers, and the last
    assert gpu.launches["addcmul_"] == 3 * 2 * 4


def test_a_likelihood_pass_is_waited_for_once(monkeypatch):
    """But for transformers, which looks into the positions for packed sequences."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    generator, (first, second) = on_gpu()
    with fake_gpu() as gpu:
        generator.answer_log_likelihoods(
            [prompt + "\n" for prompt in PROMPTS], [["Ann", "Bob"]] * 5, [first, second, first, None, second]
        )
    assert gpu.waits == {"tolist": 1}
