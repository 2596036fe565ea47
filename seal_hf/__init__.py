"""Self-adapting language models (SEAL) on the Hugging Face stack."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .adapter_bank import AdapterBank
    from .adapters import Adapter
    from .inner_update import InnerLoopConfig
    from .seal_config import SEALConfig
    from .seal_trainer import SEALTrainer
    from .self_adapting_lm import SelfAdaptingLM
    from .self_edit import SelfEdit

# Loaded on first use, so that commands which need no model start at once.
_HOMES = {
    "Adapter": "adapters",
    "AdapterBank": "adapter_bank",
    "InnerLoopConfig": "inner_update",
    "SEALConfig": "seal_config",
    "SEALTrainer": "seal_trainer",
    "SelfAdaptingLM": "self_adapting_lm",
    "SelfEdit": "self_edit",
}

__all__ = ["Adapter", "AdapterBank", "InnerLoopConfig", "SEALConfig", "SEALTrainer", "SelfAdaptingLM", "SelfEdit"]
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
