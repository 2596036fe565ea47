"""The optimizer of a bank against torch's, one adapter after the other."""

import math

import pytest
import torch

from helpers.inner_updates import lora_config
from helpers.tiny_models import tiny_llama
from seal_hf.adapters.layout import LoraStacks, lora_layout
from seal_hf.inner_loop.optimizer import BankOptimizer, StepSize


CPU = torch.device("cpu")


@pytest.fixture(params=[None, 1, 2, 5], ids=["alone", "by one", "by two", "together"])
def rows(request, monkeypatch):
    """How many adapters take their step together, as on a GPU; `None`: the way of a CPU."""
    layout = lora_layout(tiny_llama(), lora_config())
    if request.param is not None:
        monkeypatch.setattr("seal_hf.adapters.layout._reads_vectors", lambda device: True)
        # a little more than so many adapters have
        monkeypatch.setattr("seal_hf.inner_loop.optimizer._GRADIENT_VALUES", request.param * layout.num_parameters + 9)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_adapters_alone(rows, dtype):
    layout = lora_layout(tiny_llama(), lora_config())
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, layout.num_parameters, generator=generator)
    grads = LoraStacks(layout, 5, dtype, CPU)
    optimizer = BankOptimizer(weights, grads)
    assert len(optimizer._gradients) == (rows or 1)
    alone = [torch.nn.Parameter(row.clone()) for row in weights]
    others = [torch.optim.AdamW([row], weight_decay=0.0) for row in alone]

    # Some take part, in any order; rates and clipping differ; one gradient or loss is not finite.
    turns = [((3, 0, 4, 1, 2), None), ((4, 2, 1), 2), ((0, 1, 2, 3, 4), 0), ((1, 3), None), ((2,), None)]
    for step, (adapters, spoilt) in enumerate(turns):
        sizes = [StepSize(1e-2 / (1 + (adapter + step) % 2), [0.0, 1.0, 500.0][adapter % 3]) for adapter in adapters]
        vectors = torch.randn(len(adapters), layout.num_parameters, generator=generator).to(dtype)
        losses = torch.rand(len(adapters), generator=generator)
        if spoilt is not None and step % 2:
            vectors[adapters.index(spoilt), 7] = torch.inf
        elif spoilt is not None:
            losses[adapters.index(spoilt)] = torch.nan
        grads.write(vectors)
        values, finite = optimizer.step(adapters, sizes, losses)
        assert [value for value in values if math.isfinite(value)] == losses[losses.isfinite()].tolist()
        assert finite == [adapter != spoilt for adapter in adapters]
        for adapter, size, vector in zip(adapters, sizes, vectors, strict=True):
            if adapter != spoilt:
                alone[adapter].grad = vector.float()
                if size.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_([alone[adapter]], size.max_grad_norm)
                others[adapter].param_groups[0]["lr"] = size.learning_rate
                others[adapter].step()
        torch.testing.assert_close(weights, torch.stack(list(alone)).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_trained_stay_as_they_are(rows, dtype):
    """And their gradients do not count for the norm."""
    layout, generator = lora_layout(tiny_llama(), lora_config()), torch.Generator().manual_seed(0)
    weights = torch.randn(3, layout.num_parameters, generator=generator)
    before, trained = weights.clone(), torch.randint(0, 2, (layout.num_parameters,), generator=generator).float()
    grads, chosen = LoraStacks(layout, 3, dtype, CPU), trained.bool()
    optimizer = BankOptimizer(weights, grads, trained)
    alone = [torch.nn.Parameter(row[chosen]) for row in before]
    others = [torch.optim.AdamW([row], lr=1e-2, weight_decay=0.0) for row in alone]
    for _ in range(3):
        vectors = torch.randn(3, layout.num_parameters, generator=generator).to(dtype)
        grads.write(vectors)
        optimizer.step(range(3), [StepSize(1e-2, 1.0)] * 3, torch.rand(3, generator=generator))
        for row, other, vector in zip(alone, others, vectors, strict=True):
            row.grad = vector[chosen].float()
            torch.nn.utils.clip_grad_norm_([row], 1.0)
            other.step()
    assert weights[:, ~chosen].equal(before[:, ~chosen])
    torch.testing.assert_close(weights[:, chosen], torch.stack(list(alone)).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "factor"), [(0.5, 1.0), (2.0, 1.0), (8.0, 0.25)])
def test_clipping(norm, factor):
    assert StepSize(1.0, 2.0).clipping(norm) == pytest.approx(factor)
    assert StepSize(1.0, 0.0).clipping(norm) == 1.0
