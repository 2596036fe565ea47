"""What the calls of every generator have in common: what is asked for is checked and encoded before anything is written."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.policy import carried_policy
from ..models.access import context_length, unwrap
from ..models.chat_template import end_of_turn
from ..models.encoding import encode_prompt
from ..models.identity import same_base
from ..self_edit import Prompt
from .base import Generation, Sampling, TextGenerator
from .writing import Writing


class ModelGenerator(TextGenerator):
    """
    A generator that has the model in this process. What a call asks for is checked here, for all of them alike; a subclass says
    how the texts are written.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a policy adapter it carries stays active.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        base_model_id (`str`):
            Identity of the base model, which adapters must name.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, base_model_id: str):
        self.model, self.tokenizer, self.base_model_id = model, tokenizer, base_model_id

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt with its completion; `None` where it is not known."""
        return context_length(self.model)

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapters: Sequence[Adapter | None] | None = None,
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        one_line: bool | Sequence[bool] = False,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """Continue prompts (see [`TextGenerator.generate`])."""
        token_ids, limits = read_requests(
            self.tokenizer, prompts, adapters, max_new_tokens, sampling, self.context_length
        )
        self._require_own(adapters)
        lines = [one_line] * len(prompts) if isinstance(one_line, bool) else list(one_line)
        require_one_each(prompts, {"one_line": lines})
        writing = Writing(self.tokenizer, limits, eos_token_ids(self.model, self.tokenizer), lines, on_text, stop)
        self._write_texts(token_ids, adapters or [None] * len(prompts), sampling, writing)
        return writing.finish()

    @abstractmethod
    def _write_texts(
        self,
        prompts: Sequence[list[int]],
        adapters: Sequence[Adapter | None],
        sampling: Sampling | None,
        writing: Writing,
    ) -> None:
        """
        Write a text after each prompt, or until the writing is stopped.

        Args:
            prompts (`Sequence[list[int]]`):
                Their token ids.
            adapters (`Sequence[Adapter | None]`):
                For each its inner adapter, or none.
            sampling ([`Sampling`], *optional*):
                How to sample; greedy where absent.
            writing ([`Writing`]):
                Has the longest texts and the tokens that end them, and takes the tokens.
        """

    def _require_own(self, adapters: Sequence[Adapter | None] | None) -> None:
        """
        Check that inner adapters can be used on the model.

        Raises:
            ValueError: One is for another base model or policy.
        """
        distinct = dict.fromkeys(adapter for adapter in adapters or () if adapter is not None)
        policy = carried_policy(self.model, self.base_model_id) if distinct else None
        for adapter in distinct:
            require_for_model(adapter, policy, self.base_model_id)


def read_requests(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    adapters: Sequence[Adapter | None] | None,
    max_new_tokens: int | Sequence[int],
    sampling: Sampling | None,
    context: int | None,
) -> tuple[list[list[int]], list[int]]:
    """
    The token ids of each prompt, and the most tokens that may be written after it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Reads the prompts.
        prompts, adapters, max_new_tokens, sampling:
            As in [`TextGenerator.generate`].
        context (`int`, *optional*):
            Most tokens of a prompt with its completion.

    Raises:
        ValueError: Fewer than one new token, an empty prompt or one that does not fit the context, chat messages for a
            tokenizer without a template, or values that are not one per prompt.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    seeds = sampling.seeds if sampling is not None else None
    require_one_each(prompts, {"max_new_tokens": limits, "sampling.seeds": seeds, "adapters": adapters})
    if limits and min(limits) < 1:
        raise ValueError(f"max_new_tokens={min(limits)} must be at least 1.")
    token_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    if [] in token_ids:
        raise ValueError(f"prompts[{token_ids.index([])}] is empty; give the model at least one token to continue.")
    sizes = [(len(ids) + limit, len(ids), limit) for ids, limit in zip(token_ids, limits, strict=True)]
    total, length, limit = max(sizes, default=(0, 0, 0))
    if context is not None and total > context:
        raise ValueError(
            f"A prompt of {length} tokens and up to {limit} new ones exceed the model's context of {context} "
            "tokens; shorten the text or ask for fewer new tokens."
        )
    return token_ids, limits


def require_one_each(prompts: Sequence[Prompt], options: Mapping[str, Sequence | None]) -> None:
    """
    Check that options have a value for each prompt, where they are given.

    Raises:
        ValueError: One has more or fewer.
    """
    for name, values in options.items():
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} were given for {len(prompts)} prompts; give one for each.")


def require_for_model(adapter: Adapter, policy: Adapter | None, base_model_id: str) -> None:
    """
    Check that an inner adapter can be used on a base model that carries this policy, or none.

    Raises:
        ValueError: It is for another base model, or was trained on another policy.
    """
    if not same_base(adapter.base_model_id, base_model_id):
        raise ValueError(
            f"This adapter adapts {adapter.base_model_id}, but the loaded base model is {base_model_id}; load "
            f"{adapter.base_model_id} to use it. If the two are the same model by two names, give both one base_model_id."
        )
    if policy is None or adapter.policy is policy:
        return
    if adapter.policy is None or adapter.policy.fingerprint != policy.fingerprint:
        trained_on = "the plain base model" if adapter.policy is None else "another policy adapter"
        raise ValueError(
            f"This adapter was trained on {trained_on}, but this model carries a policy adapter; use it with "
            f"SelfAdaptingLM.from_pretrained({base_model_id!r})."
        )


def eos_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text."""
    eos = unwrap(model).generation_config.eos_token_id
    ids = set(eos) if isinstance(eos, list) else {eos}
    return {token for token in ids | {tokenizer.eos_token_id, end_of_turn(tokenizer)} if token is not None}
