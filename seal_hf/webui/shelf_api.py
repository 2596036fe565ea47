"""The endpoints for programs that ask and change the shelf."""

import asyncio

import gradio as gr

from .api import errors_for_callers, finish
from .work.shelf_work import ask_shelf as ask_books
from .work.shelves import BASE, EVERYTHING
from .work.workbench import Workbench


def build_shelf_api(workbench: Workbench) -> None:
    """
    Add the endpoints to the page that is being built.

    Args:
        workbench ([`Workbench`]):
            Does the work.
    """

    def shelf(session: str = "") -> dict:
        """
        List what was taught: the books on the shelf, newest first.

        Args:
            session: The "session" of an earlier answer; empty for a new one.

        Returns:
            The session's id; and for each book its id, its title, when it was learned, its base model, how many passages and learned
            questions it has, the share of the questions asked after learning that were answered right ("recall", null where none
            was), its loss and its size in bytes, and under "fault" why it cannot be asked, or null.
        """
        with errors_for_callers():
            current = workbench.sessions.open(session)
            found = workbench.shelves.books(current)
            return {"session": current.id, "books": [{**one.book.summary(), "fault": one.fault} for one in found]}

    async def ask_shelf(session: str, question: str, book: str = "", base: bool = False) -> dict:
        """
        Ask everything that was taught: the passage that the question fits answers, without its text in view, or the base model
        where none does.

        Args:
            session: The session of propose or shelf.
            question: The question.
            book: Id of a book to ask whatever the question fits; empty for the one that it fits.
            base: Whether to ask the base model.

        Returns:
            The answer; "book", "title" and "passage" (its number) of what has answered, null for the base model; and the title of the
            nearest book with its score and the threshold from which a book is asked.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            who = BASE if base else book or EVERYTHING
            events = await finish(workbench, lambda: ask_books(workbench, current, question, who))
            found = {event["event"]: event for event in events}
            return {"answer": found["answered"]["answer"], **found["asked"]["choice"]}

    def merge_books(session: str, book: str, other: str) -> str:
        """
        Make one book of two, with the passages and adapters of both, and the title of the first.

        Args:
            session: The session.
            book: Id of a book.
            other: Id of another one.

        Returns:
            The id of the new book.
        """
        with errors_for_callers():
            return workbench.shelves.merge(workbench.sessions.open(session), book, other).id

    def forget_book(session: str, book: str) -> str:
        """
        Remove a book from the shelf.

        Args:
            session: The session.
            book: Its id.

        Returns:
            Its title.
        """
        with errors_for_callers():
            return workbench.shelves.forget(workbench.sessions.open(session), book).title

    def take_book(session: str, book: str) -> list:
        """
        Add the adapters of a book to those of the session, for download_adapter, push_adapter and ask.

        Args:
            session: The session.
            book: Its id.

        Returns:
            The id of an adapter for each of its passages.
        """
        with errors_for_callers():
            return [kept.id for kept in workbench.shelves.take(workbench.sessions.open(session), book)]

    for endpoint in (ask_shelf, shelf, merge_books, forget_book, take_book):
        gr.api(endpoint, concurrency_limit=4 if endpoint is not ask_shelf else None)
