import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn

from helpers.tiny_models import KINDS, VOCAB_SIZE, tiny_llama, tiny_model, tiny_policy_model
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.bank import AdapterBank, StackedAdapters
from seal_hf.adapters.layout import LoraLayout, lora_layout


def lora_config(**options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **options})


def random_bank(model: nn.Module, count: int = 3, **options) -> AdapterBank:
    layout = lora_layout(model, lora_config(**options))
    generator = torch.Generator().manual_seed(1)
    return AdapterBank(model, layout, 0.1 * torch.randn(count, layout.num_parameters, generator=generator))


def token_ids(num_rows: int) -> torch.Tensor:
    return torch.randint(4, VOCAB_SIZE, (num_rows, 11), generator=torch.Generator().manual_seed(2))


def hooked_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


@torch.no_grad()
def logits_alone(bank: AdapterBank, model: nn.Module, rows, input_ids: torch.Tensor, **options) -> torch.Tensor:
    """Each row on its own, its adapter applied by PEFT (beside the policy, where the model has one)."""
    if hasattr(model, "peft_config"):
        model.add_adapter("inner", lora_config(**options))
        both, without = ["default", "inner"], ["default"]
    else:
        model = get_peft_model(model, lora_config(**options), adapter_name="inner")
        both, without = ["inner"], None
    logits = []
    for adapter, row in zip(rows, input_ids, strict=True):
        if adapter is None and without is None:
            with model.disable_adapter():
                logits.append(model.eval()(row[None]).logits)
            continue
        model.base_model.set_adapter(without if adapter is None else both)
        if adapter is not None:
            set_peft_model_state_dict(model, bank.layout.state_dict(bank.weights[adapter]), adapter_name="inner")
        logits.append(model.eval()(row[None]).logits)
    return torch.cat(logits)


