"""
The ways to train adapters that are compared, all of them on one loaded model: the reference's, plain PEFT, and a bank.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerUpdate, learning_rate, training_order


# Padded length of the reference implementation, in tokens.
REFERENCE_LENGTH = 2048
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


class _PaddedSequences(Dataset):
    """An update's sequences, each padded to one length; the padding has no label."""

    def __init__(self, update: InnerUpdate, length: int, pad_id: int):
        self.sequences = update.sequences
        self.length, self.pad_id = length, pad_id

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        ids = list(self.sequences[place].input_ids)
        padding = self.length - len(ids)
        return {
            "input_ids": ids + [self.pad_id] * padding,
            "attention_mask": [1] * len(ids) + [0] * padding,
            "labels": ids + [-100] * padding,
        }


class _StepTimes(TrainerCallback):
    """When each optimizer step ended, in seconds."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def reference_step_seconds(
    model: PreTrainedModel,
    pad_id: int,
    update: InnerUpdate,
    config: LoraConfig,
    num_steps: int,
    length: int = REFERENCE_LENGTH,
) -> list[float]:
    """
    Seconds of each optimizer step of the reference way, the first one left out as warm-up.

    One adapter, transformers' `Trainer`, batch 1, every sequence padded to `length`. Every step costs the same whatever
    text is in it, so that a few of them stand for all.
    """
    times = _StepTimes()
    with peft_adapter(model, config) as adapted, tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=num_steps + 1,
            per_device_train_batch_size=1,
            learning_rate=update.config.learning_rate,
            lr_scheduler_type=update.config.lr_scheduler_type,
            weight_decay=0.0,
            max_grad_norm=update.config.max_grad_norm,
            bf16=False,  # the weights are already bf16
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        dataset = _PaddedSequences(update, length, pad_id)
        trainer = Trainer(adapted, arguments, train_dataset=dataset, callbacks=[times])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [end - begin for begin, end in zip(times.ends, times.ends[1:], strict=False)]


def peft_speed(model: PreTrainedModel, updates: Sequence[InnerUpdate], config: LoraConfig) -> Speed:
    """
    The best plain way: one PEFT adapter after another, batch 1, no padding, fused AdamW.

    Making the adapters is not timed.
    """
    tokens, seconds = 0, 0.0
    for update in updates:
        with peft_adapter(model, config) as adapted:
            adapted.train()
            parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
            orders = training_order(update, 0)
            start = time.perf_counter()
            for step, (place,) in enumerate(orders):
                ids = torch.tensor([update.sequences[place].input_ids], device=model.device)
                adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, update.config.max_grad_norm)
                optimizer.param_groups[0]["lr"] = learning_rate(step, len(orders), update.config)
                optimizer.step()
                optimizer.zero_grad()
                tokens += ids.numel()
            seconds += time.perf_counter() - start
    return Speed(tokens, seconds)


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
