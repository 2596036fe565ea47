"""Our calls of what torch has changed or may change, against the arguments that each version takes."""

import tomllib

import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from peft import LoraConfig

from helpers.flash_attention import flash_attention_on_the_cpu
from helpers.folders import ROOT
from helpers.tiny_models import tiny_llama
from helpers.torch_signatures import DERIVATIVE, RECORDED, VERSIONS, check_call
from seal_hf.adapters.layout import LoraStacks, lora_layout
from seal_hf.inner_loop import attention as packed_attention
from seal_hf.inner_loop import forward as packed_forward
from seal_hf.inner_loop import optimizer as bank_optimizer
from seal_hf.inner_loop.attention import PackedAttention
from seal_hf.inner_loop.blocks import Block
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.lora import LoraParameters
from seal_hf.inner_loop.update import TrainingSequence
from seal_hf.models import attention_kernels


def noted(monkeypatch, holder, name: str) -> list[tuple[tuple, dict]]:
    """The calls of `holder.name` from here on."""
    calls, function = [], getattr(holder, name)

    def call(*args, **options):
        calls.append((args, options))
        return function(*args, **options)

    monkeypatch.setattr(holder, name, call)
    return calls


def test_recorded_versions_are_those_that_the_package_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (allowed,) = [spec for spec in map(Requirement, project["dependencies"]) if spec.name == "torch"]
    minors = [f"2.{minor}" for minor in range(100) if allowed.specifier.contains(f"2.{minor}.0")]
    assert minors == VERSIONS


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention(monkeypatch, window):
    monkeypatch.setattr(packed_attention, "_takes_flash", lambda *args: True)
    query, key, value = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))
    with flash_attention_on_the_cpu():
        calls = noted(monkeypatch, torch.ops.aten._flash_attention_forward, "default")
        ends = torch.tensor([0, 7], dtype=torch.int32)
        PackedAttention((Block(0, 1, (7,), 0),), ends)(query, key, value, 0.3, window)
    ((args, options),) = calls
    for version in VERSIONS:
        check_call("aten::_flash_attention_forward", version, args, options)
        formula = RECORDED[version][DERIVATIVE]
        assert formula.startswith("_flash_attention_backward") and "window_size_left, window_size_right" in formula


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped products")
def test_grouped_products(monkeypatch):
    """Before 2.10 torch has no such function, and `has_grouped_products` says so."""
    calls = noted(monkeypatch, F, "grouped_mm")
    monkeypatch.setattr(packed_forward, "has_grouped_products", lambda *args: True)
    model = tiny_llama(dtype=torch.bfloat16).requires_grad_(False)
    layout = lora_layout(model, LoraConfig(r=8, target_modules="all-linear"))
    parameters = LoraParameters(layout, torch.bfloat16, torch.device("cpu"), 2)
    TrainingForward(model, layout).backward(parameters, [[[TrainingSequence((5, 6, 7, 8))]]] * 2)
    assert calls
    for version in VERSIONS:
        if RECORDED[version]["torch.nn.functional.grouped_mm"] is not None:
            for args, options in calls:
                check_call("torch.nn.functional.grouped_mm", version, args, options)


def test_norm():
    """Torch 2.8 has an operator of this name for another device, and none for the backward pass."""
    args = (torch.zeros(3, 8), torch.Size([8]), torch.zeros(8), 1e-6)
    for version in VERSIONS:
        if RECORDED[version]["aten::_fused_rms_norm_backward"] is not None:
            check_call("aten::_fused_rms_norm", version, args, {})
    assert VERSIONS[1:] == [v for v in VERSIONS if RECORDED[v]["aten::_fused_rms_norm_backward"] is not None]
    with pytest.raises(TypeError, match="has no"):
        check_call("aten::_fused_rms_norm_backward", "2.8", args, {})


def test_optimizer(monkeypatch):
    calls = noted(monkeypatch, bank_optimizer, "adamw")
    layout = lora_layout(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    grads = LoraStacks.of(layout, torch.ones(1, layout.num_parameters), torch.float32, torch.device("cpu"))
    optimizer = bank_optimizer.BankOptimizer(torch.zeros(1, layout.num_parameters), grads)
    optimizer.step([0], [bank_optimizer.StepSize(1e-3, 1.0)], torch.ones(1))
    ((args, options),) = calls
    for version in VERSIONS:
        check_call("torch.optim.adamw.adamw", version, args, options)


def test_choice_of_attention_kernels(monkeypatch):
    names = ("cudnn_sdp_enabled", "enable_cudnn_sdp")
    calls = {name: noted(monkeypatch, attention_kernels, name) for name in names}
    with attention_kernels.without_cudnn():
        pass
    for name in names:
        assert calls[name]
        for version in VERSIONS:
            for args, options in calls[name]:
                check_call(f"torch.backends.cuda.{name}", version, args, options)


def test_calls_that_a_version_does_not_take_are_found():
    """Attention over sequences of any lengths as torch 2.12 has it, and mistakes in the call of an operator."""
    name = "torch.nn.attention.varlen.varlen_attn"
    args = (torch.zeros(1),) * 5 + (7, 7)
    refused = {}
    for version in VERSIONS:
        try:
            check_call(name, version, args, {"scale": 0.3, "window_size": (-1, 0), "enable_gqa": True})
        except TypeError as error:
            refused[version] = str(error)
    assert list(refused) == ["2.8", "2.9", "2.10", "2.11"]
    assert "has no" in refused["2.9"] and "unexpected keyword argument 'enable_gqa'" in refused["2.11"]

    operator = "aten::_flash_attention_forward"
    args = (torch.zeros(1),) * 5 + (7, 7, 0.0, True, False)
    check_call(operator, "2.8", args, {"scale": None})
    for wrong, options in ((args[:-1], {}), (args, {"num_splits": 1}), ((None, *args[1:]), {})):
        with pytest.raises(TypeError):
            check_call(operator, "2.8", wrong, options)


def test_recorded_signatures_of_this_torch():
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in RECORDED:
        pytest.skip(f"torch {version} is not recorded")
    for name, recorded in RECORDED[version].items():
        if name.startswith("aten::"):
            operator, _, overload = name.removeprefix("aten::").partition(".")
            if recorded is None:
                assert not hasattr(torch.ops.aten, operator), name
                continue
            schema = getattr(getattr(torch.ops.aten, operator), overload or "default")._schema
            assert schema == torch._C.parse_schema(recorded), name
