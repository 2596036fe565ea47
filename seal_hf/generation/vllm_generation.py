"""
Generation by a vLLM server, which has the base model; policy and inner adapters are loaded into it while they are used.
"""

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.layout import lora_layout
from ..adapters.policy import carried_policy
from ..models.access import activation_dtype, context_length, without_policy
from ..models.encoding import encode_answer, encode_prompt
from ..models.identity import same_base
from ..self_edit import Prompt
from .base import Generation, Sampling, TextGenerator
from .requests import eos_token_ids, read_requests, require_for_model
from .transformers_generation import TransformersGenerator
from .vllm_adapters import ServedAdapters
from .vllm_client import OLDEST_VERSION, ServedModel, VLLMClient, VLLMRefusal, VLLMServerGone
from .vllm_requests import Put, Texts, side_by_side
from .writing import Writing


# How likely server and trainer find the second half after the first tells whether both have the same base model.
_PROBE = ("The lighthouse at the end of the pier", "was built in 1874 by two brothers who lived there.")
# Nats per token, in the mean. bf16 and NF4 bases differ from themselves by less, most other models by more.
_SAME_MODEL = 0.25


class VLLMGenerator(TextGenerator):
    """
    Generation by a vLLM server of the base model, over HTTP.

    A policy that the model carries is loaded into the server like any adapter, and so is each inner adapter, with the ranks
    of the policy it was trained on: nothing is merged. They are removed again at the end of each call. At most as many are
    loaded at a time as the server takes in one batch, and prompts without any adapter have the server to themselves.

    Draws: a prompt is sampled by vLLM with its own seed. The same server draws the same again for the same prompt, adapter
    and seed as far as its logits are the same; other prompts in the batch change these by rounding. What it draws is not what
    [`TransformersGenerator`] draws. Greedy texts are the same in fp32. Where the server was gone in the middle of a sampled
    text, the rest has a seed of its own.

    Prompts that begin alike, such as k times the same one, are read once by the server's prefix cache.

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

    Attributes:
        context_length (`int`, *optional*):
            Most tokens of a prompt with its completion, for the model and for the server.

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
        self.model, self.tokenizer, self.base_model_id = model, tokenizer, base_model_id
        self._client = VLLMClient(base_url)
        self._local = TransformersGenerator(model, tokenizer, base_model_id)
        self._adapters = ServedAdapters(self._client, activation_dtype(model), folder)
        self._max_loras = 1
        self._require_version()
        served = self._find_base()
        self._served_name = served.name
        contexts = [context for context in (context_length(model), served.context) if context is not None]
        self.context_length = min(contexts, default=None)

    def check(self, peft_config: LoraConfig, *, on_policy: bool = True) -> None:
        """
        Check that the server has the same base model and takes the adapters that are to come.

        Args:
            peft_config (`LoraConfig`):
                Shape of the inner adapters.
            on_policy (`bool`, *optional*, defaults to `True`):
                Whether they are trained on top of a policy that the model carries.

        Raises:
            ValueError: It has another base model, runs without LoRA, loads no adapters while it runs, takes lower ranks
                only, does not see the folder that they are written to, has adapters of another run, or shares requests out
                to several copies of the model.
            VLLMServerGone: It does not answer.
            OSError: An adapter could not be written.
        """
        if (num_replicas := self._client.engine().num_replicas) > 1:
            raise ValueError(
                f"The vLLM server {self._client.base_url} shares requests out to {num_replicas} copies of the model, and "
                "loads an adapter into one of them alone; start it without --data-parallel-size."
            )
        with self._adapters.turn(lambda: False), without_policy(self.model):
            self._require_same_weights()
        with nullcontext() if on_policy else without_policy(self.model):
            policy, layout = carried_policy(self.model, self.base_model_id), lora_layout(self.model, peft_config)
            fresh = Adapter(layout, layout.initial_weights(0), self.base_model_id, policy)
            self.generate([_PROBE[0]], [fresh], max_new_tokens=1)
        self.generate([_PROBE[0]], max_new_tokens=1)
        self._max_loras = self._client.engine().max_loras or 1

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapters: Sequence[Adapter | None] | None = None,
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """
        Continue prompts (see [`TextGenerator.generate`]).

        Raises:
            ValueError: As there; or the server has adapters of another run, or does not take what it is given.
            VLLMServerGone: It does not answer, though it was waited for.
            OSError: An adapter could not be written.
        """
        token_ids, limits = read_requests(
            self.tokenizer, prompts, adapters, max_new_tokens, sampling, self.context_length
        )
        eos_ids = eos_token_ids(self.model, self.tokenizer)
        policy = carried_policy(self.model, self.base_model_id)
        places_of: dict[Adapter | None, list[int]] = {}
        for place, own in enumerate(adapters or [None] * len(prompts)):
            if own is not None:
                require_for_model(own, policy, self.base_model_id)
            places_of.setdefault(own or policy, []).append(place)
        cancelled = threading.Event()
        texts = Texts(
            token_ids, limits, sampling, eos_ids, lambda: cancelled.is_set() or (stop is not None and stop.is_set())
        )
        writing = Writing(self.tokenizer, limits, eos_ids, on_text, stop)

        def write(adapter: Adapter | None, put: Put) -> None:
            def attempt() -> None:
                if texts.is_stopped():
                    return
                with self._name_of(adapter) as name:
                    texts.write(self._client, name, places_of[adapter], put)

            self._client.persist(attempt, texts.is_stopped)

        with self._adapters.turn(texts.is_stopped) if prompts else nullcontext(False) as has_turn:
            # Those without an adapter first and alone; see ServedAdapters.
            for jobs in ([one for one in places_of if one is None], [one for one in places_of if one is not None]):
                if has_turn and not texts.is_stopped():
                    side_by_side(write, jobs, self._max_loras, writing, cancelled)
        return writing.finish()

    def answer_log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        gold_answers: Sequence[Sequence[str]],
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[float | None]:
        """How likely the gold answers are (see [`TextGenerator.answer_log_likelihoods`]), by the model in this process."""
        return self._local.answer_log_likelihoods(prompts, gold_answers, adapters)

    def clean_up(self) -> None:
        """Remove adapters of a process that was killed from the server (see [`ServedAdapters`])."""
        self._adapters.remove_left()

    def _name_of(self, adapter: Adapter | None) -> AbstractContextManager[str]:
        """The server's name for an adapter, which it has inside the block, or for the base model."""
        return nullcontext(self._served_name) if adapter is None else self._adapters.served(adapter)

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
        found = re.match(r"(\d+)\.(\d+)", version)  # development builds have other names
        if found is not None and tuple(map(int, found.groups())) < OLDEST_VERSION:
            raise ValueError(
                f"The server {self._client.base_url} runs vLLM {version}; upgrade it to {'.'.join(map(str, OLDEST_VERSION))} or newer."
            )

    def _find_base(self) -> ServedModel:
        """The base model on the server."""
        models = [model for model in self._client.models() if not model.is_adapter]
        for model in models:
            if any(same_base(name, self.base_model_id) for name in (model.name, model.path)):
                return model
        names = ", ".join(f"{model.name} (from {model.path})" for model in models)
        raise ValueError(
            f"The vLLM server {self._client.base_url} has {names}, but the base model here is {self.base_model_id}; start "
            f"it with that model, and with --served-model-name {self.base_model_id} where it loads it from elsewhere."
        )

    def _require_same_weights(self) -> None:
        """Check that the server finds a text as likely as the base model does that is loaded here."""
        (own,) = self._local.answer_log_likelihoods([_PROBE[0]], [[_PROBE[1]]])
        prompt, answer = encode_prompt(self.tokenizer, _PROBE[0]), encode_answer(self.tokenizer, *_PROBE)
        found = self._client.prompt_log_probs(self._served_name, prompt + answer)[-len(answer) :]
        served = sum(found) / len(found)
        if own is not None and not abs(served - own) < _SAME_MODEL:
            raise ValueError(
                f"The vLLM server {self._client.base_url} has another base model than the one here, under the name "
                f"{self._served_name}: a text has {served:.2f} nats per token there and {own:.2f} here; start it with the same "
                "weights and revision."
            )
