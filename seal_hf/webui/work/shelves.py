"""
The shelf of a session: a book for every passage that it was taught.

On one's own machine it is the shelf of the command `seal`, and stays when the app ends. Elsewhere it lies in the session's folder,
counts as a part of it and goes with it.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...adapters.files import write_zip
from ...models.identity import canonical_name
from ...self_adapting_lm import SelfAdaptingLM
from ...shelf import Book, LearnedPassage, Route, Shelf
from ...shelf.asking import OTHER_BASE, base_difference, base_of
from ...shelf.learning import name_to_load
from ...shelf.routing import Router
from ..languages import Message
from . import inputs, quota
from .jobs import JobRefused
from .session_items import KeptAdapter
from .sessions import Session


# Who is asked, beside the ids of books, none of which has such a sign.
EVERYTHING, BASE = "*everything", "*base"


@dataclass(frozen=True)
class ShelvedBook:
    """
    A book as the page lists it.

    Parameters:
        book ([`Book`]):
            The book.
        num_bytes (`int`):
            Size of its files.
        fault (`str`, *optional*):
            Why the loaded model cannot answer from it, in a sentence; `None` where it can.
    """

    book: Book
    num_bytes: int
    fault: str | None = None


@dataclass(frozen=True)
class Choice:
    """
    Who answers a question.

    Parameters:
        route ([`Route`], *optional*):
            The passage that the question fits best, and how well; `None` where the base model was chosen or there is no book.
        is_asked (`bool`, *optional*, defaults to `False`):
            Whether its adapter answers, rather than the base model.
        is_chosen (`bool`, *optional*, defaults to `False`):
            Whether the visitor chose who answers.
    """

    route: Route | None = None
    is_asked: bool = False
    is_chosen: bool = False


class Shelves:
    """
    The shelves of all sessions.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model.
        own (`Path`, *optional*):
            Folder of the shelf that all sessions of the user of this machine share. Defaults to none: each session has its own.
    """

    def __init__(self, lm: SelfAdaptingLM, own: Path | None = None):
        self._lm, self._own = lm, None if own is None else Shelf(own)

    def is_kept(self, session: Session) -> bool:
        """Whether the session's shelf stays when the session goes."""
        return self._own is not None and session.is_local

    def of(self, session: Session) -> Shelf:
        """
        The shelf of a session.

        Raises:
            OSError: Its folder cannot be made.
        """
        return self._own if self.is_kept(session) else Shelf(session.folder / "shelf")

    def books(self, session: Session) -> list[ShelvedBook]:
        """The session's books, newest first."""
        return [ShelvedBook(book, book.num_bytes, self._fault(book)) for book in self.of(session).books()]

    def book(self, session: Session, book_id: object) -> Book:
        """
        A book of the session by its id.

        Raises:
            JobRefused: There is none.
        """
        for book in self.of(session).books():
            if book.id == book_id:
                return book
        raise JobRefused(Message("shelf.gone"))

    def choose(self, session: Session, question: str, who: str = EVERYTHING) -> Choice:
        """
        Find out who answers a question.

        Args:
            session ([`Session`]):
                The session.
            question (`str`):
                The question.
            who (`str`, *optional*, defaults to [`EVERYTHING`]):
                Whom to ask: the book that the question fits, or none where none does; [`BASE`]; or the id of a book.

        Raises:
            JobRefused: There is no such book, or the loaded model cannot answer from it.
        """
        if who == BASE:
            return Choice(is_chosen=True)
        if who == EVERYTHING:
            usable = [book for book in self.of(session).books() if self._fault(book) is None]
            route = Router(usable).route(question) if usable else None
            return Choice(route, is_asked=route is not None and route.fits)
        book = self.book(session, who)
        if fault := self._fault(book):
            raise JobRefused(fault)
        return Choice(Router([book]).route(question), is_asked=True, is_chosen=True)

    def put(
        self,
        session: Session,
        kept: KeptAdapter,
        example: Mapping,
        pairs: list[tuple[str, str]],
        loss: float | None,
        *,
        is_whole: bool = True,
    ) -> Book | None:
        """
        Put what an adapter has learned on the session's shelf. It takes the place of a book of the same passage alone.

        Args:
            session ([`Session`]):
                The session.
            kept ([`KeptAdapter`]):
                The adapter.
            example (`Mapping`):
                The passage.
            pairs (`list[tuple[str, str]]`):
                The questions that it learned with their answers.
            loss (`float`, *optional*):
                Loss of its last step, in nats per token.
            is_whole (`bool`, *optional*, defaults to `True`):
                Whether the training came to its end. Otherwise it does not take the place of another book.

        Returns:
            [`Book`], *optional*: the book; `None` where there is one of this passage already whose place it does not take.

        Raises:
            OSError: The disk is full, or the shelf cannot be written.
            ValueError: The book whose place it takes was forgotten meanwhile.
        """
        shelf = self.of(session)
        passage = LearnedPassage(
            title=inputs.title_of(example),
            text=inputs.passage_of(example),
            adapter="",
            pairs=tuple(pairs),
            loss=loss,
            num_asked=kept.num_questions,
            num_right=round((kept.reward or 0.0) * kept.num_questions),
        )
        same = [book for book in shelf.books() if self._fault(book) is None and _is_of(book, passage)]
        if same and not is_whole:
            return None
        with shelf.new_book() as new:
            with zipfile.ZipFile(kept.file) as files:
                files.extractall(new.adapter_folder(passage.title))
            new.add(passage)
            model = canonical_name(name_to_load(self._lm.base_model_id))
            book = new.keep(inputs.name_of(example), model, self._lm.base_model_id, self._base, instead_of=same)
        kept.origin = _origin(book, book.passages[0])
        return book

    def forget(self, session: Session, book_id: object) -> Book:
        """
        Remove a book.

        Raises:
            JobRefused: There is none.
            OSError: It cannot be removed.
        """
        book = self.book(session, book_id)
        self.of(session).forget(book.id)
        return book

    def merge(self, session: Session, book_id: object, other_id: object) -> Book:
        """
        Make one book of two.

        Raises:
            JobRefused: There is no such book, both are one, or there is no room.
            ValueError: They were learned on different base models.
            OSError: The disk is full.
        """
        books = [self.book(session, one) for one in (book_id, other_id)]
        if books[0].id == books[1].id:
            raise JobRefused(Message("shelf.one_book"))
        if (books[0].base_model_id, books[0].base) != (books[1].base_model_id, books[1].base):
            raise JobRefused(Message("shelf.two_bases", title=books[0].title, other=books[1].title))
        with self._room(session, sum(book.num_bytes for book in books)):
            return self.of(session).merge(books[0].id, books[1].id)

    def take(self, session: Session, book_id: object) -> list[KeptAdapter]:
        """
        Add the adapters of a book to those of the session, from where they can be downloaded and pushed. The first is chosen.

        Returns:
            `list[KeptAdapter]`: one for each passage; those that the session has already are not added again.

        Raises:
            JobRefused: There is no such book, the loaded model cannot use it, or the session has no room for its adapters.
            OSError: The disk is full.
        """
        book = self.book(session, book_id)
        if fault := self._fault(book):
            raise JobRefused(fault)
        there = {kept.origin: kept for kept in session.adapters.values()}
        origins = {passage: _origin(book, passage) for passage in book.passages}
        new = [passage for passage, origin in origins.items() if origin not in there]
        session.require_room(len(new))
        with quota.room(session.folder, book.num_bytes + len(new) * quota.FILE_BYTES if new else 0):
            for passage in new:
                name = passage.title or book.title
                adapter_id, file = session.new_file(name)
                write_zip(book.adapter_folder(passage), file)
                there[origins[passage]] = KeptAdapter(
                    adapter_id,
                    name,
                    file,
                    title=passage.title,
                    passage=passage.text,
                    origin=origins[passage],
                )
                session.keep(there[origins[passage]], choose=False)
        taken = [there[origin] for origin in origins.values()]
        session.chosen = taken[0].id
        return taken

    @cached_property
    def _base(self) -> dict[str, str | None]:
        return base_of(self._lm)

    def _fault(self, book: Book) -> str | None:
        """Why the loaded model cannot answer from a book."""
        difference = base_difference(book, self._lm.base_model_id, self._base)
        if difference is None:
            return None
        about = {"title": book.title, "book_model": book.base_model_id}
        if difference == OTHER_BASE:
            return Message("shelf.other_base", model=self._lm.base_model_id, **about)
        return Message("shelf.changed_base", **about)

    @contextmanager
    def _room(self, session: Session, num_bytes: int) -> Iterator[None]:
        if self.is_kept(session):
            yield
            return
        with quota.room(session.folder, num_bytes):
            yield


def _origin(book: Book, passage: LearnedPassage) -> tuple[str, ...]:
    """What tells a passage of a book, also from those of a book that had the same name before."""
    return book.id, book.created, passage.adapter


def _is_of(book: Book, passage: LearnedPassage) -> bool:
    """Whether a book is of this passage alone."""
    return [(one.title, one.text) for one in book.passages] == [(passage.title, passage.text)]
