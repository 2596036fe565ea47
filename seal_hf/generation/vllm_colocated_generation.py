"""Generation by an engine of vLLM in this process."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.layout import lora_layout
from ..adapters.policy import carried_policy
from ..models.access import activation_dtype, context_length, unwrap
from .vllm_adapters import server_rank
from .vllm_engine import MAX_LORAS, EngineAdapters, VLLMColocateConfig, VLLMEngine, installed_version
from .vllm_generation import VLLMGenerator, require_version
from .vllm_requests import Texts
from .writing import Writing


class VLLMColocatedGenerator(VLLMGenerator):
    """
    Generation by an engine of vLLM that this process starts and has for itself (see [`VLLMGenerator`]).

    The engine loads the base model from where the model here was loaded from, unquantized. In a run of many processes each has
    an engine of its own, on its own GPU. New text is reported after each of the engine's steps.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM in this process, which tells the policy and computes likelihoods.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; the engine gets token ids.
        base_model_id (`str`):
            Identity of the base model.
        peft_config (`LoraConfig`):
            Shape of the inner adapters.
        on_policy (`bool`, *optional*, defaults to `True`):
            Whether they are trained on top of a policy that the model carries.
        config ([`VLLMColocateConfig`], *optional*):
            The engine's memory and sleep mode.
        folder (`Path`, *optional*):
            Where adapters are written for the engine (see [`EngineAdapters`]).

    Raises:
        ImportError: vLLM is not installed.
        ValueError: It is too old, takes no adapters of such a rank, or the engine could not be started.
        OSError: The folder cannot be written.
    """

    _described = "The vLLM engine of this process"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        base_model_id: str,
        peft_config: LoraConfig,
        *,
        on_policy: bool = True,
        config: VLLMColocateConfig | None = None,
        folder: Path | None = None,
    ):
        super().__init__(model, tokenizer, base_model_id)
        require_version(installed_version(), "This environment")
        base, policy = unwrap(model).config, carried_policy(model, base_model_id)
        ranks = lora_layout(model, peft_config).r, policy.layout.r if policy is not None else 0
        dtype = activation_dtype(model)
        self._engine = VLLMEngine(
            base.name_or_path or base_model_id,
            getattr(base, "_commit_hash", None),
            dtype,
            model.device,
            server_rank(sum(ranks) if on_policy else max(ranks)),
            config or VLLMColocateConfig(),
        )
        self._adapters = EngineAdapters(self._engine, dtype, folder)
        self._lock = threading.Lock()

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt with its completion, for the model and for the engine."""
        own = context_length(self.model)
        return self._engine.context_length if own is None else min(own, self._engine.context_length)

    @contextmanager
    def _turn(self, is_stopped: Callable[[], bool]) -> Iterator[bool]:
        while not self._lock.acquire(timeout=0.5):
            if is_stopped():
                yield False
                return
        try:
            self._engine.wake()
            try:
                yield not is_stopped()
            finally:
                self._engine.sleep()
        finally:
            self._lock.release()

    def _write_with(self, places_of: Mapping[Adapter | None, Sequence[int]], texts: Texts, writing: Writing) -> None:
        waiting, num_left = deque(places_of), {}
        adapter_at = {place: adapter for adapter, places in places_of.items() for place in places}
        with ExitStack() as all_loaded:
            loaded: dict[Adapter | None, ExitStack] = {}
            try:
                while (waiting or num_left) and not writing.is_stopped and not texts.is_stopped():
                    while waiting and len(num_left) < MAX_LORAS:
                        adapter = waiting.popleft()
                        loaded[adapter] = all_loaded.enter_context(ExitStack())
                        name = loaded[adapter].enter_context(self._name_of(adapter))
                        for place in places_of[adapter]:
                            self._engine.add(place, texts.prompts[place], texts.options(place), name)
                        num_left[adapter] = len(places_of[adapter])
                    news = self._engine.step()
                    for place, tokens, is_done in news:
                        for token in tokens:
                            writing.add(place, token)
                        num_left[adapter_at[place]] -= is_done
                    writing.report([place for place, _, _ in news])
                    for adapter in [one for one, left in num_left.items() if left == 0]:
                        del num_left[adapter]
                        loaded.pop(adapter).close()
            finally:
                self._engine.abort()  # before its adapters go

    def _name_of(self, adapter: Adapter | None) -> AbstractContextManager[str | None]:
        """The engine's name for an adapter, which it has inside the block; `None` for the base model."""
        return nullcontext() if adapter is None else self._adapters.loaded(adapter)

    def _prompt_log_probs(self, token_ids: list[int]) -> list[float]:
        return self._engine.log_probs(token_ids)
