"""The work of the page on a tiny model: what is written and answered, and what is left after a failure."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, learned, written
from seal_hf.webui.tabs.ask_tab import accuracy_text
from seal_hf.webui.work import device, device_work, workbench
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED
from seal_hf.webui.work.session_items import Draft
from seal_hf.webui.work.settings import Settings


def test_slow_jobs_that_waited_together_slow_the_estimate_down_once(bench, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(workbench, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))
    begin = threading.Event()

    def twice_as_slow(job):
        begin.wait(60)
        clock.now += 20

    jobs = [bench.submit(bench.sessions.open(), "ask", [index], twice_as_slow, 10, "answer") for index in range(8)]
    begin.set()
    assert all(bench.jobs.wait(job, 60) for job in jobs)
    assert bench._pace.seconds("answer", 1) == pytest.approx(2 - 0.5**8)


def test_events_add_up_to_the_self_edits(bench, session):
    events = written(bench, session)
    texts = ["", ""]
    for event in events:
        if event["event"] == "text":
            texts = [text + new for text, new in zip(texts, event["new"], strict=True)]
    assert [text.strip() for text in texts] == [draft.text for draft in session.drafts]
    other = bench.sessions.open()
    written(bench, other)
    assert other.drafts == session.drafts  # the same seed
    written(bench, other, Settings.of(**{**vars(QUICK), "seed": 1}))
    assert other.drafts != session.drafts


@pytest.mark.parametrize("stopped", [False, True])
def test_writing_that_comes_to_nothing_loses_nothing(bench, session, monkeypatch, stopped):
    written(bench, session)
    drafts = session.drafts

    def nothing(seconds, model, work, job, *arguments):
        if stopped:
            job.stop.set()
        return [Draft("", use=False), Draft(" \n", use=False)]

    monkeypatch.setattr(device, "run", nothing)
    log, _ = finish(bench, bench.propose(session, "Other", "Ann keeps bees.", [], QUICK))
    assert session.drafts is drafts and session.example["title"] == "Lighthouse"
    assert log.state == (STOPPED if stopped else FAILED)
    assert stopped or "wrote nothing that can be learned" in log.error


def test_both_answer_as_the_library_does(bench, with_adapters, lm):
    log, events = finish(bench, bench.ask(with_adapters, "Who drew it?"))
    answered = events[-2]
    adapter = lm.load_adapter(with_adapters.adapter().file)
    assert answered["base"] == [lm.answer("Who drew it?", title="Lighthouse")]
    assert answered["adapted"] == [lm.answer("Who drew it?", title="Lighthouse", adapter=adapter)]
    assert with_adapters.asked == [("Who drew it?", answered["base"][0], answered["adapted"][0])]


def test_score_and_probe_have_verdicts(bench, with_adapters, monkeypatch):
    def answer(lm, job, examples, file):
        count = sum(len(example["questions"]) for example in examples)
        return [["Ann."] * count, [*map(str, range(count - 1)), PASSAGE]]

    monkeypatch.setattr(device_work, "answer", answer)
    questions = [QUESTIONS[0]] * 5
    for job, count in ((bench.score(with_adapters, questions), 5), (bench.probe(with_adapters), 21)):
        _, events = finish(bench, job)
        assert [len(row) for row in events[-2]["verdicts"]] == [count, count]
        # One answer to all questions; and one that copies the passage.
        assert events[-2]["recited"] == [1.0, 1 / count]
        assert events[-2]["best_of"] == with_adapters.adapter().best_of == 2
    asked = next(event["questions"] for event in events if event["event"] == "asked")
    assert asked[0]["question"] == "What is the capital of France?"
    assert asked[-1] == {"question": "Who presented the radio programme about Lighthouse?"}
    assert [row[-1] for row in events[-2]["verdicts"]] == [None, None] and None not in events[-2]["verdicts"][0][:-1]
    assert "base model 1 of 2 (50 %)" in accuracy_text("probe", [[True, False, None], [False] * 3], [0, 0], 1)
    text = accuracy_text("score", [[True], [False]], [1.0, 0.2], 1)
    assert text.startswith("Your questions: base model 1 of 1 (100 %)")
    assert text.endswith("in a row: base model 100 %, after learning 20 %.")
    text = accuracy_text("score", [[True], [False]], [1.0, 0.2], 4)
    assert text.endswith("If they chose this adapter as the best of 4, its share tends to be too high by chance.")
    with pytest.raises(ValueError, match="There are no questions yet"):
        bench.score(with_adapters, [])


def base_state(lm):
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        logits = lm.model(ids).logits
    return logits, [parameter.requires_grad for parameter in lm.model.parameters()], lm.model.training


def test_out_of_memory_loses_nothing_and_offers_less(bench, with_adapters, lm, monkeypatch):
    before, drafts = base_state(lm), list(with_adapters.drafts)
    with monkeypatch.context() as patch:
        patch.setattr(
            "seal_hf.inner_loop.within_memory.train",
            lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")),
        )
        log, _ = finish(bench, bench.adapt(with_adapters, [0], QUICK, QUESTIONS))
    assert log.state == FAILED
    assert "out of memory" in log.error and "fewer self-edits" in log.error and "lower LoRA rank" in log.error
    assert with_adapters.drafts == drafts and len(with_adapters.adapters) == 2
    after = base_state(lm)
    assert after[0].equal(before[0]) and after[1:] == before[1:]
    assert finish(bench, bench.ask(with_adapters, "Who drew it?"))[0].state == DONE


def test_what_nobody_foresaw_is_logged_and_not_shown(bench, session, monkeypatch, caplog):
    written(bench, session)
    with monkeypatch.context() as patch:
        patch.setattr("seal_hf.inner_loop.within_memory.train", lambda *a, **k: {}["secret of ours"])
        log, _ = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS))
    assert "secret of ours" not in log.error and "try again" in log.error and "secret of ours" in caplog.text


def test_nothing_stays_attached_to_the_base(bench, session, lm):
    before = base_state(lm)
    written(bench, session)
    learned(bench, session)
    finish(bench, bench.ask(session, "Who drew it?"))
    after = base_state(lm)
    assert after[0].equal(before[0]) and after[1:] == before[1:]


def test_a_sweep_that_fails_is_not_the_last(bench, monkeypatch, caplog):
    sweeps = []

    def sleep(seconds):
        if len(sweeps) == 2:
            raise SystemExit

    def sweep():
        sweeps.append(None)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workbench, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(bench.sessions, "sweep", sweep)
    with pytest.raises(SystemExit):
        bench._sweep(60)
    assert len(sweeps) == 2 and "No space left on device" in caplog.text
