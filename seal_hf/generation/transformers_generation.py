"""
Batched text generation with transformers: an adapter per row, reproducible samples, text as it is written.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.bank import StackedAdapters
from ..adapters.policy import carried_policy
from ..models.access import context_length, evaluating, unwrap
from ..models.encoding import encode_prompt
from ..self_edit import Prompt
from .base import Generation, Sampling, TextGenerator
from .decoder import Decoder
from .likelihood import answer_log_likelihoods
from .sampling import Sampler


# Prompts and new tokens that a batch holds at most; rows of long texts make smaller batches.
_TOKENS_PER_BATCH = 2**16
# Share of a batch's rows that may be done before the batch continues without them.
_DONE = 0.25


class TransformersGenerator(TextGenerator):
    """
    Generation with transformers, in batches whose rows have adapters of their own.

    What a row draws depends on its seed alone, whatever else is in the batch.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a policy adapter it carries stays active.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        base_model_id (`str`):
            Identity of the base model, which adapters must name.
        batch_size (`int`, *optional*, defaults to `256`):
            Most prompts in one batch; of long texts it holds fewer. With `on_text` batches are cut in the order given.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, base_model_id: str, *, batch_size: int = 256
    ):
        self.model, self.tokenizer, self.base_model_id, self.batch_size = model, tokenizer, base_model_id, batch_size

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
        """Continue prompts (see [`TextGenerator.generate`])."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        seeds = sampling.seeds if sampling is not None else None
        _require_one_each(prompts, {"max_new_tokens": limits, "sampling.seeds": seeds, "adapters": adapters})
        if limits and min(limits) < 1:
            raise ValueError(f"max_new_tokens={min(limits)} must be at least 1.")
        token_ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        self._require_fitting(token_ids, limits)
        stacked, numbers = self._stack(adapters, len(prompts))
        progress = _Progress(self.tokenizer, len(prompts), on_text, stop)
        generations = [Generation("", 0, False)] * len(prompts)
        lengths = [len(ids) + limit for ids, limit in zip(token_ids, limits, strict=True)]
        for batch in _batches(lengths, numbers, self.batch_size, in_order=on_text is not None):
            if progress.stopped:
                break
            written = self._generate_batch(
                [token_ids[place] for place in batch],
                [limits[place] for place in batch],
                Sampler(sampling, [sampling.seeds[place] for place in batch]) if sampling is not None else None,
                stacked,
                [numbers[place] for place in batch],
                progress.start_batch(batch),
            )
            for place, generation in zip(batch, written, strict=True):
                generations[place] = generation
        return generations

    def answer_log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        gold_answers: Sequence[Sequence[str]],
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[float | None]:
        """How likely the gold answers are (see [`TextGenerator.answer_log_likelihoods`])."""
        _require_one_each(prompts, {"lists of gold answers": gold_answers, "adapters": adapters})
        stacked, numbers = self._stack(adapters, len(prompts))
        return answer_log_likelihoods(self.model, self.tokenizer, prompts, gold_answers, stacked, numbers)

    def _stack(
        self, adapters: Sequence[Adapter | None] | None, num_prompts: int
    ) -> tuple[StackedAdapters | None, list[int | None]]:
        """The adapters, each once, in the order in which they first occur, and for every prompt its number in them."""
        distinct = list(dict.fromkeys(adapter for adapter in adapters or () if adapter is not None))
        if not distinct:
            return None, [None] * num_prompts
        policy = carried_policy(self.model, self.base_model_id)
        for adapter in distinct:
            self._require_for_model(adapter, policy)
        # An adapter that was trained on a policy includes it where the model carries none.
        own = distinct if policy is not None else [adapter.on_base() for adapter in distinct]
        numbers = {adapter: number for number, adapter in enumerate(distinct)}
        return StackedAdapters.of(self.model, own), [adapter and numbers[adapter] for adapter in adapters]

    def _require_for_model(self, adapter: Adapter, policy: Adapter | None) -> None:
        if adapter.base_model_id != self.base_model_id:
            raise ValueError(
                f"This adapter adapts {adapter.base_model_id}, but the loaded base model is {self.base_model_id}; load "
                f"{adapter.base_model_id} to use it."
            )
        if policy is None or adapter.policy is policy:
            return
        if adapter.policy is None or adapter.policy.fingerprint != policy.fingerprint:
            trained_on = "the plain base model" if adapter.policy is None else "another policy adapter"
            raise ValueError(
                f"This adapter was trained on {trained_on}, but this model carries a policy adapter; use it with "
                f"SelfAdaptingLM.from_pretrained({self.base_model_id!r})."
            )

    def _require_fitting(self, token_ids: Sequence[list[int]], limits: Sequence[int]) -> None:
        if [] in token_ids:
            raise ValueError(
                f"prompts[{token_ids.index([])}] is empty; give the model at least one token to continue."
            )
        context = context_length(self.model)
        sizes = [(len(ids) + limit, len(ids), limit) for ids, limit in zip(token_ids, limits, strict=True)]
        total, length, limit = max(sizes, default=(0, 0, 0))
        if context is not None and total > context:
            raise ValueError(
                f"A prompt of {length} tokens and up to {limit} new ones exceed the model's context of {context} "
                "tokens; shorten the text or ask for fewer new tokens."
            )

    def _generate_batch(
        self,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        sampler: Sampler | None,
        stacked: StackedAdapters | None,
        adapters: Sequence[int | None],
        progress: "_Progress",
    ) -> list[Generation]:
        eos_ids = _eos_token_ids(unwrap(self.model), self.tokenizer)
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(eos_ids, default=None)
        if pad_id is None:
            raise ValueError(
                f"The tokenizer of {self.tokenizer.name_or_path} has neither a padding nor an end-of-sequence token; set "
                "`tokenizer.pad_token`."
            )
        written: list[list[int]] = [[] for _ in prompts]
        ended, done = [False] * len(prompts), [False] * len(prompts)  # by the model; by the model or the limit
        rows = list(range(len(prompts)))  # those that the decoder still holds
        with evaluating(self.model), Decoder(self.model, pad_id, adapters, stacked) as decoder:
            logits = decoder.read(prompts)
            while True:
                tokens = sampler(logits) if sampler is not None else _likeliest(logits)
                for row, token in zip(rows, tokens.tolist(), strict=True):
                    if not done[row]:
                        written[row].append(token)
                        ended[row] = token in eos_ids
                        done[row] = ended[row] or len(written[row]) == limits[row]
                texts_end = [len(ids) - end for ids, end in zip(written, ended, strict=True)]
                progress.step([ids[:end] for ids, end in zip(written, texts_end, strict=True)])
                if progress.stopped or all(done):
                    break
                going = [place for place, row in enumerate(rows) if not done[row]]
                if decoder.is_selectable and len(going) <= (1 - _DONE) * len(rows):
                    decoder.keep(going)
                    tokens, rows = tokens[going], [rows[place] for place in going]
                    if sampler is not None:
                        sampler.keep(going)
                logits = decoder.step(tokens)
        texts = [
            self.tokenizer.decode(ids[: len(ids) - end], skip_special_tokens=True)
            for ids, end in zip(written, ended, strict=True)
        ]
        progress.finish_batch(texts)
        return [Generation(text, len(ids), end) for text, ids, end in zip(texts, written, ended, strict=True)]


def _require_one_each(prompts: Sequence[Prompt], options: Mapping[str, Sequence | None]) -> None:
    for name, values in options.items():
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} were given for {len(prompts)} prompts; give one for each.")


def _batches(
    lengths: Sequence[int], adapters: Sequence[int | None], batch_size: int, in_order: bool
) -> Iterator[list[int]]:
    """
    The places of the prompts of each batch: cut in the order given, or with adapters and equal lengths together.

    Lengths are of the prompt and its longest completion.
    """

    def adapter(place: int) -> int:
        return -1 if adapters[place] is None else adapters[place]

    places = list(range(len(lengths)))
    if not in_order:
        places.sort(key=lambda place: (adapter(place), -lengths[place]))
    batch: list[int] = []
    longest = 0
    for place in places:
        longest = max(longest, lengths[place])
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > _TOKENS_PER_BATCH):
            yield sorted(batch, key=adapter)
            batch, longest = [], lengths[place]
        batch.append(place)
    if batch:
        yield sorted(batch, key=adapter)


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The token `(R,)` of the highest logit; in parts, and not in bf16, for which CPUs have no fast kernel."""
    return torch.cat([part.float().argmax(-1) for part in logits.split(64)])


