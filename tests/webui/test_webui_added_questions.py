"""A question about a name that no pair holds: who may ask for it, where the pair goes, and what is said where there is none."""

from dataclasses import replace

import pytest

from helpers.web_page import PASSAGE, QUICK, finish
from seal_hf.domains import KnowledgeDomain
from seal_hf.webui.tabs.self_edit_cards import SHOWN_FACTS, added_text, coverage_text, show_coverage
from seal_hf.webui.work import device_work
from seal_hf.webui.work.added_questions import add_question
from seal_hf.webui.work.jobs import DONE, STOPPED, JobRefused
from seal_hf.webui.work.self_edit_inputs import MAX_PAIRS
from seal_hf.webui.work.session_items import Draft


PAIR = ["Who drew it?", "Halda Tremmery drew it."]


@pytest.fixture
def asking(session):
    """A session whose second self-edit in use has a pair."""
    session.example = {"title": "Lighthouse", "context": PASSAGE, "questions": []}
    session.settings = vars(replace(QUICK, prompt_style="questions", training_format="prompt_completion"))
    built = ["When was it built?", "In 1874."]
    session.drafts = [Draft("", use=False, pairs=[built]), Draft("It is tall."), Draft("", pairs=[built])]
    return session


@pytest.fixture
def found(monkeypatch):
    """What the model finds, by its fact; what it was asked for."""
    pairs, asked = {"Tremmery": tuple(PAIR)}, []

    def pair_about(self, fact, example, ask):
        asked.append((fact, self.prompt_style, example["context"]))
        return pairs.get(fact)

    monkeypatch.setattr(KnowledgeDomain, "pair_about", pair_about)
    return asked


def added(bench, session, fact):
    log, events = finish(bench, add_question(bench, session, fact))
    assert (log.state, log.error) == (DONE, None)
    return next(event for event in events if event["event"] == "added")


def test_the_pair_goes_to_the_first_self_edit_in_use_that_has_pairs(bench, asking, found):
    assert "hold 1 of the passage's 3 names and numbers. Nothing asks for these." in coverage_text(asking)
    event = added(bench, asking, "Tremmery")
    assert (event["pair"], event["place"]) == (PAIR, 2)
    assert [draft.pairs and len(draft.pairs) for draft in asking.drafts] == [1, None, 2]
    assert asking.drafts[2].pairs[1] == PAIR and found == [("Tremmery", "questions-by-fact", PASSAGE)]
    assert "hold 2 of the passage's 3" in coverage_text(asking)
    assert added_text(event) == "A question about Tremmery is in self-edit 3."


def test_where_the_model_finds_none_a_sentence_says_so(bench, asking, found):
    event = added(bench, asking, "Orrick Skerry Lighthouse")
    assert event["pair"] is None and len(asking.drafts[2].pairs) == 1
    assert added_text(event).startswith("The model found no question about Orrick Skerry Lighthouse whose answer")


def test_a_real_model_is_asked_in_its_own_form(bench, asking):
    """A tiny one writes nothing that passes."""
    assert added(bench, asking, "Tremmery")["pair"] is None


@pytest.mark.parametrize("fact", ["Oslo", "", None, ["Tremmery"], "x" * 10_000])
def test_what_is_no_name_of_the_passage_is_refused(bench, asking, found, fact):
    with pytest.raises(ValueError, match="is no name or number of the passage: choose one") as refusal:
        add_question(bench, asking, fact)
    assert len(str(refusal.value)) < 200 and found == []


def test_without_pairs_or_room_for_one_it_says_what_to_do(bench, session, asking):
    asking.drafts[2].pairs = [[f"Who is {number}?", str(number)] for number in range(MAX_PAIRS)]
    with pytest.raises(JobRefused, match="Self-edit 3 has 100 questions, and 100 is the limit: drop some"):
        add_question(bench, asking, "Tremmery")
    asking.drafts = [Draft("It is tall.")]
    with pytest.raises(JobRefused, match="There are no questions yet to add one to"):
        add_question(bench, asking, "Tremmery")
    with pytest.raises(JobRefused, match="There are no questions yet"):
        add_question(bench, bench.sessions.open(), "Tremmery")


def test_a_pair_does_not_reach_self_edits_about_another_passage(bench, asking, monkeypatch):
    other = [Draft("", pairs=[["Who keeps bees?", "Ann"]])]

    def meanwhile(base, job, example, fact, settings):
        asking.example, asking.drafts = {"title": "Bees", "context": "Ann keeps bees.", "questions": []}, other
        return PAIR

    monkeypatch.setattr(device_work, "add_question", meanwhile)
    event = added(bench, asking, "Tremmery")
    assert event["place"] is None and asking.drafts == [Draft("", pairs=[["Who keeps bees?", "Ann"]])]
    assert "these self-edits are no longer there" in added_text(event)


def test_a_stop_adds_nothing(bench, asking, monkeypatch):
    monkeypatch.setattr(device_work, "add_question", lambda base, job, *arguments: job.stop.set() or PAIR)
    log, events = finish(bench, add_question(bench, asking, "Tremmery"))
    assert log.state == STOPPED and len(asking.drafts[2].pairs) == 1
    assert not [event for event in events if event["event"] == "added"]


def test_a_passage_of_many_names_shows_some_and_counts_the_others(asking):
    names = [f"Ann{'abcdefghijklmnop'[number]} Vell" for number in range(SHOWN_FACTS + 3)]
    asking.example["context"] = " ".join(f"There came {name}." for name in names)
    shown = show_coverage("line", "facts", asking)
    assert [fact for (fact,) in shown["facts"].raw_samples] == names[:SHOWN_FACTS]
    assert "Nothing asks for these and 3 more." in shown["line"]
