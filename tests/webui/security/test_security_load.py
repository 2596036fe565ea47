"""The app with as many strangers as it takes, of whom some flood it."""

import contextlib
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, served_page
from seal_hf.webui import api
from seal_hf.webui.tabs import shared
from seal_hf.webui.work import private_folder, sharing
from seal_hf.webui.work.inputs import LONGEST_PASSAGE
from seal_hf.webui.work.limits import SHARED


NUM_SESSIONS, NUM_ASKING, NUM_FLOODING = 64, 16, 4
MOST_MEMORY, MOST_DISK = 500_000_000, 100_000_000  # bytes more than before


def flood(url, called, refused, session, over):
    """What a program can do without a break. Returns how often it was tried."""
    long = (PASSAGE + " ") * (LONGEST_PASSAGE // (len(PASSAGE) + 1))
    junk = {"files": ("junk.zip", b"PK\x03\x04" + bytes(5_000_000))}
    attempts = (
        ("propose", lambda: ["Flood", long, 8, "rewrite", 0, session]),
        ("propose", lambda: ["Flood", long[:2000], 8, "rewrite", 0, session]),
        ("adapt", lambda: [session, [long[:2000]] * 2, QUESTIONS, None, None, None]),
        ("adapt", lambda: [session, [long] * 24, QUESTIONS * 20, None, None, None]),
        ("ask", lambda: [session, "why " * 700_000, ""]),
        ("load_adapter", lambda: ["", "", uploaded(url, junk)]),
    )
    count = 0
    while not over.is_set():
        for name, data in attempts:
            with contextlib.suppress(refused, httpx2.HTTPError):
                called(url, name, data())
            count += 1
            if over.is_set():
                break
    return count


def uploaded(url, files):
    path = httpx2.post(f"{url}gradio_api/upload", files=files, timeout=60).json()[0]
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def num_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def test_everybody_is_answered_while_some_flood(lm, learned_session, called, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "PRESETS", {"Tiny model": QUICK})
    monkeypatch.setattr(shared, "_REFRESH", 0.02)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    zipped = learned_session.adapter().file.read_bytes()
    process = psutil.Process()
    before, over = process.memory_info().rss, threading.Event()
    with (
        private_folder.private_folder() as folder,
        served_page(folder.parent, lm, limits=SHARED, may_push=False) as app,
    ):
        # As many as there may be, each with an adapter to lose.
        sessions = [app.workbench.sessions.open() for _ in range(NUM_SESSIONS)]
        for session in sessions:
            file = folder / "adapter.zip"
            file.write_bytes(zipped)
            sharing.load_adapter(lm, session, file)
        expected = called(app.url, "ask", [sessions[0].id, "Who drew it?", ""])
        with ThreadPoolExecutor(NUM_ASKING + NUM_FLOODING) as pool:
            flooding = [
                pool.submit(flood, app.url, called, refused, session.id, over) for session in sessions[:NUM_FLOODING]
            ]
            time.sleep(1)
            asking = [
                pool.submit(called, app.url, "ask", [session.id, "Who drew it?", ""])
                for session in sessions[NUM_FLOODING:][:NUM_ASKING]
            ]
            try:
                answers = [one.result(timeout=120) for one in asking]
            finally:
                over.set()
                for session in sessions[:NUM_FLOODING]:
                    for kind in ("propose", "adapt", "ask"):
                        app.workbench.stop(session, kind)
            assert all(one.result(timeout=120) > 2 for one in flooding)
        assert answers == [expected] * NUM_ASKING
        assert all(session.adapters and session.folder.is_dir() for session in sessions)
        assert process.memory_info().rss - before < MOST_MEMORY
        assert num_bytes(folder.parent) < MOST_DISK
        app.workbench.jobs.close(30)
    assert list(tmp_path.iterdir()) == []
