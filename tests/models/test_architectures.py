"""Models of all architectures, against transformers and PEFT; the table in docs/models.md says what was found of each."""

import logging

import pytest
import torch
from peft import LoraConfig
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from helpers.adapters import BASE_ID
from helpers.architecture_checks import check_texts, check_training
from helpers.architecture_table import row_of, written_rows
from helpers.architectures import MODEL_TYPES, NOT_BUILT, tiny_causal_lm
from helpers.generating import adapters_of, generate, random_bank
from helpers.tiny_models import tiny_tokenizer
from seal_hf.adapters.layout import lora_layout
from seal_hf.generation.base import Sampling
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.models.architecture import check_causal_lm, linear_modules, runs_in_batches


# One of each kind of attention, state, expert and wrapper; `pytest -m architectures` takes all types.
SELECTION = (
    *("bart", "bert", "bloom", "codegen", "cohere2", "deepseek_v3", "ernie4_5_moe", "exaone4", "falcon", "falcon_h1"),
    *("apertus", "bamba", "biogpt", "bitnet", "cohere", "deepseek_v2", "diffllama", "doge", "electra", "exaone_moe"),
    *("gemma", "gemma2", "gemma3_text", "glm", "glm4_moe", "gpt_bigcode", "gpt_neo", "gptj", "granitemoe", "helium"),
    *("hunyuan_v1_moe", "kimi_linear", "lfm2_moe", "longcat_flash", "minimax", "mistral", "nemotron_h", "olmo3"),
    *("openai-gpt", "persimmon", "phi", "qwen2", "qwen3_5_text", "roformer", "seed_oss", "starcoder2", "zamba2"),
    *("falcon_mamba", "gemma3", "gemma4_text", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoehybrid", "jamba"),
    *("jetmoe", "laguna", "lfm2", "llama4_text", "mamba", "mamba2", "mixtral", "mpt", "olmo2", "olmoe", "opt", "phi3"),
    *("phimoe", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rwkv", "smollm3", "stablelm"),
    *("xglm", "xlnet"),
)


@pytest.mark.parametrize("model_type", SELECTION)
def test_texts_and_files_are_those_of_transformers_and_peft(model_type, tmp_path):
    way = check_texts(model_type, tmp_path / "adapter")
    assert f"| {way} |" in written_rows()[model_type]


@pytest.mark.parametrize("model_type", SELECTION)
def test_training_is_that_of_peft(model_type):
    way = check_training(model_type)
    assert f"| {way} |" in written_rows()[model_type]


def test_table_names_every_type_and_most_are_right():
    rows = written_rows()
    assert tuple(rows) == MODEL_TYPES
    right = [row for row in rows.values() if "| yes | yes | yes |" in row]
    assert len(right) >= 55
    # What is not right has its reason.
    assert [row for row in rows.values() if row not in right and row.endswith("|  |")] == []


@pytest.mark.architectures
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_row_of_the_table(model_type):
    assert row_of(model_type) == written_rows()[model_type]


@pytest.mark.parametrize("model_type", ["phi3", "granite", "lfm2", "smollm3", "olmo2"])
def test_type_without_default_targets_of_peft_is_adapted_in_all_linear_layers(model_type):
    model = tiny_causal_lm(model_type)
    assert (
        lora_layout(model, LoraConfig()).modules == lora_layout(model, LoraConfig(target_modules="all-linear")).modules
    )


def test_language_model_alone_is_adapted():
    model = tiny_causal_lm("gemma3")
    assert any("vision" in name for name, _ in model.named_modules())
    names = list(linear_modules(model))
    assert len(names) == 14 and all(name.startswith("model.language_model.layers.") for name in names)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_next", "phimoe", "llama4_text", "ernie4_5_moe"])
def test_routers_are_not_adapted(model_type):
    model = tiny_causal_lm(model_type)
    adapted = [name.rsplit(".", 1)[-1] for name in linear_modules(model)]
    assert not {"gate", "router", "shared_expert_gate"}.intersection(adapted)


def test_modules_that_peft_loses_are_refused_by_name():
    with pytest.raises(ValueError, match=r"target_modules match backbone\.layers\..*PEFT cannot adapt or read again"):
        lora_layout(tiny_causal_lm("mamba"), LoraConfig(target_modules=["out_proj"]))


def test_model_that_is_asked_alone_says_so_once(caplog):
    model = tiny_causal_lm("falcon")
    with caplog.at_level(logging.INFO, logger="seal_hf"):
        assert not runs_in_batches(model) and not runs_in_batches(model)
    assert [record.getMessage() for record in caplog.records] == [
        "FalconForCausalLM is run one prompt at a time: its attention does not go by transformers' interface."
    ]


def test_samples_of_a_model_that_is_asked_alone_depend_on_their_seeds_alone():
    model, tokenizer, news = tiny_causal_lm("falcon"), tiny_tokenizer(), ["", ""]

    def on_text(texts):
        for place, text in enumerate(texts):
            news[place] += text

    both = generate(model, tokenizer, ["ab", "cde"], max_new_tokens=6, sampling=Sampling((3, 4)), on_text=on_text)
    (alone,) = generate(model, tokenizer, ["cde"], max_new_tokens=6, sampling=Sampling((4,)))
    (other,) = generate(model, tokenizer, ["cde"], max_new_tokens=6, sampling=Sampling((5,)))
    assert both[1] == alone != other
    assert news == [generation.text for generation in both]


def test_model_that_is_asked_alone_stops_when_it_is_told():
    model, tokenizer, seen = tiny_causal_lm("mamba"), tiny_tokenizer(), []
    found = generate(
        model, tokenizer, ["ab", "cde"], max_new_tokens=6, on_text=lambda texts: seen.append(texts) or len(seen) == 2
    )
    assert [generation.num_tokens for generation in found] == [2, 0]


@pytest.mark.parametrize("model_type", ["falcon", "mamba", "opt", "qwen2_moe"])
def test_likelihoods_with_an_adapter_for_each_row_are_those_alone(model_type):
    model, tokenizer = tiny_causal_lm(model_type), tiny_tokenizer()
    bank = random_bank(model)
    adapters = adapters_of(bank, [0, 1, None])
    likelihoods = TransformersGenerator(model, tokenizer, BASE_ID).answer_log_likelihoods
    prompts, answers = ["Who keeps bees? ", "Where? ", "Ann"], [["Ann"], ["in Vell"], ["a"]]
    found = likelihoods(prompts, answers, adapters)
    for prompt, (answer,), number, value in zip(prompts, answers, [0, 1, None], found, strict=True):
        ids, own = (
            tokenizer(prompt)["input_ids"],
            tokenizer(answer if prompt[-1] == " " else f" {answer}")["input_ids"],
        )
        with bank.attach([number]), torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + own])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(logits.gather(-1, torch.tensor(own)[:, None]).mean().item(), abs=1e-4)


def test_generation_config_of_a_model_that_is_asked_alone_neither_acts_nor_changes():
    model, tokenizer = tiny_causal_lm("mamba"), tiny_tokenizer()
    expected = generate(model, tokenizer, ["ab"], max_new_tokens=6)
    own = model.generation_config
    own.update(do_sample=True, repetition_penalty=9.0, max_new_tokens=1)
    assert generate(model, tokenizer, ["ab"], max_new_tokens=6) == expected
    assert model.generation_config is own and own.repetition_penalty == 9.0


_SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "vocab_size": 50,
}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: BertLMHeadModel(BertConfig(**_SIZES)), "BertLMHeadModel looks at later tokens.*is_decoder=True"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, vocab_size=50)
            ),
            "T5ForConditionalGeneration is an encoder with a decoder",
        ),
    ],
)
def test_other_models_are_refused_by_name(model, message):
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        check_causal_lm(model())


def test_types_that_are_not_built_exist():
    assert set(NOT_BUILT) <= set(MODEL_TYPES)
