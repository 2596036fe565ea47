"""Generation on a model of a test's own, with the adapters of a bank."""

from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import nn

from helpers.adapters import BASE_ID
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.policy import carried_policy
from seal_hf.generation.base import Generation
from seal_hf.generation.transformers_generation import TransformersGenerator


def generate(model: nn.Module, tokenizer, prompts: Sequence, adapters=None, *, batch_size=256, **options):
    return TransformersGenerator(model, tokenizer, BASE_ID, batch_size=batch_size).generate(
        prompts, adapters, **options
    )


def generate_with(
    bank: AdapterBank, tokenizer, prompts: Sequence, numbers: Sequence[int | None], **options
) -> list[Generation]:
    """Continue prompts, each with the adapter of this number in the bank."""
    return generate(bank.model, tokenizer, prompts, adapters_of(bank, numbers), **options)


def adapters_of(bank: AdapterBank, numbers: Sequence[int | None]) -> list[Adapter | None]:
    """The adapters of a bank by their numbers, equal ones for equal numbers."""
    policy = carried_policy(bank.model, BASE_ID)
    adapters = [Adapter(bank.layout, weights, BASE_ID, policy) for weights in bank.weights]
    return [None if number is None else adapters[number] for number in numbers]


def random_bank(model: nn.Module) -> AdapterBank:
    """Two adapters of all linear layers, which answer differently from each other and from the model."""
    bank = AdapterBank.initialize(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), seeds=[0, 1])
    generator = torch.Generator().manual_seed(5)
    bank.weights += 0.1 * torch.randn(bank.weights.shape, generator=generator)
    return bank
