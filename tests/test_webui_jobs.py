"""Jobs in the background: their order, their log, how they are stopped; and the sessions that they belong to."""

import json
import threading
import time

import pytest

from seal_hf.webui.jobs import DONE, FAILED, RUNNING, STOPPED, JobLog, JobRefused, Jobs
from seal_hf.webui.sessions import MOST_ADAPTERS, KeptAdapter, Sessions


@pytest.fixture
def jobs():
    return Jobs(lambda error: f"It failed: {error}", max_waiting=3)


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


def end_of(jobs, job):
    assert jobs.wait(job, 30)
    log = JobLog(job)
    return log, log.read()


# --- jobs ---


def test_jobs_run_one_after_another_in_their_order(jobs, submit, gate):
    done = []
    first = submit(lambda job: gate.wait(30), "ann", seconds=5)
    others = [submit(lambda job, name=name: done.append(name), name, seconds=2) for name in ("bob", "cleo")]
    while jobs.queue_place(first)[0] or not jobs.active("ann"):
        time.sleep(0.01)
    assert [jobs.queue_place(job)[0] for job in others] == [1, 2]
    (_, before_bob), (_, before_cleo) = map(jobs.queue_place, others)
    assert 1 <= before_bob <= 5 and before_cleo == pytest.approx(before_bob + 2, abs=0.5)
    gate.set()
    for job in others:
        jobs.wait(job)
    assert done == ["bob", "cleo"]
    assert [jobs.queue_place(job) for job in others] == [(0, 0.0)] * 2


def test_who_comes_late_reads_all_from_the_start(jobs, submit):
    job = submit(lambda job: [job.emit("text", new=[part]) for part in ("Ann", " keeps", " bees🐝\u2028")])
    log, events = end_of(jobs, job)
    assert (log.state, log.error, log.has_ended) == (DONE, None, True)
    assert "".join(event["new"][0] for event in events if event["event"] == "text") == "Ann keeps bees🐝\u2028"
    assert [event["state"] for event in events if event["event"] == "state"] == ["queued", "running", "done"]
    assert log.read() == []


def test_a_line_that_is_being_written_is_not_read(jobs, submit):
    job = submit()
    log, _ = end_of(jobs, job)
    line = json.dumps({"event": "text", "new": ["Ann"]})
    with (job.folder / "events.jsonl").open("a") as file:
        file.write(line[:9])
        file.flush()
        assert log.read() == []
        file.write(line[9:] + "\n")
    assert log.read() == [{"event": "text", "new": ["Ann"]}]


def test_an_error_is_its_owners_to_read_and_the_queue_goes_on(jobs, submit):
    failing, other = submit(lambda job: 1 / 0), submit(owner="bob")
    assert (end_of(jobs, failing)[0].state, end_of(jobs, failing)[0].error) == (FAILED, "It failed: division by zero")
    assert end_of(jobs, other)[0].state == DONE


def test_stop_is_seen_by_the_work_and_a_second_one_does_nothing(jobs, submit):
    def work(job):
        job.emit("on")
        while not job.stop.is_set():
            time.sleep(0.01)

    job = submit(work)
    log = JobLog(job)
    while log.state != RUNNING:
        log.read()
    jobs.stop(job)
    jobs.stop(job)
    assert end_of(jobs, job)[0].state == STOPPED
    jobs.stop(job)
    assert end_of(jobs, job)[1][-1]["state"] == STOPPED


def test_a_waiting_job_that_is_stopped_never_runs(jobs, submit, gate):
    ran = []
    submit(lambda job: gate.wait(30))
    waiting = submit(lambda job: ran.append(1), "bob")
    jobs.stop(waiting)
    assert end_of(jobs, waiting)[0].state == STOPPED
    gate.set()
    jobs.wait(submit(owner="cleo"))
    assert ran == []


def test_the_same_click_twice_is_one_job(jobs, submit, gate):
    job = submit(lambda job: gate.wait(30), key="one")
    assert submit(key="one") is job
    with pytest.raises(JobRefused, match="still under way: wait until it has ended, or press Stop"):
        submit(key="two")
    assert submit(key="two", owner="bob") is not job
    assert submit(key="two", kind="probe") is not job
    gate.set()
    jobs.wait(job)
    assert submit(key="one") is not job


