"""Merged adapters against dense weights and PEFT's own merges."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from helpers.tiny_models import tiny_llama
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.layout import lora_layout
from seal_hf.evaluation.merging import averaged, dare_linear_merged, dare_ties_merged, ties_merged


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


def peft_merged(adapters, weight, combination_type, density, seed=0):
    """What PEFT makes of adapters, by the name of each module: `A` and `B`."""
    model, names = None, [f"number_{number}" for number in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        if model is None:
            model = get_peft_model(tiny_llama(), CONFIG, adapter_name=name)
        else:
            model.add_adapter(name, CONFIG)
        set_peft_model_state_dict(model, adapter.layout.state_dict(adapter.weights), adapter_name=name)
    inject = model.base_model.inject_adapter

    def injected(*args, **options):
        """Seed after the initial values of the new adapter are drawn, which are thrown away."""
        inject(*args, **options)
        torch.manual_seed(seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.base_model, "inject_adapter", injected)
        options = {"combination_type": combination_type, "density": density}
        model.add_weighted_adapter(names, [weight] * len(adapters), "merged", **options)
    base = model.get_base_model()
    modules = {module.name: base.get_submodule(module.name) for module in adapters[0].layout.modules}
    assert {module.scaling["merged"] for module in modules.values()} == {1}
    return {name: (one.lora_A["merged"].weight, one.lora_B["merged"].weight) for name, one in modules.items()}


def assert_merged_as_peft_does(merged, expected):
    assert merged.layout.scaling == 1
    views = merged.layout.views(merged.weights)
    assert views.keys() == expected.keys()
    for name, matrices in views.items():
        for own, theirs in zip(matrices, expected[name], strict=True):
            torch.testing.assert_close(own, theirs.detach())


@pytest.mark.parametrize("count", [2, 3])
def test_ties_is_that_of_peft(count):
    adapters = random_adapters(count)
    merged = ties_merged(adapters)
    assert_merged_as_peft_does(merged, peft_merged(adapters, 1.0, "ties", density=0.2))
    assert 0.1 < (merged.weights != 0).float().mean() < 0.7


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("combination_type", "merge"), [("dare_linear", dare_linear_merged), ("dare_ties", dare_ties_merged)]
)
def test_dare_is_that_of_peft(combination_type, merge, count):
    adapters, weight = random_adapters(count), 1 / count if combination_type == "dare_linear" else 1.0
    merged = merge(adapters, 7, density=0.3)
    assert_merged_as_peft_does(merged, peft_merged(adapters, weight, combination_type, density=0.3, seed=7))
    # A place is kept where any of the adapters keeps it.
    assert (merged.weights != 0).float().mean() == pytest.approx(1 - 0.7**count, abs=0.05)


def test_the_draw_of_dare_depends_on_its_seed_alone():
    adapters = random_adapters(2)
    before = torch.get_rng_state()
    first = dare_linear_merged(adapters, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(dare_linear_merged(adapters, 1).weights, first.weights)
    assert not torch.equal(dare_linear_merged(adapters, 2).weights, first.weights)


def test_dare_drops_and_rescales():
    """Two adapters that are the same: a value is dropped, taken once or taken twice, each divided by the density."""
    (adapter,) = random_adapters(1)
    merged = dare_linear_merged([adapter, adapter], 3, density=0.5)
    ratio = merged.weights / adapter.weights / (adapter.layout.scaling / 2) ** 0.5
    assert set(ratio.round(decimals=3).tolist()) == {0.0, 2.0, 4.0}
    assert ratio.mean() == pytest.approx(2, abs=0.1)  # the sum of both stays what it was


MERGES = [ties_merged, partial(dare_linear_merged, seed=1), partial(dare_ties_merged, seed=1)]


@pytest.mark.parametrize("merge", MERGES)
def test_one_alone_stays_as_it_is(merge):
    (adapter,) = random_adapters(1)
    assert merge([adapter]) is adapter


@pytest.mark.parametrize(("merge", "name"), zip(MERGES, ["TIES", "DARE", "DARE"], strict=True))
def test_a_merge_wants_one_layout(merge, name):
    other = random_adapters(1, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=f"{name} merges adapters of one layout, these have 2"):
        merge(random_adapters(1) + other)
