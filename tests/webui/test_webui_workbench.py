"""The work of the page on a tiny model: what is learned and answered, what is refused, and what is left after a failure."""

import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, learned, slowed, written
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge import domain
from seal_hf.domains.knowledge.answered_questions import AnsweredQuestions
from seal_hf.generation.base import Generation
from seal_hf.rollout.watching import AnswerStays, QuestionWatch
from seal_hf.webui.tabs.adapters_tab import table_line
from seal_hf.webui.tabs.ask_tab import accuracy_text
from seal_hf.webui.tabs.learning_texts import (
    answers_headers,
    first_right,
    learned_text,
    loss_table,
    loss_title,
    rewards_table,
    settled_text,
    watched_table,
)
from seal_hf.webui.tabs.self_edit_cards import coverage_text, read_drafts, show_coverage
from seal_hf.webui.work import device, inputs, workbench
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED, JobLog, JobRefused
from seal_hf.webui.work.sessions import Draft
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
    assert bench._pace["answer"] == pytest.approx(2 - 0.5**8)


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


def test_preview_is_what_is_trained_on(bench, session):
    written(bench, session)
    assert bench.training_texts(session, Draft("Ann drew it.\nIt is tall.")) == [
        "Lighthouse\nAnn drew it.",
        "Lighthouse\nIt is tall.",
        f"Lighthouse\n{PASSAGE}",
    ]
    assert bench.training_texts(session, Draft(" ")) == []


def test_rewards_are_shares_of_right_answers_and_the_best_is_chosen(bench, session, lm, monkeypatch):
    written(bench, session)
    verdicts = [False, False, True, False, True, True]  # of the base model and two adapters
    verdicts += [False, False, True, False, False, False]  # of what the three say to "Tell me about Lighthouse."
    monkeypatch.setattr("seal_hf.grading.LexicalGrader.grade", lambda self, questions, golds, answers: verdicts)
    flags = iter([[False, False], [True, True], [True, False]])
    monkeypatch.setattr(KnowledgeDomain, "recited", lambda self, example, answers: next(flags))
    event = learned(bench, session)
    assert event["verdicts"] == [[False, False], [True, False], [True, True]] and event["best"] == 1
    first, second = session.adapters.values()
    assert (first.reward, second.reward, first.base_reward) == (0.5, 1.0, 0.0)
    assert (first.recitation, second.recitation) == (0.5, 0.0)
    assert (first.recited, second.recited, second.base_recited) == (1.0, 0.5, 0.0)
    # The questions that score it have chosen it.
    assert (first.best_of, second.best_of) == (1, 2)
    said = learned_text(session, event)
    assert "the best adapter answers **100 %** of your questions right" in said
    assert "chosen as the best of 2 by these very questions, so its share tends to be too high by chance" in said
    assert "100 % of 2 questions, which chose it as the best of 2" in table_line(second, None)[2]
    assert "50 % of 2 questions, learned" in table_line(first, None)[2]
    assert session.adapter() is second and not second.own_questions and second.num_questions == 2
    adapter = lm.load_adapter(second.file)
    assert adapter.training["num_train_epochs"] == 2 and adapter.layout.r == 4
    prompts = lm.domain.questions({"title": "Lighthouse", "context": "", "questions": QUESTIONS})
    assert event["answers"][0] == lm.answer_prompts(prompts)
    assert event["answers"][2] == lm.answer_prompts(prompts, [adapter] * 2)


def test_an_edited_and_a_dropped_self_edit(bench, session):
    written(bench, session)
    session.drafts[1] = Draft("Ann drew it.")
    event = learned(bench, session, [1])
    (kept,) = session.adapters.values()
    assert kept.name == "Lighthouse · self-edit 2" and event["best"] == 0
    # There was nothing to choose from.
    assert kept.best_of == 1
    assert "the adapter answers" in learned_text(session, event) and "by chance" not in learned_text(session, event)


