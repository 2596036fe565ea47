"""
The inner loop of SEAL: every self-edit finetunes a LoRA adapter of its own, all of them together.

One step of a bank is one forward and one backward pass over a batch in which each adapter has its own rows, so the frozen
model is read once for all. Three things keep it exact and lean:

- Padding is on the right. Under a causal mask no real token sees it, so no attention mask is needed, and the loss is
  computed only where a label is (the output embedding sees labelled positions alone).
- Adapters share the order of length ranks. One stream of uniform numbers per order seed is read by every adapter: in each
  of its epochs it takes its sequences by the ranks of that epoch's numbers, a uniformly random permutation that depends
  on nothing but the seed and the adapter's own sequences. Adapters that read the same number take sequences of about the
  same length quantile, so long meets long and little is padding.
- Each adapter has its own AdamW state, learning rate, schedule and gradient norm, and leaves the batch when it is done.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from .adapter_bank import AdapterBank, AdapterRows, LoraStack, activation_dtype, attached, is_packed_for_inference
from .inner_update import InnerUpdate, TrainingSequence, learning_rate, training_order
from .lora_layout import unwrap


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InnerStep:
    """
    Progress of a bank after one optimizer step.

    Parameters:
        step (`int`):
            Steps done, from 1.
        num_steps (`int`):
            Steps of the adapter that has the most.
        losses (`dict[int, float]`):
            The loss of each adapter that took part, in nats per token, before the step.
        num_tokens (`int`):
            Real tokens trained on so far, all adapters together, padding not counted.
        seconds (`float`):
            Time since the start.
    """

    step: int
    num_steps: int
    losses: dict[int, float]
    num_tokens: int
    seconds: float


@dataclass
class InnerResult:
    """
    What became of one adapter.

    Parameters:
        losses (`list[float]`):
            Loss at every step, in nats per token.
        num_tokens (`int`):
            Real tokens trained on.
        stopped (`str`, *optional*):
            Why it ended early: `"non-finite"` (its last finite weights are kept) or `"stop"`; `None` when it was
            trained to the end.
    """

    losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    stopped: str | None = None


# What one more forward and backward pass costs beside its tokens, in tokens: kernel launches and dispatch. Measured for
# the CPU; a guess for accelerators, where a pass of few tokens leaves most of the chip idle.
_PASS_COST = {"cpu": 64, "cuda": 1024}

Batch = Sequence[TrainingSequence]  # what one adapter trains on in one step


def _passes(batches: Mapping[int, Batch], pass_cost: int) -> list[list[int]]:
    """
    Share the adapters of one step out to forward passes, so that a passage does not pad every short line to its length.

    Adapters in order of their longest sequence are cut into runs; the cuts minimize padded tokens plus `pass_cost` per
    run (dynamic program).

    Returns:
        `list[list[int]]`: the adapters of each pass.
    """
    lengths = {adapter: max(len(sequence.input_ids) for sequence in batch) for adapter, batch in batches.items()}
    order = sorted(batches, key=lambda adapter: (-lengths[adapter], adapter))
    best = [(0, 0)]  # least cost of the first n adapters, start of their last run
    for end in range(1, len(order) + 1):
        num_rows, candidates = 0, []
        for start in range(end - 1, -1, -1):
            num_rows += len(batches[order[start]])
            candidates.append((best[start][0] + num_rows * lengths[order[start]] + pass_cost, start))
        best.append(min(candidates))
    passes, end = [], len(order)
    while end:
        start = best[end][1]
        passes.append(order[start:end])
        end = start
    return passes


class _Leaves:
    """The active adapters' weights in the dtype of the activations, and their gradients: a row for each."""

    def __init__(self, bank: AdapterBank, num_active: int):
        self.bank = bank
        dtype = activation_dtype(bank.model)
        self.weights = torch.empty(num_active, bank.layout.num_parameters, dtype=dtype, device=bank.weights.device)
        self.grad = torch.empty_like(self.weights)
        # AdamW takes gradients in the dtype of the fp32 weights.
        self.fp32_grad = self.grad if dtype == torch.float32 else torch.empty_like(self.weights, dtype=torch.float32)

    def refresh(self, adapters: Sequence[int]) -> None:
        """Take the adapters' weights, in this order, and forget the gradients."""
        for row, adapter in zip(self.weights, adapters, strict=True):
            row.copy_(self.bank.weights[adapter])
        self.grad.zero_()

    def stacks(self, rows: slice) -> dict[str, LoraStack]:
        """The matrices of some rows by module, with gradients."""
        gradients = self.bank.layout.views(self.grad[rows])
        return {
            name: LoraStack(lora_a.requires_grad_(), lora_b, *gradients[name])
            for name, (lora_a, lora_b) in self.bank.layout.views(self.weights[rows]).items()
        }

    def clip(self, max_norms: torch.Tensor) -> torch.Tensor:
        """Scale each row's gradient to its greatest norm (0: leave it); returns the norms before, `(K,)`."""
        norms = torch.linalg.vector_norm(self.grad, dim=1, dtype=torch.float32)
        factors = torch.where(max_norms > 0, (max_norms / (norms + 1e-6)).clamp(max=1.0), 1.0)
        torch.mul(self.grad, factors[:, None], out=self.fp32_grad)
        return norms


