"""
All that crosses to the Hugging Face Hub.

Adapters: [`Adapter.push_to_hub`] and [`SelfAdaptingLM.load_adapter`], with an [`AdapterCard`]; [`list_adapters`]. A run's
policy: `SEALConfig(push_to_hub=True)` and [`SEALTrainer.push_to_hub`]. A run's self-edits: [`push_self_edits`] and
[`load_self_edits`]. What fails raises a [`HubError`].
"""

from .errors import HubError, RepositoryExists
from .model_card import AdapterCard
from .self_edits import load_self_edits, push_self_edits, save_self_edits
from .transfer import list_adapters


__all__ = [
    "AdapterCard",
    "HubError",
    "RepositoryExists",
    "list_adapters",
    "load_self_edits",
    "push_self_edits",
    "save_self_edits",
]
