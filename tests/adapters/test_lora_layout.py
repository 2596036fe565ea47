import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from helpers.tiny_models import KINDS, tiny_llama, tiny_model, tiny_policy_model
from seal_hf.adapters.layout import lora_layout
from seal_hf.models.architecture import linear_modules


PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PROJECTIONS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def names(config: LoraConfig, model=None) -> list[str]:
    return [module.name for module in lora_layout(model or tiny_llama(), config).modules]


def in_layers(*endings: str, layers: tuple[int, ...] = (0, 1)) -> list[str]:
    return [f"model.layers.{layer}.{ending}" for layer in layers for ending in endings]


@pytest.mark.parametrize(
    ("options", "expected", "target_modules"),
    [
        ({}, in_layers("self_attn.q_proj", "self_attn.v_proj"), ("q_proj", "v_proj")),
        (
            {"target_modules": "all-linear"},
            in_layers(*PROJECTIONS),
            tuple(sorted(p.split(".")[1] for p in PROJECTIONS)),
        ),
        (
            {"target_modules": ["up_proj", "k_proj"]},
            in_layers("self_attn.k_proj", "mlp.up_proj"),
            ("k_proj", "up_proj"),
        ),
        (
            {"target_modules": r".*\.1\.mlp\.(up|down)_proj"},
            in_layers("mlp.up_proj", "mlp.down_proj", layers=(1,)),
            None,
        ),
        ({"target_modules": ["model.layers.0.mlp.up_proj"]}, in_layers("mlp.up_proj", layers=(0,)), None),
        (
            {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]},
            in_layers("self_attn.q_proj"),
            ("q_proj",),
        ),
        (
            {"target_modules": "all-linear", "exclude_modules": r".*\.mlp\..*"},
            in_layers(*PROJECTIONS[:4]),
            ("k_proj", "o_proj", "q_proj", "v_proj"),
        ),
    ],
    ids=["default", "all-linear", "names", "regex", "whole-name", "excluded", "all-linear-but"],
)
def test_target_modules(options, expected, target_modules):
    layout = lora_layout(tiny_llama(), LoraConfig(r=2, **options))
    assert [module.name for module in layout.modules] == expected
    # Where only some layers are adapted, only whole names say so.
    assert layout.target_modules == (target_modules or tuple(sorted(expected)))


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_layers_to_transform(layers):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=layers)
    assert names(config) == in_layers("self_attn.q_proj", "self_attn.v_proj", layers=tuple(layers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target_modules", ["all-linear", None, ["q_proj", "down_proj"]])
def test_same_modules_and_shapes_as_peft(kind, target_modules):
    model = tiny_model(kind)
    layout = lora_layout(model, LoraConfig(r=3, target_modules=target_modules))
    state_dict = layout.state_dict(layout.initial_weights(0))
    config = LoraConfig(r=3, target_modules=target_modules, task_type="CAUSAL_LM")
    expected = get_peft_model_state_dict(get_peft_model(model, config))
    assert {key: tensor.shape for key, tensor in state_dict.items()} == {k: t.shape for k, t in expected.items()}
    assert layout.num_parameters == sum(tensor.numel() for tensor in expected.values())


@pytest.mark.parametrize("tied", [True, False])
def test_output_embedding_is_never_adapted(tied):
    model = tiny_llama(tie_word_embeddings=tied)
    assert "lm_head" not in linear_modules(model)
    assert not any("lm_head" in name for name in names(LoraConfig(r=2, target_modules="all-linear"), model))


def test_modules_of_a_policy_model_are_those_of_its_base():
    policy_model = tiny_policy_model()
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    assert lora_layout(policy_model, config) == lora_layout(tiny_llama(), config)
    wrapped = {name for name, module in linear_modules(policy_model).items() if hasattr(module, "lora_A")}
    assert wrapped == set(in_layers("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"rank r=0 must be at least 1"),
        ({"r": -1}, r"rank r=-1 must be at least 1"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf must be a finite number"),
        ({"use_dora": True}, r"use_dora=True\) is not supported"),
        ({"bias": "all"}, r"bias='all'\) is not supported"),
        ({"lora_bias": True}, r"lora_bias=True\) is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]\) is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern=.* is not supported"),
        ({"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern=.* is not supported"),
        ({"lora_dropout": 0.1}, r"lora_dropout=0\.1\) is not supported"),
        ({"init_lora_weights": "gaussian"}, r"init_lora_weights='gaussian'\) is not supported"),
        ({"init_lora_weights": False}, r"init_lora_weights=False\) is not supported"),
        (
            {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
            r"alora_invocation_tokens=\[5, 6\]\) is not supported",
        ),
        ({"use_qalora": True}, r"use_qalora=True\) is not supported"),
        (
            {"target_modules": ["query"]},
            r"\['query'\] match no linear module; this model has down_proj, gate_proj, k_proj",
        ),
        ({"target_modules": r"model\.layers\.9\..*"}, r"match no linear module; this model has .*, up_proj, v_proj"),
        ({"target_modules": ["lm_head"]}, r"\['lm_head'\] match no linear module"),
        ({"target_modules": ["embed_tokens"]}, r"\['embed_tokens'\] match no linear module"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [5]}, r"match no linear module"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lora_layout(tiny_llama(), LoraConfig(**options))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"init_lora_weights": "gaussian"}])
def test_how_a_trained_adapter_began_does_not_matter(options):
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **options)
    assert lora_layout(tiny_llama(), config, trained=True).r == 2


def test_initialization_that_changes_the_base_is_refused():
    config = LoraConfig(r=2, init_lora_weights="pissa")
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa'\) is not supported"):
        lora_layout(tiny_llama(), config, trained=True)


def test_architecture_without_default_targets_is_adapted_in_all_linear_modules():
    model = tiny_llama()
    model.config.model_type = "unheard_of"
    assert lora_layout(model, LoraConfig(r=2)) == lora_layout(model, LoraConfig(r=2, target_modules="all-linear"))


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_scaling_is_pefts(use_rslora, scaling):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=use_rslora)
    assert lora_layout(tiny_llama(), config).scaling == scaling
    layer = get_peft_model(tiny_llama(), config).base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == scaling


def test_initial_weights_follow_peft_and_the_seed():
    layout = lora_layout(tiny_llama(), LoraConfig(r=8, target_modules="all-linear"))
    weights = layout.initial_weights(3)
    assert torch.equal(weights, layout.initial_weights(3)) and not torch.equal(weights, layout.initial_weights(4))
    for module in layout.modules:
        lora_a, lora_b = layout.views(weights)[module.name]
        bound = module.in_features**-0.5  # Kaiming-uniform with a = sqrt(5)
        assert 0.9 * bound < lora_a.abs().max() <= bound
        assert lora_a.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert not lora_b.any()


def test_views_share_memory_and_stack():
    layout = lora_layout(tiny_llama(num_key_value_heads=1), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    weights = torch.zeros(3, layout.num_parameters)
    views = layout.views(weights)
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in views.values()]
    assert shapes == [((3, 2, 32), (3, 32, 2)), ((3, 2, 32), (3, 8, 2))] * 2
    for number, matrix in enumerate((m for matrices in views.values() for m in matrices), start=1):
        matrix[1] = number
    assert not weights[[0, 2]].any()
    assert weights[1].unique().tolist() == list(range(1, 9))


def test_state_dict_round_trip_is_bit_equal():
    layout = lora_layout(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    weights = torch.randn(layout.num_parameters, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layout.weights_from_state_dict(layout.state_dict(weights), "here"), weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors.pop(key), "here lacks the tensor base_model.*layers.1.*lora_B.weight"),
        (lambda tensors, key: tensors.update(extra=torch.zeros(1)), "here holds 1 tensors .* such as extra"),
        (
            lambda tensors, key: tensors.update({key: torch.zeros(32, 5)}),
            r"lora_B.weight has rank 5, but its adapter_config.json says r=2",
        ),
        (
            lambda tensors, key: tensors.update({key: torch.zeros(31, 2)}),
            r"lora_B.weight has shape \(31, 2\), but this base model needs \(32, 2\)",
        ),
    ],
    ids=["missing", "left-over", "rank", "shape"],
)
def test_state_dict_that_does_not_fit(change, message):
    layout = lora_layout(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    tensors = layout.state_dict(layout.initial_weights(0))
    change(tensors, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    with pytest.raises(ValueError, match=message):
        layout.weights_from_state_dict(tensors, "here")
