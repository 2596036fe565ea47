"""Closed-book answers of many adapters: all in common batches, against PEFT one adapter after another, and none at all."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, set_peft_model_state_dict
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from ways import peft_adapter

from seal_hf import Adapter, SelfAdaptingLM
from seal_hf.models.encoding import encode_prompt
from seal_hf.self_edit import Prompt


@dataclass(frozen=True)
class Answered:
    """
    Answers and the time they took.

    Parameters:
        answers (`list[list[str]]`):
            For each adapter, to its questions.
        seconds (`float`):
            Wall time.
    """

    answers: list[list[str]]
    seconds: float


def peft_answers(
    lm: SelfAdaptingLM,
    adapters: Sequence[Adapter],
    prompts: Sequence[Sequence[Prompt]],
    config: LoraConfig,
    max_answer_length: int,
) -> Answered:
    """
    One adapter after another: its weights are put into one PEFT model, and `generate` answers its questions as a batch.
    """
    answers = []
    with peft_adapter(lm.model, config) as adapted:
        adapted.eval()
        start = time.perf_counter()
        for adapter, own in zip(adapters, prompts, strict=True):
            set_peft_model_state_dict(adapted, adapter.layout.state_dict(adapter.weights))
            answers.append(_generate(adapted, lm.processing_class, own, max_answer_length))
        seconds = time.perf_counter() - start
    return Answered(answers, seconds)


def plain_answers(lm: SelfAdaptingLM, prompts: Sequence[Prompt], max_answer_length: int) -> Answered:
    """All questions in one batch of transformers' `generate`, without adapters: the answers of one group."""
    start = time.perf_counter()
    texts = _generate(lm.model, lm.processing_class, prompts, max_answer_length)
    return Answered([texts], time.perf_counter() - start)


@torch.no_grad()
def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_answer_length: int
) -> list[str]:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_answer_length, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad_id
    )
    ids, mask = (tensor.to(model.device) for tensor in _left_padded(tokenizer, prompts, pad_id))
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `(prompts, tokens)`."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def bank_answers(
    lm: SelfAdaptingLM, adapters: Sequence[Adapter], prompts: Sequence[Sequence[Prompt]], max_answer_length: int
) -> Answered:
    """Our way: all questions of all adapters in common batches."""
    start = time.perf_counter()
    texts = lm.answer_groups(prompts, adapters, max_answer_length=max_answer_length)
    return Answered(texts, time.perf_counter() - start)


def share_equal(left: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> float:
    """
    Share of the answers that are the same text.

    >>> share_equal([["Ann", "bees"], ["Bob"]], [["Ann", "wasps"], ["Bob"]]) == 2 / 3
    True
    """
    pairs = [pair for one, other in zip(left, right, strict=True) for pair in zip(one, other, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)