def test_one_adapter_learns_all_and_is_asked_meanwhile(bench, session, monkeypatch):
    written(bench, session)
    session.drafts = [
        Draft("Ann drew it.\nIt is tall."),
        Draft("It is tall.\nIt hums."),
        Draft("Bees hum.", use=False),
    ]
    seen, adapt = [], SelfAdaptingLM.adapt
    monkeypatch.setattr(
        SelfAdaptingLM, "adapt", lambda lm, edits, **options: seen.extend(edits) or adapt(lm, edits, **options)
    )
    asked = QUESTIONS[0]["question"]
    job = bench.adapt(session, [0, 1], QUICK, QUESTIONS, together=True, watched=f" {asked.upper()} ")
    log, events = finish(bench, job)
    (edit,), texts = seen, ["Ann drew it.", "It is tall.", PASSAGE, "It hums."]
    assert [one.completion for one in edit.examples] == [f"Lighthouse\n{text}" for text in texts]
    (kept,) = session.adapters.values()
    assert kept.name == "Lighthouse · self-edit 1 + 2" and kept.best_of == 1
    by_name = {event["event"]: event for event in events}
    assert by_name["learning"]["names"] == ["1 + 2"] and by_name["learning"]["watched"] == QUESTIONS[0]
    watched = [event for event in events if event["event"] == "watched"]
    assert [watched[0]["step"], watched[-1]["step"]] == [0, by_name["step"]["num_steps"]]
    answers, verdicts = by_name["learned"]["answers"], by_name["learned"]["verdicts"]
    assert [watched[0]["answers"]["0"], watched[-1]["answers"]["0"]] == [answers[0][0], answers[1][0]]
    assert [watched[0]["verdicts"]["0"], watched[-1]["verdicts"]["0"]] == [verdicts[0][0], verdicts[1][0]]
    assert 0 < watched[-1]["probabilities"]["0"] < 1


def test_a_watched_question_is_checked_before_the_work(bench, session):
    written(bench, session)
    with pytest.raises(ValueError, match="There is no question yet"):
        bench.adapt(session, [0], QUICK, QUESTIONS, watched="?!")
    log, events = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS, watched="What else?"))
    watched = [event for event in events if event["event"] == "watched"]
    assert watched and not any(event["verdicts"] or event["probabilities"] for event in watched)


def test_learning_ends_early_when_the_watched_answer_stays(bench, session, monkeypatch):
    """The adapter is scored and shelved as one that had all its steps."""
    monkeypatch.setattr(device, "AnswerStays", partial(AnswerStays, num_looks=1, max_loss=99.0))
    monkeypatch.setattr(device, "QuestionWatch", partial(QuestionWatch, max_share=float("inf")))
    monkeypatch.setattr(device, "LONGEST_ANSWER", 4)
    written(bench, session)
    steps = {}
    for stops_early in (True, False):
        watched = {"watched": "Who drew it?", "stops_early": stops_early}
        log, events = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS, **watched))
        by_name = {event["event"]: event for event in events}
        assert log.state == DONE and len(by_name["learned"]["verdicts"]) == 2 and by_name["shelved"]["book"]
        steps[stops_early] = by_name["step"]["step"], by_name["step"]["num_steps"], by_name.get("settled")
    ended, planned, settled = steps[True]
    assert steps[False] == (planned, planned, None) and 1 <= ended < planned == settled["num_steps"]
    saved = planned - ended
    assert settled_text(settled) == (
        f"Ended after step {ended} of {planned}, since the watched answer stays: {saved} step{'s' * (saved > 1)} saved. "
    )
    assert settled_text(None) == ""


def seen_at(step, answers, verdicts=None):
    return {"event": "watched", "step": step, "answers": answers, "verdicts": verdicts, "probabilities": None}


def test_what_is_shown_of_a_watched_question():
    seen = [
        seen_at(0, {"0": "Bo"}, {"0": False}),
        seen_at(1, {"0": "Bo", "1": "Cy"}, {"0": False, "1": True}),
        seen_at(3, {"0": "Ann", "1": "Di"}, {"0": True, "1": False}),
        seen_at(5, {"0": "Ann!"}, {"0": True}),
    ]
    assert [first_right(seen, 0), first_right(seen, 1)] == [3, None]
    assert watched_table(seen, ["2", "4"]) == [
        ["Base model", "✗ Bo", "–"],
        ["Self-edit 2, step 5", "✓ Ann!", "–"],
        ["Self-edit 4, step 3", "✗ Di", "–"],
    ]
    steps = [{"step": step, "losses": {"0": 4.0 / step, "1": 2.0}} for step in (1, 2, 3)]
    assert loss_title(["2", "4"], seen).endswith("answered right: 2 since step 3")
    assert loss_title(["2", "4"], seen[:1]) == "Training loss"
    marks = loss_table(steps, ["2", "4"], seen).query("`self-edit` == '2 answers right'")
    assert marks[["step", "loss"]].values.tolist() == [[3, 0.0], [3, 4.0]]
    assert set(loss_table(steps, ["2", "4"], seen[:2])["self-edit"]) == {"2", "4", "4 answers right"}
    assert first_right([seen_at(0, {"0": "Ann"}, {"0": True}), seen_at(2, {"0": "Ann"})], 0) is None


ASKING = replace(QUICK, prompt_style="questions-and-rewrite", training_format="prompt_completion", batch_size=4)


