"""
Generation by vLLM, which has the base model; policy and inner adapters are loaded into it while they are used.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.layout import LoraLayout, lora_layout
from ..adapters.policy import carried_policy
from ..models.access import without_policy
from ..models.encoding import encode_answer, encode_prompt
from ..self_edit import Prompt
from .base import Sampling
from .requests import ModelGenerator
from .transformers_generation import TransformersGenerator
from .vllm_requests import Texts
from .writing import Writing


# The oldest vLLM whose interface is known: that of the extra `vllm`.
OLDEST_VERSION = (0, 31)
# How likely vLLM and trainer find the second half after the first tells whether both have the same base model.
_PROBE = ("The lighthouse at the end of the pier", "was built in 1874 by two brothers who lived there.")
# Nats per token, in the mean. bf16 and NF4 bases differ from themselves by less, most other models by more.
_SAME_MODEL = 0.25


def require_version(version: str, described: str) -> None:
    """
    Check that vLLM is not too old.

    Args:
        version (`str`):
            Its version.
        described (`str`):
            What the message calls it.

    Raises:
        ValueError: It is older than [`OLDEST_VERSION`].
    """
    found = re.match(r"(\d+)\.(\d+)", version)  # development builds have other names
    if found is not None and tuple(map(int, found.groups())) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ValueError(f"{described} runs vLLM {version}; upgrade it to {oldest} or newer.")


class VLLMGenerator(ModelGenerator):
    """
    Generation by vLLM with the base model: what a server of it ([`VLLMServerGenerator`]) and an engine in this process
    ([`VLLMColocatedGenerator`]) have in common.

    A policy that the model carries is loaded into vLLM like any adapter, and so is each inner adapter, with the ranks of the
    policy it was trained on: nothing is merged. They are removed again at the end of each call. At most as many are loaded at a
    time as vLLM takes in one batch, and prompts without any adapter have it to themselves.

    Draws: a prompt is sampled by vLLM with its own seed. It draws the same again for the same prompt, adapter and seed as far as
    its logits are the same; other prompts in the batch change these by rounding. What it draws is not what
    [`TransformersGenerator`] draws. Greedy texts are the same in fp32.

    Prompts that begin alike, such as k times the same one, are read once by its prefix cache.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM in this process, which tells the policy and computes likelihoods.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; vLLM gets token ids.
        base_model_id (`str`):
            Identity of the base model.
    """

    _described: str  # what messages call it

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, base_model_id: str):
        super().__init__(model, tokenizer, base_model_id)
        self._local = TransformersGenerator(model, tokenizer, base_model_id)
        self._taken: set[tuple[LoraLayout, bool]] = set()  # what check_adapters has found to be taken

    def check(self, peft_config: LoraConfig, *, on_policy: bool = True) -> None:
        """
        Check that vLLM has the same base model and takes the adapters that are to come.

        Args:
            peft_config (`LoraConfig`):
                Shape of the inner adapters.
            on_policy (`bool`, *optional*, defaults to `True`):
                Whether they are trained on top of a policy that the model carries.

        Raises:
            ValueError: It has another base model, or does not take the adapters.
            OSError: It is gone, or an adapter could not be written.
        """
        with self._turn(lambda: False), without_policy(self.model):
            self._require_same_weights()
        self.check_adapters(peft_config, on_policy=on_policy)
        self.generate([_PROBE[0]], max_new_tokens=1)

    def check_adapters(self, peft_config: LoraConfig, *, on_policy: bool = True) -> None:
        """
        Check that vLLM takes the adapters that are to come; it is asked once about those of one shape.

        Args:
            peft_config, on_policy:
                As for [`~VLLMGenerator.check`].

        Raises:
            ValueError: It does not take them.
            OSError: It is gone, or an adapter could not be written.
        """
        layout = lora_layout(self.model, peft_config)
        if (layout, on_policy) in self._taken:
            return
        with nullcontext() if on_policy else without_policy(self.model):
            policy = carried_policy(self.model, self.base_model_id)
            fresh = Adapter(layout, layout.initial_weights(0), self.base_model_id, policy)
            self.generate([_PROBE[0]], [fresh], max_new_tokens=1)
        self._taken.add((layout, on_policy))

    def answer_log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        gold_answers: Sequence[Sequence[str]],
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[float | None]:
        """How likely the gold answers are (see [`TextGenerator.answer_log_likelihoods`]), by the model in this process."""
        return self._local.answer_log_likelihoods(prompts, gold_answers, adapters)

    def _write_texts(
        self,
        prompts: Sequence[list[int]],
        adapters: Sequence[Adapter | None],
        sampling: Sampling | None,
        writing: Writing,
    ) -> None:
        policy = carried_policy(self.model, self.base_model_id)
        alone: dict[Adapter | None, list[int]] = {}
        adapted: dict[Adapter | None, list[int]] = {}
        for place, own in enumerate(adapters):
            adapter = own or policy
            (alone if adapter is None else adapted).setdefault(adapter, []).append(place)
        texts = Texts(prompts, sampling, writing)
        with self._turn(texts.is_stopped) if prompts else nullcontext(False) as has_turn:
            for places_of in (alone, adapted):
                if places_of and has_turn and not texts.is_stopped():
                    self._write_with(places_of, texts, writing)

    @abstractmethod
    def _turn(self, is_stopped: Callable[[], bool]) -> AbstractContextManager[bool]:
        """vLLM for this call alone inside the block, after those who have it now; `False` where the waiting was stopped."""

    @abstractmethod
    def _write_with(self, places_of: Mapping[Adapter | None, Sequence[int]], texts: Texts, writing: Writing) -> None:
        """Write texts with each of these adapters at these places, until they are stopped: with adapters, or with none."""

    @abstractmethod
    def _prompt_log_probs(self, token_ids: list[int]) -> list[float]:
        """The log-probability that vLLM's base model gives each token after the first, in nats."""

    def _require_same_weights(self) -> None:
        """Check that vLLM finds a text as likely as the base model does that is loaded here."""
        (own,) = self._local.answer_log_likelihoods([_PROBE[0]], [[_PROBE[1]]])
        prompt, answer = encode_prompt(self.tokenizer, _PROBE[0]), encode_answer(self.tokenizer, *_PROBE)
        found = self._prompt_log_probs(prompt + answer)[-len(answer) :]
        theirs = sum(found) / len(found)
        if own is not None and not abs(theirs - own) < _SAME_MODEL:
            raise ValueError(
                f"{self._described} has another base model than the one here: a text has {theirs:.2f} nats per token there and "
                f"{own:.2f} here; start it with the same weights and revision."
            )
