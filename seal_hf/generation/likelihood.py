"""
How likely a model finds an answer: the mean log-probability of its tokens after the prompt.

The model's own questions about a passage are chosen by it. It takes one forward pass over prompt and answer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

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
    pairs = []  # (prompt's place, token ids, length of the prompt)
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
    # Rows of like length, so that little of a batch is padding.
    pairs.sort(key=lambda pair: -len(pair[1]))

    def values_of(rows: Sequence[tuple[int, list[int], int]]) -> list[float]:
        with stacked.attach([adapters[place] for place, *_ in rows]) if stacked is not None else nullcontext():
            return _log_likelihoods(model, [ids for _, ids, _ in rows], [length for *_, length in rows])

    def evaluate(batch: Sequence[int]) -> Iterator[list[tuple[int, float]]]:
        rows = [pairs[row] for row in batch]
        try:
            values = values_of(rows)
        except UnknownRows:
            values = [value for row in rows for value in values_of([row])]
        yield [(place, value) for (place, *_), value in zip(rows, values, strict=True)]

    sizes = [(len(ids), len(ids) - length) for _, ids, length in pairs]
    together = runs_in_batches(model, max((length for length, _ in sizes), default=0))
    together = together and (stacked is None or stacked.fits_batches(adapters))
    passes = _passes(model, sizes) if together else [range(row, row + 1) for row in range(len(sizes))]
    for values in in_halves(passes, evaluate):
        for place, value in values:
            found[place].append(value)
    return [max(values) if all(map(math.isfinite, values)) else None for values in found]


def _passes(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> list[range]:
    """Cut rows, given the tokens and the answer's tokens of each, from the longest on, into forward passes."""
    if unwrap(model).device.type != "cuda":
        rows = range(len(sizes))
        return [rows[start : start + _CPU_ANSWERS_PER_PASS] for start in rows[::_CPU_ANSWERS_PER_PASS]]
    most_tokens = tokens_per_pass(model)
    most_answer_tokens = logits_per_pass(model) // unwrap(model).config.get_text_config().vocab_size
    passes: list[range] = []
    start = answer_tokens = 0
    for row, (_, own) in enumerate(sizes):
        answer_tokens += own
        too_long = (row + 1 - start) * sizes[start][0] > most_tokens
        if row > start and (too_long or answer_tokens > most_answer_tokens):
            passes.append(range(start, row))
            start, answer_tokens = row, own
    return [*passes, range(start, len(sizes))] if sizes else []


@torch.no_grad()
def _log_likelihoods(model: nn.Module, sequences: Sequence[list[int]], prompt_lengths: Sequence[int]) -> list[float]:
    """Mean log-probability of each sequence's tokens after its prompt, in nats."""
    base, length = unwrap(model), max(map(len, sequences))
    device = base.get_input_embeddings().weight.device
    # Padding is on the right, where no token sees it under a causal mask, so that no attention mask is needed.
    input_ids = to_device([ids + [0] * (length - len(ids)) for ids in sequences], device)  # (R, L)
    owners, positions = [], []
    for row, (ids, prompt_length) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        # The token at t is predicted at t - 1.
        positions += range(row * length + prompt_length - 1, row * length + len(ids) - 1)
        owners += [row] * (len(ids) - prompt_length)
    counts = [len(ids) - prompt_length for ids, prompt_length in zip(sequences, prompt_lengths, strict=True)]
    positions, owners = to_device([positions, owners], device)  # (N,)

    def select(states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, positions)

    with evaluating(base), without_cudnn(), head_input_changed(base, select):
        logits = base(input_ids=input_ids, use_cache=False).logits  # (N, V)
    labels = input_ids.flatten()[positions + 1]
    own = logits.float().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    sums = torch.zeros(len(sequences), device=device).index_add_(0, owners, own)
    return to_host(sums / to_device(counts, device))
