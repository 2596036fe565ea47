"""What PEFT makes of the names of modules: its keys in a file, and the modules that it loses."""

import re
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


# Words between points. PEFT takes a point for any character, which makes no difference between names of modules.
_PLAIN = re.compile(r"\w+(\.\w+)*", re.ASCII)
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
    """
    Whether a pattern of ranks or alphas gives these modules the common value. Its keys are compared as PEFT does, if they are
    plain names or ends of names; no other regular expression is tried.
    """
    ends = {f".{name}"[place.start() :] for name in names for place in re.finditer(r"\.", f".{name}")}
    return all(
        value == common or (_PLAIN.fullmatch(key) is not None and f".{key}" not in ends)
        for key, value in pattern.items()
    )


def is_lora_matrix(key: str) -> bool:
    """Whether a tensor's name in a file is that of a module's matrix."""
    return key.endswith((".lora_A.weight", ".lora_B.weight"))


def ending_of(module_name: str) -> str:
    """The last component of a module's name, by which PEFT finds modules."""
    return module_name.rsplit(".", 1)[-1]


def peft_key(module_name: str, letter: str) -> str:
    """The name of a module's matrix, `"A"` or `"B"`, in PEFT's files."""
    return f"base_model.model.{module_name}.lora_{letter}.weight"
