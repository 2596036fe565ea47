"""Self-edits that are questions: how they are answered, edited and learned."""

from dataclasses import replace

import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, learned, written
from seal_hf import SelfAdaptingLM
from seal_hf.domains.knowledge import domain
from seal_hf.domains.knowledge.answered_questions import AnsweredQuestions
from seal_hf.generation.base import Generation
from seal_hf.webui.tabs.self_edit_cards import coverage_text, read_drafts, show_coverage
from seal_hf.webui.work import inputs
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED
from seal_hf.webui.work.session_items import Draft


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
