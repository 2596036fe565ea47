"""
Batched text generation: many prompts at once, an adapter per row, reproducible samples, text as it is written.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .adapter_bank import AdapterBank
from .lora_layout import unwrap


Prompt = str | list[dict]
# Tokens that top-p looks at before it sorts the whole vocabulary.
_NUCLEUS_CANDIDATES = 1024


@dataclass(frozen=True)
class Sampling:
    """
    Nucleus sampling with a random stream of its own for every row.

    Parameters:
        seeds (`tuple[int, ...]`):
            One per prompt. What a row draws depends on its seed alone, whatever else is in the batch.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; above 0.
        top_p (`float`, *optional*, defaults to `0.95`):
            Smallest total probability of the tokens that are drawn from; above 0, at most 1.

    Raises:
        ValueError: A value out of its range.
    """

    seeds: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 0.95

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0; a small one such as 0.01 is almost greedy."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1.")


def draw_seed(*parts: int) -> int:
    """A seed for one random stream, such as `draw_seed(seed, example, edit)`; unrelated to those of other parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Generation:
    """
    One generated text.

    Parameters:
        text (`str`):
            The completion, without special tokens.
        num_tokens (`int`):
            Generated tokens, the end-of-sequence token included.
        finished (`bool`):
            Whether the model ended it itself, rather than the length limit or a stop.
    """

    text: str
    num_tokens: int
    finished: bool


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    bank: AdapterBank | None = None,
    rows: Sequence[int | None] | None = None,
    on_text: Callable[[list[str]], bool | None] | None = None,
    stop: threading.Event | None = None,
    batch_size: int = 64,
) -> list[Generation]:
    """
    Continue prompts in batches.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a policy adapter it carries stays active.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            Plain texts, or chat messages for the tokenizer's template.
        max_new_tokens (`int`):
            Longest completion, in tokens.
        sampling ([`Sampling`], *optional*):
            How to sample; greedy where absent.
        bank ([`AdapterBank`], *optional*):
            Adapters that rows may use.
        rows (`Sequence[int | None]`, *optional*):
            For each prompt the adapter in `bank`, or `None` for no inner adapter.
        on_text (`Callable[[list[str]], bool | None]`, *optional*):
            Called after every step with the new text of every prompt (`""` where there is none); generation stops when
            it returns `True`. A character of several tokens is passed on in whole; where a text ends in the middle of
            one, a last call gives the rest, so that the new texts always add up to the text returned.
        stop (`threading.Event`, *optional*):
            Checked after every step; once set, what has been written so far is returned.
        batch_size (`int`, *optional*, defaults to `64`):
            Most prompts in one batch. Batches are cut in the order given.

    Returns:
        `list[Generation]`: one per prompt, in order.

    Raises:
        ValueError: Fewer than one new token, an empty prompt or one that does not fit the model's context, chat messages for a
            tokenizer without a template, a tokenizer with neither padding nor end-of-sequence token, or adapters or
            seeds that are not one per prompt.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    for name, values in (("sampling.seeds", sampling and sampling.seeds), ("rows", rows)):
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} were given for {len(prompts)} prompts; give one for each.")
    if (bank is None) != (rows is None):
        raise ValueError("`bank` and `rows` belong together; give both or neither.")
    token_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    if [] in token_ids:
        raise ValueError(f"prompts[{token_ids.index([])}] is empty; give the model at least one token to continue.")
    longest, context = max((len(ids) for ids in token_ids), default=0), context_length(model)
    if context is not None and longest + max_new_tokens > context:
        raise ValueError(
            f"A prompt of {longest} tokens and up to {max_new_tokens} new ones exceed the model's context of {context} "
            "tokens; shorten the text or ask for fewer new tokens."
        )
    progress = _Progress(tokenizer, len(prompts), on_text, stop)
    generations: list[Generation] = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        if progress.stopped:
            generations += [Generation("", 0, False) for _ in token_ids[batch]]
            continue
        attached = bank.attach(rows[batch]) if bank is not None else nullcontext()
        sampler = _Sampler(sampling, batch, model.device) if sampling is not None else None
        with attached:
            generations += _generate_batch(
                model, tokenizer, token_ids[batch], max_new_tokens, sampler, progress, start
            )
    return generations


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """
    Token ids of a plain or chat prompt.

    Raises:
        ValueError: Chat messages, but the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template for a prompt of messages; use plain "
            "prompts (`chat=False`) or set `tokenizer.chat_template`."
        )
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def context_length(model: nn.Module) -> int | None:
    """Most tokens that the model attends to; `None` where its config does not say."""
    return getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)