def _backward(bank: AdapterBank, stacks: Mapping[str, LoraStack], batches: Sequence[Batch]) -> torch.Tensor:
    """
    One forward and backward pass; the gradients are added to the stacks.

    Returns:
        `torch.Tensor` of shape `(K,)`: the loss of each adapter, the mean over its labels.
    """
    device = bank.weights.device
    sequences = [sequence for batch in batches for sequence in batch]
    row_owners = [owner for owner, batch in enumerate(batches) for _ in batch]
    length = max(len(sequence.input_ids) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), length, dtype=torch.long)  # (R, L)
    positions, owners = [], []
    for row, (sequence, owner) in enumerate(zip(sequences, row_owners, strict=True)):
        first, end = sequence.first_label, len(sequence.input_ids)
        input_ids[row, :end] = torch.tensor(sequence.input_ids)
        # The token at t is predicted at t - 1.
        positions.append(torch.arange(first - 1, end - 1) + row * length)
        owners.append(torch.full((end - first,), owner))
    positions, owners = torch.cat(positions), torch.cat(owners)  # (N,), N labels
    labels = input_ids.flatten()[positions + 1]
    shares = (1.0 / torch.bincount(owners))[owners]

    with attached(bank.model, stacks, AdapterRows(row_owners, device), bank.layout.scaling):
        logits = _labelled_logits(bank.model, input_ids.to(device), positions.to(device))  # (N, V)
        token_losses = F.cross_entropy(logits.float(), labels.to(device), reduction="none") * shares.to(device)
        # The adapters do not meet in any product, so the gradient of the sum is each adapter's own.
        token_losses.sum().backward()
    losses = torch.zeros(len(batches), device=device)
    return losses.index_add_(0, owners.to(device), token_losses.detach())


