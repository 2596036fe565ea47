"""How many tensor operations a step of a bank dispatches."""

import threading
from collections import Counter
from collections.abc import Sequence

from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.training import InnerStep, train
from seal_hf.inner_loop.update import InnerUpdate


class OperationCounter(TorchDispatchMode):
    """
    Counts the operations that reach the kernels, of the forward pass, the backward pass and the optimizer alike.

    Attributes:
        counts (`Counter[str]`):
            Calls by the operation's name, views included.
        num_views (`int`):
            How many of them give a view of their input and launch nothing.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.num_views = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        self.num_views += func.is_view
        return func(*args, **(kwargs or {}))


def operations_per_adapter_step(
    model: nn.Module, updates: Sequence[InnerUpdate], config: LoraConfig, num_steps: int
) -> dict[str, float]:
    """
    Operations of one optimizer step divided by the adapters that took part, the mean over `num_steps` steps.

    What happens once at the start of a training is left out: counting begins after the first step.

    Returns:
        `dict[str, float]`: `"all"` operations, and those `"without_views"`.
    """
    counter, seen = OperationCounter(), []

    def on_step(step: InnerStep) -> None:
        seen.append((counter.total, counter.num_views, len(step.losses)))
        if len(seen) == num_steps + 1:
            stop.set()

    stop = threading.Event()
    bank = AdapterBank.initialize(model, config, [0] * len(updates))
    with counter:
        train(bank, updates, on_step=on_step, stop=stop)
    adapter_steps = sum(adapters for *_, adapters in seen[1:])
    total, views = (seen[-1][i] - seen[0][i] for i in range(2))
    return {"all": total / adapter_steps, "without_views": (total - views) / adapter_steps}
