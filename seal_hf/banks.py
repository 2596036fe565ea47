"""Which adapters are trained together, and which process trains them."""

import os
from collections.abc import Mapping, Sequence

import psutil
import torch

from .lora_layout import LoraLayout


MAX_ADAPTERS = 16
# fp32 weights and two AdamW moments, their gradients, and the rows in the dtype of the activations with theirs.
_BYTES_PER_PARAMETER = 20


def adapters_that_fit(layout: LoraLayout, device: torch.device) -> int:
    """
    How many adapters a bank may hold: those whose weights, gradients and optimizer state take at most half of the free
    memory (the rest is left to activations), at most 16.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself is free for it to use again.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fitting = int(free * 0.5) // (layout.num_parameters * _BYTES_PER_PARAMETER)
    return max(1, min(MAX_ADAPTERS, fitting))


def compose_banks(
    work: Sequence[tuple[int, int]], num_repeats: int, adapters_per_batch: int
) -> tuple[list[list[int]], int]:
    """
    Put updates of about the same length into common banks, since a bank lasts as long as its longest update.

    All adapters of a bank are of the same repeat and so share one seed. The composition depends on nothing but the
    arguments.

    Parameters:
        work (`Sequence[tuple[int, int]]`):
            Optimizer steps and tokens of each update.
        num_repeats (`int`):
            Independent runs of each update.
        adapters_per_batch (`int`):
            Most adapters in a bank.

    Returns:
        `tuple[list[list[int]], int]`: for each update the bank of every repeat, and the number of banks.

    Example:

    ```python
    >>> compose_banks([(10, 300), (90, 900), (10, 200)], num_repeats=2, adapters_per_batch=2)
    ([[0, 2], [0, 2], [1, 3]], 4)

    ```
    """
    order = sorted(range(len(work)), key=lambda i: (-work[i][0], -work[i][1], i))
    place = {update: position // adapters_per_batch for position, update in enumerate(order)}
    per_repeat = -(-len(work) // adapters_per_batch)
    banks = [[repeat * per_repeat + place[i] for repeat in range(num_repeats)] for i in range(len(work))]
    return banks, per_repeat * num_repeats


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
    loads = [0] * num_processes
    for bank in sorted(costs, key=lambda bank: (-costs[bank], bank)):
        least = loads.index(min(loads))
        shares[least].append(bank)
        loads[least] += costs[bank]
    return shares