def train(
    bank: AdapterBank,
    updates: Sequence[InnerUpdate],
    *,
    order_seed: int = 0,
    on_step: Callable[[InnerStep], None] | None = None,
    stop: threading.Event | None = None,
) -> list[InnerResult]:
    """
    Train all adapters of a bank, each on its own update. The bank's weights are changed in place.

    Parameters:
        bank (`AdapterBank`):
            The adapters, with their initial weights.
        updates (`Sequence[InnerUpdate]`):
            One per adapter.
        order_seed (`int`, *optional*, defaults to `0`):
            Seed of the order of sequences (see [`training_order`]).
        on_step (`Callable[[InnerStep], None]`, *optional*):
            Called after every optimizer step.
        stop (`threading.Event`, *optional*):
            Checked before every step; once set, training ends and the adapters keep the weights they have.

    Returns:
        `list[InnerResult]`: one per adapter. An adapter whose loss or gradient is not finite is stopped with its last
        finite weights and named in a warning; the others go on as if it had not been there.

    Raises:
        ValueError: The number of updates differs from the number of adapters, an update has no sequences, or
            the model's 4-bit weights are packed for inference (see [`keep_trainable`]).
    """
    if len(updates) != len(bank):
        raise ValueError(f"{len(updates)} updates were given for a bank of {len(bank)} adapters; give one for each.")
    for adapter, update in enumerate(updates):
        if not update.sequences:
            raise ValueError(f"The update of adapter {adapter} has no sequences to train on; give it at least one.")
    if is_packed_for_inference(bank.model):
        raise ValueError(
            "bitsandbytes packed this model's 4-bit weights for CPU inference, and that form has no backward pass; load "
            "the model again and call keep_trainable(model) before the first forward pass."
        )
    device = bank.weights.device
    pass_cost = _PASS_COST.get(device.type, _PASS_COST["cuda"])
    orders = [training_order(update, order_seed) for update in updates]
    results = [InnerResult() for _ in updates]
    # A parameter group for each adapter: learning rates differ, and one that is done keeps its state out of the way.
    parameters = [nn.Parameter(row) for row in bank.weights]
    optimizer = torch.optim.AdamW([{"params": [row]} for row in parameters], lr=0.0, weight_decay=0.0, fused=True)
    groups = optimizer.param_groups
    num_steps = max(update.num_steps for update in updates)
    leaves = None
    start = time.perf_counter()
    with _frozen(bank.model), torch.enable_grad():
        for step in range(num_steps):
            batches = {
                adapter: [update.sequences[i] for i in orders[adapter][step]]
                for adapter, update in enumerate(updates)
                if step < update.num_steps and results[adapter].stopped is None
            }
            if stop is not None and stop.is_set():
                for adapter in batches:
                    results[adapter].stopped = "stop"
                break
            if not batches:
                break
            passes = _passes(batches, pass_cost)
            order = [adapter for adapters in passes for adapter in adapters]
            if leaves is None or len(leaves.weights) != len(order):
                leaves = _Leaves(bank, len(order))
            leaves.refresh(order)
            losses, end = [], 0
            for adapters in passes:
                begin, end = end, end + len(adapters)
                losses.append(_backward(bank, leaves.stacks(slice(begin, end)), [batches[a] for a in adapters]))
            max_norms = torch.tensor([updates[adapter].config.max_grad_norm for adapter in order], device=device)
            norms = leaves.clip(max_norms)
            losses = torch.cat(losses)
            finite = (losses.isfinite() & norms.isfinite()).tolist()
            losses = dict(zip(order, losses.tolist(), strict=True))
            for row, adapter in enumerate(order):
                update, result = updates[adapter], results[adapter]
                if finite[row]:
                    result.losses.append(losses[adapter])
                    result.num_tokens += sum(len(sequence.input_ids) for sequence in batches[adapter])
                    groups[adapter]["lr"] = learning_rate(step, update.num_steps, update.config)
                    parameters[adapter].grad = leaves.fp32_grad[row]
                else:
                    result.stopped = "non-finite"
                    logger.warning(
                        "Adapter %d was stopped at step %d of %d: its loss or gradient is not finite (learning rate %g). "
                        "Its last finite weights are kept.",
                        adapter,
                        step + 1,
                        update.num_steps,
                        update.config.learning_rate,
                    )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # an adapter without a gradient is passed over
            if on_step is not None:
                num_tokens = sum(result.num_tokens for result in results)
                on_step(InnerStep(step + 1, num_steps, losses, num_tokens, time.perf_counter() - start))
    return results


def _labelled_logits(model: nn.Module, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """
    Logits `(N, V)` at the given positions of the flattened batch.

    The selection happens at the output embedding's input, whatever the architecture does around it.
    """
    base = unwrap(model)

    def select(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0].flatten(0, 1).index_select(0, positions),)

    handle = base.get_output_embeddings().register_forward_pre_hook(select)
    try:
        return base(input_ids=input_ids, use_cache=False).logits
    finally:
        handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the model's own parameters inside the block; both restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