@pytest.fixture
def asked(bench, session, monkeypatch):
    """The events of writing two self-edits, one of which asks two questions."""
    texts = ["When was it built?\nWho drew it?\n---\nHalda drew it.", "It is tall."]
    generations = [Generation(text, (5,), True) for text in texts]
    monkeypatch.setattr(SelfAdaptingLM, "write_batch", lambda *arguments, **options: [generations])
    answered = AnsweredQuestions((("When was it built?", "In 1874."), ("Who drew it?", "Halda drew it.")), (), {})
    monkeypatch.setattr(domain, "answer_questions", lambda calls, *arguments: [answered for _ in calls])
    return written(bench, session, ASKING)


def test_questions_are_answered_when_they_are_written(bench, session, asked, monkeypatch):
    assert [event["count"] for event in asked if event["event"] == "answering"] == [2]
    first, second = session.drafts
    assert first.pairs == [["When was it built?", "In 1874."], ["Who drew it?", "Halda drew it."]]
    assert (first.text, first.use, second.pairs, second.text) == ("Halda drew it.", True, None, "It is tall.")
    missing = inputs.missing_facts(session.example, session.drafts)
    assert missing == (["Orrick Skerry Lighthouse", "Tremmery"], 3)
    said = "The answers hold 1 of the passage's 3 names and numbers."
    asks = "Nothing asks for these. Choose one, and the model writes a question about it:"
    assert coverage_text(session) == f"{said} {asks}"
    shown = show_coverage("line", "facts", session, "Done.")
    assert shown["line"].startswith("Done. The answers hold")
    assert shown["facts"].raw_samples == [["Orrick Skerry Lighthouse"], ["Tremmery"]]
    # As somebody has edited them: one is changed, one dropped, one added.
    rows = [["When was it built?", "1874"], ["", ""], ["Who drew  it?", "Halda Tremmery "]]
    values = ["Halda drew it.", True, rows, "It is tall.", False, [["", ""]]]
    drafts = read_drafts(session, values)
    assert (drafts[0].pairs, drafts[1].pairs, drafts[1].use) == (rows, None, False)
    seen, adapt = [], SelfAdaptingLM.adapt
    monkeypatch.setattr(
        SelfAdaptingLM, "adapt", lambda lm, edits, **options: seen.extend(edits) or adapt(lm, edits, **options)
    )
    log, _ = finish(bench, bench.adapt(session, [0], ASKING, QUESTIONS, drafts))
    assert log.state == DONE
    (edit,), told = seen, ["1874", "Halda Tremmery", "Halda drew it.", PASSAGE]
    assert [example.completion for example in edit.examples] == told
    asking = bench.lm.domain.ask(["When was it built?", "Who drew it?"], "Lighthouse")
    assert [example.prompt for example in edit.examples[:2]] == asking


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["When?", "1874"], ["Who?", " "]], "Self-edit 1, question 2 has no answer"),
        ([["", "1874"]], "Self-edit 1, answer 1 has no question"),
        ([["When?", "1874" * 2000]], "Self-edit 1, question 1 or its answer has 8,000 characters"),
        ([["When?", "1874"]] * 101, "Self-edit 1 has 101 questions: keep 100"),
        ([["", ""]], "Self-edit 1 is empty"),
    ],
)
def test_edited_questions_are_checked(bench, session, asked, rows, message):
    drafts = read_drafts(session, ["", True, rows, "", False, []])
    with pytest.raises(ValueError, match=message):
        bench.adapt(session, [0], ASKING, QUESTIONS, drafts)
    assert session.drafts[0].pairs != rows


def test_a_self_edit_of_questions_is_learned_with_its_answers(bench, session, monkeypatch):
    asking = replace(QUICK, prompt_style="questions-and-rewrite")
    written(bench, session, asking)
    question = "Who drew the Orrick Skerry Lighthouse?"
    session.drafts = [Draft(question), Draft(f"{question}\n---\nHalda drew it.")]
    assert bench.training_texts(session, Draft(question)) == [question, f"Lighthouse\n{PASSAGE}"]
    seen, adapt = [], SelfAdaptingLM.adapt
    monkeypatch.setattr(
        SelfAdaptingLM, "adapt", lambda lm, edits, **options: seen.extend(edits) or adapt(lm, edits, **options)
    )
    # What a random model answers is dropped.
    log, _ = finish(bench, bench.adapt(session, [0], asking, QUESTIONS))
    assert log.state == FAILED and f"None of the questions of a self-edit (“{question}”) can be answered" in log.error
    assert not seen and not session.adapters
    learned(bench, session, [1], asking)
    assert [example.completion for example in seen.pop().examples] == [
        "Lighthouse\nHalda drew it.",
        f"Lighthouse\n{PASSAGE}",
    ]

    answer = AnsweredQuestions(((question, "Halda Tremmery"),), (), {})
    monkeypatch.setattr(domain, "answer_questions", lambda calls, *arguments: [answer] * len(calls))
    learned(bench, session, [0], replace(asking, prompt_style="rewrite"))  # the style that it was written in counts
    assert seen[0].examples[0].completion == f"Lighthouse\nQuestion 1: {question}\nAnswer: Halda Tremmery"