ROWS = [
    [0, 1, 2],
    [0, 0, 1, 1, 2, 2],
    [2, 0, 1],
    [1, 1, 1, 0],
    [2],
    [None, 1, None, 0, 2, 2, 1],
    [0, None],
    [None, None],
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("with_policy", [False, True], ids=["base", "policy"])
def test_batch_equals_each_adapter_alone(rows, with_policy):
    build = tiny_policy_model if with_policy else tiny_llama
    model = build()
    bank, input_ids = random_bank(model), token_ids(len(rows))
    with torch.no_grad(), bank.attach(rows):
        logits = model(input_ids).logits
    expected = logits_alone(bank, build(), rows, input_ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        changed = [(logits[i] - model(input_ids).logits[i]).abs().max() > 0.1 for i in range(len(rows))]
    assert changed == [adapter is not None for adapter in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_architectures(kind):
    rows, model = [1, None, 0, 1], tiny_model(kind)
    bank, input_ids = random_bank(model), token_ids(4)
    with torch.no_grad(), bank.attach(rows):
        logits = model(input_ids).logits
    torch.testing.assert_close(logits, logits_alone(bank, tiny_model(kind), rows, input_ids), rtol=0, atol=1e-5)


def test_rank_stabilised_scaling():
    rows, model = [1, 0], tiny_llama()
    bank, input_ids = random_bank(model, use_rslora=True), token_ids(2)
    with torch.no_grad(), bank.attach(rows):
        logits = model(input_ids).logits
    expected = logits_alone(bank, tiny_llama(), rows, input_ids, use_rslora=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_bfloat16_model():
    rows, model = [1, None, 0], tiny_llama(dtype=torch.bfloat16)
    bank, input_ids = random_bank(model), token_ids(3)
    with torch.no_grad(), bank.attach(rows):
        logits = model(input_ids).logits
    fp32 = tiny_llama()
    with torch.no_grad(), AdapterBank(fp32, bank.layout, bank.weights).attach(rows):
        expected = fp32(input_ids).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1)


def test_hooks_are_gone_after_the_block():
    model = tiny_llama()
    bank, input_ids = random_bank(model), token_ids(2)
    before = model(input_ids).logits
    with bank.attach([0, 1]):
        assert len(hooked_modules(model)) == 15  # the input embedding tells the length
    assert hooked_modules(model) == []
    with pytest.raises(RuntimeError, match="in the block"), bank.attach([0, 1]):
        raise RuntimeError("in the block")
    assert hooked_modules(model) == []
    assert torch.equal(model(input_ids).logits, before)


@pytest.mark.parametrize("num_rows", [1, 3, 4])
def test_wrong_number_of_rows(num_rows):
    model = tiny_llama()
    bank = random_bank(model)
    with pytest.raises(ValueError, match=rf"input of shape \({num_rows}, 11, 32\).* for a batch of 2 rows"):
        with bank.attach([0, 1]):
            model(token_ids(num_rows))
    assert hooked_modules(model) == []


@pytest.mark.parametrize("rows", [[0, 3], [-1, 0], [7]])
def test_unknown_adapter(rows):
    model = tiny_llama()
    with pytest.raises(IndexError, match="but there are 3"):
        with random_bank(model).attach(rows):
            pass
    assert hooked_modules(model) == []


@pytest.mark.parametrize("shape", [(0, None), (2, 5), (None,)], ids=["empty", "wrong-width", "one-vector"])
def test_weights_of_another_shape(shape):
    model = tiny_llama()
    layout = lora_layout(model, lora_config())
    weights = torch.zeros([layout.num_parameters if size is None else size for size in shape])
    with pytest.raises(ValueError, match=rf"shape \(adapters, {layout.num_parameters}\)"):
        AdapterBank(model, layout, weights)


def test_initialize():
    model = tiny_llama()
    bank = AdapterBank.initialize(model, lora_config(), seeds=[5, 6, 5])
    assert len(bank) == 3 and bank.weights.dtype == torch.float32
    assert torch.equal(bank.weights[0], bank.layout.initial_weights(5))
    assert torch.equal(bank.weights[0], bank.weights[2]) and not torch.equal(bank.weights[0], bank.weights[1])
    input_ids = token_ids(3)
    with torch.no_grad(), bank.attach([0, 1, 2]):
        logits = model(input_ids).logits
    torch.testing.assert_close(logits, model(input_ids).logits, rtol=0, atol=1e-6)  # B is zero
    with pytest.raises(ValueError, match="needs at least one seed"):
        AdapterBank.initialize(model, lora_config(), seeds=[])


def test_adapters_of_a_bank_are_used_in_any_order():
    model = tiny_llama()
    bank, input_ids = random_bank(model), token_ids(3)
    adapters = [Adapter(bank.layout, weights, "tests/tiny-llama") for weights in bank.weights]
    with torch.no_grad():
        with StackedAdapters.of(model, adapters[::-1]).attach([0, 2, None]):
            logits = model(input_ids).logits
        with bank.attach([2, 0, None]):
            assert torch.equal(logits, model(input_ids).logits)


@pytest.mark.parametrize("options", [{"r": 2}, {"lora_alpha": 4}, {"target_modules": ["q_proj"]}])
def test_adapters_of_different_layouts(options):
    model = tiny_llama()
    layouts = [lora_layout(model, lora_config()), lora_layout(model, lora_config(**options))]
    adapters = [Adapter(layout, layout.initial_weights(0), "tests/tiny-llama") for layout in layouts]
    with pytest.raises(ValueError, match="have one layout, these 2 have 2"):
        StackedAdapters.of(model, adapters)


def test_initial_weights_are_drawn_once_for_each_seed(monkeypatch):
    drawn, own = [], LoraLayout.initial_weights
    monkeypatch.setattr(LoraLayout, "initial_weights", lambda self, seed: drawn.append(seed) or own(self, seed))
    bank = AdapterBank.initialize(tiny_llama(), lora_config(), [7, 3, 7, 7])
    assert sorted(drawn) == [3, 7]
    assert torch.equal(bank.weights, torch.stack([own(bank.layout, seed) for seed in (7, 3, 7, 7)]))
    assert not torch.equal(bank.weights[0], bank.weights[1])
