"""How much is read and held at once: fixed on the CPU, and by the free memory on a GPU."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from helpers.tiny_models import VOCAB_SIZE, tiny_llama, tiny_model
from seal_hf.generation import batch_sizes, likelihood
from seal_hf.generation.batch_sizes import (
    key_value_bytes_per_token,
    logits_per_pass,
    tokens_per_batch,
    tokens_per_pass,
)
from seal_hf.generation.decoder import Decoder
from seal_hf.models.memory import activation_bytes_per_token


def on_gpu(monkeypatch, model, free: int):
    """The model as if it were on a GPU with so many bytes free."""
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: free)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_keys_and_values_are_those_that_the_cache_takes(kind, dtype):
    model = tiny_model(kind, dtype=dtype)
    with Decoder(model, 0, [None] * 3) as decoder:
        decoder.read([[5] * 7] * 3)
    held = sum(states.nbytes for layer in decoder.cache.layers for states in (layer.keys, layer.values))
    assert held == 3 * 7 * key_value_bytes_per_token(model)


def test_heads_that_the_config_does_not_count_are_one_for_each_query_head():
    model = tiny_llama(num_key_value_heads=4)
    expected = key_value_bytes_per_token(model)
    del model.config.num_key_value_heads, model.config.head_dim
    assert key_value_bytes_per_token(model) == expected == 2 * 32 * 2 * 4


def test_sizes_on_the_cpu_are_fixed(monkeypatch):
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: pytest.fail("not asked"))
    model = tiny_llama()
    assert tokens_per_pass(model) == 1024
    assert tokens_per_batch(model) == 2**16
    assert likelihood._passes(model, [(9, 2)] * 130, None) == [range(64), range(64, 128), range(128, 130)]
    assert likelihood._passes(model, [], None) == []


def test_sizes_on_a_gpu_follow_its_free_memory(monkeypatch):
    model = tiny_llama()
    bytes_held, bytes_read = key_value_bytes_per_token(model), activation_bytes_per_token(model, checkpointed=True)
    on_gpu(monkeypatch, model, 1000 * bytes_held)
    assert tokens_per_batch(model) == 256  # of 500 that fit
    on_gpu(monkeypatch, model, 16 * 1000 * bytes_held)
    assert tokens_per_batch(model) == 16 * 256
    on_gpu(monkeypatch, model, 1000 * bytes_read)
    assert tokens_per_pass(model) == 128  # of 200 that fit
    on_gpu(monkeypatch, model, 2**20 * bytes_read)
    assert tokens_per_pass(model) == 2**14
    on_gpu(monkeypatch, model, 1200)
    assert logits_per_pass(model) == 8  # of 10 that fit
    on_gpu(monkeypatch, model, 2**40)
    assert logits_per_pass(model) == 2**27
    on_gpu(monkeypatch, model, 0)
    assert tokens_per_batch(model) == tokens_per_pass(model) == logits_per_pass(model) == 1


def test_sizes_for_a_model_without_attention_are_those_on_the_cpu(monkeypatch):
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1))
    on_gpu(monkeypatch, model, 2**40)
    assert (tokens_per_pass(model), tokens_per_batch(model)) == (1024, 2**16)
    assert key_value_bytes_per_token(model) == 0


def test_likelihood_passes_hold_so_many_tokens_and_answer_tokens(monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(likelihood, "tokens_per_pass", lambda model: 100)
    # A row of its own that is longer than a pass, then as many as have 100 tokens, then as many as have 10 in answers.
    sizes = [(120, 4), *[(20, 2)] * 6, *[(8, 5)] * 3]
    assert likelihood._passes(model, sizes, 10) == [range(1), range(1, 6), range(6, 8), range(8, 10)]
    assert likelihood._passes(model, [], 10) == []
