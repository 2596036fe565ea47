"""
The model's side of generation: read the prompts of a batch, then give the logits of one token more at a time.

What many rows begin with is read once, and rows that are done can leave the batch.
"""

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import ModelOutput

from ..adapters.bank import StackedAdapters
from ..inner_loop.norm import frozen_norms
from ..inner_loop.rotary import written_out_rotary
from ..models.access import head_input_changed, unwrap
from ..models.attention_kernels import without_cudnn
from ..models.transfers import to_device
from .attention import can_group, grouped_attention
from .batch_sizes import tokens_per_pass
from .key_values import continued, joined, roomy_cache


# Tokens that reading a common beginning once must save in a batch to be worth forward passes of its own.
_LEAST_SAVED = 64
# On these devices the shapes of a batch that needs a mask stay the same for so many steps.
_WIDTHS = {"cuda": 32}
# Columns by which a mask grows.
_ROOM = 32


class Decoder:
    """
    The rows of one batch with the keys and values of what they have read; to be used as a context manager.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM, in evaluation mode; one that [`runs_in_batches`].
        pad_id (`int`):
            Token that rows are filled with on the left; it is masked.
        adapters (`Sequence[int | None]`):
            For each row its adapter in `stacked`, `None` for no inner adapter. Rows of one adapter are best kept together.
        stacked ([`StackedAdapters`], *optional*):
            The adapters.
    """

    def __init__(
        self, model: nn.Module, pad_id: int, adapters: Sequence[int | None], stacked: StackedAdapters | None = None
    ):
        self.base, self.device, self.pad_id = unwrap(model), model.device, pad_id
        self.adapters, self.stacked = list(adapters), stacked
        accepted = inspect.signature(self.base.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.num_layers = len(DynamicCache(config=self.base.config).layers)
        # A flash kernel would take what is beyond the text for it.
        self._width = _WIDTHS.get(self.device.type, 1) if can_group(self.base) else 1
        self._tokens_per_pass = tokens_per_pass(model)
        self._context, self._attached = ExitStack(), ExitStack()

    def __enter__(self) -> "Decoder":
        self._context.enter_context(torch.no_grad())
        self._context.enter_context(without_cudnn())
        self._context.enter_context(grouped_attention(self.base))
        if self.device.type == "cuda":  # where a token takes as long as its operations take to launch
            self._context.enter_context(frozen_norms(self.base))
            self._context.enter_context(written_out_rotary(self.base))
        # The last token's hidden states have gaps between them, and torch multiplies frozen weights with such states row
        # by row, each with a copy of the weights of its own.
        self._context.enter_context(head_input_changed(self.base, torch.Tensor.contiguous))
        self._context.enter_context(self._attached)
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def read(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """
        Read the prompts of all rows, at least one token each.

        Returns:
            `torch.Tensor` of shape `(R, V)`: logits of each row's next token.
        """
        self.length = max(map(len, prompts))  # of the rows, padding included
        self.starts, self.first, self.mask = self._padding(prompts)
        self._multiple = 1 if self.mask is None else self._width
        self.cache, logits = self._read_in_passes(prompts)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        Read one token more of every row.

        Args:
            tokens (`torch.Tensor` of shape `(R,)`, int64):
                The tokens.

        Returns:
            `torch.Tensor` of shape `(R, V)`: logits of each row's next token.
        """
        positions = self.length - self.first
        self.length += 1
        mask = None
        if self.mask is not None:
            width = self.cache.get_mask_sizes(1, 0)[0]
            if (missing := width - self.mask.shape[1]) > 0:
                self.mask = F.pad(self.mask, (0, missing + _ROOM), value=1)
            # Columns that were not written yet are hidden by causal order.
            mask = self.mask[:, :width]
        return self._call(self.base, tokens[:, None], mask, positions, self.cache, self.last_only).logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in the order given."""
        index = to_device(rows, self.device)
        self.cache.batch_select_indices(index)
        self.starts = [self.starts[row] for row in rows]
        self.first = self.first[index]
        self.mask = self.mask[index] if any(self.starts) else None
        self.adapters = [self.adapters[row] for row in rows]
        self._attach(self.adapters)

    def _read_in_passes(self, prompts: Sequence[list[int]]) -> tuple[DynamicCache, torch.Tensor]:
        shared = self._shared_beginnings(prompts)
        begun = self._read_beginnings(prompts, shared)
        source = {row: (group, length) for group, (rows, length) in enumerate(shared) for row in rows}
        own = [len(ids) - source.get(row, (0, 0))[1] for row, ids in enumerate(prompts)]
        caches, logits = [], []
        for rows in _passes(own, self._tokens_per_pass):
            sequences = [prompts[row] for row in rows]
            # All rows of a pass read equally many tokens, so that some read a part of their beginning again.
            num_read, width = max(own[row] for row in rows), max(map(len, sequences))
            cache = roomy_cache(self.num_layers, self._multiple)
            if width > num_read:
                groups, lengths = zip(*(source.get(row, (0, 0)) for row in rows), strict=True)
                known = [max(0, len(ids) - num_read) for ids in sequences]
                cache = continued(begun, *to_device([groups, lengths, known], self.device), width - num_read)
            self._attach([self.adapters[row] for row in rows])
            logits.append(self._read(self.base, sequences, num_read, cache, self.last_only).logits[:, -1])
            caches.append(cache)
        if len(caches) > 1:
            self._attach(self.adapters)
        return joined(caches), torch.cat(logits)

    def _read_beginnings(
        self, prompts: Sequence[list[int]], shared: Sequence[tuple[list[int], int]]
    ) -> DynamicCache | None:
        """Keys and values of the beginnings, a row for each."""
        beginnings = [prompts[rows[0]][:length] for rows, length in shared]
        caches = []
        for groups in _passes([len(ids) for ids in beginnings], self._tokens_per_pass):
            sequences = [beginnings[group] for group in groups]
            self._attach([self.adapters[shared[group][0][0]] for group in groups])
            caches.append(roomy_cache(self.num_layers, self._multiple))
            self._read(self.base.base_model, sequences, max(map(len, sequences)), caches[-1], {})
        return joined(caches) if caches else None

    def _shared_beginnings(self, prompts: Sequence[list[int]]) -> list[tuple[list[int], int]]:
        """Groups of rows of one adapter that begin with the same tokens, and the number of these tokens."""
        by_adapter: dict[int | None, list[int]] = {}
        for row, adapter in enumerate(self.adapters):
            by_adapter.setdefault(adapter, []).append(row)
        groups = [group for rows in by_adapter.values() for group in _shared(rows, prompts)]
        return groups if _saved(groups) >= _LEAST_SAVED else []

    def _read(
        self, model: nn.Module, sequences: Sequence[list[int]], num_read: int, cache: DynamicCache, options: dict
    ) -> ModelOutput:
        """Let a model read the last `num_read` tokens of every sequence, after what its row of the cache holds."""
        ids = [[self.pad_id] * (num_read - len(ids)) + ids[-num_read:] for ids in sequences]
        _, first, mask = self._padding(sequences)
        width = max(map(len, sequences))
        positions = torch.arange(width - num_read, width, device=self.device) - first
        return self._call(model, to_device(ids, self.device), mask, positions.clamp(min=0), cache, options)

    def _call(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,  # (R, T)
        mask: torch.Tensor | None,  # (R, L)
        positions: torch.Tensor,  # (R, T)
        cache: DynamicCache,
        options: dict,
    ) -> ModelOutput:
        return model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **options,
        )

    def _padding(self, sequences: Sequence[list[int]]) -> tuple[list[int], torch.Tensor, torch.Tensor | None]:
        """
        Where left-padded rows begin: the columns, the same `(R, 1)` on the device, and a mask `(R, L)` of those that are
        theirs; none where all are.
        """
        width = max(map(len, sequences))
        starts = [width - len(ids) for ids in sequences]
        first = to_device(starts, self.device)[:, None]
        columns = torch.arange(width, device=self.device)
        return starts, first, (columns >= first).long() if any(starts) else None

    def _attach(self, adapters: Sequence[int | None]) -> None:
        self._attached.close()
        if self.stacked is not None:
            self._attached.enter_context(self.stacked.attach(adapters))


def _passes(lengths: Sequence[int], tokens_per_pass: int) -> Iterator[range]:
    """Cut rows of these lengths into forward passes."""
    start = longest = 0
    for row, length in enumerate(lengths):
        if row > start and max(longest, length) * (row + 1 - start) > tokens_per_pass:
            yield range(start, row)
            start, longest = row, 0
        longest = max(longest, length)
    if lengths:
        yield range(start, len(lengths))


def _shared(rows: list[int], prompts: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    """
    Groups among rows that begin alike, such that reading each beginning once saves most tokens.

    At least one token of every row is left to read, for the logits after it.
    """
    common = len(os.path.commonprefix([prompts[row] for row in rows]))
    length = min(common, min(len(prompts[row]) for row in rows) - 1)
    branches: dict[int | None, list[int]] = {}
    for row in rows:
        branches.setdefault(next(iter(prompts[row][common : common + 1]), None), []).append(row)
    whole = [(rows, length)] if len(rows) > 1 and length else []
    if len(branches) == 1:
        return whole
    parts = [group for branch in branches.values() for group in _shared(branch, prompts)]
    return parts if _saved(parts) > _saved(whole) else whole


def _saved(groups: Iterable[tuple[list[int], int]]) -> int:
    return sum((len(rows) - 1) * length for rows, length in groups)
