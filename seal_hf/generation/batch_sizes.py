"""
How many tokens are read and held at once: as many as the memory of a GPU holds, and a fixed number on the CPU.

On a GPU they are powers of two, so that a run that finds a little less memory free cuts the same batches.
"""

from torch import nn

from ..models.access import activation_dtype, layer_size, unwrap
from ..models.memory import activation_bytes_per_token, free_memory


# Tokens of one forward pass: enough for full speed, while the activations of a small model stay in a CPU's cache.
_CPU_TOKENS_PER_PASS, _MOST_TOKENS_PER_PASS = 1024, 2**14
# Prompts and new tokens of one batch; rows of long texts make smaller batches.
_CPU_TOKENS_PER_BATCH = 2**16
# Logits of one likelihood pass, and the bytes of each: as computed, in fp32, and as log-probability.
_MOST_LOGITS_PER_PASS, _BYTES_PER_LOGIT = 2**27, 12
# Shares of the free memory; the rest is left to the logits of a batch and to the error of the estimates.
_PASS_SHARE, _BATCH_SHARE, _LOGITS_SHARE = 0.2, 0.5, 0.1


def tokens_per_pass(model: nn.Module) -> int:
    """Tokens that one forward pass reads, padding included."""
    device = unwrap(model).device
    if device.type != "cuda" or not key_value_bytes_per_token(model):
        return _CPU_TOKENS_PER_PASS
    # Without gradients no layer keeps anything, so that this is more than it takes.
    fitting = free_memory(device) * _PASS_SHARE / activation_bytes_per_token(model, checkpointed=True)
    return min(_power_of_two(fitting), _MOST_TOKENS_PER_PASS)


def tokens_per_batch(model: nn.Module) -> int:
    """Tokens whose keys and values a batch holds, padding included."""
    device = unwrap(model).device
    bytes_per_token = key_value_bytes_per_token(model)
    if device.type != "cuda" or not bytes_per_token:
        return _CPU_TOKENS_PER_BATCH
    return _power_of_two(free_memory(device) * _BATCH_SHARE / bytes_per_token)


def logits_per_pass(model: nn.Module) -> int:
    """Logits that a forward pass on a GPU computes."""
    device = unwrap(model).device
    return min(_power_of_two(free_memory(device) * _LOGITS_SHARE / _BYTES_PER_LOGIT), _MOST_LOGITS_PER_PASS)


def key_value_bytes_per_token(model: nn.Module) -> int:
    """What all layers keep of a token, in bytes; 0 for a model without attention."""
    config = unwrap(model).config.get_text_config()
    num_heads = layer_size(config, "num_attention_heads")
    if not num_heads:
        return 0
    num_kv_heads = layer_size(config, "num_key_value_heads") or num_heads
    head_dim = layer_size(config, "head_dim") or config.hidden_size // num_heads
    return config.num_hidden_layers * num_kv_heads * head_dim * 2 * activation_dtype(model).itemsize


def _power_of_two(number: float) -> int:
    """
    The greatest power of two that is no more, but at least 1.

    >>> [_power_of_two(number) for number in (0.3, 1, 7.9, 8)]
    [1, 1, 4, 8]
    """
    return 2 ** max(0, int(number).bit_length() - 1)
