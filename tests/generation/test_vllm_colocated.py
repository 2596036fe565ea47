"""What is asked of an engine of vLLM in this process, with a small one in its place: adapters, streams, sleep, what goes wrong."""

import gc
import os
import signal
import threading

import pytest
import torch
from peft import LoraConfig

from helpers.adapters import BASE_ID, random_adapter
from helpers.generating import generate
from helpers.tiny_models import save_tiny_model, tiny_llama, tiny_policy_model, tiny_tokenizer
from helpers.vllm_package import Engine, install
from seal_hf import SelfAdaptingLM
from seal_hf.adapters.policy import carried_policy
from seal_hf.generation import vllm_adapters, vllm_engine
from seal_hf.generation.base import Sampling
from seal_hf.generation.vllm_colocated_generation import VLLMColocatedGenerator
from seal_hf.generation.vllm_engine import VLLMColocateConfig, VLLMEngineEnded
from seal_hf.generation.vllm_process import engine_environment
from trainers.arguments import AdaptationArguments


PROMPTS = [
    "Who keeps bees?",
    "Ann",
    "Moths like lamps and the",
    "Where is Vell, and who lives there?",
    "1, 2, 3",
    "Bo",
]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def engine(monkeypatch, tokenizer):
    engine = Engine(tiny_llama(), tokenizer)
    install(monkeypatch, engine)
    return engine


def generator_of(model, tokenizer, folder, lora=LORA, **options):
    model.config.name_or_path = str(folder)
    generator = VLLMColocatedGenerator(model, tokenizer, BASE_ID, lora, folder=folder / "shared", **options)
    generator.check(lora, on_policy=options.get("on_policy", True))
    return generator


@pytest.fixture
def generator(engine, tokenizer, tmp_path):
    generator = generator_of(tiny_llama(), tokenizer, tmp_path)
    engine.log.clear()
    engine.most_adapters = 0
    return generator


@pytest.fixture(scope="module")
def adapters():
    return [random_adapter(tiny_llama(), seed) for seed in range(5)]


def assert_clean(engine, folder):
    """No adapter or text is in the engine, no adapter on the disk, and no name was used twice."""
    assert engine.adapters == engine.going == {}
    assert [path for path in folder.rglob("seal-hf-*") if path.is_dir()] == []
    assert len(set(engine.names("load"))) == len(engine.names("load"))


def test_prompts_are_answered_with_their_own_adapters(tokenizer, adapters, generator, engine, tmp_path):
    chosen, seen = [adapters[2], None, *adapters[:3], adapters[4]], []
    limits = [9, 4, 12, 12, 5, 7]
    found = generator.generate(PROMPTS, chosen, max_new_tokens=limits, on_text=seen.append)
    assert found == generate(tiny_llama(), tokenizer, PROMPTS, chosen, max_new_tokens=limits)
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in found]
    assert len(seen) > 4
    assert len(engine.names("load")) == 4
    assert engine.names("begin")[0] is None  # the base model, alone
    assert_clean(engine, tmp_path)


def test_no_more_adapters_are_loaded_than_a_batch_takes(tokenizer, adapters, generator, engine, tmp_path):
    found = generator.generate(PROMPTS[:5], adapters, max_new_tokens=[3, 9, 9, 9, 9])
    assert found == generate(tiny_llama(), tokenizer, PROMPTS[:5], adapters, max_new_tokens=[3, 9, 9, 9, 9])
    assert engine.most_adapters == engine.max_loras == 4
    # The fifth came when the first was done with, not when all four were.
    assert [entry[0] for entry in engine.log if entry[0] in ("load", "unload")][:6] == ["load"] * 4 + [
        "unload",
        "load",
    ]
    assert_clean(engine, tmp_path)


def test_every_text_is_sampled_with_its_own_seed(tokenizer, generator, engine):
    sampling = Sampling((5, 6, 5), temperature=1.3, top_p=0.8)
    found = generator.generate(PROMPTS[:1] * 3, max_new_tokens=8, sampling=sampling)
    assert found == generate(tiny_llama(), tokenizer, PROMPTS[:1] * 3, max_new_tokens=8, sampling=sampling)
    options = [entry[2] for entry in engine.log if entry[0] == "begin"]
    assert [one["seed"] for one in options] == [5, 6, 5]
    assert {(one["temperature"], one["top_p"], one["top_k"], one["repetition_penalty"]) for one in options} == {
        (1.3, 0.8, 0, 1.0)
    }


