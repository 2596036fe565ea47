"""What the tests of the web app share."""

import shutil
import threading
from dataclasses import replace

import pytest

from helpers.web_page import learned, tiny_lm, written
from seal_hf.webui.work.job_queue import JobQueue
from seal_hf.webui.work.workbench import Workbench


@pytest.fixture
def jobs():
    return JobQueue(lambda error: f"It failed: {error}", max_waiting=3)


@pytest.fixture
def submit(jobs, tmp_path):
    def submit(work=lambda job: None, owner="ann", kind="ask", key="", seconds=2.0):
        return jobs.submit(owner, kind, key, tmp_path, work, seconds=seconds)

    return submit


@pytest.fixture
def gate():
    """What a job waits for, and the end of the test opens."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="session")
def lm():
    """A tiny model, which no test changes."""
    return tiny_lm()


@pytest.fixture
def bench(lm, tmp_path):
    return Workbench(lm, tmp_path / "sessions")


@pytest.fixture
def session(bench):
    return bench.sessions.open()


@pytest.fixture(scope="session")
def learned_session(lm, tmp_path_factory):
    """A session that has learned the passage. Tests take a copy: `with_adapters`."""
    bench = Workbench(lm, tmp_path_factory.mktemp("learned"))
    session = bench.sessions.open()
    written(bench, session)
    learned(bench, session)
    return session


@pytest.fixture
def with_adapters(bench, learned_session):
    """A session of `bench` that has learned the passage."""
    session = bench.sessions.open()
    shutil.copytree(learned_session.folder / "adapters", session.folder / "adapters")
    for name in ("passage", "example", "settings", "chosen"):
        setattr(session, name, getattr(learned_session, name))
    session.drafts = [replace(draft) for draft in learned_session.drafts]
    for kept in learned_session.adapters.values():
        session.keep(replace(kept, file=session.folder / "adapters" / kept.id / kept.file.name), choose=False)
    return session
