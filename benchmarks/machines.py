"""What the parts of a round take: as a journal has measured them, or by the FLOPs and bytes of a model on a GPU."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from inputs import FOLDER
from peft import LoraConfig
from simulation import Item
from torch import nn

from seal_hf.adapters.layout import LoraLayout, lora_layout
from seal_hf.models.access import activation_dtype
from seal_hf.models.architecture import linear_modules
from seal_hf.records.journal import Journal
from seal_hf.rollout.bank_schedule import Work, adapters_per_bank


MEASURED = FOLDER / "gpu-h100.md"


@dataclass(frozen=True)
class Replay:
    """
    The workers of a run that was measured. On a CPU a bank takes as long as its adapters one after another, since the
    products keep it busy.

    Parameters:
        adapters_per_bank (`int`):
            As the run had it.
        prompts_per_self_edit (`int`):
            As for [`Machine`].
        seconds_to_write (`float`):
            Of one worker for a self-edit.
        seconds_to_answer (`float`):
            Of one worker for the questions of one adapter.
        seconds_of_sft_row (`float`):
            Of one worker for a self-edit in a step of the outer SFT.
    """

    adapters_per_bank: int
    prompts_per_self_edit: int
    seconds_to_write: float
    seconds_to_answer: float
    seconds_of_sft_row: float

    def bank_size(self, items: Sequence[Item], num_repeats: int, num_workers: int) -> int:
        return self.adapters_per_bank

    def writing_seconds(self, batch: Sequence[Item]) -> float:
        return self.seconds_to_write * len(batch)

    def bank_seconds(self, bank: Sequence[Item]) -> float:
        return sum(item.seconds + self.seconds_to_answer for item in bank)

    def sft_step_seconds(self, num_rows: int, num_workers: int) -> float:
        return num_rows * self.seconds_of_sft_row


def read_run(folder: Path) -> tuple[list[list[Item]], int]:
    """
    The self-edits of all scored rounds of a run, by passage, and the most adapters of a bank.

    A journal has no step counts, so that self-edits are put into banks by their tokens.

    Raises:
        ValueError: The folder holds no scored round.
    """
    journal = Journal(folder)
    passages: dict[tuple[int, int], list[Item]] = {}
    sizes = Counter()
    for number, scored in enumerate(journal.scored_rounds()):
        proposals = {(one.example, one.edit): one for one in journal.proposals(number) or ()}
        sizes.update((number, bank) for one in proposals.values() for bank in one.banks)
        for one in scored:
            if repeats := len(one.repeats) if one.tokens else 0:
                tokens = one.tokens // repeats
                item = Item(one.completion_tokens, Work(tokens, tokens, tokens), one.seconds / repeats)
                passages.setdefault((number, one.example), []).append(item)
    if not passages:
        raise ValueError(f"{folder} holds no scored round; give the output_dir of a run that has finished one.")
    return list(passages.values()), max(sizes.values(), default=1)


@dataclass(frozen=True)
class Gpu:
    """
    A GPU's data sheet.

    Parameters:
        name (`str`):
            Its name.
        flops (`float`):
            Dense bf16 FLOPs per second.
        bandwidth (`float`):
            Of its memory, in bytes per second.
        memory (`float`):
            In bytes.
        link (`float`):
            To the other GPUs, in bytes per second.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float


# NVIDIA's data sheet of the H100 SXM5; a 400 Gbit/s network adapter for each.
H100 = Gpu("H100 SXM", flops=989e12, bandwidth=3.35e12, memory=80e9, link=50e9)


@dataclass(frozen=True)
class Measured:
    """
    What the GPU benchmark has measured (see benchmarks/gpu-h100.md).

    Parameters:
        gemm (`float`):
            FLOPs per second of the largest square products in bf16.
        steps (`dict[tuple[str, int], tuple[float, int, float]]`):
            Of the model, by what is adapted and the number of adapters: seconds of a step, its tokens, and its share of
            `gemm`.
        before (`dict[str, float]`):
            Seconds of a bank before its first step, by what is adapted.
        token (`float`):
            Seconds of a token of an answer where the host is what limits it, for each layer of the model.
    """

    gemm: float
    steps: Mapping[tuple[str, int], tuple[float, int, float]]
    before: Mapping[str, float]
    token: float

    @classmethod
    def read(cls, model: str, file: Path = MEASURED, token_layers: int = 24, token_count: int = 32) -> "Measured":
        """The figures of one model; those of answers are of 0.5B, which has 24 layers, and of 32 tokens."""
        text = file.read_text(encoding="utf-8")
        number = r"([\d.]+)"
        rows = re.findall(
            rf"^\| {model} \| (\S+) \| (\d+) \| \d+ \| \d+ \| {number} \| {number} \| (\d+) \| {number}% / {number}%",
            text,
            re.M,
        )
        before = re.findall(rf"^\| {model} \| (\S+) \| \d+ \| {number} \| {number} \| {number} \|", text, re.M)
        gemms = re.search(r"^Matrix products in bf16: .* ([\d.]+) TFLOP/s at 8192\^3", text, re.M)
        answers = re.search(rf"^\| 0.5B \| q,v \| an adapter for each row \| \d+ \| {number} \|", text, re.M)
        return cls(
            gemm=float(gemms[1]) * 1e12,
            steps={(row[0], int(row[1])): (float(row[3]) / 1e3, int(row[4]), float(row[6]) / 100) for row in rows},
            before={row[0]: float(row[2]) for row in before},
            token=float(answers[1]) / token_count / token_layers,
        )


