"""Attacks on the shelf: the books of another visitor, of the machine's user, and files beside them."""

import pytest

from helpers.web_page import PASSAGE, QUESTIONS
from seal_hf.webui.work.limits import SHARED


@pytest.fixture(scope="module")
def own(serve, tmp_path_factory):
    """The app of one's own machine, with a shelf that stays."""
    return serve(shelf=tmp_path_factory.mktemp("own") / "shelf")


@pytest.fixture(scope="module")
def others(serve):
    """The app as others reach it."""
    return serve(limits=SHARED, may_push=False)


def taught(app, called, **headers):
    """The session of a visitor who has taught a passage, and the id of its book."""
    session = called(app.url, "propose", ["Lighthouse", PASSAGE, 1, "", 0, ""], **headers)[0]["session"]
    return session, called(app.url, "adapt", [session, [], QUESTIONS, None, None, None], **headers)[0]["book"]


def books(app, called, session, **headers):
    return [book["id"] for book in called(app.url, "shelf", [session], **headers)[0]["books"]]


def test_a_visitor_reaches_no_book_of_another(others, called, refused):
    (ann, book), bob = taught(others, called), called(others.url, "shelf", [""])[0]["session"]
    assert books(others, called, ann) == [book] == ["lighthouse"]
    assert books(others, called, bob) == books(others, called, "") == books(others, called, f"{ann[:-1]}!") == []
    for name, data in (
        ("ask_shelf", [bob, "Who drew it?", book, False]),
        ("merge_books", [bob, book, book]),
        ("forget_book", [bob, book]),
        ("take_book", [bob, book]),
    ):
        with pytest.raises(refused, match="no longer on the shelf"):
            called(others.url, name, data)
    answer = called(others.url, "ask_shelf", [bob, "When was the Orrick Skerry Lighthouse built?", "", False])[0]
    assert answer["book"] is answer["nearest"] is None  # and nothing is told of it
    assert books(others, called, ann) == [book]


@pytest.mark.parametrize(
    "name", ["..", ".", "../shelf", "../../sessions", "/etc", ".lock", "", "*base", "lighthouse/adapters"]
)
def test_no_name_leads_out_of_the_shelf(others, called, refused, name):
    session = others.workbench.sessions.open()
    files = sorted(others.workbench.sessions._folder.rglob("*"))
    for endpoint in ("forget_book", "take_book"):
        with pytest.raises(refused, match="no longer on the shelf"):
            called(others.url, endpoint, [session.id, name])
    assert [path for path in files if path.exists()] == files


def test_the_shelf_of_the_machine_is_for_its_user_alone(own, called, refused):
    """Its pages and programs share it. Who comes through a proxy has a shelf for the session."""
    session, book = taught(own, called)
    folder = own.workbench.shelves.of(own.workbench.sessions.open(session)).folder
    assert books(own, called, "") == [book] and (folder / book).is_dir()
    strangers = (
        {"x-forwarded-for": "8.8.8.8"},
        {"forwarded": "for=8.8.8.8"},
        {"via": "1.1 proxy"},
        {"host": "app.example"},
    )
    for headers in strangers:
        assert books(own, called, "", **headers) == []
        stranger = called(own.url, "shelf", [""], **headers)[0]["session"]
        with pytest.raises(refused, match="no longer on the shelf"):
            called(own.url, "forget_book", [stranger, book], **headers)
        # Nor later, from this machine.
        assert books(own, called, stranger) == []
    stranger, other = taught(own, called, **strangers[0])
    assert books(own, called, stranger, **strangers[0]) == [other] and books(own, called, session) == [book]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [book]


def test_a_page_that_came_through_a_proxy_has_its_own_shelf_too(own, pressed):
    for headers, is_local in (({}, True), ({"x-real-ip": "8.8.8.8"}, False), ({"host": "app.example"}, False)):
        before = set(own.workbench.sessions._sessions)
        pressed(own, "on_load", [""], **headers)
        (new,) = set(own.workbench.sessions._sessions) - before
        assert own.workbench.shelves.is_kept(own.workbench.sessions.open(new)) == is_local


def test_a_page_of_another_site_reaches_no_shelf(own, called, refused):
    for name, data in (("shelf", [""]), ("forget_book", ["", "lighthouse"])):
        with pytest.raises(refused, match="403"):
            called(own.url, name, data, origin="https://evil.example")


def test_a_deleted_session_takes_its_books_and_their_addresses_along(others, called):
    session, book = taught(others, called)
    current = others.workbench.sessions.open(session)
    file = others.workbench.shelves.book(current, book).folder / "book.json"
    assert file.is_file() and current.folder in file.parents
    current.used -= 10**6
    others.workbench.sessions.sweep()
    assert not file.exists() and books(others, called, session) == []
