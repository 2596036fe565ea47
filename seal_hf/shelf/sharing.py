"""A book for others: its adapters in PEFT's format with their cards, as a folder, a zip file or a repository on the Hub."""

import json
import shutil
import tempfile
from pathlib import Path

from ..adapters.files import read_training, write_zip, written_whole
from ..adapters.sources import CONFIG_NAME, adapter_files
from ..hub.model_card import AdapterCard, with_base_license, write_book_card, write_model_card
from ..hub.transfer import is_hub_id, upload
from .book import Book, LearnedPassage


def export(book: Book, target: str | Path) -> Path:
    """
    Write a book's adapters for PEFT: one where the target is, several in a folder for each passage, with a card that lists them.
    The cards give the titles and a hash of each passage; neither the texts nor the questions are exported.

    Args:
        book ([`Book`]):
            The book.
        target (`str` or `Path`):
            A folder, or a file whose name ends in `.zip`, that does not exist yet.

    Returns:
        `Path`: the folder or file.

    Raises:
        FileExistsError: There is something at `target` already.
        OSError: The disk is full, or the target cannot be written.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists already; give another name, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix.lower() != ".zip":
        with written_whole(target) as partial:
            _write(book, partial, target.name)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as partial:
        folder = Path(partial)
        _write(book, folder, target.stem)
        write_zip(folder, target)
    return target


def push(book: Book, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """
    Upload what [`export`] writes as a repository.

    Args:
        book ([`Book`]):
            The book.
        repo_id (`str`):
            `"user/name"`; made where it does not exist.
        private (`bool`, *optional*, defaults to `True`):
            Whether only its owner sees it.
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`.

    Returns:
        `str`: the repository's address.

    Raises:
        ValueError: The base model is not a Hub id, so that the card could not name it.
        HubError: The Hub refused or could not be reached, or the repository is public and `private` is set.
        OSError: The disk is full.
    """
    if not is_hub_id(book.base_model_id):
        raise ValueError(
            f"The book {book.id} was learned on {book.base_model_id}, a local folder, which a card on the Hub cannot name; "
            "learn it on a model of the Hub."
        )
    with tempfile.TemporaryDirectory() as folder:
        _write(book, Path(folder), repo_id, with_base_license(AdapterCard(), book.base_model_id, token))
        commit = upload(folder, repo_id, commit_message=f"Upload {book.title}", private=private, token=token)
    return str(commit.repo_url)


def _write(book: Book, folder: Path, name: str, card: AdapterCard | None = None) -> None:
    card = card or AdapterCard()
    if len(book.passages) == 1:
        _write_adapter(book, book.passages[0], folder, name, card)
        return
    for passage in book.passages:
        _write_adapter(book, passage, folder / passage.adapter, f"{name}/{passage.adapter}", card)
    write_book_card(
        folder, name, book.base_model_id, book.title, {one.adapter: one.title for one in book.passages}, card.license
    )


def _write_adapter(book: Book, passage: LearnedPassage, folder: Path, name: str, card: AdapterCard) -> None:
    shutil.copytree(book.adapter_folder(passage), folder, dirs_exist_ok=True)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    with adapter_files(folder) as files:
        training = read_training(files)
    losses = training.pop("losses", None)
    settings = {
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": ", ".join(config["target_modules"]),
        **training,
        **({"last loss": f"{losses[-1]:.4f}"} if losses else {}),
    }
    own = AdapterCard(passage=passage.text, license=card.license)
    write_model_card(folder, name, book.base_model_id, settings, own)
