"""
How likely a model finds an answer, and how far adapters have moved from the base: what takes one forward pass over prompt and
answer.

The model's own questions about a passage are chosen by the mean log-probability of an answer's tokens. The divergence from the
base on the new task tells how much is forgotten (Shenfeld et al. 2025, https://arxiv.org/abs/2509.04259).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.bank import StackedAdapters, UnknownRows
from ..models.access import context_length, evaluating, head_input_changed, unwrap
from ..models.architecture import runs_in_batches
from ..models.attention_kernels import without_cudnn
from ..models.encoding import encode_answer, encode_prompt
from ..models.transfers import to_device, to_host
from ..self_edit import Prompt
from .batch_sizes import logits_per_pass, tokens_per_pass
from .halves import in_halves


# Answers of one forward pass on the CPU, which is at full speed with fewer.
_CPU_ANSWERS_PER_PASS = 64
# Logits of one pass of two models on the CPU: 128 MB each in fp32. Positions whose probabilities are held in fp32 at once.
_CPU_LOGITS_PER_PASS, _POSITIONS = 2**25, 64

_Value = TypeVar("_Value")
_Row = tuple[int, list[int], int]  # the prompt's place, token ids, length of the prompt


class Divergence(NamedTuple):
    """
    How far a model is from its base at the tokens of an answer.

    Parameters:
        nats (`float`):
            The sum of the Kullback-Leibler divergences.
        num_tokens (`int`):
            How many tokens that is over.
    """

    nats: float
    num_tokens: int


def answer_log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    gold_answers: Sequence[Sequence[str]],
    stacked: StackedAdapters | None,
    adapters: Sequence[int | None],
) -> list[float | None]:
    """
    What [`TextGenerator.answer_log_likelihoods`] asks for, with the adapters stacked.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a policy adapter it carries stays active.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            Plain texts, or chat messages for the tokenizer's template.
        gold_answers (`Sequence[Sequence[str]]`):
            For each prompt the answers that are right, at least one; the likeliest counts.
        stacked ([`StackedAdapters`] or `None`):
            The adapters.
        adapters (`Sequence[int | None]`):
            For each prompt its adapter in `stacked`; `None` for no inner adapter.

    Returns:
        `list[float | None]`: one per prompt, in nats per token, at most 0; `None` where it is not finite.

    Raises:
        ValueError: A prompt without a gold answer, an empty prompt or answer, or one that does not fit the model's context.
    """
    context = context_length(model)
    pairs: list[_Row] = []
    for place, (prompt, answers) in enumerate(zip(prompts, gold_answers, strict=True)):
        if not answers:
            raise ValueError(f"prompts[{place}] has no gold answer; give at least one.")
        prompt_ids = encode_prompt(tokenizer, prompt)
        for answer in answers:
            if not prompt_ids or not answer.strip():
                raise ValueError(f"prompts[{place}] or its gold answer {answer!r} is empty; give both some text.")
            ids = prompt_ids + encode_answer(tokenizer, prompt, answer)
            if context is not None and len(ids) > context:
                raise ValueError(
                    f"A prompt and its gold answer have {len(ids)} tokens, more than the model's context of {context}; "
                    "shorten or drop the question."
                )
            pairs.append((place, ids, len(prompt_ids)))
    found: list[list[float]] = [[] for _ in prompts]

    def values_of(rows: Sequence[_Row]) -> list[float]:
        with _attached(stacked, adapters, rows):
            return _log_likelihoods(model, rows)

    most = None
    if unwrap(model).device.type == "cuda":
        most = logits_per_pass(model) // unwrap(model).config.get_text_config().vocab_size
    for place, value in _in_passes(model, pairs, stacked, adapters, most, values_of):
        found[place].append(value)
    return [max(values) if all(map(math.isfinite, values)) else None for values in found]


def divergences_from_base(
    model: nn.Module,
    base: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    stacked: StackedAdapters | None,
    adapters: Sequence[int | None],
) -> list[Divergence]:
    """
    The Kullback-Leibler divergence of adapted models from their base, KL(base || adapted), at the tokens of answers: at each token,
    and at the one after the last, where the answer ends.

    Shenfeld et al. (2025) found that on the new task it foretells what is forgotten. They sample answers; here they are given.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM that has the adapters.
        base (`PreTrainedModel` or `PeftModel`):
            What it is compared with, without an inner adapter: mostly the same model.
        tokenizer (`PreTrainedTokenizerBase`):
            Their tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            Plain texts, or chat messages for the tokenizer's template.
        answers (`Sequence[str]`):
            An answer to each prompt; it may be empty. What does not fit the context is left out.
        stacked, adapters:
            As for [`answer_log_likelihoods`].

    Returns:
        `list[Divergence]`: one per prompt, in nats.

    Raises:
        ValueError: An empty prompt.
    """
    context = context_length(model)
    rows: list[_Row] = []
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        prompt_ids = encode_prompt(tokenizer, prompt)
        if not prompt_ids:
            raise ValueError(f"prompts[{place}] is empty; give it some text.")
        ids = prompt_ids + (encode_answer(tokenizer, prompt, answer) if answer.strip() else [])
        rows.append((place, ids[:context], len(prompt_ids)))

    def values_of(rows: Sequence[_Row]) -> list[Divergence]:
        with _attached(stacked, adapters, rows):
            adapted, owners = _logits(model, rows, after=1)
        return _divergences(_logits(base, rows, after=1)[0], adapted, owners, len(rows))

    most_logits = logits_per_pass(model) // 2 if unwrap(model).device.type == "cuda" else _CPU_LOGITS_PER_PASS
    most = most_logits // unwrap(model).config.get_text_config().vocab_size
    found = dict(_in_passes(model, rows, stacked, adapters, most, values_of))
    return [found[place] for place in range(len(prompts))]


def _attached(
    stacked: StackedAdapters | None, adapters: Sequence[int | None], rows: Sequence[_Row]
) -> AbstractContextManager[None]:
    return nullcontext() if stacked is None else stacked.attach([adapters[place] for place, *_ in rows])


def _in_passes(
    model: nn.Module,
    rows: list[_Row],
    stacked: StackedAdapters | None,
    adapters: Sequence[int | None],
    most_answer_tokens: int | None,
    values_of: Callable[[Sequence[_Row]], list[_Value]],
) -> Iterator[tuple[int, _Value]]:
    """The value of each row with its place, from forward passes over rows of like length, so that little of them is padding."""
    rows = sorted(rows, key=lambda row: -len(row[1]))

    def evaluate(batch: Sequence[int]) -> Iterator[list[tuple[int, _Value]]]:
        own = [rows[row] for row in batch]
        try:
            values = values_of(own)
        except UnknownRows:
            values = [value for row in own for value in values_of([row])]
        yield [(place, value) for (place, *_), value in zip(own, values, strict=True)]

    sizes = [(len(ids), len(ids) - length) for _, ids, length in rows]
    together = runs_in_batches(model, max((length for length, _ in sizes), default=0))
    together = together and (stacked is None or stacked.fits_batches(adapters))
    passes = (
        _passes(model, sizes, most_answer_tokens) if together else [range(row, row + 1) for row in range(len(sizes))]
    )
    for values in in_halves(passes, evaluate):
        yield from values


def _passes(model: nn.Module, sizes: Sequence[tuple[int, int]], most_answer_tokens: int | None) -> list[range]:
    """
    Cut rows, given the tokens and the answer's tokens of each, from the longest on, into forward passes: by their number where
    answers are short.
    """
    if most_answer_tokens is None:
        rows = range(len(sizes))
        return [rows[start : start + _CPU_ANSWERS_PER_PASS] for start in rows[::_CPU_ANSWERS_PER_PASS]]
    most_tokens = tokens_per_pass(model)
    passes: list[range] = []
    start = answer_tokens = 0
    for row, (_, own) in enumerate(sizes):
        answer_tokens += own
        too_long = (row + 1 - start) * sizes[start][0] > most_tokens
        if row > start and (too_long or answer_tokens > most_answer_tokens):
            passes.append(range(start, row))
            start, answer_tokens = row, own
    return [*passes, range(start, len(sizes))] if sizes else []


def _log_likelihoods(model: nn.Module, rows: Sequence[_Row]) -> list[float]:
    """Mean log-probability of each row's tokens after its prompt, in nats."""
    logits, owners = _logits(model, rows)
    labels = to_device([token for _, ids, length in rows for token in ids[length:]], logits.device)
    own = logits.float().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    sums = torch.zeros(len(rows), device=logits.device).index_add_(0, owners, own)
    return to_host(sums / to_device([len(ids) - length for _, ids, length in rows], logits.device))


