"""Updates for tests of the inner loop, the plain PEFT loop they are compared with, and a model's state."""

import math
import random

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel, get_scheduler
from transformers.loss.loss_utils import ForCausalLMLoss

from helpers.tiny_models import VOCAB_SIZE
from seal_hf.adapters.layout import LoraLayout
from seal_hf.inner_loop.update import SCHEDULES, InnerLoopConfig, InnerUpdate, TrainingSequence, training_order


ATTENTION = ["q_proj", "v_proj"]
ORDER_SEED = 3
NUM_PROBES = 4  # forward passes before the first step


def lora_config(target_modules: str | list[str] = "all-linear", **options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": target_modules, **options})


def random_update(seed: int, num_sequences: int, longest: int = 28, **options) -> InnerUpdate:
    """Sequences of 4 to `longest` random tokens, half of them with a prompt of 1 to 3 tokens."""
    generator = random.Random(seed)
    sequences = []
    for _ in range(num_sequences):
        length = generator.randint(4, longest)
        ids = tuple(generator.randrange(4, VOCAB_SIZE) for _ in range(length))
        sequences.append(TrainingSequence(ids, generator.choice([0, 0, 0, 1, 2, 3])))
    return InnerUpdate(tuple(sequences), InnerLoopConfig(**options))


def unlike_updates(count: int) -> list[InnerUpdate]:
    """
    Updates that differ in everything they can: numbers of sequences and steps, rates, schedules, batches, clipping.

    The seed is one for which the plain loop itself is well conditioned: AdamW's first steps depend on the sign of every
    gradient, so a gradient below the rounding error makes two correct implementations differ by a learning rate. Here,
    nudging the base weights by their rounding error moves no trained weight of the plain loop by more than 1e-5.
    """
    return [
        random_update(
            seed=200 + k,
            num_sequences=3 + k % 4,
            learning_rate=1e-3 * (1 + k % 3),
            num_train_epochs=[20, 14, 12, 9][k % 4] + k // 4,
            batch_size=1 + (k + k // 4) % 3,
            lr_scheduler_type=SCHEDULES[k % 3],
            warmup_steps=[0.0, 0.1, 0.25, 0.0, 0.3][k % 5],
            max_grad_norm=[1.0, 0.0, 0.05][(k + k // 3) % 3],
        )
        for k in range(count)
    ]


def add_inner_adapter(model: PreTrainedModel | PeftModel, config: LoraConfig) -> PeftModel:
    """PEFT's own form of an inner adapter: the only adapter, or a second one that is active beside the frozen policy."""
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name="inner")
    model.add_adapter("inner", config)
    model.base_model.set_adapter(["default", "inner"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".inner." in name)
    return model


def train_alone(
    model: PreTrainedModel | PeftModel,
    config: LoraConfig,
    layout: LoraLayout,
    weights: torch.Tensor,
    update: InnerUpdate,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A plain PEFT loop from the same initial weights and in the same order: the final state dict, and the losses."""
    peft_model = add_inner_adapter(model, config).train()
    set_peft_model_state_dict(peft_model, layout.state_dict(weights), adapter_name="inner")
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == layout.num_parameters
    optimizer = torch.optim.AdamW(trained, lr=update.config.learning_rate, weight_decay=0.0)
    scheduler = get_scheduler(
        update.config.lr_scheduler_type.replace("constant", "constant_with_warmup"),
        optimizer,
        num_warmup_steps=math.ceil(update.num_steps * update.config.warmup_steps),
        num_training_steps=update.num_steps,
    )
    losses = []
    for indices in training_order(update, ORDER_SEED):
        sequences = [update.sequences[i] for i in indices]
        length = max(len(sequence.input_ids) for sequence in sequences)
        input_ids = torch.zeros(len(sequences), length, dtype=torch.long)
        attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
        for row, sequence in enumerate(sequences):
            end = len(sequence.input_ids)
            input_ids[row, :end] = torch.tensor(sequence.input_ids)
            attention_mask[row, :end] = 1
            labels[row, sequence.prompt_length : end] = input_ids[row, sequence.prompt_length : end]
        logits = peft_model(input_ids=input_ids, attention_mask=attention_mask).logits
        # Some models' own loss has other labels, such as that of BART's decoder, which does not shift them.
        loss = ForCausalLMLoss(logits, labels, logits.shape[-1])
        optimizer.zero_grad()
        loss.backward()
        if update.config.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, update.config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return get_peft_model_state_dict(peft_model, adapter_name="inner"), losses


def greatest_difference(layout: LoraLayout, weights: torch.Tensor, expected: dict[str, torch.Tensor]) -> float:
    actual = layout.state_dict(weights)
    assert set(actual) == set(expected)
    return max((actual[key] - expected[key]).abs().max().item() for key in expected)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_tensors(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert set(after) == set(before)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


def hooked_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
