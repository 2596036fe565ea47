"""
Causal attention over a packed batch, as one of transformers' attention functions.

On CUDA one call of flash attention over sequences of any lengths does the whole batch, where torch has it for the model. It
takes no sequences that share a prefix; these, and all of them elsewhere, attend block by block.
"""

import logging
from functools import lru_cache

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.transfers import to_device
from .block_attention import BlockAttention
from .blocks import Block


logger = logging.getLogger(__name__)

PACKED_ATTENTION = "seal_hf_packed"  # its name among transformers' attention functions


class UnsupportedAttention(Exception):
    """The model's attention has a part that packed attention does not follow."""


class PackedAttention:
    """
    Attention within each sequence of a packed batch, to be handed to the model's forward pass as `packed_attention`.

    Parameters:
        blocks (`tuple[Block, ...]`):
            The blocks of the batch.
        sequence_ends (`torch.Tensor` of shape `(S + 1,)`, int32):
            Where its sequences end, after a 0.

    Attributes:
        windows (`set[int | None]`):
            The sliding windows of the layers that have called it.
        by_block (`bool`):
            Whether one of them attended block by block.
    """

    def __init__(self, blocks: tuple[Block, ...], sequence_ends: torch.Tensor):
        self.sequence_ends, self.longest = sequence_ends, max(max(block.lengths) for block in blocks)
        self.windows: set[int | None] = set()
        self.by_block = False
        self._shares_prefixes = any(block.prefix for block in blocks)
        self._block_attention = BlockAttention(blocks)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Queries `(1, H, N, D)`, keys and values `(1, H_kv, N, D)`; returns `(1, N, H, D)`."""
        self.windows.add(window)
        if not self._shares_prefixes and _takes_flash(query, key, value, window):
            return _flash_attention(query, key, value, self.sequence_ends, self.longest, scale, window)
        self.by_block = True
        return self._block_attention(query, key, value, scale, window)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """
    As [`PackedAttention`] by one call of flash attention.

    The operator is what torch's own attention over sequences of any lengths calls. That function is there from torch 2.10
    on and takes other arguments in every version; the operator's are the same from 2.8 on, and torch differentiates it.
    """
    attended, *_ = torch.ops.aten._flash_attention_forward.default(
        *(states.squeeze(0).transpose(0, 1) for states in (query, key, value)),  # (N, H, D), no copies
        ends,
        ends,
        longest,
        longest,
        0.0,  # dropout
        True,  # causal
        False,  # no weights returned
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )
    return attended.unsqueeze(0)


def _takes_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> bool:
    """Whether flash attention takes these, by what it demands of them, and if so, whether this machine has it."""
    dim = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and dim % 8 == 0
        and dim <= 256
        and all(states.stride(-1) == 1 for states in (query, key, value))
        and _has_flash(query.device, query.dtype, query.shape[1], key.shape[1], dim, window is not None)
    )


@lru_cache
def _has_flash(
    device: torch.device, dtype: torch.dtype, num_heads: int, num_kv: int, dim: int, windowed: bool
) -> bool:
    """
    Whether this build of torch has flash attention for such heads on this device, found out by a small pass.

    It needs an Ampere GPU or a newer one; the builds for Windows lack it, and some GPUs lack the backward pass for large
    heads.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ends, longest = to_device([0, 12, 32], device, torch.int32), 20
    try:
        with torch.enable_grad():
            states = [
                torch.zeros(1, heads, 32, dim, dtype=dtype, device=device, requires_grad=True)
                for heads in (num_heads, num_kv, num_kv)
            ]
            _flash_attention(*states, ends, longest, 1.0, 4 if windowed else None).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, there is another way
        logger.warning(
            "Flash attention cannot be used, so attention is computed block by block, which is slower: %s",
            str(error).partition("\n")[0],
        )
        return False
    return True


def _packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_attention: PackedAttention | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface."""
    if packed_attention is None:
        raise UnsupportedAttention(f"{type(module).__name__} is not given the options of the forward pass.")
    ignored = {name for name in ("softcap", "s_aux", "head_mask") if options.get(name) is not None}
    if ignored or attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttention(f"{type(module).__name__} uses {sorted(ignored) or 'a mask or no causal order'}.")
    if value.shape[-1] != query.shape[-1]:
        raise UnsupportedAttention(f"{type(module).__name__} has values of another size than its queries.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, scale, sliding_window), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, _packed_attention_forward)
