"""A folder of books: found, added, merged and forgotten. Nothing here needs the model."""

import logging
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .book import ADAPTERS, Book, DamagedBook, LearnedPassage
from .routing import Route, Router


logger = logging.getLogger(__name__)

_LOCK_NAME = ".lock"
_LOCK_SECONDS = 20
_UNFINISHED = ".unfinished-"
_LONGEST_ID = 48  # characters
_OWNER_ONLY = 0o700


def default_folder() -> Path:
    """The user's shelf: in `SEAL_HF_HOME`, or in `seal_hf` in `XDG_DATA_HOME` (`~/.local/share`)."""
    home = os.environ.get("SEAL_HF_HOME")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (Path(home).expanduser() if home else Path(data) / "seal_hf") / "shelf"


class Shelf:
    """
    The books in a folder, which only its owner can open.

    Several processes may use it at once. A book appears whole or not at all; what a process that was killed had begun is removed
    when the next one begins a book.

    Parameters:
        folder (`str` or `Path`, *optional*):
            The folder, made where there is none. Defaults to [`default_folder`].

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = default_folder() if folder is None else Path(folder)
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, mode=_OWNER_ONLY, exist_ok=True)
        self._lock = FileLock(self.folder / _LOCK_NAME)

    def books(self) -> list[Book]:
        """The books, newest first. Damaged ones are left out, each with a warning that names it."""
        found = []
        for folder in self._folders():
            try:
                found.append(Book.read(folder))
            except DamagedBook as error:
                # One that is forgotten meanwhile is no damage.
                if folder.is_dir():
                    logger.warning("%s", error)
        return sorted(found, key=lambda book: (book.created, book.id), reverse=True)

    def find(self, name: str) -> Book:
        """
        A book by its id or, where one alone has it, its title.

        Raises:
            DamagedBook: It cannot be read.
            ValueError: There is no such book, or several have this title.
        """
        if (folder := self._folder(name)) is not None:
            return Book.read(folder)
        books = self.books()
        named = [book for book in books if book.title.casefold() == name.strip().casefold()]
        if len(named) == 1:
            return named[0]
        if named:
            raise ValueError(f"{len(named)} books are called {name!r}; give one of {_listed(named)}.")
        others = f"give one of {_listed(books)}" if books else "learn one first (`seal learn FILE`)"
        raise ValueError(f"There is no book {name!r} on the shelf {self.folder}; {others}.")

    def route(self, question: str) -> Route | None:
        """The passage that a question fits best (see [`Router`]); `None` where there is no book."""
        return Router(books).route(question) if (books := self.books()) else None

    def forget(self, name: str) -> str:
        """
        Remove a book, a damaged one too.

        Args:
            name (`str`):
                Its id, or its title.

        Returns:
            `str`: its id.

        Raises:
            ValueError: There is no such book, or several have this title.
            OSError: It cannot be removed.
        """
        folder = self._folder(name) or self.find(name).folder
        with self._locked():
            self._remove(folder)
        return folder.name

    @contextmanager
    def new_book(self) -> Iterator["NewBook"]:
        """
        A book to be filled inside the block. Unless it is [kept][`NewBook.keep`], it is removed after the block.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        with self._locked():
            self._remove_abandoned()
            folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=_UNFINISHED))
            own = FileLock(f"{folder}.lock")
            own.acquire()
        try:
            yield NewBook(self, folder)
        finally:
            own.release()
            Path(own.lock_file).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def merge(self, name: str, other: str, title: str | None = None) -> Book:
        """
        Make one book of two, with the passages and adapters of both, and remove the two.

        Each passage keeps the topic with which it was learned, and its adapter.

        Args:
            name, other (`str`):
                Ids or titles.
            title (`str`, *optional*):
                Title of the book. Defaults to that of the first.

        Raises:
            ValueError: There is no such book, both are one, or they were learned on different base models.
            OSError: The disk is full.
        """
        books = [self.find(name), self.find(other)]
        first, second = books
        if first.id == second.id:
            raise ValueError(f"{name!r} and {other!r} are one book, {first.id}; give two.")
        if (first.base_model_id, first.base) != (second.base_model_id, second.base):
            raise ValueError(
                f"{first.id} was learned on {first.base_model_id} and {second.id} on {second.base_model_id}, or on another "
                "version of it; learn one of them again on the other's model."
            )
        with self.new_book() as new:
            for book in books:
                for passage in book.passages:
                    shutil.copytree(book.adapter_folder(passage), new.adapter_folder(passage.title))
                    new.add(passage)
            return new.keep(title or first.title, first.model, first.base_model_id, first.base, instead_of=books)

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _folder(self, name: str) -> Path | None:
        return next((path for path in self._folders() if path.name == name), None)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock.acquire(timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise OSError(f"Another process holds the shelf {self.folder}; try again when it has ended.") from error

    def _remove(self, folder: Path) -> None:
        """Take a book off the shelf at once, and then remove its files."""
        gone = Path(tempfile.mkdtemp(dir=self.folder, prefix=_UNFINISHED))
        os.replace(folder, gone / folder.name)
        shutil.rmtree(gone)

    def _remove_abandoned(self) -> None:
        """Remove what processes that were killed have begun. What a process works on is locked."""
        for name in {path.name.removesuffix(".lock") for path in self.folder.glob(f"{_UNFINISHED}*")}:
            with suppress(Timeout), FileLock(self.folder / f"{name}.lock", timeout=0) as lock:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)


