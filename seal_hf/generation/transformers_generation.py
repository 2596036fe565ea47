"""
Batched text generation: many prompts at once, an adapter per row, reproducible samples, text as it is written.
"""

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.bank import AdapterBank
from ..models.access import context_length, evaluating, unwrap
from ..models.encoding import encode_prompt
from ..self_edit import Prompt
from .base import Generation, Sampling
from .decoder import Decoder
from .sampling import Sampler


# Prompts and new tokens that a batch holds at most; rows of long texts make smaller batches.
_TOKENS_PER_BATCH = 2**16
# Share of a batch's rows that may be done before the others go on without them.
_DONE = 0.25


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
    batch_size: int = 256,
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
        batch_size (`int`, *optional*, defaults to `256`):
            Most prompts in one batch; of long texts it holds fewer. With `on_text` batches are cut in the order given.

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
    generations = [Generation("", 0, False)] * len(prompts)
    for batch in _batches(token_ids, rows, max_new_tokens, batch_size, in_order=on_text is not None):
        if progress.stopped:
            break
        written = _generate_batch(
            model,
            tokenizer,
            [token_ids[place] for place in batch],
            max_new_tokens,
            Sampler(sampling, [sampling.seeds[place] for place in batch]) if sampling is not None else None,
            bank,
            [rows[place] for place in batch] if rows is not None else [None] * len(batch),
            progress.start_batch(batch),
        )
        for place, generation in zip(batch, written, strict=True):
            generations[place] = generation
    return generations


def _batches(
    token_ids: Sequence[list[int]],
    rows: Sequence[int | None] | None,
    max_new_tokens: int,
    batch_size: int,
    in_order: bool,
) -> Iterator[list[int]]:
    """The places of the prompts of each batch: cut in the order given, or with adapters and equal lengths together."""

    def adapter(place: int) -> int:
        return -1 if rows is None or rows[place] is None else rows[place]

    places = list(range(len(token_ids)))
    if not in_order:
        places.sort(key=lambda place: (adapter(place), -len(token_ids[place])))
    batch: list[int] = []
    longest = 0
    for place in places:
        longest = max(longest, len(token_ids[place]))
        if batch and (len(batch) == batch_size or (len(batch) + 1) * (longest + max_new_tokens) > _TOKENS_PER_BATCH):
            yield sorted(batch, key=adapter)
            batch, longest = [], len(token_ids[place])
        batch.append(place)
    if batch:
        yield sorted(batch, key=adapter)


def _generate_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampler: Sampler | None,
    bank: AdapterBank | None,
    adapters: Sequence[int | None],
    progress: "_Progress",
) -> list[Generation]:
    eos_ids = _eos_token_ids(unwrap(model), tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids, default=None)
    if pad_id is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has neither a padding nor an end-of-sequence token; set "
            "`tokenizer.pad_token`."
        )
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows = list(range(len(prompts)))  # those that the decoder still holds
    with evaluating(model), Decoder(model, pad_id, adapters, bank) as decoder:
        logits = decoder.read(prompts)
        for num_tokens in range(1, max_new_tokens + 1):
            tokens = sampler(logits) if sampler is not None else _likeliest(logits)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in eos_ids
            texts_end = [len(ids) - end for ids, end in zip(written, ended, strict=True)]
            progress.step([ids[:end] for ids, end in zip(written, texts_end, strict=True)])
            if progress.stopped or all(ended) or num_tokens == max_new_tokens:
                break
            going = [place for place, row in enumerate(rows) if not ended[row]]
            if decoder.is_selectable and len(going) <= (1 - _DONE) * len(rows):
                decoder.keep(going)
                tokens, rows = tokens[going], [rows[place] for place in going]
                if sampler is not None:
                    sampler.keep(going)
            logits = decoder.step(tokens)
    texts = [
        tokenizer.decode(ids[: len(ids) - end], skip_special_tokens=True)
        for ids, end in zip(written, ended, strict=True)
    ]
    progress.finish_batch(texts)
    return [Generation(text, len(ids), end) for text, ids, end in zip(texts, written, ended, strict=True)]


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
        """Go on with the prompts at these places."""
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
