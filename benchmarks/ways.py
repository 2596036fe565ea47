"""
The ways to train adapters that are compared on one loaded model: plain PEFT, and a bank. The reference's is in
`reference_way.py`, since it needs transformers' `Trainer`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from inputs import num_tokens
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerUpdate, learning_rate, training_order


TARGETS = {"q,v": ["q_proj", "v_proj"], "all-linear": "all-linear"}


@dataclass(frozen=True)
class Speed:
    """
    Work done and the time that it took.

    Parameters:
        tokens (`int`):
            Real tokens trained on; padding is not counted.
        seconds (`float`):
            Wall time.
    """

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def lora_config(target_modules: str | list[str], r: int = 32) -> LoraConfig:
    """The paper's adapters: rank 32, alpha twice the rank."""
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=target_modules, task_type="CAUSAL_LM")


@contextmanager
def peft_adapter(model: PreTrainedModel, config: LoraConfig) -> Iterator[PeftModel]:
    """
    The model with one fresh PEFT adapter inside the block, and without it afterwards.

    The adapter is held in the model's dtype: PEFT's default, fp32, casts the activations in every adapted layer and is
    slower on a CPU.
    """
    torch.manual_seed(0)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    try:
        yield adapted
    finally:
        adapted.unload()
        model.eval()


def peft_steps(adapted: PeftModel, update: InnerUpdate) -> Iterator[torch.Tensor]:
    """
    Train a model's PEFT adapter the best plain way: batch 1, no padding, fused AdamW. Yields the loss of every step, a
    tensor on the model's device, after the step is taken.
    """
    adapted.train()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    orders = training_order(update, 0)
    for step, (place,) in enumerate(orders):
        ids = torch.tensor([update.sequences[place].input_ids], device=adapted.device)
        loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, update.config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(orders), update.config)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def peft_speed(model: PreTrainedModel, updates: Sequence[InnerUpdate], config: LoraConfig) -> Speed:
    """One PEFT adapter after another (see [`peft_steps`]). Making the adapters is not timed."""
    seconds = 0.0
    for update in updates:
        with peft_adapter(model, config) as adapted:
            start = time.perf_counter()
            for _ in peft_steps(adapted, update):
                pass
            seconds += time.perf_counter() - start
    return Speed(sum(map(num_tokens, updates)), seconds)


@dataclass(frozen=True)
class BankSpeed:
    """
    Speed of one training of a bank.

    Parameters:
        whole (`Speed`):
            From the call of `train` to its end.
        full_steps (`Speed`):
            The steps in which at least three quarters of the adapters take part, the very first one left out.
    """

    whole: Speed
    full_steps: Speed


def bank_speed(
    model: PreTrainedModel, updates: Sequence[InnerUpdate], config: LoraConfig
) -> tuple[BankSpeed, AdapterBank]:
    """Our way: all adapters together. Also the trained bank."""
    bank, steps = AdapterBank.initialize(model, config, [0] * len(updates)), []
    start = time.perf_counter()
    results = train(bank, updates, on_step=steps.append)
    seconds = time.perf_counter() - start
    whole = Speed(sum(result.num_tokens for result in results), seconds)
    # Adapters only ever leave, so that the full steps are the first ones.
    last = max(i for i, step in enumerate(steps) if 4 * len(step.losses) >= 3 * len(updates))
    first = steps[0]
    full_steps = Speed(steps[last].num_tokens - first.num_tokens, steps[last].seconds - first.seconds)
    return BankSpeed(whole, full_steps), bank
