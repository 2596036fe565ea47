"""Jobs in the background: their order, their log, and how they are stopped."""

import contextvars
import json
import pickle
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from helpers.web_page import end_of, until_running
from seal_hf.webui.work.job_queue import JobQueue
from seal_hf.webui.work.jobs import DONE, FAILED, RUNNING, STOPPED, JobLog, JobRefused
from seal_hf.webui.work.limits import SHARED


def test_jobs_run_one_after_another_in_their_order(jobs, submit, gate):
    done = []
    first = submit(lambda job: gate.wait(30), "ann", seconds=5)
    until_running(first)
    others = [submit(lambda job, name=name: done.append(name), name, seconds=2) for name in ("bob", "cleo")]
    assert [jobs.queue_position(job)[0] for job in others] == [1, 2]
    (_, before_bob), (_, before_cleo) = map(jobs.queue_position, others)
    assert 1 <= before_bob <= 5 and before_cleo == pytest.approx(before_bob + 2, abs=0.5)
    gate.set()
    for job in others:
        jobs.wait(job)
    assert done == ["bob", "cleo"]
    assert [jobs.queue_position(job) for job in others] == [(0, 0.0)] * 2


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


def test_what_ends_threads_ends_no_queue(jobs, submit):
    class Panic(BaseException):
        """As the libraries written in Rust raise it."""

    def work(job):
        raise Panic("index out of bounds")

    log, _ = end_of(jobs, submit(work))
    assert (log.state, log.error) == (FAILED, "It failed: index out of bounds")
    assert end_of(jobs, submit())[0].state == DONE


def test_a_log_that_cannot_be_written_ends_no_queue(jobs, submit, gate):
    until_running(submit(lambda job: gate.wait(30)))
    ran = []
    lost = submit(lambda job: ran.append(job), "bob")
    shutil.rmtree(lost.folder)
    lost.folder.touch()  # no folder can be made there, as on a full disk
    gate.set()
    assert jobs.wait(lost, 30) and ran == []
    assert end_of(jobs, submit(owner="cleo"))[0].state == DONE


def test_a_log_whose_end_cannot_be_written_is_not_followed_for_ever(jobs, submit, monkeypatch):
    def work(job):
        emit = type(job).emit
        monkeypatch.setattr(
            type(job), "emit", lambda self, *a, **v: no_room() if self.id == job.id else emit(self, *a, **v)
        )

    def no_room():
        raise OSError(28, "No space left on device")

    log, events = end_of(jobs, submit(work))
    assert log.state == STOPPED and events == []
    assert end_of(jobs, submit(owner="bob"))[0].state == DONE


def test_two_devices_work_at_once_and_one_does_not(tmp_path):
    def overlap(num_workers):
        jobs, most, running, lock = JobQueue(str, num_workers=num_workers), [0], [0], threading.Lock()
        meeting = threading.Barrier(num_workers)

        def work(job):
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            meeting.wait(30)
            with lock:
                running[0] -= 1

        for job in [jobs.submit(f"{owner}", "ask", "", tmp_path, work, seconds=1) for owner in range(4)]:
            assert end_of(jobs, job)[0].state == DONE
        return most[0]

    assert [overlap(1), overlap(2)] == [1, 2]


def test_work_has_its_callers_context(jobs, submit):
    visitor = contextvars.ContextVar("visitor", default="nobody")
    visitor.set("ann")
    _, events = end_of(jobs, submit(lambda job: job.emit("seen", by=visitor.get())))
    assert [event["by"] for event in events if event["event"] == "seen"] == ["ann"]


def test_another_process_writes_the_log_and_sees_the_stop(jobs, submit, gate):
    job = submit(lambda job: gate.wait(30))
    until_running(job)
    elsewhere = pickle.loads(pickle.dumps(job))
    elsewhere.emit("text", new=["Ann"])
    assert not elsewhere.stop.is_set()
    jobs.stop(job)
    assert elsewhere.stop.is_set()
    gate.set()
    log, events = end_of(jobs, job)
    assert log.state == STOPPED and any(event.get("new") == ["Ann"] for event in events)


def test_stop_is_seen_by_the_work_and_a_second_one_does_nothing(jobs, submit):
    def work(job):
        job.emit("on")
        while not job.stop.is_set():
            time.sleep(0.01)

    job = submit(work)
    until_running(job)
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
    until_running(job)
    assert submit(key="one") is job
    with pytest.raises(JobRefused, match="still under way: wait until it has ended, or press Stop"):
        submit(key="two")
    assert submit(key="two", owner="bob") is not job
    assert submit(key="two", kind="probe") is not job
    gate.set()
    jobs.wait(job)
    assert submit(key="one") is not job


def test_too_many_who_wait_are_told(jobs, submit, gate):
    until_running(submit(lambda job: gate.wait(30)))
    for name in ("bob", "cleo", "dan"):
        submit(owner=name)
    with pytest.raises(JobRefused, match="3 others are waiting already: try again"):
        submit(owner="eve")


