"""A book: a folder with `book.json` and an adapter for each passage. Nothing here needs the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


BOOK_FILE = "book.json"
ADAPTERS = "adapters"
_SCHEMA_VERSION = 1
# What every adapter has, by PEFT's names.
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class DamagedBook(ValueError):
    """A book that cannot be read, or lacks files; the message names it and the remedy."""


@dataclass(frozen=True)
class LearnedPassage:
    """
    A passage that was learned.

    Parameters:
        title (`str`):
            The topic with which it was learned and is asked.
        text (`str`):
            The passage.
        adapter (`str`):
            Name of its adapter's folder.
        pairs (`tuple[tuple[str, str], ...]`):
            The questions that were learned with their answers.
        loss (`float`, *optional*):
            Loss of the last step of training, in nats per token.
        num_asked (`int`, *optional*, defaults to `0`):
            How many questions were asked after learning, without the passage: learned ones, or in the app those that score it.
        num_right (`int`, *optional*, defaults to `0`):
            How many of them were answered right: as learned, or as whoever asked them knows it.
    """

    title: str
    text: str
    adapter: str
    pairs: tuple[tuple[str, str], ...] = ()
    loss: float | None = None
    num_asked: int = 0
    num_right: int = 0


@dataclass(frozen=True)
class Book:
    """
    What was learned of one text.

    Parameters:
        title (`str`):
            Its title.
        created (`str`):
            When it was learned or merged, in UTC, as `2026-01-31T12:00:00+00:00`.
        model (`str`):
            What the base model is loaded by: a Hub id, a folder or the name of an embedded model.
        base_model_id (`str`):
            The base model's identity, as its adapters name it.
        base (`Mapping[str, str | None]`):
            Which base that was: dtype, quantization, and fingerprints of its architecture and weights.
        passages (`tuple[LearnedPassage, ...]`):
            Its passages in their order.
        folder (`Path`):
            Where it is. Its name is the book's id.
    """

    title: str
    created: str
    model: str
    base_model_id: str
    base: Mapping[str, str | None]
    passages: tuple[LearnedPassage, ...]
    folder: Path = field(compare=False)

    @property
    def id(self) -> str:
        """What it is called by, unlike any other book of its shelf."""
        return self.folder.name

    @property
    def recall(self) -> float | None:
        """Share of the questions asked after learning that were answered right; `None` where none was."""
        return self.num_right / self.num_asked if self.num_asked else None

    @property
    def num_asked(self) -> int:
        """Number of questions asked after learning, of all passages."""
        return sum(one.num_asked for one in self.passages)

    @property
    def num_right(self) -> int:
        """How many of them were answered right."""
        return sum(one.num_right for one in self.passages)

    @property
    def local_time(self) -> str:
        """When it was learned or merged, by the clock of this machine, as `2026-01-31 12:00`."""
        return datetime.fromisoformat(self.created).astimezone().strftime("%Y-%m-%d %H:%M")

    @property
    def loss(self) -> float | None:
        """Mean over the passages of the loss of the last step, in nats per token."""
        losses = [one.loss for one in self.passages if one.loss is not None]
        return sum(losses) / len(losses) if losses else None

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def summary(self) -> dict[str, Any]:
        """What a list tells of it, for JSON: the recall as a share, the loss in nats per token."""
        return {
            "id": self.id,
            "title": self.title,
            "created": self.created,
            "model": self.base_model_id,
            "passages": len(self.passages),
            "questions": sum(len(one.pairs) for one in self.passages),
            "recall": self.recall,
            "loss": self.loss,
            "bytes": self.num_bytes,
        }

    def adapter_folder(self, passage: LearnedPassage) -> Path:
        """The PEFT folder of a passage's adapter."""
        return self.folder / ADAPTERS / passage.adapter

    def write(self) -> None:
        """Write `book.json` into a folder that nobody else sees yet."""
        fields = {key: value for key, value in asdict(self).items() if key != "folder"}
        text = json.dumps({"schema_version": _SCHEMA_VERSION, **fields}, ensure_ascii=False, indent=1)
        (self.folder / BOOK_FILE).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Book":
        """
        Read a book. The weights of its adapters are not read, only looked for.

        Raises:
            DamagedBook: Its file is missing, malformed or of a newer version, or an adapter is missing.
        """
        try:
            fields = json.loads((folder / BOOK_FILE).read_text(encoding="utf-8"))
            version = fields.pop("schema_version")
            if version != _SCHEMA_VERSION:
                raise DamagedBook(
                    f"The book {folder.name} has the schema version {version!r:.50}, and this seal-hf reads {_SCHEMA_VERSION}; "
                    "upgrade with `pip install --upgrade seal-hf`."
                )
            book = cls(**{**fields, "passages": tuple(map(_passage, fields["passages"]))}, folder=folder)
            names = (book.title, book.created, book.model, book.base_model_id)
            if (
                not book.passages
                or not all(isinstance(name, str) for name in names)
                or not isinstance(book.base, dict)
            ):
                raise TypeError("a field has another type")
        except DamagedBook:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(folder, f"{BOOK_FILE} cannot be read: {error!s:.200}") from error
        for passage in book.passages:
            for name in _ADAPTER_FILES:
                if not (book.adapter_folder(passage) / name).is_file():
                    raise _damaged(folder, f"{ADAPTERS}/{passage.adapter}/{name} is missing")
        return book


def _passage(fields: dict[str, Any]) -> LearnedPassage:
    pairs = tuple((str(question), str(answer)) for question, answer in fields["pairs"])
    passage = LearnedPassage(**{**fields, "pairs": pairs})
    if not isinstance(passage.title, str) or not isinstance(passage.text, str):
        raise TypeError("a passage has no text")
    if Path(passage.adapter).name != passage.adapter:
        raise ValueError(f"{passage.adapter!r:.50} is no name of a folder")
    return passage


def _damaged(folder: Path, what: str) -> DamagedBook:
    return DamagedBook(
        f"The book {folder.name} is damaged ({what}); restore {folder}, or remove it with `seal forget {folder.name}`."
    )
