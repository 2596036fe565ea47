"""Free memory and what activations take."""

from types import SimpleNamespace

import psutil
import torch

from helpers.tiny_models import tiny_llama
from seal_hf.models.memory import activation_bytes_per_token, free_memory


def test_an_accelerator_is_asked_for_its_own_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200_000, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20_000)
    assert free_memory(torch.device("cuda", 0)) == 250_000
    assert free_memory(torch.device("cpu")) == 10**12


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layer():
    shallow, deep = tiny_llama(num_hidden_layers=2), tiny_llama(num_hidden_layers=5)
    layer = (activation_bytes_per_token(deep) - activation_bytes_per_token(shallow)) // 3
    inputs = [activation_bytes_per_token(model, checkpointed=True) for model in (shallow, deep)]
    assert inputs[1] - inputs[0] == 3 * 32 * 4
    assert inputs[0] == activation_bytes_per_token(shallow) - layer + 2 * 32 * 4
