"""Attacks by texts and requests that are too long, which hold up nobody else."""

import asyncio

import httpx2
import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, with_self_edits
from seal_hf.webui.tabs.passage_panel import NAMES
from seal_hf.webui.work.session_items import KeptAdapter


@pytest.fixture
def tokenized(lm, monkeypatch):
    """Every text that is tokenized: its length, and whether it is done in an event loop."""
    seen, call = [], type(lm.processing_class).__call__

    def watched(self, text, *arguments, **options):
        if isinstance(text, str):
            seen.append((len(text), asyncio._get_running_loop() is not None))
        return call(self, text, *arguments, **options)

    monkeypatch.setattr(type(lm.processing_class), "__call__", watched)
    return seen


def test_a_question_of_megabytes_is_refused_by_its_characters(app, called, refused, tokenized):
    session = with_self_edits(app)
    session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    with pytest.raises(refused, match="The question has 2,800,000 characters: shorten it to 4,000 at most"):
        called(app.url, "ask", [session.id, "x " * 1_400_000, ""])
    with pytest.raises(refused, match="The passage has 2,800,000 characters: shorten it to 50,000 at most"):
        called(app.url, "propose", ["", "x " * 1_400_000, 1, "", 0, ""])
    with pytest.raises(refused, match="The title has 2,800,000 characters: shorten it"):
        called(app.url, "propose", ["x " * 1_400_000, PASSAGE, 1, "", 0, ""])
    with pytest.raises(refused, match="Self-edit 1 has 2,800,000 characters: shorten it"):
        called(app.url, "adapt", [session.id, ["x " * 1_400_000], QUESTIONS, None, None, None])
    with pytest.raises(refused, match="Question 1 or its answer has 2,800,000 characters"):
        called(app.url, "adapt", [session.id, [], [{"question": "x " * 1_400_000, "answer": "y"}], None, None, None])
    with pytest.raises(refused, match="There are 30,000 questions: keep 32 at most"):
        called(app.url, "adapt", [session.id, [], [{"question": "x", "answer": "y"}] * 30_000, None, None, None])
    assert all(size < 10_000 for size, _ in tokenized)


def test_texts_are_tokenized_outside_the_event_loop(app, called, refused, pressed, tokenized):
    session = with_self_edits(app)
    session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    with pytest.raises(refused, match="tokens: shorten it"):
        called(app.url, "ask", [session.id, "x " * 1_900, ""])
    with pytest.raises(refused, match="tokens, but this model can learn at most"):
        called(app.url, "propose", ["", "word " * 9_000, 1, "", 0, ""])
    pressed(app, "on_ask", [session.id, "x " * 1_900])
    values = [getattr(QUICK, name) for name in NAMES]
    pressed(app, "on_write", ["", "", "", "word " * 8_000, {"headers": ["Question", "Answer"], "data": []}, *values])
    sizes = {size for size, _ in tokenized}
    assert {3_799, 44_999, 39_999} <= sizes
    assert not any(is_in_loop for _, is_in_loop in tokenized)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": ["", "' + b"x" * 3_000_000 + b'", ""]}',
        b'{"data": ["", [' + b"[]," * 200_000 + b'[]], ""]}',
        b'{"data": [' + b"0," * 1_000_000 + b"0]}",
        b'{"data": ["", [' + b'{"a":1},' * 100_000 + b'1], ""]}',
    ],
    ids=["long", "lists", "numbers", "objects"],
)
@pytest.mark.parametrize("path", ["call/ask", "call/upload", "queue/join", "run/predict"])
def test_a_request_of_millions_of_values_is_refused_unread(app, body, path):
    answer = httpx2.post(
        f"{app.url}gradio_api/{path}", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 413 and "send shorter texts" in answer.text


def test_files_may_be_larger_than_other_requests(app):
    answer = httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("a.zip", b"x" * 4_000_000)}, timeout=60)
    assert answer.status_code == 200 and answer.json()[0].endswith("a.zip")
