"""Which passage a question goes to, and which questions go to the base model."""

from dataclasses import replace
from pathlib import Path

import pytest

from seal_hf.domains import load_demo_passages
from seal_hf.domains.knowledge.passages import load_retention_questions
from seal_hf.shelf import THRESHOLD, Book, LearnedPassage
from seal_hf.shelf.routing import Router


def book(passages, pairs=()):
    learned = tuple(
        LearnedPassage(one["title"], one["context"], str(i), tuple(pairs)) for i, one in enumerate(passages)
    )
    return Book(passages[0]["title"], "", "m", "m", {}, learned, Path(passages[0]["title"]))


@pytest.fixture(scope="module")
def held_out():
    """Passages by which the threshold was not chosen."""
    return load_demo_passages("test")


@pytest.fixture(scope="module")
def router(held_out):
    return Router([book([one]) for one in held_out])


def test_questions_go_to_their_passage(router, held_out):
    routes = [(router.route(item["question"]), one) for one in held_out for item in one["questions"]]
    assert all(route.book.title == one["title"] for route, one in routes)
    assert sum(route.fits for route, _ in routes) >= 0.97 * len(routes)


def test_general_questions_go_to_the_base_model(router, held_out):
    questions = [item["question"] for item in load_retention_questions()] + ["What is 7 x 8?"]
    for one in (router, Router([book(held_out[:1])])):
        assert not any(one.route(question).fits for question in questions)
    # So do most questions about what was not learned.
    others = [item["question"] for one in load_demo_passages("train") for item in one["questions"]]
    assert sum(router.route(question).fits for question in others) <= 0.04 * len(others)


def test_a_long_book_is_asked_by_passages(held_out):
    router = Router([book(held_out[:6]), book(held_out[6:12])])
    for number, one in enumerate(held_out[:12]):
        for item in one["questions"]:
            route = router.route(item["question"])
            assert route.passage.title == one["title"] and route.number == number % 6 + 1


def test_learned_questions_count_and_equal_books_give_the_first(held_out):
    question = "Which creature hums in the pantry?"
    plain, taught = book(held_out[:1]), book(held_out[:1], [(question, "the brellin")])
    route = Router([plain, taught]).route(question)
    assert route.book is taught and route.fits and not Router([plain]).route(question).fits
    again = replace(taught, folder=Path("again"))
    assert Router([again, taught]).route(question).book is again


def test_no_books_and_no_known_words(held_out):
    assert Router([]).route("Who?") is None
    route = Router([book(held_out[:1])]).route("???")
    assert route.score == 0 and not route.fits and route.threshold == THRESHOLD


def test_japanese_is_matched_without_spaces():
    *_, lantern = load_demo_passages("other_languages")
    route = Router([book([lantern])]).route(f"{lantern['title']}を作ったのは誰ですか。")
    assert route.fits
