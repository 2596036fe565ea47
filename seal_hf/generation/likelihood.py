"""
How likely a model finds an answer: the mean log-probability of its tokens after the prompt.

The model's own questions about a passage are chosen by it. It takes one forward pass over prompt and answer.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.bank import StackedAdapters
from ..models.access import context_length, evaluating, head_input_changed, unwrap
from ..models.attention_kernels import without_cudnn
from ..models.encoding import encode_answer, encode_prompt
from ..self_edit import Prompt


_ANSWERS_PER_PASS = 64


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
    for start in range(0, len(pairs), _ANSWERS_PER_PASS):
        batch = pairs[start : start + _ANSWERS_PER_PASS]
        with stacked.attach([adapters[place] for place, *_ in batch]) if stacked is not None else nullcontext():
            values = _log_likelihoods(model, [ids for _, ids, _ in batch], [length for *_, length in batch])
        for (place, *_), value in zip(batch, values, strict=True):
            found[place].append(value)
    return [max(values) if all(map(math.isfinite, values)) else None for values in found]


@torch.no_grad()
def _log_likelihoods(model: nn.Module, sequences: Sequence[list[int]], prompt_lengths: Sequence[int]) -> list[float]:
    """Mean log-probability of each sequence's tokens after its prompt, in nats."""
    base, length = unwrap(model), max(map(len, sequences))
    device = base.get_input_embeddings().weight.device
    # Padding is on the right, where no token sees it under a causal mask, so that no attention mask is needed.
    input_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids in sequences], device=device)  # (R, L)
    owners, positions = [], []
    for row, (ids, prompt_length) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        # The token at t is predicted at t - 1.
        positions += range(row * length + prompt_length - 1, row * length + len(ids) - 1)
        owners += [row] * (len(ids) - prompt_length)
    positions, owners = torch.tensor(positions, device=device), torch.tensor(owners, device=device)  # (N,)

    def select(states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, positions)

    with evaluating(base), without_cudnn(), head_input_changed(base, select):
        logits = base(input_ids=input_ids, use_cache=False).logits  # (N, V)
    labels = input_ids.flatten()[positions + 1]
    own = logits.float().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    sums = torch.zeros(len(sequences), device=device).index_add_(0, owners, own)
    return (sums / torch.bincount(owners, minlength=len(sequences))).tolist()
