"""Which adapters are trained together, and which process trains them."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..adapters.layout import LoraLayout
from ..inner_loop.passes import pass_tokens
from ..inner_loop.update import InnerUpdate
from ..models.access import activation_dtype
from ..models.memory import activation_bytes_per_token, free_memory


# What the banks of a program may take of the memory that is free. The rest is for the logits of the loss, a sixteenth at most
# on CUDA, for fragments and for the error of the estimate. The system ends a process that takes too much of a CPU's memory,
# which CUDA does not; so there two programs that ask at the same time, as each other's banks are not there yet, both fit.
_MEMORY_SHARE = {"cpu": 0.4, "cuda": 0.8}
# Tokens of one step beyond which more adapters no longer raise the throughput. On two CPU cores the matrix products are
# saturated from 1000 to 2000 tokens on; for accelerators it is a guess, by what a chip needs to be busy.
_STEP_TOKENS = {"cpu": 2048, "cuda": 16384}


class Work(NamedTuple):
    """
    What one inner update takes.

    Parameters:
        num_steps (`int`):
            Optimizer steps.
        num_tokens (`int`):
            Tokens of all epochs.
        longest_step (`int`):
            Most tokens of one step.
    """

    num_steps: int
    num_tokens: int
    longest_step: int


def work_of(update: InnerUpdate) -> Work:
    """
    The work of a tokenized self-edit.

    Example:

    ```python
    >>> from seal_hf.inner_loop.update import InnerLoopConfig, TrainingSequence
    >>> lines = tuple(TrainingSequence((5,) * length) for length in (3, 20, 7))
    >>> work_of(InnerUpdate(lines, InnerLoopConfig(num_train_epochs=10, batch_size=2)))
    Work(num_steps=20, num_tokens=300, longest_step=27)

    ```
    """
    per_epoch = sum(len(sequence.input_ids) for sequence in update.sequences)
    return Work(update.num_steps, per_epoch * update.config.num_train_epochs, update.longest_step)


def adapters_per_bank(
    model: nn.Module,
    layout: LoraLayout,
    work: Sequence[Work],
    num_repeats: int = 1,
    num_processes: int = 1,
    checkpointed: bool = False,
    free_bytes: int | None = None,
) -> int:
    """
    How many adapters to train together: no more than the memory holds, no more than keep the machine busy, and so that
    banks are of even size and every process has as many.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model that is adapted; its device is the one that trains.
        layout ([`LoraLayout`]):
            Shape of the adapters.
        work (`Sequence[Work]`):
            The updates of one repeat.
        num_repeats (`int`, *optional*, defaults to `1`):
            How many times they are composed into banks.
        num_processes (`int`, *optional*, defaults to `1`):
            Processes that share the banks.
        checkpointed (`bool`, *optional*, defaults to `False`):
            Whether they are trained with gradient checkpointing.
        free_bytes (`int`, *optional*):
            The free memory of each process in bytes, where it is not this device's.

    Returns:
        `int`: at least 1.
    """
    if not work:
        return 1
    device = model.get_input_embeddings().weight.device
    # Adapters share the order of lengths, so that their longest sequences meet in one step.
    longest = max(update.longest_step for update in work)
    free = free_memory(device) if free_bytes is None else free_bytes
    budget = free * _MEMORY_SHARE.get(device.type, _MEMORY_SHARE["cuda"])
    fitting = _adapters_within(int(budget), model, layout, longest, checkpointed)
    mean_step = sum(update.num_tokens for update in work) / sum(update.num_steps for update in work)
    useful = math.ceil(_STEP_TOKENS.get(device.type, _STEP_TOKENS["cuda"]) / mean_step)
    num_banks = math.ceil(len(work) / max(1, min(fitting, useful)))
    # As many more as make the banks of all repeats a multiple of the processes.
    stride = num_processes // math.gcd(num_processes, num_repeats)
    return math.ceil(len(work) / (math.ceil(num_banks / stride) * stride))


def bank_bytes(
    model: nn.Module, layout: LoraLayout, num_adapters: int, longest_step: int, checkpointed: bool = False
) -> int:
    """
    The memory that the training of a bank takes beside the model and the logits of the loss: estimated from above for
    adapters on all linear layers.

    Args:
        model, layout, checkpointed:
            As for [`adapters_per_bank`].
        num_adapters (`int`):
            Adapters in the bank.
        longest_step (`int`):
            Most tokens that one of them has in a step.
    """
    adapters, tokens = _bytes(model, layout, longest_step, checkpointed)
    in_pass = min(num_adapters * longest_step, _most_in_pass(model, longest_step))
    return num_adapters * adapters + in_pass * tokens


def _adapters_within(
    num_bytes: int, model: nn.Module, layout: LoraLayout, longest_step: int, checkpointed: bool
) -> int:
    """The most adapters whose [`bank_bytes`] are no more than these."""
    adapter, token = _bytes(model, layout, longest_step, checkpointed)
    in_one_pass = num_bytes // (adapter + longest_step * token)
    in_many = (num_bytes - _most_in_pass(model, longest_step) * token) // adapter
    return max(in_one_pass, in_many, 0)


def _bytes(model: nn.Module, layout: LoraLayout, longest_step: int, checkpointed: bool) -> tuple[int, int]:
    """What an adapter and what a token of a pass takes."""
    # Weights and two AdamW moments in fp32, and in the dtype of the activations, for those of one pass, which may be all,
    # the weights and their gradients once more.
    per_parameter = 3 * torch.float32.itemsize + 2 * activation_dtype(model).itemsize
    return layout.num_parameters * per_parameter, activation_bytes_per_token(model, checkpointed, longest_step)


def _most_in_pass(model: nn.Module, longest_step: int) -> int:
    """Tokens of the largest pass: about as many as are wanted, or one adapter's."""
    return max(longest_step, pass_tokens(model.get_input_embeddings().weight.device) + longest_step // 2)


def compose_banks(work: Sequence[Sequence[int]], num_repeats: int, adapters_per_bank: int) -> list[list[int]]:
    """
    Put updates of about the same length into common banks, since a bank lasts as long as its longest update.

    The banks are as few as can be, and their sizes differ by at most one. All adapters of a bank are of the same repeat
    and so share one seed. The composition depends on nothing but the arguments.

    Args:
        work (`Sequence[Sequence[int]]`):
            Optimizer steps and tokens of each update, such as a [`Work`].
        num_repeats (`int`):
            Independent runs of each update.
        adapters_per_bank (`int`):
            Most adapters in a bank.

    Returns:
        `list[list[int]]`: for each update the bank of every repeat.

    Example:

    ```python
    >>> compose_banks([(10, 300), (90, 900), (10, 200)], num_repeats=2, adapters_per_bank=2)
    [[0, 2], [0, 2], [1, 3]]

    ```
    """
    order = sorted(range(len(work)), key=lambda i: (-work[i][0], -work[i][1], i))
    per_repeat = math.ceil(len(work) / adapters_per_bank)
    place = {update: position * per_repeat // len(work) for position, update in enumerate(order)}
    return [[repeat * per_repeat + place[i] for repeat in range(num_repeats)] for i in range(len(work))]


def size_of_banks(banks: Sequence[int], num_adapters: int) -> int:
    """
    How many adapters to train together where each is trained on several self-edits: as many banks as the self-edits have, for the
    processes to share, but none larger than those.

    Args:
        banks (`Sequence[int]`):
            The recorded bank of every self-edit.
        num_adapters (`int`):
            Adapters to train.

    Returns:
        `int`: at least 1.

    Example:

    ```python
    >>> size_of_banks([0, 0, 0, 1, 1], num_adapters=8), size_of_banks([0, 0, 0, 1, 1], num_adapters=4)
    (3, 2)

    ```
    """
    sizes = Counter(banks)
    return max(1, min(max(sizes.values(), default=1), math.ceil(num_adapters / max(1, len(sizes)))))


def expected_cost(num_trained: int, num_asked: int, max_answer_length: int) -> int:
    """Expected work of one adapter, in tokens that it trains on, or that are written in answer to some examples."""
    return num_trained + max_answer_length * num_asked


def share_banks(costs: Mapping[int, int], num_processes: int) -> list[list[int]]:
    """
    Share banks out to processes by expected cost: the most costly first, each to the process with the least work.

    Example:

    ```python
    >>> share_banks({0: 50, 1: 40, 2: 20, 3: 10}, num_processes=2)
    [[0, 3], [1, 2]]

    ```
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    # A heap: first the process with the least work, of equals the first one.
    loads = [(0, process) for process in range(num_processes)]
    for bank in sorted(costs, key=lambda bank: (-costs[bank], bank)):
        load, least = loads[0]
        shares[least].append(bank)
        heapq.heapreplace(loads, (load + costs[bank], least))
    return shares
