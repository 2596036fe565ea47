"""Whether two base models are the same: by name, by folder, and by what they are made of. The name is for people."""

import hashlib
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .access import unwrap
from .architecture import linear_modules, linear_sizes
from .transfers import to_host


_SAMPLE = 16  # weights of each module
# The fingerprints of models whose weights are no longer whole.
_kept: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def same_base(one: str | None, other: str | None) -> bool:
    """Whether two names are of one base model: equal ones, or paths of one folder."""
    if one == other:
        return True
    return bool(one and other) and Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def canonical_name(base_model_id: str) -> str:
    """The name of a base model, in one form for all paths of a folder."""
    return str(Path(base_model_id).resolve()) if Path(base_model_id).is_dir() else base_model_id


def base_fingerprint(model: nn.Module) -> str:
    """
    A digest of a model's type and of the names and sizes of its linear modules and its embedding: of a copy, a mirror or a
    quantized form as of the model itself, but also of others of one architecture and size.
    """
    base = unwrap(model)
    sizes = [(name, *linear_sizes(module)) for name, module in linear_modules(model).items()]
    embedding = tuple(base.get_input_embeddings().weight.shape)
    return hashlib.sha256(repr((base.config.model_type, embedding, sizes)).encode()).hexdigest()[:16]


def weights_fingerprint(model: nn.Module) -> str:
    """
    A digest of the first weights of every linear module of the base: of a copy or a mirror in the same dtype and quantization
    as of the model itself, but not of one of the same architecture that was trained further.
    """
    if (kept := _kept.get(unwrap(model))) is not None:
        return kept
    modules = linear_modules(model).values()
    own = [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in modules]
    device = own[0].weight.device
    sample = torch.cat([module.weight.data.flatten()[:_SAMPLE].to(device, torch.float32) for module in own])
    return hashlib.sha256(repr(to_host(sample)).encode()).hexdigest()[:16]


def keep_weights_fingerprint(model: nn.Module) -> None:
    """Compute the fingerprint of a model's weights now, for when a process holds a share of them alone."""
    _kept[unwrap(model)] = weights_fingerprint(model)