def test_too_many_who_wait_are_told(jobs, submit, gate):
    first = submit(lambda job: gate.wait(30))
    while jobs.queue_place(first)[0]:
        time.sleep(0.01)
    time.sleep(0.05)
    for name in ("bob", "cleo", "dan"):
        submit(owner=name)
    with pytest.raises(JobRefused, match="3 others are waiting already: try again"):
        submit(owner="eve")


def test_nobody_finds_anothers_job(jobs, submit):
    job = submit()
    assert jobs.find(job.id, "ann") == job
    assert jobs.find(job.id, "bob") is None and jobs.find("no such", "ann") is None
    assert jobs.active("bob") == []


def test_forgotten_jobs_are_stopped_and_their_files_gone(jobs, submit):
    stopped = []

    def work(job):
        while not job.stop.is_set():
            time.sleep(0.01)
        stopped.append(job.id)

    job, waiting = submit(work), submit(kind="probe")
    log = JobLog(job)
    while log.state != RUNNING:
        log.read()
    jobs.forget("ann")
    assert stopped == [job.id] and not job.folder.exists() and not waiting.folder.exists()
    assert jobs.find(job.id, "ann") is None
    assert log.read() == [] and log.has_ended


class Long:
    def __init__(self):
        self.calls = []

    def pause(self):
        self.calls.append("pause")

    def resume(self):
        self.calls.append("resume")


def test_long_work_is_paused_while_jobs_run_also_when_they_fail(jobs, submit):
    work = Long()
    with jobs.background(work):
        with pytest.raises(JobRefused, match="Another training run"), jobs.background(Long()):
            pass
        jobs.wait(submit(lambda job: 1 / 0))
        while len(work.calls) < 2:
            time.sleep(0.01)
        assert work.calls == ["pause", "resume"]
    jobs.wait(submit(owner="bob"))
    assert work.calls == ["pause", "resume"]


# --- sessions ---


def test_only_ids_that_were_given_out_are_taken(tmp_path):
    sessions = Sessions(tmp_path)
    session = sessions.open()
    assert sessions.open(session.id) is session
    for other in ("", "a", "../../etc", session.id[:-1], session.id + "a", None):
        assert sessions.open(other).id not in (session.id, other)
    assert session.id not in str(session.folder)


def test_a_session_that_is_not_used_goes_and_its_id_gives_an_empty_one(tmp_path):
    forgotten, busy = [], set()
    sessions = Sessions(tmp_path, keep_seconds=0.05, is_busy=lambda name: name in busy, on_forget=forgotten.append)
    idle, working = sessions.open(), sessions.open()
    idle.example = {"title": "Bees"}
    (idle.folder / "adapters").mkdir()
    busy.add(working.id)
    time.sleep(0.1)
    sessions.sweep()
    assert forgotten == [idle.id] and not idle.folder.exists() and working.folder.exists()
    again = sessions.open(idle.id)
    assert again.id == idle.id and again is not idle and again.example is None
    assert sessions.open(working.id) is working


def test_of_too_many_sessions_the_longest_unused_one_goes(tmp_path):
    sessions = Sessions(tmp_path, most=2)
    first, second = sessions.open(), sessions.open()
    sessions.open(first.id)
    third = sessions.open()
    assert not second.folder.exists()
    assert sessions.open(first.id) is first and sessions.open(third.id) is third


def test_adapters_are_kept_chosen_and_deleted(tmp_path):
    session = Sessions(tmp_path).open()
    with pytest.raises(JobRefused, match="There is no adapter yet"):
        session.adapter()
    kept = []
    for name in ("one", "two", "three"):
        adapter_id, folder = session.new_folder()
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"12345")
        kept.append(KeptAdapter(adapter_id, name, folder))
        session.keep(kept[-1], choose=name == "two")
    assert session.adapter() is kept[1] and session.adapter(kept[0].id) is kept[0]
    assert kept[0].num_bytes == 5
    assert session.delete(kept[1].id) is kept[1]
    assert not kept[1].folder.exists() and session.adapter() is kept[2]
    with pytest.raises(JobRefused):
        session.delete(kept[1].id)
    session.require_room(MOST_ADAPTERS - 2)
    with pytest.raises(JobRefused, match="2 adapters are kept, and 24 is the limit: delete some"):
        session.require_room(MOST_ADAPTERS - 1)
