"""The way of the SEAL paper's code: one adapter, transformers' `Trainer`, batch 1, every sequence padded to one length."""

import tempfile
import time

from peft import LoraConfig
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from ways import peft_adapter

from seal_hf.inner_loop.update import InnerUpdate


# Padded length of the reference implementation, in tokens.
REFERENCE_LENGTH = 2048


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
