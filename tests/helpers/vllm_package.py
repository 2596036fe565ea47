"""
A small package in place of vLLM, whose engine has a tiny model, for tests of an engine in this process and of faults.

It loads adapters from their PEFT folders and writes what the transformers backend writes. It proves nothing of vLLM itself:
`tests/generation/test_vllm_parity.py` does.
"""

import json
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

from helpers.adapters import BASE_ID
from helpers.vllm_server import TokenIds, log_probs, written_tokens
from seal_hf.adapters.adapter import Adapter
from seal_hf.generation.transformers_generation import TransformersGenerator


class EngineDeadError(Exception):
    """vLLM's, where the engine's process has ended."""


class Engine:
    """
    Attributes:
        log (`list[tuple]`):
            What it was asked, in order: `("load", name)`, `("unload", name)`, `("begin", name, options)`, `("abort", number)`,
            `("sleep",)`, `("wake",)`.
    """

    def __init__(self, model, tokenizer):
        self.model, self.generator = model, TransformersGenerator(model, TokenIds(tokenizer), BASE_ID)
        self.model_config = SimpleNamespace(max_model_len=4096)
        self.max_loras, self.max_lora_rank, self.options = 0, 0, {}
        self.log, self.adapters, self.most_adapters = [], {}, 0
        self.going: dict[str, tuple[str | None, list[int]]] = {}
        self.is_dead = self.is_asleep = self.has_process = False
        self.finish_reason, self.process = "length", None

    def names(self, kind: str) -> list[str]:
        return [entry[1] for entry in self.log if entry[0] == kind]

    def alive(self) -> None:
        if self.is_dead:
            raise EngineDeadError
        assert not self.is_asleep

    def add_lora(self, request) -> None:
        self.alive()
        self.log.append(("load", request.lora_name))
        r = json.loads(Path(request.lora_path, "adapter_config.json").read_text())["r"]
        if r > self.max_lora_rank:
            raise Exception(f"Call failed: LoRA rank {r} is greater than max_lora_rank {self.max_lora_rank}.")
        self.adapters[request.lora_int_id] = Adapter.from_pretrained(
            request.lora_path, self.model, self.generator.base_model_id
        )
        self.most_adapters = max(self.most_adapters, len(self.adapters))

    def remove_lora(self, number: int) -> None:
        self.alive()
        assert not any(number == own for own, _ in self.going.values())
        self.log.append(("unload", number))
        del self.adapters[number]

    def add_request(self, number: str, prompt: dict, params, lora_request=None) -> None:
        self.alive()
        adapter = None if lora_request is None else lora_request.lora_int_id
        self.log.append(("begin", adapter, params.options))
        (tokens,) = written_tokens(
            self.generator, [prompt["prompt_token_ids"]], self.adapters.get(adapter), params.options
        )
        self.going[number] = (adapter, tokens)
        kinds = {own is None for own, _ in self.going.values()}
        assert len(kinds) == 1, "prompts with and without an adapter are in one batch"

    def step(self) -> list:
        self.alive()
        if self.process is not None and self.process.poll() is not None:
            threading.Event().wait()  # as vLLM's does
        outputs = []
        for number, (adapter, tokens) in list(self.going.items()):
            new, rest = tokens[:3], tokens[3:]
            self.going[number] = (adapter, rest)
            if not rest:
                del self.going[number]
            text = SimpleNamespace(token_ids=new, finish_reason=None if rest else self.finish_reason)
            outputs.append(SimpleNamespace(request_id=number, outputs=[text], finished=not rest))
        return outputs

    def abort_request(self, numbers: list[str]) -> None:
        self.alive()
        for number in numbers:
            self.log.append(("abort", number))
            del self.going[number]


def install(monkeypatch, engine: Engine, version: str = "0.32.0", *, has_sleep_mode: bool = False) -> None:
    """Have `import vllm` give a package whose `LLM` has this engine."""

    class LLM:
        def __init__(self, model, **options):
            if not Path(model).is_dir():
                raise RuntimeError("Engine core initialization failed.")
            engine.options = {"model": model, **options}
            engine.max_loras, engine.max_lora_rank = options["max_loras"], options["max_lora_rank"]
            self.llm_engine = engine
            if engine.has_process:
                engine.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

        def generate(self, prompts, params, use_tqdm):
            engine.alive()
            (ids,) = (prompt["prompt_token_ids"] for prompt in prompts)
            found = zip(ids[1:], log_probs(engine.model, ids), strict=True)
            rest = [{token: SimpleNamespace(logprob=one)} for token, one in found]
            return [SimpleNamespace(prompt_logprobs=[None, *rest])]

        def sleep(self, level):
            engine.alive()
            engine.log.append(("sleep",))
            engine.is_asleep = True

        def wake_up(self):
            engine.log.append(("wake",))
            engine.is_asleep = False

    def sampling_params(detokenize=None, output_kind=None, **options):
        return SimpleNamespace(options=options)

    def lora_request(lora_name, lora_int_id, lora_path):
        return SimpleNamespace(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=lora_path)

    platform = SimpleNamespace(is_sleep_mode_available=lambda: has_sleep_mode)
    members = {
        "vllm": {"__version__": version, "LLM": LLM, "SamplingParams": sampling_params},
        "vllm.platforms": {"current_platform": platform},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA=1)},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lora_request},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
    }
    for name, contents in members.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
