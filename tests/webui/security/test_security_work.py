"""Attacks on the work: too much of it, and the places of others."""

import json
import threading
import time
from dataclasses import replace

import httpx2
import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, until_running, with_self_edits
from seal_hf.webui.work.jobs import STOPPED, JobLog
from seal_hf.webui.work.limits import MAX_JOBS, SHARED
from seal_hf.webui.work.session_items import KeptAdapter


WRITTEN = ("Lighthouse", PASSAGE, 1)


def test_a_training_of_days_is_refused_before_it_starts(public, called, refused):
    session = with_self_edits(public)
    session.settings = vars(replace(QUICK, num_train_epochs=50))
    lines = "\n".join(str(number % 10) for number in range(12_499))
    with pytest.raises(
        refused, match=r"625,000 steps, and 10,000 is the limit here: choose fewer|[\d,]+ steps, and 10,000"
    ):
        called(public.url, "adapt", [session.id, [lines], QUESTIONS, None, None, None])
    long_lines = "\n".join("Halda drew the lighthouse. " * 40 for _ in range(40))
    with pytest.raises(refused, match=r"tokens in all epochs, and 500,000 is the limit here: choose fewer"):
        called(public.url, "adapt", [session.id, [long_lines] * 3, QUESTIONS, None, None, None])
    assert not public.workbench.jobs.active(session.id)
    assert [draft.text for draft in session.drafts] == ["Halda drew it."]


def test_a_job_that_takes_too_long_is_ended_and_says_so(lm, serve, called, refused, monkeypatch):
    app = serve(limits=replace(SHARED, job_seconds=0.3))
    session = with_self_edits(app)

    def slow(self, name, job, *arguments):
        while not job.stop.is_set():
            time.sleep(0.01)
        return [""], [""]

    monkeypatch.setattr(type(app.workbench), "run", slow)
    session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    with pytest.raises(refused, match="A job is ended after 1 minute here"):
        called(app.url, "ask", [session.id, "Who drew it?", ""])


def test_jobs_of_a_visitor_who_is_gone_end(serve, monkeypatch):
    app = serve(limits=replace(SHARED, unattended_seconds=0.2))
    session, release = app.workbench.sessions.open(), threading.Event()

    def work(job):
        while not job.stop.is_set() and not release.wait(0.01):
            pass

    job = app.workbench.jobs.submit(session.id, "adapt", "", session.folder / "jobs", work, seconds=1)
    until_running(job)
    app.workbench.sessions.sweep()
    assert app.workbench.jobs.active(session.id)
    time.sleep(0.3)
    app.workbench.sessions.sweep()
    assert app.workbench.jobs.wait(job, 30)
    log = JobLog(job)
    log.read()
    assert log.state == STOPPED
    release.set()


def test_a_caller_who_has_left_does_not_keep_its_job(serve, called, monkeypatch):
    """A program's call goes on when the program has gone; it must not count as a visitor."""
    app = serve(limits=replace(SHARED, unattended_seconds=0.5))
    session = with_self_edits(app)
    session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)

    def slow(self, name, job, *arguments):
        while not job.stop.is_set():
            time.sleep(0.01)
        return [""], [""]

    monkeypatch.setattr(type(app.workbench), "run", slow)
    answer = httpx2.post(f"{app.url}gradio_api/call/ask", json={"data": [session.id, "Who drew it?", ""]})
    assert answer.status_code == 200  # and nobody reads what it answers
    end = time.monotonic() + 30
    while not app.workbench.jobs.active(session.id) and time.monotonic() < end:
        time.sleep(0.01)
    (job,) = app.workbench.jobs.active(session.id)
    until_running(job)
    time.sleep(1)
    app.workbench.sessions.sweep()
    assert app.workbench.jobs.wait(job, 30)


