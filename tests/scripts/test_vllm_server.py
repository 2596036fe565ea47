"""The command that starts a vLLM server, and scripts that use one."""

import sys

import pytest

from helpers.tiny_models import save_tiny_model, tiny_llama, tiny_tokenizer
from helpers.vllm_server import served
from seal_hf.generation import vllm_adapters
from seal_hf.models.embedded import EMBEDDED_MODELS
from trainers import vllm_server
from trainers.arguments import AdaptationArguments
from trainers.vllm_server import ServerArguments, server_command, server_environment


def options_of(command):
    return dict(zip(command[4::2], command[5::2], strict=False))


def test_the_server_has_room_for_policy_and_inner_adapter():
    command = server_command(ServerArguments("some/model"), True, ["--tensor-parallel-size", "2"])
    assert command[:4] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora"]
    options = options_of(command)
    assert options["--max-lora-rank"] == "128"  # 64 + 32
    assert options["--model"] == options["--served-model-name"] == "some/model"
    assert options["--generation-config"] == "vllm"
    assert options["--host"] == "127.0.0.1"
    assert options["--tensor-parallel-size"] == "2"
    assert "--enforce-eager" not in command


def test_an_embedded_model_is_served_by_its_id(monkeypatch):
    monkeypatch.setattr(vllm_server, "embedded_model_path", lambda name: f"/cache/{name}")
    command = server_command(ServerArguments("embedded", lora_r=0, inner_lora_r=8), False)
    options = options_of(command)
    assert (options["--model"], options["--served-model-name"]) == (
        "/cache/embedded",
        EMBEDDED_MODELS["embedded"].model_id,
    )
    assert options["--max-lora-rank"] == "8"
    assert "--enforce-eager" in command


def test_ranks_that_no_server_takes_are_refused():
    with pytest.raises(ValueError, match="rank 600 is above 512"):
        server_command(ServerArguments("some/model", lora_r=568), True)


def test_adapters_may_be_loaded_while_it_runs(monkeypatch):
    assert server_environment(True)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert server_environment(False)["VLLM_CPU_KVCACHE_SPACE"] == "9"


def test_a_script_uses_the_server_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_adapters, "_SHARED_MEMORY", tmp_path)
    folder = str(save_tiny_model(tmp_path / "model"))
    with served(tiny_llama(initializer_range=0.3), tiny_tokenizer(), folder) as server:
        arguments = {"model_name_or_path": folder, "dtype": "float32", "prompt_style": "rewrite", "inner_lora_r": 4}
        lm = AdaptationArguments(**arguments, use_vllm=True, vllm_server_base_url=server.url).load()
        server.log.clear()
        answer = lm.answer("Who?", max_answer_length=6)
        assert server.names("begin") == [folder]
    assert answer == AdaptationArguments(**arguments).load().answer("Who?", max_answer_length=6) != ""
