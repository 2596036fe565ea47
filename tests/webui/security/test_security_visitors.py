"""Attacks by one visitor with many sessions, to get what one has many times."""

import threading
from dataclasses import replace

import pytest

from helpers.web_page import PASSAGE, QUICK
from seal_hf.webui.visitors import visitor_of
from seal_hf.webui.work.job_queue import JobQueue
from seal_hf.webui.work.jobs import JobRefused
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.session_items import Draft, KeptAdapter
from seal_hf.webui.work.workbench import Workbench


def test_a_visitor_has_so_many_sessions_and_others_keep_theirs(serve, called, refused):
    app = serve(limits=replace(SHARED, visitor_sessions=2), may_push=False)

    def opened(**headers):
        with pytest.raises(refused, match="There is no adapter yet"):  # but a session
            called(app.url, "ask", ["", "Who?", ""], **headers)

    for number in range(3):
        opened()
        opened(**{"x-forwarded-for": f"10.0.0.{number}"})  # as anybody can write it
    sessions = list(app.workbench.sessions._sessions.values())
    names = sorted(session.visitor for session in sessions)
    assert names == ["127.0.0.1"] * 2 + ["behind a proxy"] * 2
    for session in sessions:
        session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    for headers in ({}, {"x-forwarded-for": "8.8.8.8"}):
        with pytest.raises(refused, match="2 sessions with adapters .* from your address, and 2 is the limit: go on"):
            called(app.url, "ask", ["", "Who?", ""], **headers)
    assert all(app.workbench.sessions.find(session.id) is session for session in sessions)
    app.workbench.sessions.open()  # somebody else's


def test_jobs_and_time_of_all_sessions_of_a_visitor_count_together(tmp_path):
    limits = replace(SHARED, visitor_jobs=2, hour_tokens=100)
    jobs, gate = JobQueue(str, limits=limits, visitor_of=lambda owner: owner[0]), threading.Event()

    def submit(owner, kind="ask", **options):
        return jobs.submit(owner, kind, "", tmp_path, lambda job: gate.wait(30), seconds=1, **options)

    started = [submit("a1", num_tokens=60), submit("a2")]
    with pytest.raises(JobRefused, match="2 of your jobs are under way"):
        submit("a3")
    gate.set()
    assert all(jobs.wait(job, 30) for job in (*started, submit("b1", num_tokens=60)))
    jobs.forget("a1")  # its session is deleted
    with pytest.raises(
        JobRefused, match="has 50 tokens and your others of this hour 60, and 100 is what .* in 60 minutes"
    ):
        submit("a3", num_tokens=50)
    assert jobs.wait(submit("a3", num_tokens=40), 30)
    jobs._usage.add("a", SHARED.hour_seconds)
    with pytest.raises(JobRefused, match="Your jobs have had the device for 30 minutes"):
        submit("a4")


def test_the_tokens_of_a_training_are_counted_before_it_starts(lm, tmp_path):
    bench = Workbench(lm, tmp_path / "sessions", limits=replace(SHARED, hour_tokens=10))
    session = bench.sessions.open()
    session.example, session.settings = {"title": "", "context": PASSAGE, "questions": []}, vars(QUICK)
    session.drafts = [Draft("Halda drew it.")]
    with pytest.raises(JobRefused, match=r"This training has \d+ tokens .*, and 10 is what a visitor has in an hour"):
        bench.adapt(session, [0], QUICK, [])
    assert not bench.jobs.active(session.id)


SIGNED_IN = {"oauth_info": {"userinfo": {"preferred_username": "ann"}}}


@pytest.mark.parametrize(
    ("on_space", "client", "forwarded", "cookie", "name"),
    [
        (False, "10.0.0.5", None, {}, "10.0.0.5"),
        (False, "::ffff:10.0.0.5", None, {}, "10.0.0.5"),
        (False, "2001:db8:1:2:3:4:5:6", None, {}, "2001:db8:1:2::/64"),
        (False, "10.0.0.5", "8.8.8.8", SIGNED_IN, "behind a proxy"),
        (True, "10.0.0.5", "1.2.3.4, 8.8.8.8, 10.0.0.7", {}, "8.8.8.8"),
        (True, "10.0.0.5", "8.8.8.8", SIGNED_IN, "user ann"),
        (True, "10.0.0.5", "<b>, 192.168.0.1", {}, "10.0.0.5"),
        (True, "testclient", None, {}, "unknown"),
    ],
)
def test_a_visitor_is_an_address_or_on_a_space_who_has_signed_in(on_space, client, forwarded, cookie, name):
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    scope = {"type": "http", "headers": headers, "client": (client, 1), "session": cookie}
    assert visitor_of(scope, on_space) == name
