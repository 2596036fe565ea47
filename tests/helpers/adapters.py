"""Adapters with random weights."""

import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.layout import lora_layout


BASE_ID = "tests/tiny-llama"


def random_adapter(model=None, seed: int = 0, policy: Adapter | None = None, **options) -> Adapter:
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
    layout = lora_layout(model or tiny_llama(), config)
    weights = 0.1 * torch.randn(layout.num_parameters, generator=torch.Generator().manual_seed(seed))
    return Adapter(layout, weights, BASE_ID, policy)
