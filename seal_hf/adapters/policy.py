"""
The policy adapter: its shape where nothing else is said, and the one that a model carries, copied and fingerprinted once for as
long as it does not change.
"""

from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig
from torch import nn

from ..models.access import carries_policy, policy_parameters
from ..models.transfers import to_host
from .adapter import Adapter


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# For each model the state in which its policy was copied last, and the copy.
_copies: WeakKeyDictionary[nn.Module, tuple[object, Adapter]] = WeakKeyDictionary()


def default_policy_config() -> LoraConfig:
    """The policy adapter of the paper (SEAL, appendix B: knowledge incorporation)."""
    return LoraConfig(r=64, lora_alpha=128, target_modules="all-linear")


def carried_policy(model: nn.Module, base_model_id: str) -> Adapter | None:
    """
    The policy adapter that a model carries.

    The weights are copied when they have changed since the last call, and then by [`Adapter.fingerprint`] known to be
    those of another policy. The host waits for a GPU once to see whether they have, and once more to copy them.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        base_model_id (`str`):
            Identity of the base model.

    Returns:
        [`Adapter`]: the active adapter of a `PeftModel`; `None` for another model, or where it is left out (see
            [`without_policy`]).

    Raises:
        ValueError: The policy adapter is not a plain LoRA.
    """
    if not carries_policy(model):
        return None
    state = (base_model_id, model.active_adapter, _check_sums(model))
    known = _copies.get(model)
    if known is None or known[0] != state:
        known = (state, Adapter.from_peft_model(model, base_model_id))
        _copies[model] = known
    return known[1]


def _check_sums(model: nn.Module) -> list[int]:
    """
    A sum of each matrix' bits, computed where the matrix lies.

    torch's own count of changes (`Tensor._version`) does not do: fused and 8-bit optimizers change a parameter without
    being counted.
    """
    sums = [
        parameter.detach().view(_INTEGERS[parameter.element_size()]).sum(dtype=torch.int64)
        for parameter in policy_parameters(model)
    ]
    return to_host(torch.stack([total.to(sums[0].device) for total in sums])) if sums else []
