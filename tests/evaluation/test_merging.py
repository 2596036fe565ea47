"""Merged adapters against dense weights and PEFT's own merges."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from helpers.tiny_models import tiny_llama
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.layout import lora_layout
from seal_hf.evaluation.merging import averaged, ties_merged


CONFIG = LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"])


def random_adapters(count, config=CONFIG, seed=1):
    layout, generator = lora_layout(tiny_llama(), config), torch.Generator().manual_seed(seed)
    return [Adapter(layout, torch.randn(layout.num_parameters, generator=generator), "base") for _ in range(count)]


def deltas(adapter):
    views = adapter.layout.views(adapter.weights)
    return {name: adapter.layout.scaling * lora_b @ lora_a for name, (lora_a, lora_b) in views.items()}


def test_the_average_is_that_of_the_weights():
    adapters = random_adapters(2) + random_adapters(1, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]))
    merged = averaged(adapters)
    assert merged.layout.r == 8
    for name, delta in deltas(merged).items():
        own = [deltas(adapter)[name] for adapter in adapters if name in deltas(adapter)]
        torch.testing.assert_close(delta, sum(own) / 3)


@pytest.mark.parametrize("count", [2, 3])
def test_ties_is_that_of_peft(count):
    adapters, model = random_adapters(count), None
    names = ["first", "second", "third"][:count]
    for name, adapter in zip(names, adapters, strict=True):
        if model is None:
            model = get_peft_model(tiny_llama(), CONFIG, adapter_name=name)
        else:
            model.add_adapter(name, CONFIG)
        set_peft_model_state_dict(model, adapter.layout.state_dict(adapter.weights), adapter_name=name)
    model.add_weighted_adapter(names, [1.0] * count, "merged", combination_type="ties", density=0.2)
    merged, base = ties_merged(adapters), model.get_base_model()
    for name, (lora_a, lora_b) in merged.layout.views(merged.weights).items():
        module = base.get_submodule(name)
        assert merged.layout.scaling == module.scaling["merged"] == 1
        torch.testing.assert_close(lora_a, module.lora_A["merged"].weight)
        torch.testing.assert_close(lora_b, module.lora_B["merged"].weight)
    assert 0.1 < (merged.weights != 0).float().mean() < 0.7


def test_ties_of_one_is_that_one():
    (adapter,) = random_adapters(1)
    assert ties_merged([adapter]) is adapter


def test_ties_wants_one_layout():
    other = random_adapters(1, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="TIES merges adapters of one layout, these have 2"):
        ties_merged(random_adapters(1) + other)
