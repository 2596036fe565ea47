"""
What an architecture allows: which of its modules take an adapter, and whether it can be run in other ways than its own.

A model is asked by its flags, its cache and its modules, not by its name.
"""

import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakSet

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.pytorch_utils import Conv1D

from .access import evaluating, unwrap


logger = logging.getLogger(__name__)

# Linear modules beside the experts of a layer that choose or weigh them.
_ROUTERS = ("gate", "router", "classifier", "wg", "shared_expert_gate")
# transformers looks at the whole batch for these, so that a long row would change a short one.
_BATCH_WIDE_ROPE = ("dynamic", "longrope")
# A module of one expert, which sees a choice of the tokens; one that all tokens go through is shared.
_EXPERT = re.compile(r"(?<!shared_)experts?\.\d+\.")
_told: WeakSet[nn.Module] = WeakSet()


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """
    The linear modules of a causal LM that can be adapted, by their base-model names.

    They are `nn.Linear` and GPT-2's `Conv1D`, of the language model alone where a model has other parts, such as a vision
    tower. The output embedding is none of them, and neither are routers, which choose between experts.

    A module that a policy adapter wraps is returned as PEFT's wrapper, so that an inner adapter adds to base and policy; as
    what is wrapped where the policy is left out (see [`without_policy`]).
    """
    base = unwrap(model)
    output_embedding, parts = base.get_output_embeddings(), _language_parts(base)
    found: dict[str, nn.Module] = {}
    wrapper = None
    for name, module in base.named_modules():
        if wrapper is not None and name.startswith(f"{wrapper}."):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapper, inner = name, module.get_base_layer()
            module = inner if module.disable_adapters else module
        else:
            inner = module
        if not _is_linear(inner) or inner is output_embedding or _is_router(base, name, inner):
            continue
        if any(name.startswith(part) for part in parts):
            found[name] = module
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is one product. bitsandbytes' 4-bit and 8-bit layers are subclasses of nn.Linear."""
    return isinstance(module, nn.Linear | Conv1D) and "Grouped" not in type(module).__name__


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output features of one of the [`linear_modules`]."""
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return tuple(inner.weight.shape) if isinstance(inner, Conv1D) else (inner.in_features, inner.out_features)


def _language_parts(base: PreTrainedModel) -> list[str]:
    """Beginnings of the names of modules that belong to the language model."""
    if base.config.get_text_config() is base.config:
        return [""]
    decoder = base.get_decoder()
    return [f"{name}." for name, module in base.named_modules() if module is decoder and name] or [""]


def _is_router(base: PreTrainedModel, name: str, module: nn.Module) -> bool:
    parent, _, own = name.rpartition(".")
    if "router" in name.lower() or "Router" in type(module).__name__:
        return True
    return own in _ROUTERS and any("expert" in child for child, _ in base.get_submodule(parent).named_children())


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Callable]) -> Iterator[None]:
    """
    Forward hooks on linear modules inside the `with` block, removed however it ends.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        hooks (`Mapping[str, Callable]`):
            For the names of [`linear_modules`] what torch calls with module, arguments and output.
    """
    modules, handles = linear_modules(model), []
    try:
        for name, hook in hooks.items():
            handles.append(modules[name].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def see_all_tokens(names: Collection[str]) -> bool:
    """Whether none of some [`linear_modules`], by name, belongs to one expert of many, which sees a choice of tokens."""
    return not any(_EXPERT.search(name) for name in names)


def runs_in_batches(model: nn.Module, length: int = 0) -> bool:
    """
    Whether rows of unequal length with a cache of our own can be one batch.

    That takes attention that goes by transformers' interface, positions that can be given, and a cache of nothing but keys
    and values. Other models are run by transformers' own `generate`, one prompt at a time; a log line says so, once.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        length (`int`, *optional*, defaults to `0`):
            Tokens of the longest row, new ones included.
    """
    base = unwrap(model)
    if (reason := _why_alone(base, length)) is None:
        return True
    if base not in _told:
        _told.add(base)
        logger.info("%s is run one prompt at a time: %s.", type(base).__name__, reason)
    return False


def _why_alone(base: PreTrainedModel, length: int) -> str | None:
    accepted, config = inspect.signature(base.forward).parameters, base.config.get_text_config()
    if not getattr(base, "_supports_attention_backend", False):
        return "its attention does not go by transformers' interface"
    if getattr(base, "_is_stateful", False):
        return "it keeps a state besides keys and values"
    if missing := [name for name in ("position_ids", "past_key_values") if name not in accepted]:
        return f"its forward pass takes no {missing[0]}"
    if not {type(layer) for layer in DynamicCache(config=base.config).layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }:
        return "its cache holds more than keys and values"
    if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
        return "it has layers of other kinds than full and sliding attention"
    for rope in _rotary_embeddings(config):
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if rope.get("rope_type") in _BATCH_WIDE_ROPE and length > limit:
            return f"beyond {limit} tokens its rotary embedding depends on the longest row of a batch"
    return None


def _rotary_embeddings(config: PreTrainedConfig) -> list[Mapping]:
    """The parameters of its rotary embedding, or of those of each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(own for own in rope.values() if isinstance(own, Mapping))]


@torch.no_grad()
def _sees_later_tokens(base: PreTrainedModel) -> bool:
    """Whether the logits of a token depend on what comes after it."""
    input_ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=base.get_input_embeddings().weight.device)
    with evaluating(base):
        logits = base(input_ids=input_ids).logits[:, :2]
    error = (logits[0] - logits[1]).float().abs().max() / logits.float().std()
    return bool(error > torch.finfo(logits.dtype).eps ** 0.5)


def check_causal_lm(model: nn.Module) -> None:
    """
    Refuse what is no causal language model of text, before any work. A model that may be an encoder is run on a few tokens.

    Raises:
        ValueError: A model that looks at later tokens, one that continues an encoder's text, or one without an output
            embedding.
    """
    base = unwrap(model)
    name = type(base).__name__
    if getattr(base.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder with a decoder; SEAL needs a decoder alone, such as Qwen2ForCausalLM.")
    # GPT-NeoX says the same and is causal.
    if getattr(base.config, "is_decoder", True) is False and _sees_later_tokens(base):
        raise ValueError(
            f"{name} looks at later tokens (is_decoder=False in its config); load it with is_decoder=True, or use a causal "
            "LM."
        )
    if not base.can_generate() or base.get_output_embeddings() is None:
        raise ValueError(f"{name} has no output embedding that gives the next token; use a causal LM.")
