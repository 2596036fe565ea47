"""Generation by a vLLM server, over HTTP."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..models.access import activation_dtype, context_length
from ..models.identity import same_base
from .vllm_adapters import ServedAdapters
from .vllm_client import ServedModel, VLLMClient, VLLMRefusal, VLLMServerGone
from .vllm_generation import VLLMGenerator, require_version
from .vllm_requests import Put, Texts, side_by_side
from .writing import Writing


class VLLMServerGenerator(VLLMGenerator):
    """
    Generation by a vLLM server of the base model, over HTTP (see [`VLLMGenerator`]).

    Where the server was gone in the middle of a sampled text, the rest has a seed of its own.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM in this process, which tells the policy and computes likelihoods.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; the server gets token ids.
        base_model_id (`str`):
            Identity of the base model: the name by which the server has it, or the path that it loaded it from.
        base_url (`str`):
            The server's, such as `"http://127.0.0.1:8000"`.
        folder (`Path`, *optional*):
            Where adapters are written for the server (see [`ServedAdapters`]).

    Raises:
        ValueError: No URL, no vLLM server at it, one that is too old or has another base model.
        VLLMServerGone: Nothing answers there.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        base_model_id: str,
        base_url: str,
        folder: Path | None = None,
    ):
        super().__init__(model, tokenizer, base_model_id)
        self._client = VLLMClient(base_url)
        self._described = f"The vLLM server {self._client.base_url}"
        self._adapters = ServedAdapters(self._client, activation_dtype(model), folder)
        self._max_loras = 1
        self._require_version()
        self._served = self._find_base()

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt with its completion, for the model and for the server."""
        contexts = (context_length(self.model), self._served.context)
        return min((context for context in contexts if context is not None), default=None)

    def check(self, peft_config: LoraConfig, *, on_policy: bool = True) -> None:
        """
        Check that the server has the same base model and takes the adapters that are to come (see [`VLLMGenerator.check`]).

        Raises:
            ValueError: It has another base model, runs without LoRA, loads no adapters while it runs, takes lower ranks
                only, does not see the folder that they are written to, has adapters of another run, or shares requests out
                to several copies of the model.
            VLLMServerGone: It does not answer.
            OSError: An adapter could not be written.
        """
        if (num_replicas := self._client.engine().num_replicas) > 1:
            raise ValueError(
                f"{self._described} shares requests out to {num_replicas} copies of the model, and "
                "loads an adapter into one of them alone; start it without --data-parallel-size."
            )
        super().check(peft_config, on_policy=on_policy)
        self._max_loras = self._client.engine().max_loras or 1

    def clean_up(self) -> None:
        """Remove adapters of a process that was killed from the server (see [`ServedAdapters`])."""
        self._adapters.remove_left()

    def _turn(self, is_stopped: Callable[[], bool]) -> AbstractContextManager[bool]:
        return self._adapters.turn(is_stopped)

    def _write_with(self, places_of: Mapping[Adapter | None, Sequence[int]], texts: Texts, writing: Writing) -> None:
        def write(adapter: Adapter | None, put: Put) -> None:
            def attempt() -> None:
                if texts.is_stopped():
                    return
                with self._name_of(adapter) as name:
                    texts.write(self._client, name, places_of[adapter], put)

            self._client.persist(attempt, texts.is_stopped)

        side_by_side(write, list(places_of), self._max_loras, writing, texts.cancelled)

    def _name_of(self, adapter: Adapter | None) -> AbstractContextManager[str]:
        """The server's name for an adapter, which it has inside the block, or for the base model."""
        return nullcontext(self._served.name) if adapter is None else self._adapters.loaded(adapter)

    def _prompt_log_probs(self, token_ids: list[int]) -> list[float]:
        return self._client.prompt_log_probs(self._served.name, token_ids)

    def _require_version(self) -> None:
        """Check that there is a vLLM server, and that it is not too old."""
        try:
            version = self._client.version()
        except VLLMServerGone as error:
            raise VLLMServerGone(
                f"{error} Start one with `make vllm-server`, or give its URL as vllm_server_base_url."
            ) from error
        except VLLMRefusal as error:
            raise ValueError(
                f"There is no vLLM server at vllm_server_base_url={self._client.base_url!r} ({error.said}); start one "
                "with `make vllm-server`, or correct the URL."
            ) from error
        require_version(version, self._described)

    def _find_base(self) -> ServedModel:
        """The base model on the server."""
        models = [model for model in self._client.models() if not model.is_adapter]
        for model in models:
            if any(same_base(name, self.base_model_id) for name in (model.name, model.path)):
                return model
        names = ", ".join(f"{model.name} (from {model.path})" for model in models)
        raise ValueError(
            f"{self._described} has {names}, but the base model here is {self.base_model_id}; start "
            f"it with that model, and with --served-model-name {self.base_model_id} where it loads it from elsewhere."
        )