class NewBook:
    """A book that is being written, in a folder that no list shows (see [`Shelf.new_book`])."""

    def __init__(self, shelf: Shelf, folder: Path):
        self._shelf, self._folder = shelf, folder
        self._passages: list[LearnedPassage] = []

    def adapter_folder(self, title: str) -> Path:
        """The folder for the adapter of the next passage, which does not exist yet."""
        return self._folder / ADAPTERS / f"{len(self._passages) + 1:03d}-{slug(title)}"

    def add(self, passage: LearnedPassage) -> None:
        """Add a passage, whose adapter is in [`~NewBook.adapter_folder`]."""
        self._passages.append(replace(passage, adapter=self.adapter_folder(passage.title).name))

    def keep(
        self,
        title: str,
        model: str,
        base_model_id: str,
        base: dict[str, str | None],
        instead_of: list[Book] | None = None,
    ) -> Book:
        """
        Put the book on the shelf.

        Args:
            title, model, base_model_id, base:
                As in [`Book`].
            instead_of (`list[Book]`, *optional*):
                Books that it replaces.

        Returns:
            [`Book`]: the book, in its place.

        Raises:
            ValueError: It has no passage, or a book that it replaces has been forgotten meanwhile.
            OSError: The disk is full.
        """
        if not self._passages:
            raise ValueError(f"The book {title!r} has no passage; learn a text with words.")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        book = Book(title, created, model, base_model_id, base, tuple(self._passages), self._folder)
        book.write()
        with self._shelf._locked():
            for old in instead_of or ():
                if not old.folder.is_dir():
                    raise ValueError(f"The book {old.id} has been forgotten meanwhile; nothing was changed.")
            book = replace(book, folder=self._free_folder(title))
            os.replace(self._folder, book.folder)
            for old in instead_of or ():
                self._shelf._remove(old.folder)
        return book

    def _free_folder(self, title: str) -> Path:
        name, number = slug(title), 1
        while (folder := self._shelf.folder / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return folder


def slug(title: str) -> str:
    """
    A title as a name of a file, of letters and digits of any script.

    Example:

    ```python
    >>> slug("The Orrick Skerry: a Lighthouse!"), slug("潮見ヶ原"), slug("...")
    ('the-orrick-skerry-a-lighthouse', '潮見ヶ原', 'book')

    ```
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", title).casefold().replace("_", " "))
    return "-".join(words)[:_LONGEST_ID].strip("-") or "book"


def _listed(books: list[Book]) -> str:
    names = [book.id for book in books[:8]]
    return ", ".join(names) + (f" and {len(books) - 8} others" if len(books) > 8 else "")