@pytest.mark.parametrize("by_event", [True, False])
def test_a_stop_aborts_the_texts_and_leaves_nothing(adapters, generator, engine, tmp_path, by_event):
    stop, seen = threading.Event(), []

    def on_text(new_texts):
        seen.append(new_texts)
        if by_event:
            stop.set()
        return not by_event

    found = generator.generate(PROMPTS[:5], adapters, max_new_tokens=30, on_text=on_text, stop=stop)
    assert [one.num_tokens for one in found] == [3, 3, 3, 3, 0]
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in found]
    assert len(engine.names("abort")) == 4
    assert_clean(engine, tmp_path)


def test_an_error_of_the_caller_leaves_nothing(adapters, generator, engine, tmp_path):
    def on_text(new_texts):
        raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="the page is gone"):
        generator.generate(PROMPTS[:5], adapters, max_new_tokens=30, on_text=on_text)
    assert_clean(engine, tmp_path)


def test_an_engine_that_ends_is_a_clear_error(adapters, generator, engine, tmp_path):
    def on_text(new_texts):
        engine.is_dead = True

    with pytest.raises(VLLMEngineEnded, match=r"has ended; see its log above\. .*resume_from_checkpoint=True"):
        generator.generate(PROMPTS[:5], adapters, max_new_tokens=30, on_text=on_text)
    assert [path for path in tmp_path.rglob("seal-hf-*") if path.is_dir()] == []


