"""Adapters of a protocol that are kept on the disk until all of it is done, so that other banks and a resumed run have them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..adapters.adapter import Adapter
from ..adapters.policy import carried_policy
from ..adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from ..models.access import unwrap
from ..self_adapting_lm import SelfAdaptingLM


def keep_adapter(adapter: Adapter, folder: Path) -> None:
    """
    Keep an adapter, without the policy that its model carries.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    replace(adapter, policy=None).export(folder)


def kept_or_trained(lm: SelfAdaptingLM, folder: Path, train: Callable[[], Adapter | None]) -> Adapter | None:
    """
    The adapter that is kept in a folder; where this process's disk does not have it, it is trained again, and kept.

    Args:
        lm ([`SelfAdaptingLM`]):
            Its model.
        folder (`Path`):
            Where it is kept.
        train (`Callable[[], Adapter | None]`):
            Trains it.
    """
    # Another process may be about to fill the folder.
    if all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME)):
        adapter = Adapter.from_pretrained(folder, unwrap(lm.model), lm.base_model_id)
        policy = carried_policy(lm.model, lm.base_model_id) if lm.student == "policy" else None
        return replace(adapter, policy=policy)
    adapter = train()
    if adapter is not None:
        keep_adapter(adapter, folder)
    return adapter
