"""How the tabs follow a job, and what they say about it."""

import asyncio
from types import SimpleNamespace

from helpers.web_page import end_of, until_running
from seal_hf.webui.tabs.shared import answers_table, duration, ended_text, escape, follow, percent, waiting_text
from seal_hf.webui.work.jobs import DONE, STOPPED


def followed(jobs, job, most=None):
    workbench = SimpleNamespace(jobs=jobs, sessions=SimpleNamespace(find=lambda session_id: None))

    async def collect():
        found = []
        async for latest, events in follow(workbench, job):
            log = latest
            found += events
            if most is not None and len(found) >= most:
                break
        return log, found

    return asyncio.run(collect())


def test_who_leaves_and_comes_back_sees_the_same(jobs, submit, gate):
    def work(job):
        job.emit("text", new=["Ann"])
        gate.wait(30)
        job.emit("text", new=[" keeps bees"])

    job = submit(work)
    log, before = followed(jobs, job, most=3)
    assert not log.has_ended and [event["event"] for event in before] == ["state", "state", "text"]
    gate.set()
    log, after = followed(jobs, job)
    assert log.state == DONE and after[:3] == before and len(after) == 5
    assert followed(jobs, job)[1] == after


def test_a_job_that_is_dropped_is_not_followed_any_more(jobs, submit):
    job = submit()
    jobs.wait(job)
    jobs.forget("ann")
    log, events = followed(jobs, job)
    assert log.state == STOPPED and events == []


def test_how_long_it_takes_is_said_in_words(jobs, submit, gate):
    class Workbench:
        pass

    Workbench.jobs = jobs
    first = submit(lambda job: gate.wait(30), seconds=200)
    until_running(first)
    others = [submit(owner=name, seconds=100) for name in ("bob", "cleo")]
    assert waiting_text(Workbench, first) == "Starting …"
    assert waiting_text(Workbench, others[0]) == "Waiting for 1 other on this device, about 3 min."
    assert waiting_text(Workbench, others[1]) == "Waiting for 2 others on this device, about 5 min."
    assert [duration(0.2), duration(89), duration(95)] == ["1 s", "89 s", "2 min"]
    assert [percent(None), percent(0.0), percent(2 / 3)] == ["–", "0 %", "67 %"]


def test_an_error_is_shown_as_text(jobs, submit):
    def work(job):
        raise ValueError("<b>a_b</b> [x](y)")

    log, _ = end_of(jobs, submit(work))
    shown = ended_text(log, "Done.", "Stopped.")
    assert shown == "⚠️ It failed: \\<b\\>a\\_b\\</b\\> \\[x\\]\\(y\\)"
    assert escape("Ann’s 灯台: 1,5 %") == "Ann’s 灯台: 1,5 %"
    done, _ = end_of(jobs, submit(owner="bob"))
    assert ended_text(done, "Done.", "Stopped.") == "Done."


def test_answers_are_marked():
    questions = [{"question": "Who drew it?", "answer": "Halda"}, {"question": "When?"}]
    answers = [["Halda", "1874"], ["Ann", ""]]
    assert answers_table(questions, answers) == [["Who drew it? → Halda", "Halda", "Ann"], ["When?", "1874", ""]]
    assert answers_table(questions, answers, [[True, None], [False, None]])[0][1:] == ["✓ Halda", "✗ Ann"]
    assert answers_table([{"question": "Who?", "answer": ["Ann", "Ben"]}], [["Ann"]]) == [["Who? → Ann | Ben", "Ann"]]
    assert answers_table([], [[], []]) == []
