"""
torch's attention with the query heads that share keys and values attended to in one, and with one mask for all layers.

Where there is a mask, transformers copies keys and values for every query head, and torch turns the mask into numbers to
add, both in every layer. Query heads of one key head are instead given to the same kernel as further positions of one
head, and the first layer's mask serves those after it.
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
# On CUDA torch copies a mask in every layer unless its rows begin at multiples of so many values.
_ALIGNMENT = 8


def can_group(model: PreTrainedModel) -> bool:
    """Whether a model uses torch's attention."""
    return model.config.get_text_config()._attn_implementation == "sdpa"


def grouped_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Let a model that uses torch's attention use it grouped inside the `with` block; others are left as they are."""
    return attention_set(model, GROUPED_ATTENTION) if can_group(model) else nullcontext()


def _grouped_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (R, H, T, D)
    key: torch.Tensor,  # (R, H_kv, L, D)
    value: torch.Tensor,  # (R, H_kv, L, D_v)
    attention_mask: torch.Tensor | None,  # (R, 1, T, L), bool
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; returns `(R, T, H, D_v)`."""
    (num_rows, num_heads, num_tokens, dim), num_kv = query.shape, key.shape[1]
    groups = num_heads // num_kv
    is_shared = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    bias = _bias_of(attention_mask, groups, query.dtype) if is_shared and position_bias is None else None
    # Without a mask, causal order is told by a flag, which folded heads cannot follow but for a single token.
    is_foldable = groups > 1 and position_bias is None
    if not is_foldable or (bias is None and (attention_mask is not None or num_tokens > 1)):
        mask = attention_mask if bias is None else bias
        return sdpa_attention_forward(
            module, query, key, value, mask, scaling=scaling, position_bias=position_bias, **options
        )
    folded = query.reshape(num_rows, num_kv, groups * num_tokens, dim)
    attended = F.scaled_dot_product_attention(folded, key, value, attn_mask=bias, scale=scaling)
    # Kernels lay out what they return in different ways, so that there may be no view with the heads apart.
    attended = attended.unflatten(2, (groups, num_tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return attended.contiguous(), None  # some models take a view of it


def _bias_of(mask: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """
    What torch adds to the scores of `groups` folded heads for a mask `(R, 1, T, L)`: `(R, 1, groups * T, L)`.

    It is computed once for a mask, which all layers of a kind are given.
    """
    biases = vars(mask).setdefault("biases", {})
    if (groups, dtype) not in biases:
        width = mask.shape[-1]
        hidden = mask.logical_not()
        if mask.device.type == "cuda" and width % _ALIGNMENT:
            hidden = F.pad(hidden, (0, -width % _ALIGNMENT), value=True)
        bias = torch.zeros(hidden.shape, dtype=dtype, device=mask.device).masked_fill_(hidden, -torch.inf)
        biases[groups, dtype] = bias.repeat(1, 1, groups, 1)[..., :width] if groups > 1 else bias[..., :width]
    return biases[groups, dtype]


def _grouped_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **options: object,
) -> torch.Tensor | None:
    """
    transformers' mask interface; returns `(R, 1, T, L)`, bool, or `None` where all that came before is seen.

    A token of the padding sees itself: some of torch's kernels give NaN for a query that sees nothing, which would spread
    in the next layer, since what is masked is still multiplied by zero.
    """
    # transformers would look into the mask for padding, for which the host has to wait for the device.
    can_skip = allow_is_causal_skip and attention_mask is None and kv_length == q_offset + q_length
    mask = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        allow_is_causal_skip=can_skip,
        device=device,
        **options,
    )
    if mask is None or attention_mask is None or q_length == 1:
        return mask
    queries = torch.arange(q_length, device=device) + q_offset
    columns = torch.arange(kv_length, device=device) + kv_offset
    return mask | (queries[:, None] == columns)


ALL_ATTENTION_FUNCTIONS.register(GROUPED_ATTENTION, _grouped_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED_ATTENTION, _grouped_mask)
