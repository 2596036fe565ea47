"""
Keys and values of a batch during generation, in buffers that have room for tokens to come.

transformers' own cache copies all of them at every step.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


# Tokens by which the buffers grow.
_ROOM = 32


class RoomyLayer(DynamicLayer):
    """
    Keys and values `(R, H, L, D)` of one layer as views into buffers of at least that length.

    It holds the whole text also where the layer attends to a window of it, which the mask then cuts out.

    Parameters:
        multiple (`int`, *optional*, defaults to `1`):
            Where a single token is added, keys and values are shown up to a multiple of this length. What was not written
            yet is zero, and for a mask to hide.
    """

    def __init__(self, multiple: int = 1):
        super().__init__()
        self.multiple, self.length = multiple, 0
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the states `(R, H, T, D)` of T tokens; returns those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        added, start = (key_states, value_states), self.length
        end, (width, _) = start + key_states.shape[-2], self.get_mask_sizes(key_states.shape[-2])
        if self.buffers is None or self.buffers[0].shape[-2] < width:
            known = self.buffers
            self.buffers = tuple(self.room(new.shape[0], width, new) for new in added)
            if start:
                for buffer, states in zip(self.buffers, known, strict=True):
                    buffer[:, :, :start] = states[:, :, :start]
        for buffer, states in zip(self.buffers, added, strict=True):
            buffer[:, :, start:end] = states
        self._show(end, width)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns are shown once so many tokens more are there, and the first of them."""
        end = self.length + query_length
        return (end + -end % self.multiple if query_length == 1 else end), 0

    def get_seq_length(self) -> int:
        return self.length

    def room(self, num_rows: int, length: int, like: torch.Tensor) -> torch.Tensor:
        """A buffer for so many rows and tokens, and some more, of states as these."""
        make = like.new_empty if self.multiple == 1 else like.new_zeros
        return make(num_rows, like.shape[1], length + _ROOM, like.shape[-1])

    def fill(self, buffers: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        """Start with the first `length` tokens of buffers `(R, H, L, D)`."""
        self.lazy_initialization(*buffers)
        self.buffers = buffers
        self._show(length, length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keep these rows."""
        self.fill(tuple(buffer.index_select(0, indices) for buffer in self.buffers), self.length)

    def reset(self) -> None:
        """Give everything back."""
        self.keys = self.values = self.buffers = None
        self.is_initialized, self.length = False, 0

    def _show(self, length: int, width: int) -> None:
        self.length = length
        self.keys, self.values = (buffer[:, :, :width] for buffer in self.buffers)


def roomy_cache(num_layers: int, multiple: int = 1) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [RoomyLayer(multiple) for _ in range(num_layers)]
    return cache


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """
    The rows of several caches in one, aligned at their last token. The given caches are emptied.

    Columns in front of a shorter row are zero: they are masked, but what is not a number would spread anyway.
    """
    if len(caches) == 1:
        return caches[0]
    length = max(cache.get_seq_length() for cache in caches)
    result = roomy_cache(len(caches[0].layers), caches[0].layers[0].multiple)
    for layer, parts in zip(result.layers, zip(*(cache.layers for cache in caches), strict=True), strict=True):
        num_rows = sum(part.keys.shape[0] for part in parts)
        buffers = tuple(layer.room(num_rows, length, states) for states in (parts[0].keys, parts[0].values))
        start = 0
        for part in parts:
            end, begin = start + part.keys.shape[0], length - part.length
            for buffer, states in zip(buffers, (part.keys, part.values), strict=True):
                buffer[start:end, :, :begin] = 0
                buffer[start:end, :, begin:length] = states[:, :, : part.length]
            part.reset()
            start = end
        layer.fill(buffers, length)
    return result


def continued(
    cache: DynamicCache, rows: torch.Tensor, lengths: torch.Tensor, known: torch.Tensor, width: int
) -> DynamicCache:
    """
    A cache whose rows begin as rows of another do.

    Args:
        cache (`DynamicCache`):
            What is begun with.
        rows (`torch.Tensor` of shape `(R,)`):
            For each new row the row of `cache`.
        lengths (`torch.Tensor` of shape `(R,)`):
            The tokens in each of these rows, which are aligned at the last.
        known (`torch.Tensor` of shape `(R,)`):
            How many of them, from the first, the new row takes; at most `width`.
        width (`int`):
            Columns of the new cache; the rows are aligned at their last token.
    """
    result = roomy_cache(len(cache.layers), cache.layers[0].multiple)
    columns = torch.arange(width, device=rows.device) - (width - known)[:, None]  # (R, W), from the row's first token
    columns = (columns + cache.get_seq_length() - lengths[:, None]).clamp(min=0)
    for layer, source in zip(result.layers, cache.layers, strict=True):
        taken = (states[rows[:, None], :, columns].transpose(1, 2) for states in (source.keys, source.values))
        layer.fill(tuple(taken), width)
    return result
