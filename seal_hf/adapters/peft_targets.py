"""What PEFT makes of the names of modules: its keys in a file, and the modules that it loses."""

from collections.abc import Collection, Mapping
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import nn

from ..models.access import unwrap


# For each model and its linear modules those that PEFT loses.
_lost: WeakKeyDictionary[nn.Module, tuple[frozenset[str], frozenset[str]]] = WeakKeyDictionary()


def lost_by_peft(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """
    The linear modules that PEFT does not adapt, or does not find again when it reads an adapter's file.

    It takes the names of some for those of experts before transformers 5 fused them, renames some as if they were of a
    checkpoint of the model, and refuses some of state-space layers.
    """
    base, known = unwrap(model), frozenset(names)
    if base not in _lost or _lost[base][0] != known:
        endings = {ending for ending in map(ending_of, names) if not _is_target(base, ending)}
        keys = {peft_key(name, "A"): name for name in names}
        read = convert_peft_adapter_state_dict_for_transformers(
            base, LoraConfig(), {key: torch.zeros(1, 1) for key in keys}
        )
        found = frozenset(name for key, name in keys.items() if key not in read or ending_of(name) in endings)
        _lost[base] = (known, found)
    return _lost[base][1]


def _is_target(base: nn.Module, ending: str) -> bool:
    config = LoraConfig(target_modules=[ending])
    try:
        _check_lora_target_modules_mamba(config, base, ending)
        convert_peft_config_for_transformers(config, base, None)
    except ValueError:
        return False
    return set(config.target_modules) == {ending}


def is_without_effect(pattern: Mapping[str, float], common: float, names: Collection[str]) -> bool:
    """Whether a pattern of ranks or alphas gives these modules the common value; no regular expression is tried."""
    return all(
        value == common or (key.isidentifier() and not any(name.endswith(key) for name in names))
        for key, value in pattern.items()
    )


def ending_of(module_name: str) -> str:
    """The last component of a module's name, by which PEFT finds modules."""
    return module_name.rsplit(".", 1)[-1]


def peft_key(module_name: str, letter: str) -> str:
    """The name of a module's matrix, `"A"` or `"B"`, in PEFT's files."""
    return f"base_model.model.{module_name}.lora_{letter}.weight"