def test_a_page_that_is_closed_does_not_keep_its_job(serve, monkeypatch):
    app = serve(limits=replace(SHARED, unattended_seconds=1))
    session = with_self_edits(app)
    session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)

    def slow(self, name, job, *arguments):
        while not job.stop.is_set():
            job.emit("text", new=["", ""])
            time.sleep(0.05)
        return [""], [""]

    monkeypatch.setattr(type(app.workbench), "run", slow)
    number = next(key for key, one in app.page.fns.items() if getattr(one.fn, "__name__", None) == "on_ask")
    with httpx2.Client(base_url=app.url, timeout=60) as page:
        data = {"data": [session.id, "Who drew it?"], "fn_index": number, "session_hash": "a page"}
        assert page.post("gradio_api/queue/join", json=data).status_code == 200
        with page.stream("GET", "gradio_api/queue/data", params={"session_hash": "a page"}) as answer:
            lines = answer.iter_lines()
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                next(lines)
            app.workbench.sessions.sweep()
            (job,) = app.workbench.jobs.active(session.id)
            assert not job.stop.is_set()  # its page is open
    end = time.monotonic() + 30
    while app.workbench.jobs.active(session.id) and time.monotonic() < end:
        time.sleep(0.2)
        app.workbench.sessions.sweep()
    assert not app.workbench.jobs.active(session.id)


def laid_out(url):
    """The English texts of what a page lays out."""
    config = httpx2.get(f"{url}config", timeout=60).json()
    texts, components = config["i18n_translations"]["en"], json.dumps(config["components"])
    return "\n".join(text for name, text in texts.items() if json.dumps(name)[1:-1] in components)


def test_the_limits_are_said_on_the_page_where_there_are_any(public, app):
    texts = [laid_out(one.url) for one in (public, app)]
    assert all("Write self-edits" in text for text in texts)
    for text in ("a job is ended after 10 minutes", "a visitor's runs may take 30 minutes in 120 minutes|2 hours"):
        found = [any(part in page for part in text.split("|")) for page in texts]
        assert found == [True, False]


def test_cheap_calls_take_no_place_of_a_session_with_an_adapter(app, called, refused, monkeypatch):
    sessions = app.workbench.sessions
    monkeypatch.setattr(sessions, "_max_sessions", 8)
    victim = with_self_edits(app)
    victim.keep(KeptAdapter("a", "Bees", victim.folder), choose=True)
    for _ in range(10):
        with pytest.raises(refused, match="let the model write some first"):
            called(app.url, "adapt", ["", ["Bees."], [], None, None, None])
    assert sessions.find(victim.id) is victim and victim.folder.is_dir()
    assert not [one for one in sessions._sessions.values() if one is not victim and one.drafts]


def test_who_comes_when_all_places_are_taken_is_told(serve, called, refused):
    app = serve()
    app.workbench.sessions._max_sessions = 2
    taken = [app.workbench.sessions.open() for _ in range(2)]
    for session in taken:
        session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    with pytest.raises(refused, match="All 2 places are taken by visitors with adapters .* try again"):
        called(app.url, "propose", [*WRITTEN, "", 0, ""])
    assert all(app.workbench.sessions.find(session.id) is session for session in taken)


def test_a_refused_call_changes_nothing(app, called, refused):
    session = with_self_edits(app)
    before = (session.passage, list(session.drafts), dict(session.shown))
    session.shown["adapt"] = "job"
    with pytest.raises(refused, match="Self-edit 1 is empty"):
        called(app.url, "adapt", [session.id, ["  "], QUESTIONS, None, None, None])
    for _ in range(MAX_JOBS):
        release = threading.Event()
        app.workbench.jobs.submit(
            session.id, f"kind {_}", "", session.folder / "jobs", lambda job, gate=release: gate.wait(5), seconds=1
        )
    with pytest.raises(refused, match="3 of your jobs are under way"):
        called(app.url, "propose", ["Other", "Ann keeps bees.", 1, "", 0, session.id])
    assert (session.passage, session.drafts) == before[:2] and session.shown == {"adapt": "job"}
    for job in app.workbench.jobs.active(session.id):
        app.workbench.jobs.stop(job)
