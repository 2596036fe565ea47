"""Attacks on the work: too much of it, the places of others, and requests that hold up everybody."""

import asyncio
import json
import threading
import time
from dataclasses import replace

import httpx2
import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, until_running
from seal_hf.webui.tabs.passage_panel import NAMES
from seal_hf.webui.work import jobs as jobs_module
from seal_hf.webui.work.jobs import DONE, STOPPED, JobLog
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.sessions import Draft, KeptAdapter
from seal_hf.webui.work.settings import TrainingSettings


WRITTEN = ("Lighthouse", PASSAGE, 1)


@pytest.fixture(scope="module")
def public(serve, tmp_path_factory):
    """The app as others reach it, with a script of training runs that only waits."""
    script = tmp_path_factory.mktemp("script") / "wait.py"
    script.write_text("import time\nprint('/home/ann/secret/place.txt is missing', flush=True)\ntime.sleep(60)")
    return serve(limits=SHARED, script=script, may_push=False)


def said(answer):
    """All that the server sent back, as a text."""
    return json.dumps(answer, ensure_ascii=False)


def with_self_edits(app, *texts):
    """A session that has self-edits, which no device had to write."""
    session = app.workbench.sessions.open()
    session.example = {"title": "Lighthouse", "context": PASSAGE, "questions": []}
    session.settings = vars(QUICK)
    session.drafts = [Draft(text) for text in texts or ("Halda drew it.",)]
    return session


def of_train_tab(app, name):
    """The number of a handler of the tab Train."""
    functions = {key: one.fn for key, one in app.page.fns.items() if one.fn is not None}
    return next(
        key
        for key, fn in functions.items()
        if getattr(fn, "__name__", "") == name and fn.__module__.endswith("train_tab")
    )


def values_of(settings):
    """The widgets' values of the tab Train."""
    names = ["prompt_style", "num_train_passages", "num_eval_passages", "num_rounds", "num_generations", "temperature"]
    names += [
        "max_completion_length",
        "inner_num_train_epochs",
        "inner_batch_size",
        "inner_learning_rate",
        "num_train_epochs",
        "seed",
    ]
    return [getattr(settings, name) for name in names]


# --- work is bounded ---


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


@pytest.mark.parametrize(
    "values",
    [
        {"num_rounds": 10, "num_train_passages": 200, "num_generations": 8, "inner_num_train_epochs": 50},
        {"num_eval_passages": 200, "num_rounds": 1},
    ],
)
def test_a_stranger_starts_no_large_training_run(public, pressed, values):
    session = public.workbench.sessions.open()
    answer = pressed(public, "on_start", [session.id, None, *values_of(TrainingSettings(**values))])
    assert "is the limit here: choose fewer passages" in said(answer)
    assert not public.workbench.runs.is_running(session.id)


def test_the_limits_are_said_on_the_page_where_there_are_any(public, app):
    texts = [httpx2.get(f"{one.url}config", timeout=60).text for one in (public, app)]
    for text in ("a job is ended after 10 minutes", "a visitor's runs may take 30 minutes in 120 minutes|2 hours"):
        found = [any(part in page for part in text.split("|")) for page in texts]
        assert found == [True, False]


# --- nobody throws others out ---


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
    for _ in range(jobs_module.MAX_JOBS):
        release = threading.Event()
        app.workbench.jobs.submit(
            session.id, f"kind {_}", "", session.folder / "jobs", lambda job, gate=release: gate.wait(5), seconds=1
        )
    with pytest.raises(refused, match="3 of your jobs are under way"):
        called(app.url, "propose", ["Other", "Ann keeps bees.", 1, "", 0, session.id])
    assert (session.passage, session.drafts) == before[:2] and session.shown == {"adapt": "job"}
    for job in app.workbench.jobs.active(session.id):
        app.workbench.jobs.stop(job)


def test_an_id_that_anybody_can_guess_has_no_training_run(public, pressed):
    settings = TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1)
    for guessed in ("", "A" * 32, None):
        assert "load the page again" in said(pressed(public, "on_start", [guessed, None, *values_of(settings)]))
        for handler in ("on_resume", "on_stop"):
            assert "load the page again" in said(pressed(public, of_train_tab(public, handler), [guessed]))
        assert "load the page again" in said(pressed(public, of_train_tab(public, "on_use"), [guessed, 0]))
    owner = public.workbench.sessions.open()
    public.workbench.runs.start(owner.id, settings)
    try:
        for guessed in ("", "A" * 32, public.workbench.sessions.open().id):
            assert "Round 1" not in said(pressed(public, of_train_tab(public, "watch"), [guessed]))
            assert "Round 1" not in said(pressed(public, of_train_tab(public, "on_round"), [guessed, 0]))
    finally:
        public.workbench.runs.forget(owner.id)


def test_a_stranger_reads_no_path_of_this_machine(public, pressed, tmp_path):
    runs, owner = public.workbench.runs, public.workbench.sessions.open()
    runs.start(owner.id, TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1))
    try:
        end = time.monotonic() + 30
        while "missing" not in runs.snapshot(owner.id).log and time.monotonic() < end:
            time.sleep(0.05)
        runs.stop(owner.id)
        while runs.is_running(owner.id) and time.monotonic() < end:
            time.sleep(0.05)
        # A finished one.
        (runs._folders(owner.id)[-1] / "run").mkdir(exist_ok=True)
        (runs._folders(owner.id)[-1] / "run" / "adapter_model.safetensors").touch()
        states = [runs.snapshot(owner.id).state]
        answers = [said(pressed(public, of_train_tab(public, "watch"), [owner.id]))]
        del runs._runs[owner.id]  # as after a restart of the app
        states.append(runs.snapshot(owner.id).state)
        answers.append(said(pressed(public, of_train_tab(public, "watch"), [owner.id])))
    finally:
        runs.forget(owner.id)
    assert states == [STOPPED, DONE]
    for answer in answers:
        assert "place.txt is missing" in answer
        assert "/home/ann" not in answer and str(runs._folder) not in answer
    assert not runs._folder_of(owner.id).exists()


def test_a_visitor_who_is_gone_leaves_no_training_run(serve, tmp_path):
    script = tmp_path / "wait.py"
    script.write_text("import time\ntime.sleep(60)")
    app = serve(limits=replace(SHARED, unattended_seconds=0.1), keep_seconds=0.2, script=script)
    runs, session = app.workbench.runs, app.workbench.sessions.open()
    runs.start(session.id, TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1))
    folder = runs.snapshot(session.id).folder
    end = time.monotonic() + 40
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
        app.workbench.sessions.sweep()
    assert not folder.exists() and not runs.is_running(session.id)
    assert app.workbench.sessions.find(session.id) is None


# --- checks come first, and hold up nobody ---


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