@dataclass(frozen=True)
class Counted:
    """
    Workers of one GPU each, by the FLOPs and bytes of a model.

    A part takes as long as its FLOPs at `utilization` of the peak and its bytes at the peak bandwidth one after the other,
    but no less than the host takes to launch it.

    Parameters:
        model (`PreTrainedModel`):
            The model; it may be on the device `meta`.
        gpu ([`Gpu`]):
            The GPU.
        measured ([`Measured`]):
            What the host takes.
        inner, outer (`LoraConfig`):
            The adapters.
        adapted (`str`):
            What `inner` adapts, by its name in `measured`.
        utilization (`float`):
            Share of the peak FLOPs that products reach.
        prompt_tokens, num_questions, question_tokens, max_answer_length, sft_tokens (`float`):
            Length of the prompt of a self-edit, questions of a passage, tokens of a question and of an answer, and length of
            a row of the SFT.
        most_adapters (`int`, *optional*):
            Most adapters in a bank; what the memory holds where absent.
        host_factor (`float`, *optional*, defaults to `1.0`):
            How many times as long the host takes.
        prompts_per_self_edit (`int`, *optional*, defaults to `1`):
            As for [`Machine`].
    """

    model: nn.Module
    gpu: Gpu
    measured: Measured
    inner: LoraConfig
    outer: LoraConfig
    adapted: str
    utilization: float
    prompt_tokens: float
    num_questions: float
    question_tokens: float
    max_answer_length: int
    sft_tokens: float
    most_adapters: int | None = None
    host_factor: float = 1.0
    prompts_per_self_edit: int = 1

    @cached_property
    def products(self) -> int:
        """Parameters that a token is multiplied with: all but the input embedding."""
        linear = sum(module.in_features * module.out_features for module in linear_modules(self.model).values())
        return linear + self.model.get_output_embeddings().weight.numel()

    @cached_property
    def weight_bytes(self) -> int:
        return self.model.num_parameters() * activation_dtype(self.model).itemsize

    @cached_property
    def layouts(self) -> tuple[LoraLayout, LoraLayout]:
        """Of the inner adapters, and of the policy."""
        return lora_layout(self.model, self.inner), lora_layout(self.model, self.outer)

    def bank_size(self, items: Sequence[Item], num_repeats: int, num_workers: int) -> int:
        layout, policy = self.layouts
        # The policy in fp32 and in the dtype of the activations.
        free = self.gpu.memory - self.weight_bytes - 6 * policy.num_parameters
        work = [item.work for item in items]
        size = adapters_per_bank(self.model, layout, work, num_repeats, num_workers, free_bytes=int(free))
        return min(size, self.most_adapters or size)

    def step_seconds(self, num_adapters: int, num_tokens: float) -> float:
        """One optimizer step of a bank."""
        # The base is read forward and backward; of an adapter the weights and two moments are read and written in fp32, the
        # gradient in bf16 once written and twice read, its weights in bf16 once written and twice read.
        per_parameter = 6 * 4 + 3 * 2 + 3 * 2
        num_bytes = 2 * self.weight_bytes + num_adapters * per_parameter * self.layouts[0].num_parameters
        host, _, _ = self.measured.steps[self.adapted, 1]
        return max(self.host_factor * host, self._flops_seconds(4, num_tokens) + num_bytes / self.gpu.bandwidth)

    def writing_seconds(self, batch: Sequence[Item]) -> float:
        longest = max(item.written for item in batch)
        return self._generation_seconds(len(batch), self.prompt_tokens, longest, 0)

    def bank_seconds(self, bank: Sequence[Item]) -> float:
        # Adapters leave when they are done, so that the steps after the end of one are without it.
        by_steps = sorted(bank, key=lambda item: item.work.num_steps)
        seconds, done = self.measured.before[self.adapted], 0
        for place, item in enumerate(by_steps):
            if item.work.num_steps > done:
                going = by_steps[place:]
                tokens = sum(one.work.num_tokens / one.work.num_steps for one in going)
                seconds += (item.work.num_steps - done) * self.step_seconds(len(going), tokens)
                done = item.work.num_steps
        rows = round(self.num_questions * len(bank))
        return seconds + self._generation_seconds(rows, self.question_tokens, self.max_answer_length, len(bank))

    def sft_step_seconds(self, num_rows: int, num_workers: int) -> float:
        # Gradient checkpointing, TRL's default, computes the forward pass again.
        host, _, _ = self.measured.steps["all-linear", 1]
        row = max(1.5 * self.host_factor * host, self._flops_seconds(6, self.sft_tokens))
        gradients = 4 * self.layouts[1].num_parameters
        return num_rows * row + (2 * gradients / self.gpu.link if num_workers > 1 else 0.0)

    def _generation_seconds(self, num_rows: int, prompt_tokens: float, num_tokens: int, num_adapters: int) -> float:
        config = self.model.config
        keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
        cache = 2 * 2 * config.num_hidden_layers * keys * num_rows * (prompt_tokens + num_tokens / 2)
        num_bytes = self.weight_bytes + 2 * num_adapters * self.layouts[0].num_parameters + cache
        host = self.host_factor * self.measured.token * config.num_hidden_layers
        token = max(host, self._flops_seconds(2, num_rows) + num_bytes / self.gpu.bandwidth)
        return self._flops_seconds(2, num_rows * prompt_tokens) + num_tokens * token

    def _flops_seconds(self, per_parameter: int, num_tokens: float) -> float:
        return per_parameter * self.products * num_tokens / (self.utilization * self.gpu.flops)
