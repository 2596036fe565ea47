"""The one form in which an adapter is kept: a zip file of its PEFT folder, which is read and downloaded as it is."""

import tempfile
from pathlib import Path

from ...adapters.adapter import Adapter
from ...adapters.files import write_zip
from ...hub.model_card import AdapterCard


def save_zip(adapter: Adapter, file: Path, card: AdapterCard | None = None) -> None:
    """
    Save an adapter as a zip file that is either there in full or not at all. While it is written, there is room taken for two.

    Args:
        adapter ([`Adapter`]):
            The adapter.
        file (`Path`):
            The zip file. Its name is that of the adapter in the card.
        card ([`AdapterCard`], *optional*):
            As in [`Adapter.save_pretrained`].

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as partial:
        folder = Path(partial) / file.stem
        adapter.save_pretrained(folder, card)
        write_zip(folder, file)