def _divergences(
    base: torch.Tensor,  # (N, V)
    adapted: torch.Tensor,  # (N, V)
    owners: torch.Tensor,  # (N,)
    num_rows: int,
) -> list[Divergence]:
    """KL(base || adapted) of two models' logits, summed over the positions of each row."""
    parts = []
    for start in range(0, len(owners), _POSITIONS):
        own, other = (logits[start : start + _POSITIONS].float().log_softmax(-1) for logits in (base, adapted))
        parts.append((own.exp() * (own - other)).sum(-1))
    sums = torch.zeros(num_rows, device=owners.device).index_add_(0, owners, torch.cat(parts))
    counts = torch.zeros_like(sums).index_add_(0, owners, torch.ones_like(owners, dtype=sums.dtype))
    return [Divergence(nats, int(count)) for nats, count in to_host(torch.stack([sums, counts], dim=1))]


@torch.no_grad()
def _logits(model: nn.Module, rows: Sequence[_Row], after: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits `(N, V)` for each row's tokens after its prompt, and for so many after them, and the row of each, `(N,)`."""
    base, length = unwrap(model), max(len(ids) for _, ids, _ in rows)
    device = base.get_input_embeddings().weight.device
    # Padding is on the right, where no token sees it under a causal mask, so that no attention mask is needed.
    input_ids = to_device([ids + [0] * (length - len(ids)) for _, ids, _ in rows], device)  # (R, L)
    owners, positions = [], []
    for row, (_, ids, prompt_length) in enumerate(rows):
        # The token at t is predicted at t - 1.
        positions += range(row * length + prompt_length - 1, row * length + len(ids) - 1 + after)
        owners += [row] * (len(ids) - prompt_length + after)
    positions, owners = to_device([positions, owners], device)

    def select(states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, positions)

    with evaluating(base), without_cudnn(), head_input_changed(base, select):
        return base(input_ids=input_ids, use_cache=False).logits, owners
