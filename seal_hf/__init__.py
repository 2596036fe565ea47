"""Self-adapting language models (SEAL) on the Hugging Face stack."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .adapters.adapter import Adapter
    from .adapters.bank import AdapterBank
    from .inner_loop.update import InnerLoopConfig
    from .outer_loop.seal_config import SEALConfig
    from .outer_loop.seal_trainer import SEALTrainer
    from .self_adapting_lm import SelfAdaptingLM
    from .self_edit import SelfEdit

# Loaded on first use, so that commands which need no model start at once.
_HOMES = {
    "Adapter": "adapters.adapter",
    "AdapterBank": "adapters.bank",
    "InnerLoopConfig": "inner_loop.update",
    "SEALConfig": "outer_loop.seal_config",
    "SEALTrainer": "outer_loop.seal_trainer",
    "SelfAdaptingLM": "self_adapting_lm",
    "SelfEdit": "self_edit",
}

__all__ = ["Adapter", "AdapterBank", "InnerLoopConfig", "SEALConfig", "SEALTrainer", "SelfAdaptingLM", "SelfEdit"]
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