def test_an_engine_that_is_killed_is_not_waited_for(monkeypatch, adapters, engine, tokenizer, tmp_path):
    monkeypatch.setattr(vllm_engine, "_POLL_SECONDS", 0.05)
    engine.has_process = True
    generator = generator_of(tiny_llama(), tokenizer, tmp_path)

    def kill(new_texts):
        engine.process.kill()
        os.waitid(os.P_PID, engine.process.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(VLLMEngineEnded, match="has ended"):
        generator.generate(PROMPTS[:1], adapters[:1], max_new_tokens=9, on_text=kill)
    with pytest.raises(VLLMEngineEnded, match="has ended"):
        generator.generate(PROMPTS[:1], max_new_tokens=9)
    engine.process.wait()


def test_an_engine_ends_with_its_generator(engine, tokenizer, tmp_path):
    engine.has_process = True
    generator_of(tiny_llama(), tokenizer, tmp_path)
    gc.collect()
    assert engine.process.wait(60) == -signal.SIGTERM


def test_an_engine_sees_the_card_of_its_process_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with engine_environment(torch.device("cuda", 1)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with engine_environment(torch.device("cuda", 1)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_text_that_is_broken_off_is_an_error(generator, engine):
    engine.finish_reason = "error"
    with pytest.raises(VLLMEngineEnded, match=r"broke a text off \(error\)"):
        generator.generate(PROMPTS[:1], max_new_tokens=3)


@pytest.mark.parametrize(("on_policy", "rank"), [(True, 16), (False, 8)])
def test_the_engine_is_started_for_the_ranks_that_come(engine, tokenizer, tmp_path, on_policy, rank):
    model = tiny_policy_model()  # of rank 3
    lora = LoraConfig(r=6, target_modules=["q_proj"])
    generator = generator_of(model, tokenizer, tmp_path, lora, on_policy=on_policy)
    assert engine.options["max_lora_rank"] == rank
    assert (engine.options["model"], engine.options["dtype"]) == (str(tmp_path), "float32")
    assert (engine.options["enforce_eager"], engine.options["generation_config"]) == (True, "vllm")
    policy = carried_policy(model, BASE_ID)
    with pytest.raises(
        ValueError, match=r"take an adapter of rank 17 \(policy 3 and inner adapter 14\): .*max_lora_rank"
    ):
        generator.generate(PROMPTS[:1], [random_adapter(tiny_llama(), 0, policy, r=14)], max_new_tokens=2)
    assert_clean(engine, tmp_path)
    # The policy is an adapter like others.
    engine.log.clear()
    generator.generate(PROMPTS[:2], max_new_tokens=2)
    assert None not in engine.names("begin") and len(engine.names("load")) == 1


def test_memory_is_given_back_between_calls(monkeypatch, engine, adapters, tokenizer, tmp_path):
    install(monkeypatch, engine, has_sleep_mode=True)
    generator = generator_of(tiny_llama(), tokenizer, tmp_path, config=VLLMColocateConfig(0.4, True))
    assert (engine.options["gpu_memory_utilization"], engine.options["enable_sleep_mode"]) == (0.4, True)
    assert engine.is_asleep and engine.log[0] == ("sleep",)
    engine.log.clear()
    generator.generate(PROMPTS[:1], adapters[:1], max_new_tokens=3)
    assert [entry[0] for entry in engine.log] == ["wake", "load", "begin", "unload", "sleep"]
    with pytest.raises(RuntimeError):
        generator.generate(PROMPTS[:1], max_new_tokens=3, on_text=lambda new: (_ for _ in ()).throw(RuntimeError()))
    assert engine.is_asleep


def test_sleep_is_off_where_there_is_none_and_this_is_said(engine, tokenizer, tmp_path, caplog):
    generator = generator_of(tiny_llama(), tokenizer, tmp_path, config=VLLMColocateConfig(enable_sleep_mode=True))
    assert caplog.messages == ["vllm_enable_sleep_mode is off: vLLM has no sleep mode on cpu."]
    assert engine.options["enable_sleep_mode"] is False
    generator.generate(PROMPTS[:1], max_new_tokens=3)
    assert {"sleep", "wake"}.isdisjoint(entry[0] for entry in engine.log)


def test_what_a_killed_process_left_is_removed(generator, adapters, engine, tokenizer, tmp_path):
    (own,) = (tmp_path / "shared").iterdir()
    adapters[0].export(own / "seal-hf-killed-0")
    other = generator_of(tiny_llama(), tokenizer, tmp_path)  # while the first process lives
    assert other._adapters.folder.name == "engine-1"
    assert (own / "seal-hf-killed-0").is_dir()
    generator._adapters._lock.release()
    assert generator_of(tiny_llama(), tokenizer, tmp_path)._adapters.folder == own
    assert not (own / "seal-hf-killed-0").exists()


def test_other_weights_are_noticed(engine, tokenizer, tmp_path):
    engine.model = tiny_llama(seed=1, initializer_range=0.3)
    with pytest.raises(ValueError, match="The vLLM engine of this process has another base model than the one here"):
        generator_of(tiny_llama(), tokenizer, tmp_path)


def test_the_shorter_context_counts(engine, tokenizer, tmp_path):
    engine.model_config.max_model_len = 80
    generator = generator_of(tiny_llama(), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="exceed the model's context of 80 tokens"):
        generator.generate(["a" * 60], max_new_tokens=21)


def test_a_missing_or_old_vllm_is_named(monkeypatch, engine, tokenizer, tmp_path):
    install(monkeypatch, engine, "0.10.1")
    with pytest.raises(ValueError, match=r"This environment runs vLLM 0\.10\.1; upgrade it to 0\.31 or newer"):
        generator_of(tiny_llama(), tokenizer, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"needs vLLM in the trainer's environment; run `pip install 'seal-hf\[vllm\]'`"
    ):
        generator_of(tiny_llama(), tokenizer, tmp_path)


def test_an_engine_that_does_not_start_is_named(engine, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"could not start .* with .*/missing, .*vllm_gpu_memory_utilization=0\.3"):
        generator_of(tiny_llama(), tokenizer, tmp_path / "missing")


def test_a_script_writes_with_an_engine_of_its_own(monkeypatch, engine, tmp_path):
    monkeypatch.setattr(vllm_adapters, "_SHARED_MEMORY", tmp_path)
    folder = str(save_tiny_model(tmp_path / "model"))
    engine.model = engine.generator.model = tiny_llama(initializer_range=0.3)
    engine.generator.base_model_id = folder
    arguments = {"model_name_or_path": folder, "dtype": "float32", "prompt_style": "rewrite", "inner_lora_r": 4}
    lm = AdaptationArguments(**arguments, use_vllm=True, vllm_mode="colocate").load()
    engine.log.clear()
    answer = lm.answer("Who?", max_answer_length=6)
    assert engine.names("begin") == [None]
    assert answer == AdaptationArguments(**arguments).load().answer("Who?", max_answer_length=6) != ""
    with pytest.raises(ValueError, match="two ways to write; give one of them"):
        SelfAdaptingLM(
            lm.model, lm.processing_class, vllm_server_base_url="http://x", vllm_colocate=VLLMColocateConfig()
        )