@torch.no_grad()
def _generate_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[list[int]],
    max_new_tokens: int,
    sampler: "_Sampler | None",
    progress: "_Progress",
    first_prompt: int,
) -> list[Generation]:
    base = unwrap(model)
    length = max(len(ids) for ids in token_ids)
    eos_ids = _eos_token_ids(base, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids, default=None)
    if pad_id is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has neither a padding nor an end-of-sequence token; set "
            "`tokenizer.pad_token`."
        )
    # Padding is on the left, so that every row goes on at the last position.
    input_ids = torch.tensor([[pad_id] * (length - len(ids)) + ids for ids in token_ids], device=model.device)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in token_ids], device=model.device)
    progress.start_batch(first_prompt, length, eos_ids)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    with _inference(base, config):
        output = base.generate(
            input_ids=input_ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([sampler] if sampler else []),
            stopping_criteria=StoppingCriteriaList([progress]),
        )
    generations = []
    for ids in output[:, length:].tolist():
        end = next((i for i, token in enumerate(ids) if token in eos_ids), None)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        generations.append(Generation(text, len(ids) if end is None else end + 1, end is not None))
    progress.finish_batch([generation.text for generation in generations])
    return generations


def _eos_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    eos = model.generation_config.eos_token_id
    ids = set(eos) if isinstance(eos, list) else {eos}
    return {token for token in ids | {tokenizer.eos_token_id} if token is not None}


@contextmanager
def _inference(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """
    Evaluation mode and our generation config for one call.

    `generate` fills what a config leaves open from the model's own, which for many models holds a repetition penalty or
    other settings that would change greedy answers and sampling; so the model's own is set aside.
    """
    own_config, training = model.generation_config, [module for module in model.modules() if module.training]
    model.generation_config = config
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own_config
        for module in training:
            module.training = True


class _Sampler(LogitsProcessor):
    """
    Leaves only the token that the row's own stream draws, for the greedy choice that follows.

    `generate` samples all rows from one global stream, so that a sample would change with the batch around it. Here each
    row draws one uniform number per step, and takes the token at that point of its nucleus' cumulative distribution.
    """

    def __init__(self, sampling: Sampling, batch: slice, device: torch.device):
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds[batch]]
        self.device = device

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        draws = torch.stack([torch.rand((), generator=generator) for generator in self.generators]).to(self.device)
        probabilities = torch.softmax(scores.float() / self.temperature, dim=-1)
        tokens, held = self._choose(probabilities, draws, min(_NUCLEUS_CANDIDATES, probabilities.shape[-1]))
        # Only these rows, since the order of equal probabilities, and so the draw, may change with the candidates.
        wide = held < self.top_p
        if bool(wide.any()):
            tokens[wide], _ = self._choose(probabilities[wide], draws[wide], probabilities.shape[-1])
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, 0.0)

    def _choose(
        self, probabilities: torch.Tensor, draws: torch.Tensor, num_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drawn tokens `(R, 1)`, and the total probability `(R,)` of the candidates that they were drawn from."""
        candidates, tokens = probabilities.topk(num_candidates)
        cumulative = candidates.cumsum(-1)  # (R, C)
        # The nucleus ends with the token that brings the total to top_p.
        last = (cumulative < self.top_p).sum(-1, keepdim=True).clamp(max=num_candidates - 1)
        points = draws[:, None] * cumulative.gather(-1, last)
        chosen = torch.searchsorted(cumulative, points, right=True).clamp(max=last)
        return tokens.gather(-1, chosen), cumulative[:, -1]


class _Progress(StoppingCriteria):
    """Reports new text after every step, and stops when asked to."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_prompts: int,
        on_text: Callable[[list[str]], bool | None] | None,
        stop: threading.Event | None,
    ):
        self.tokenizer, self.num_prompts, self.on_text, self.stop = tokenizer, num_prompts, on_text, stop
        self.stopped = False

    def start_batch(self, first_prompt: int, prompt_length: int, eos_ids: set[int]) -> None:
        self.first_prompt, self.prompt_length, self.eos_ids = first_prompt, prompt_length, eos_ids
        self.written: dict[int, str] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        if self.on_text is not None and self.on_text(self._new_texts(input_ids)):
            self.stopped = True
        if self.stop is not None and self.stop.is_set():
            self.stopped = True
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)

    def finish_batch(self, texts: Sequence[str]) -> None:
        """Report what was held back of texts that end in the middle of a character."""
        new_texts = self._unwritten(texts)
        if self.on_text is not None and any(new_texts) and self.on_text(new_texts):
            self.stopped = True

    def _new_texts(self, input_ids: torch.LongTensor) -> list[str]:
        texts = []
        for ids in input_ids[:, self.prompt_length :].tolist():
            end = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
            text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
            # A character of several tokens decodes to U+FFFD until its last one is there.
            texts.append("" if text.endswith("\ufffd") else text)
        return self._unwritten(texts)

    def _unwritten(self, texts: Sequence[str]) -> list[str]:
        new_texts = [""] * self.num_prompts
        for row, text in enumerate(texts):
            written = self.written.get(row, "")
            if len(text) > len(written):
                new_texts[self.first_prompt + row] = text[len(written) :]
                self.written[row] = text
        return new_texts
