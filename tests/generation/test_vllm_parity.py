"""
The real vLLM writes in fp32 what transformers and PEFT write.

It needs an environment with vLLM, which `make test-vllm` builds.
"""

import importlib.util

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from helpers.adapters import BASE_ID, random_adapter
from helpers.generating import generate
from helpers.outer_loop import HashGrader, tiny_examples
from helpers.real_vllm import cpu_environment, vllm_server
from helpers.tiny_models import randomize_lora, tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.adapters.policy import carried_policy
from seal_hf.domains import KnowledgeDomain
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.generation.base import Sampling
from seal_hf.generation.vllm_client import VLLMClient
from seal_hf.generation.vllm_colocated_generation import VLLMColocatedGenerator
from seal_hf.generation.vllm_engine import VLLMColocateConfig, VLLMEngine
from seal_hf.generation.vllm_server_generation import VLLMServerGenerator
from seal_hf.records.journal import Journal
from seal_hf.rollout.stage import RolloutConfig


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]

PROMPTS = ["Who keeps bees?", "Ann", "Moths like lamps and the", "Where is Vell, and who lives there?", "1, 2, 3"]
LORA = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
# vLLM's attention on a CPU has no heads as small as those of the other tests.
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}


def base_model():
    model = tiny_llama(**SIZES, head_dim=64)
    model.config.name_or_path = BASE_ID
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("vllm")
    base_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module", params=["server", "colocate"])
def vllm(request, folder):
    """The URL of a server, or an engine of this process: one after the other, since they take memory."""
    if request.param == "server":
        with vllm_server(folder / "model", BASE_ID, folder / "log.txt", r=8, max_loras=2) as url:
            yield url
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        config = VLLMColocateConfig(enable_sleep_mode=True)
        yield VLLMEngine(str(folder / "model"), None, torch.float32, torch.device("cpu"), 8, config)


@pytest.fixture(autouse=True)
def nothing_left(vllm, monkeypatch, tmp_path):
    """All tests share the engine, which takes long to start, and leave no adapter in it."""
    monkeypatch.setattr("seal_hf.generation.vllm_adapters._SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("seal_hf.generation.vllm_colocated_generation.VLLMEngine", lambda *facts: vllm)
    yield
    if isinstance(vllm, str):
        assert [model.name for model in VLLMClient(vllm).models()] == [BASE_ID]
    else:
        assert vllm._engine.list_loras() == []


@pytest.fixture
def generator_of(vllm, tokenizer):
    """Makes a generator for a model."""
    if isinstance(vllm, str):
        return lambda model: VLLMServerGenerator(model, tokenizer, BASE_ID, vllm)
    return lambda model: VLLMColocatedGenerator(model, tokenizer, BASE_ID, LORA)


def adapters_of(model, policy=None):
    options = {"r": LORA.r, "lora_alpha": LORA.lora_alpha, "target_modules": list(LORA.target_modules)}
    adapters = [random_adapter(model, seed, policy, **options) for seed in range(3)]
    for adapter in adapters:
        adapter.device_weights *= 3  # so that they differ from each other within a few tokens
    return adapters


def policy_model():
    model = PeftModel(base_model(), LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"])).eval()
    randomize_lora(model, 7)
    return model


def test_base_and_adapters_write_what_peft_writes(generator_of, tokenizer, tmp_path):
    adapters = adapters_of(base_model())[:2]
    generator = generator_of(base_model())
    generator.check(LORA)
    if isinstance(generator, VLLMServerGenerator):
        assert generator._max_loras == 2
    chosen = [adapters[number] for number in (0, 1) for _ in PROMPTS]
    found = generator.generate([*PROMPTS, *PROMPTS, *PROMPTS], [*chosen, *[None] * 5], max_new_tokens=32)
    expected = []
    for number, adapter in [*enumerate(adapters), (2, None)]:
        base_model().save_pretrained(tmp_path / "model")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter.save_pretrained(tmp_path / f"adapter {number}"))
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=32)
            expected.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
    assert [one.token_ids for one in found] == expected
    assert all(len({expected[place + 5 * who] for who in range(3)}) == 3 for place in range(5) if place != 1)


def test_more_adapters_than_a_batch_takes_and_a_policy(generator_of, tokenizer):
    model = policy_model()
    adapters = adapters_of(base_model(), carried_policy(model, BASE_ID))
    generator = generator_of(model)
    generator.check(LORA)
    chosen = [adapters[2], None, adapters[0], adapters[1], adapters[0]]
    found = generator.generate(PROMPTS, chosen, max_new_tokens=32)
    expected = generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=32)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_draws_are_by_seed_and_streams_add_up(generator_of):
    generator = generator_of(policy_model())
    sampling, seen = Sampling((1, 2, 1, 3, 4), top_p=0.9), []
    first = generator.generate(PROMPTS[:1] * 5, max_new_tokens=20, sampling=sampling, on_text=seen.append)
    again = generator.generate(PROMPTS[:1] * 5, max_new_tokens=20, sampling=sampling)
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    assert first[0].token_ids == first[2].token_ids
    assert len({one.token_ids for one in first}) == 4
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in first]


def test_a_rank_too_high_is_named(generator_of):
    generator = generator_of(policy_model())
    with pytest.raises(ValueError, match=r"rank (than )?12 \(policy 4 and inner adapter 8\).*max.lora.rank (16\.|8)"):
        generator.check(LoraConfig(r=8, target_modules=["q_proj"]))


def test_a_small_round_has_the_same_verdicts(vllm, tokenizer, tmp_path):
    examples = tiny_examples(3)
    self_edits = [
        {"title": one["title"], "context": one["context"], "completions": [f"Cats are {place}.", "They sit."]}
        for place, one in enumerate(examples)
    ]
    is_server = isinstance(vllm, str)
    options = {"vllm_server_base_url": vllm} if is_server else {"vllm_colocate": VLLMColocateConfig()}
    found = []
    for generation in ({}, options):
        lm = SelfAdaptingLM(
            base_model(),
            tokenizer,
            domain=KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            inner_config=InnerLoopConfig(learning_rate=1e-2, num_train_epochs=3),
            **generation,
        )
        folder = tmp_path / str(len(generation))
        config = RolloutConfig(max_completion_length=12, max_answer_length=12, disable_tqdm=True)
        single_passage(lm, examples, folder, num_generations=2, config=config, self_edits=self_edits)
        found.append(
            [
                [edit.condition, edit.example, edit.edit, edit.reward, *(one["answers"] for one in edit.repeats)]
                for edit in Journal(folder / "evaluation").scored(0)
            ]
        )
    assert found[0] == found[1]
    assert len({row[3] for row in found[0]}) > 1