def _eos_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    eos = model.generation_config.eos_token_id
    ids = set(eos) if isinstance(eos, list) else {eos}
    return {token for token in ids | {tokenizer.eos_token_id} if token is not None}


class _Progress:
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

    def start_batch(self, places: Sequence[int]) -> "_Progress":
        """Start with the prompts at these indices."""
        self.places, self.lengths, self.written = places, [0] * len(places), [""] * len(places)
        return self

    def step(self, token_ids: Sequence[list[int]]) -> None:
        """Report what the batch's tokens so far add to its texts."""
        if self.on_text is not None and self.on_text(self._new_texts(token_ids)):
            self.stopped = True
        if self.stop is not None and self.stop.is_set():
            self.stopped = True

    def finish_batch(self, texts: Sequence[str]) -> None:
        """Report what was held back of texts that end in the middle of a character."""
        new_texts = self._unwritten(texts)
        if self.on_text is not None and any(new_texts) and self.on_text(new_texts):
            self.stopped = True

    def _new_texts(self, token_ids: Sequence[list[int]]) -> list[str]:
        texts = []
        for row, ids in enumerate(token_ids):
            grown = len(ids) > self.lengths[row]
            self.lengths[row] = len(ids)
            text = self.tokenizer.decode(ids, skip_special_tokens=True) if grown else ""
            # A character of several tokens decodes to U+FFFD until its last one is there.
            texts.append("" if text.endswith("\ufffd") else text)
        return self._unwritten(texts)

    def _unwritten(self, texts: Sequence[str]) -> list[str]:
        new_texts = [""] * self.num_prompts
        for row, (place, text) in enumerate(zip(self.places, texts, strict=True)):
            new_texts[place] = text[len(self.written[row]) :]
            if new_texts[place]:
                self.written[row] = text
        return new_texts
