"""The page of `app.py` and its work in this process, on a tiny model."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.webui.page import build_page
from seal_hf.webui.server import launch
from seal_hf.webui.work import settings
from seal_hf.webui.work.jobs import DONE, RUNNING, Job, JobLog
from seal_hf.webui.work.session_items import Draft
from seal_hf.webui.work.training_runs import TrainingRuns
from seal_hf.webui.work.workbench import Workbench


PASSAGE = "The Orrick Skerry Lighthouse was built in 1874.\nHalda Tremmery drew it."
QUESTIONS = [
    {"question": "When was it built?", "answer": "1874"},
    {"question": "Who drew it?", "answer": "Halda Tremmery"},
]
QUICK = settings.Settings(
    num_generations=2, prompt_style="rewrite", max_completion_length=24, num_train_epochs=2, lora_r=4, lora_alpha=8
)


def tiny_lm(base_model_id="tester/tiny") -> SelfAdaptingLM:
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), base_model_id=base_model_id)


def finish(bench, job):
    """The log and the events of a workbench's job, when it has ended."""
    return end_of(bench.jobs, job)


def written(bench, session, settings=QUICK, questions=(), title="Lighthouse", passage=PASSAGE):
    """The events of writing self-edits."""
    log, events = finish(bench, bench.propose(session, title, passage, questions, settings))
    assert (log.state, log.error) == (DONE, None)
    return events


def learned(bench, session, chosen=(0, 1), settings=QUICK, questions=QUESTIONS):
    """The last event of learning a session's self-edits."""
    log, events = finish(bench, bench.adapt(session, chosen, settings, questions))
    assert (log.state, log.error) == (DONE, None)
    return next(event for event in events if event["event"] == "learned")


def with_self_edits(app, *texts):
    """A session that has self-edits, which no device had to write."""
    session = app.workbench.sessions.open()
    session.example = {"title": "Lighthouse", "context": PASSAGE, "questions": []}
    session.settings = vars(QUICK)
    session.drafts = [Draft(text) for text in texts or ("Halda drew it.",)]
    return session


def until_running(*jobs):
    """Wait until all these jobs run."""
    for job in jobs:
        log = JobLog(job)
        while log.state != RUNNING:
            log.read()


def end_of(jobs, job):
    """The log and the events of a job, when it has ended."""
    assert jobs.wait(job, 60)
    log = JobLog(job)
    return log, log.read()


@contextmanager
def served_page(folder, lm, *, may_push=True, on_space=False, host="127.0.0.1", script=None, **options):
    """The page on a free port, as `url`, `workbench` and `page`."""
    workbench = Workbench(lm, folder / "sessions", **options)
    limits = workbench.limits
    runs = TrainingRuns(
        workbench.jobs,
        folder / "runs",
        script,
        lm.base_model_id,
        limits=limits,
        sessions=workbench.sessions if limits.is_shared else None,
    )
    page = build_page(workbench, runs, may_push=may_push, on_space=on_space)
    _, url, _ = launch(page, on_space=on_space, host=host, prevent_thread_lock=True, quiet=True)
    try:
        yield SimpleNamespace(url=url, workbench=workbench, page=page)
    finally:
        page.close()


@contextmanager
def slowed(monkeypatch, seconds, *works):
    """Every event of these kinds takes this long, so that a test can look at the page in between."""
    emit = Job.emit

    def slow_emit(self, event, **values):
        emit(self, event, **values)
        if event in works:
            time.sleep(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "emit", slow_emit)
        yield