def test_no_visitor_takes_all_places(tmp_path, gate):
    jobs = JobQueue(str, max_waiting=4)

    def submit(owner, kind="ask"):
        return jobs.submit(owner, kind, "", tmp_path, lambda job: gate.wait(30), seconds=1)

    until_running(submit("ann"))
    for kind in ("propose", "adapt"):
        submit("ann", kind)
    with pytest.raises(JobRefused, match="3 of your jobs are under way: wait until one has ended"):
        submit("ann", "probe")
    submit("bob")
    with pytest.raises(
        JobRefused, match="3 others are waiting already"
    ):  # the last places are for those who have none
        submit("bob", "propose")
    submit("cleo")
    with pytest.raises(JobRefused, match="4 others are waiting already"):
        submit("dan")
    gate.set()


def test_who_asks_little_is_not_behind_all_who_ask_much(jobs, submit, gate):
    until_running(submit(lambda job: gate.wait(30), "ann", seconds=500))
    done = []
    waiting = [
        submit(lambda job, name=name: done.append(name), name, seconds=seconds)
        for name, seconds in (("bob", 400), ("cleo", 5), ("dan", 5))
    ]
    assert [jobs.queue_position(job)[0] for job in waiting] == [3, 1, 2]
    gate.set()
    for job in waiting:
        jobs.wait(job)
    assert done == ["cleo", "dan", "bob"]


def test_who_had_the_device_for_long_waits_for_those_who_had_not(jobs, submit, gate):
    jobs._usage.add("ann", 100)
    until_running(submit(lambda job: gate.wait(30), "eve"))
    waiting = [submit(owner=name) for name in ("ann", "bob")]
    assert [jobs.queue_position(job)[0] for job in waiting] == [2, 1]


def test_a_job_that_takes_too_long_is_stopped_and_says_why(tmp_path):
    jobs = JobQueue(str, limits=replace(SHARED, job_seconds=0.1))

    def work(job):
        while not job.stop.is_set():
            time.sleep(0.01)

    log, _ = end_of(jobs, jobs.submit("ann", "ask", "", tmp_path, work, seconds=1))
    assert (log.state, log.error) == (STOPPED, "A job is ended after 1 minute here.")
    log, _ = end_of(jobs, jobs.submit("ann", "ask", "", tmp_path, lambda job: None, seconds=1))
    assert (log.state, log.error) == (DONE, None)


def test_who_has_used_up_the_hour_is_told_when_it_goes_on(tmp_path):
    jobs = JobQueue(str, limits=SHARED)
    jobs._usage.add("ann", SHARED.hour_seconds)
    with pytest.raises(JobRefused, match="for 30 minutes, .* in an hour: try again in 60 minutes"):
        jobs.submit("ann", "ask", "", tmp_path, lambda job: None, seconds=1)
    end_of(jobs, jobs.submit("bob", "ask", "", tmp_path, lambda job: None, seconds=1))
    assert 0 < jobs._usage.total("bob") < 30


def test_logs_of_old_jobs_do_not_add_up(jobs, submit, tmp_path):
    ended = []
    for _ in range(12):
        ended.append(submit())
        jobs.wait(ended[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(job.id for job in ended[-8:])
    assert jobs.find(ended[0].id, "ann") is None and jobs.find(ended[-1].id, "ann")


def test_a_job_has_so_many_followers(jobs, submit):
    job = submit()
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(jobs.follower(job))
        with pytest.raises(JobRefused, match="16 pages follow this job already"), jobs.follower(job):
            pass
    with jobs.follower(job):
        pass


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


def test_long_work_stays_paused_from_the_first_job_to_the_last(jobs, submit, gate):
    work, first = Long(), submit(lambda job: gate.wait(30))
    until_running(first)
    with jobs.background(work):
        assert work.calls == ["pause"]  # a job had the device already
        seen = []
        last = submit(lambda job: seen.extend(work.calls), "bob")
        gate.set()
        jobs.wait(last)
        assert "resume" not in seen
        assert work.calls[-1] == "resume" and work.calls.count("resume") == 1


def test_long_work_goes_on_when_the_last_waiting_job_is_stopped(jobs, tmp_path):
    work = Long()
    with jobs.background(work):
        with jobs._changed:  # no worker takes a job meanwhile
            waiting = jobs.submit("ann", "ask", "", tmp_path, lambda job: None, seconds=1)
            work.pause()  # for a job that ended when this one waited already
            jobs.stop(waiting)
            assert work.calls == ["pause", "resume"]
        assert end_of(jobs, waiting)[0].state == STOPPED


def test_long_work_that_has_ended_is_left_alone(jobs, submit, gate):
    work, job = Long(), submit(lambda job: gate.wait(30))
    until_running(job)
    with jobs.background(work):
        pass
    gate.set()
    jobs.wait(job)
    assert work.calls == ["pause"]
    with jobs.background(Long()):  # there is room for another one
        pass


def test_close_stops_all_jobs_and_does_not_wait_for_ever(jobs, submit, gate):
    def stuck(job):
        gate.wait(30)

    running, waiting = submit(stuck, "ann"), submit(owner="bob")
    until_running(running)
    jobs.close(0.1)
    assert running.stop.is_set() and end_of(jobs, waiting)[0].state == STOPPED
    gate.set()
    jobs.close(60)
    assert end_of(jobs, running)[0].state == STOPPED
