"""
torch's attention with the query heads that share keys and values attended to in one.

Where there is a mask, transformers first copies keys and values for every query head, at every step and in every layer.
Query heads of one key head are instead given to the same kernel as further positions of one head.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.access import attention_set


GROUPED_ATTENTION = "seal_hf_grouped"  # its name among transformers' attention functions


def grouped_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Let a model that uses torch's attention use it grouped inside the `with` block; others are left as they are."""
    is_torch = model.config.get_text_config()._attn_implementation == "sdpa"
    return attention_set(model, GROUPED_ATTENTION) if is_torch else nullcontext()


def _grouped_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (R, H, T, D)
    key: torch.Tensor,  # (R, H_kv, L, D)
    value: torch.Tensor,  # (R, H_kv, L, D_v)
    attention_mask: torch.Tensor | None,  # (R, 1, T, L)
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; returns `(R, T, H, D_v)`."""
    (num_rows, num_heads, num_tokens, dim), num_kv = query.shape, key.shape[1]
    # Without a mask, causal order is told by a flag, which folded heads cannot follow but for a single token.
    unmasked = attention_mask is None and num_tokens > 1
    by_head = attention_mask is not None and attention_mask.shape[1] != 1
    if num_heads == num_kv or unmasked or by_head or position_bias is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **options
        )
    groups = num_heads // num_kv
    if attention_mask is not None:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    folded = query.reshape(num_rows, num_kv, groups * num_tokens, dim)
    attended = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.view(num_rows, num_heads, num_tokens, -1).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED_ATTENTION, _grouped_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED_ATTENTION, sdpa_mask)
