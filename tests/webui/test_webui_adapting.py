"""What adapters learn of self-edits on a tiny model: how they are chosen, watched, rewarded and stopped."""

from dataclasses import replace
from functools import partial

import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, learned, slowed, written
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.left_out_facts import left_out_facts
from seal_hf.models.encoding import encode_prompt
from seal_hf.rollout.watching import AnswerStays, QuestionWatch
from seal_hf.webui.tabs.adapters_tab import table_line
from seal_hf.webui.tabs.learning_texts import diverged_text, learned_text, settled_text
from seal_hf.webui.work import device, device_work
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED, Job, JobLog, JobRefused
from seal_hf.webui.work.session_items import Draft


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
    monkeypatch.setattr(device_work, "AnswerStays", partial(AnswerStays, num_looks=1, max_loss=99.0))
    monkeypatch.setattr(device_work, "QuestionWatch", partial(QuestionWatch, max_share=float("inf")))
    monkeypatch.setattr(device_work, "LONGEST_ANSWER", 4)
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


def test_without_questions_the_model_asks_itself(bench, session, monkeypatch):
    own, seen = [{"question": "Who drew it?", "answer": "Halda"}], []
    monkeypatch.setattr(
        device_work, "own_questions", lambda lm, example, count, **options: seen.append(example) or own
    )
    written(bench, session)
    event = learned(bench, session, questions=[])
    assert event["own"] and event["questions"] == own and seen[0]["questions"] == []
    assert session.adapter().own_questions and session.adapter().num_questions == 1


def test_without_any_question_adapters_have_no_reward(bench, session, monkeypatch):
    monkeypatch.setattr(device_work, "own_questions", lambda *arguments, **options: [])
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


def test_adapters_beyond_the_limit_are_refused_before_any_work(bench, with_adapters, monkeypatch):
    monkeypatch.setattr("seal_hf.webui.work.sessions.MAX_ADAPTERS", 3)
    with pytest.raises(JobRefused, match="There are 2 adapters, and 3 is the limit"):
        bench.adapt(with_adapters, [0, 1], QUICK, QUESTIONS)
    assert not bench.jobs.active(with_adapters.id)


def test_a_text_that_would_be_cut_is_refused(bench, session):
    written(bench, session)
    with pytest.raises(ValueError) as refusal:
        bench.adapt(session, [1], QUICK, QUESTIONS, [Draft("It is tall."), Draft("It hums. " * 4000)])
    assert "Self-edit 2 has a text of " in str(refusal.value) and "at most 2,048 at a time" in str(refusal.value)
    assert "It hums. It hums." in str(refusal.value) and "It hums" not in session.drafts[1].text


def test_questions_to_be_answered_count_as_what_they_cost(bench, session, monkeypatch):
    asking = replace(QUICK, prompt_style="questions", num_train_epochs=3)
    written(bench, session, asking)
    costs = []
    monkeypatch.setattr(bench, "submit", lambda *arguments: costs.append(arguments[-1]))
    questions = ["Who drew it?", "When was it built?", "Where does the lamp of the lighthouse stand?"]
    for number in (1, 3):
        bench.adapt(session, [0], asking, QUESTIONS, [Draft("\n".join(questions[:number]))])
    passage = len(bench.lm.processing_class(PASSAGE)["input_ids"])
    prompts = [
        len(encode_prompt(bench.lm.processing_class, one)) for one in bench.lm.domain.ask(questions[1:], "Lighthouse")
    ]
    assert costs[1] - costs[0] == 3 * (sum(prompts) + 2 * 64) + 2 * passage
    with pytest.raises(ValueError, match="Self-edit 1 has 101 questions: keep 100 at most"):
        bench.adapt(
            session,
            [0],
            asking,
            QUESTIONS,
            [Draft("\n".join(f"Who drew it in {1800 + year}?" for year in range(101)))],
        )


def test_questions_about_what_is_left_out_are_counted(bench, session):
    domain = KnowledgeDomain("questions-by-fact", chat=False)
    example = {"title": "Lighthouse", "context": PASSAGE, "questions": []}
    edit = domain.parse("1874: When was the Orrick Skerry Lighthouse built?", example)
    facts = [fact for _, fact in left_out_facts(edit.calls, example, domain.parts(example), 6)]
    assert "Tremmery" in facts and "1874" not in facts
    assert domain.num_left_out(edit, example) == len(facts)
    assert KnowledgeDomain("questions", chat=False).num_left_out(edit, example) == 0


def with_records(monkeypatch, **records):
    """Adapters whose training is recorded as given, by their places."""
    adapt = SelfAdaptingLM.adapt

    def recorded(lm, edits, **options):
        adapters = adapt(lm, edits, **options)
        for place, stopped in records.items():
            adapters[int(place[1:])].training |= {"num_steps": 0, "losses": (), "stopped": stopped}
        return adapters

    monkeypatch.setattr(SelfAdaptingLM, "adapt", recorded)


def test_an_adapter_that_diverged_at_once_is_left_out_and_named(bench, session, monkeypatch):
    written(bench, session)
    with_records(monkeypatch, _0="non-finite")
    event = learned(bench, session)
    (kept,) = session.adapters.values()
    assert event["adapters"] == [kept.id] and kept.name == "Lighthouse · self-edit 2" and kept.best_of == 1
    assert (event["names"], event["diverged"], event["best"]) == (["2"], ["1"], 0)
    assert len(event["verdicts"]) == len(event["answers"]) == 2  # the base model's, and its own
    assert "Not learned, since the training diverged at its first step: self-edit 1." in diverged_text(event)
    assert diverged_text(event | {"diverged": []}) == diverged_text(None) == ""


def test_where_all_diverged_the_learning_rate_is_named(bench, session, monkeypatch):
    written(bench, session)
    with_records(monkeypatch, _0="non-finite", _1="non-finite")
    log, _ = finish(bench, bench.adapt(session, [0, 1], QUICK, QUESTIONS))
    assert log.state == FAILED and not session.adapters
    assert "diverged at its first step, so nothing was learned: lower the learning rate, which is 0.001." in log.error


def test_a_stop_before_the_second_half_of_a_bank_keeps_the_first(bench, session, monkeypatch):
    written(bench, session)
    with_records(monkeypatch, _1="stop")
    emit = Job.emit

    def stopped(self, event, **values):
        emit(self, event, **values)
        if event == "saved":
            self.stop.set()

    monkeypatch.setattr(Job, "emit", stopped)
    log, events = finish(bench, bench.adapt(session, [0, 1], QUICK, QUESTIONS))
    assert log.state == STOPPED
    assert [kept.name for kept in session.adapters.values()] == ["Lighthouse · self-edit 1"]
    assert next(event for event in events if event["event"] == "saved")["count"] == 1


def test_an_adapter_whose_grading_was_stopped_takes_the_place_of_its_book(bench, session, monkeypatch):
    written(bench, session)
    learned(bench, session, [0])
    (before,) = bench.shelves.books(session)
    grade = device_work.ask_and_grade

    def stopped(lm, asked, longest, stop):
        stop.set()
        return grade(lm, asked, longest, stop=stop)

    monkeypatch.setattr(device_work, "ask_and_grade", stopped)
    log, events = finish(bench, bench.adapt(session, [1], QUICK, QUESTIONS))
    assert log.state == STOPPED
    (book,) = bench.shelves.books(session)
    assert events[-2]["book"] == book.book.id and book.book.created >= before.book.created
    assert book.book.recall is None and before.book.recall is not None