def test_what_is_asked_in_a_chat_is_shown_and_learned(bench, session):
    asking = replace(QUICK, prompt_style="self-qa", training_format="prompt_completion")
    written(bench, session, asking)
    pair = "Question 1: Who drew the lighthouse?\nAnswer: Halda Tremmery"
    session.drafts = [Draft(pair)]
    first, passage = bench.training_texts(session, Draft(pair))
    assert first.endswith("Question: Who drew the lighthouse?\nHalda Tremmery")
    assert passage == f"What do you know about Lighthouse?\n{PASSAGE}"
    learned(bench, session, [0], asking)
    assert len(session.adapters) == 1


def test_a_stop_while_questions_are_answered_learns_nothing(bench, session, monkeypatch):
    asking = replace(QUICK, prompt_style="questions")
    written(bench, session, asking)
    session.drafts = [Draft("Who drew the Orrick Skerry Lighthouse?")]

    def stopped(calls, *arguments):
        (job,) = bench.jobs.active(session.id)
        bench.jobs.stop(job)
        return [AnsweredQuestions((), (), {}) for _ in calls]

    monkeypatch.setattr(domain, "answer_questions", stopped)
    log, _ = finish(bench, bench.adapt(session, [0], asking, QUESTIONS))
    assert log.state == STOPPED and not session.adapters


def test_without_questions_the_model_asks_itself(bench, session, monkeypatch):
    own, seen = [{"question": "Who drew it?", "answer": "Halda"}], []
    monkeypatch.setattr(device, "own_questions", lambda lm, example, count, **options: seen.append(example) or own)
    written(bench, session)
    event = learned(bench, session, questions=[])
    assert event["own"] and event["questions"] == own and seen[0]["questions"] == []
    assert session.adapter().own_questions and session.adapter().num_questions == 1


def test_without_any_question_adapters_have_no_reward(bench, session, monkeypatch):
    monkeypatch.setattr(device, "own_questions", lambda *arguments, **options: [])
    written(bench, session)
    assert "verdicts" not in learned(bench, session, questions=[])
    assert [(kept.reward, kept.best_of) for kept in session.adapters.values()] == [(None, 1), (None, 1)]


def test_stop_keeps_the_adapters_as_they_are(bench, session, lm, monkeypatch):
    written(bench, session)
    with slowed(monkeypatch, 0.3, "step"):
        job = bench.adapt(session, [0, 1], QUICK, QUESTIONS)
        log = JobLog(job)
        while not any(event["event"] == "step" for event in log.read()):
            pass
        assert bench.stop(session, "adapt")
        log, _ = finish(bench, job)
    assert log.state == STOPPED
    assert [kept.reward for kept in session.adapters.values()] == [None, None]
    assert 0 < lm.load_adapter(session.adapter().file).training["num_steps"] < 6
    assert not bench.stop(session, "adapt")


def test_stop_before_the_first_step_keeps_nothing(bench, session, monkeypatch):
    written(bench, session)
    run = device.run

    def stopped(seconds, model, work, job, *arguments):
        job.stop.set()
        return run(seconds, model, work, job, *arguments)

    monkeypatch.setattr(device, "run", stopped)
    log, events = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS))
    assert log.state == STOPPED and not session.adapters
    assert not any(event["event"] == "learned" for event in events)


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

    monkeypatch.setattr(device, "answer", answer)
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


def test_adapters_beyond_the_limit_are_refused_before_any_work(bench, with_adapters, monkeypatch):
    monkeypatch.setattr("seal_hf.webui.work.sessions.MAX_ADAPTERS", 3)
    with pytest.raises(JobRefused, match="There are 2 adapters, and 3 is the limit"):
        bench.adapt(with_adapters, [0, 1], QUICK, QUESTIONS)
    assert not bench.jobs.active(with_adapters.id)


def test_one_adapter_is_not_called_the_best():
    event = {"questions": QUESTIONS, "verdicts": [[False, False], [True, False]], "recited": [0.0, 0.5], "best": 0}
    assert rewards_table(event, ["1 + 2"]) == [
        ["Base model", "0 of 2", "0 %", "0 %", ""],
        ["1 + 2, together", "1 of 2", "50 %", "50 %", ""],
    ]
    assert rewards_table(event, ["2"])[1][0::4] == ["2", ""]
    assert answers_headers(["1 + 2"])[2] == "Adapter"
    event |= {"verdicts": [[False, False], [True, False], [True, True]], "recited": [0.0, 0.5, None], "best": 1}
    assert [line[0::4] for line in rewards_table(event, ["1", "2"])] == [["Base model", ""], ["1", ""], ["2", "best"]]
    assert answers_headers(["1", "2"])[2] == "Best adapter"
