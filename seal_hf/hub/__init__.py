"""
All that crosses to the Hugging Face Hub, in one place.

Adapters: [`Adapter.push_to_hub`] and [`SelfAdaptingLM.load_adapter`], with an [`AdapterCard`]; [`list_adapters`]. A run's
policy: `SEALConfig(push_to_hub=True)` and [`SEALTrainer.push_to_hub`]. A run's self-edits: [`push_self_edits`] and
[`load_self_edits`]. What fails raises a [`HubError`].
"""

from .errors import HubError, explaining_hub_errors
from .model_card import AdapterCard
from .self_edits import load_self_edits, push_self_edits, save_self_edits
from .transfer import hub_api


__all__ = ["AdapterCard", "HubError", "list_adapters", "load_self_edits", "push_self_edits", "save_self_edits"]


def list_adapters(base_model_id: str, *, author: str | None = None, token: str | None = None) -> list[str]:
    """
    The adapters of seal-hf on the Hub for a base model, by the tags of their cards.

    Parameters:
        base_model_id (`str`):
            The base model's Hub id.
        author (`str`, *optional*):
            Only those of this user or organization.
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`. Private ones are listed for those who may see them.

    Returns:
        `list[str]`: repositories, as `load_adapter` takes them.

    Raises:
        HubError: The Hub refused the token, or could not be reached.
    """
    with explaining_hub_errors(f"The list of adapters for {base_model_id}", base_model_id):
        found = hub_api(token).list_models(filter=["seal", f"base_model:adapter:{base_model_id}"], author=author)
        return [model.id for model in found]
