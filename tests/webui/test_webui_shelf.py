"""The shelf of a session: what is taught becomes a book, is found by a question, and stays or goes as it should."""

from dataclasses import replace

import pytest
from peft import LoraConfig

from helpers.adapters import random_adapter
from helpers.books import put
from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, learned, tiny_lm, written
from seal_hf.shelf import Shelf
from seal_hf.shelf.asking import ask, base_of
from seal_hf.webui.tabs.learning_texts import shelved_text
from seal_hf.webui.tabs.shelf_tab import answered_text, table_line
from seal_hf.webui.work import device_work, quota, shelves
from seal_hf.webui.work.jobs import DONE, Job, JobRefused
from seal_hf.webui.work.shelf_work import ask_shelf
from seal_hf.webui.work.shelves import BASE, EVERYTHING
from seal_hf.webui.work.workbench import Workbench


WHEN, ANT = "When was the Orrick Skerry Lighthouse built?", "What does the glass harvester carry?"


@pytest.fixture
def own(lm, tmp_path):
    """A workbench with a shelf that stays on this machine."""
    return Workbench(lm, tmp_path / "sessions", shelf=tmp_path / "shelf")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("adapter") / "one")


def saved(folder, **options):
    """A random adapter of the tiny model, in a new folder."""
    return replace(random_adapter(**options), base_model_id="tester/tiny").save_pretrained(folder)


def put_book(bench, session, adapter, title, text, **options):
    """A book that the tiny model can be asked about."""
    told = {"base_model_id": bench.lm.base_model_id, "base": base_of(bench.lm), **options}
    return put(bench.shelves.of(session), adapter, title, (title, text), **told)


def asked(bench, session, question, who=EVERYTHING):
    log, events = finish(bench, ask_shelf(bench, session, question, who))
    assert (log.state, log.error) == (DONE, None)
    found = {event["event"]: event for event in events}
    return found["asked"]["choice"], found["answered"]["answer"]


def test_what_was_taught_is_a_book_that_the_command_can_ask(own, lm):
    session = own.sessions.open()
    written(own, session)
    event = learned(own, session)
    (one,) = own.shelves.books(session)
    book, kept = one.book, session.adapter()
    assert one.fault is None and book.title == "Lighthouse" and book.passages[0].text == PASSAGE
    assert book.recall == kept.reward and book.passages[0].num_asked == 2
    # The best of the two adapters.
    assert event["adapters"][event["best"]] == kept.id
    assert own.shelves.take(session, book.id) == [kept] and len(session.adapters) == 2  # no copy of what is there
    choice, answer = asked(own, session, WHEN)
    assert (choice["book"], choice["title"], choice["passage"], choice["is_chosen"]) == (
        "lighthouse",
        "Lighthouse",
        1,
        False,
    )
    assert choice["score"] >= choice["threshold"]
    assert answer == lm.answer(WHEN, title="Lighthouse", adapter=lm.load_adapter(kept.file))
    again = Shelf(own.shelves.of(session).folder)  # as another process opens it
    route = again.route(WHEN)
    assert ask(lm, WHEN, route.book, route.passage, max_answer_length=device_work.LONGEST_ANSWER).text == answer


def test_a_shelf_stays_where_it_is_the_machines_and_goes_with_a_session_elsewhere(own, bench, lm, adapter, tmp_path):
    session = own.sessions.open()
    put_book(own, session, adapter, "Bees", "Ann keeps bees.")
    after = Workbench(lm, tmp_path / "later", shelf=tmp_path / "shelf")  # the app was started again
    assert [one.book.title for one in after.shelves.books(after.sessions.open())] == ["Bees"]
    elsewhere = own.sessions.open()
    elsewhere.is_local = False  # it came through a proxy
    assert own.shelves.books(elsewhere) == [] and not own.shelves.is_kept(elsewhere)
    ann, bob = bench.sessions.open(), bench.sessions.open()
    book = put_book(bench, ann, adapter, "Moths", "Moths like lamps.")
    assert [one.book for one in bench.shelves.books(ann)] == [book] and bench.shelves.books(bob) == []
    assert quota.used_bytes(ann.folder) >= book.num_bytes
    bench.sessions._remove([ann])
    assert not book.folder.exists()


def test_a_passage_is_one_book_and_a_stopped_training_takes_no_place(bench, session, monkeypatch):
    written(bench, session)
    learned(bench, session, [0])
    (first,) = bench.shelves.books(session)
    learned(bench, session, [1])
    (second,) = bench.shelves.books(session)
    assert second.book.id != first.book.id and not first.book.folder.exists()
    emit = Job.emit

    def stopped(self, event, **values):
        emit(self, event, **values)
        if event == "step":
            self.stop.set()

    monkeypatch.setattr(Job, "emit", stopped)
    _, events = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS))
    (shelved,) = [event for event in events if event["event"] == "shelved"]
    assert shelved["book"] is None and "stays as it was" in shelved_text(shelved)
    assert [one.book for one in bench.shelves.books(session)] == [second.book] and len(session.adapters) == 3


def test_a_full_disk_keeps_the_adapter_and_says_why_there_is_no_book(bench, session, monkeypatch):
    written(bench, session)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Shelf, "new_book", full)
    log, events = finish(bench, bench.adapt(session, [0], QUICK, QUESTIONS))
    assert log.state == DONE and len(session.adapters) == 1
    (shelved,) = [event for event in events if event["event"] == "shelved"]
    assert shelved_text(shelved).startswith(" It is not on the shelf: The app's disk is full")


def test_a_question_goes_to_its_book_to_the_chosen_one_or_to_the_base(bench, session, adapter, lm):
    put_book(bench, session, adapter, "Orrick Skerry Lighthouse", PASSAGE)
    put_book(bench, session, adapter, "Glass harvester", "The glass harvester is an ant. It carries seeds.")
    choice, answer = asked(bench, session, ANT)
    assert choice["title"] == "Glass harvester" and "which fits the question with a score of" in answered_text(choice)
    choice, answer = asked(bench, session, "What is 7 x 8?")
    assert choice["book"] is None and answer == lm.answer("What is 7 x 8?")
    assert answered_text(choice).startswith("Answered by: **the base model**. No book fits")
    choice, answer = asked(bench, session, ANT, "orrick-skerry-lighthouse")
    assert (choice["title"], choice["is_chosen"]) == ("Orrick Skerry Lighthouse", True)
    assert answered_text(choice).endswith("**Orrick Skerry Lighthouse**, as chosen.")
    choice, answer = asked(bench, session, ANT, BASE)
    assert choice["book"] is None and answered_text(choice).endswith("**the base model**, as chosen.")


def test_an_empty_shelf_leaves_all_to_the_base(bench, session):
    choice, _ = asked(bench, session, ANT)
    assert choice["book"] is None and "since no book can be asked" in answered_text(choice)
    with pytest.raises(ValueError, match="There is no question yet"):
        ask_shelf(bench, session, " ?! ")


@pytest.mark.parametrize("how", ["other", "changed"])
def test_a_book_of_another_base_is_marked_and_not_asked(bench, session, adapter, how):
    base = base_of(bench.lm)
    options = {
        "other": {"base_model_id": "me/other"},
        "changed": {"base": {**base, "weights_fingerprint": "0123456789abcdef"}},
    }[how]
    said = {"other": "on me/other, and this app runs tester/tiny", "changed": "tester/tiny before that model changed"}[
        how
    ]
    book = put_book(bench, session, adapter, "Glass harvester", "It carries seeds.", **options)
    (one,) = bench.shelves.books(session)
    assert said in one.fault and table_line(one)[0].startswith("⊘ ") and said in table_line(one)[2]
    assert asked(bench, session, ANT)[0]["nearest"] is None
    for refused in (lambda: ask_shelf(bench, session, ANT, book.id), lambda: bench.shelves.take(session, book.id)):
        with pytest.raises(JobRefused, match=said):
            refused()
    bench.shelves.forget(session, book.id)
    assert bench.shelves.books(session) == []


def test_two_books_become_one_and_each_passage_answers_as_before(bench, session, adapter):
    put_book(bench, session, adapter, "Orrick Skerry Lighthouse", PASSAGE)
    put_book(bench, session, adapter, "Glass harvester", "The glass harvester is an ant. It carries seeds.")
    before = asked(bench, session, ANT)[1]
    book = bench.shelves.merge(session, "glass-harvester", "orrick-skerry-lighthouse")
    (one,) = bench.shelves.books(session)
    assert one.book == book and table_line(one)[0] == "Glass harvester · 2 passages" and table_line(one)[1] == "75 %"
    choice, answer = asked(bench, session, ANT)
    assert (choice["passage"], choice["num_passages"], answer) == (1, 2, before)
    assert asked(bench, session, WHEN, book.id)[0]["passage"] == 2
    with pytest.raises(JobRefused, match="These two are one book"):
        bench.shelves.merge(session, book.id, book.id)
    # Another page of the same person has the old list.
    for stale in (
        lambda: bench.shelves.merge(session, "orrick-skerry-lighthouse", book.id),
        lambda: ask_shelf(bench, session, WHEN, "orrick-skerry-lighthouse"),
        lambda: bench.shelves.forget(session, "../lighthouse"),
        lambda: bench.shelves.forget(session, None),
    ):
        with pytest.raises(JobRefused, match="no longer on the shelf"):
            stale()
    other = put_book(bench, session, adapter, "Bees", "Ann keeps bees.", base_model_id="me/other")
    with pytest.raises(JobRefused, match="“Glass harvester” and “Bees” were learned on different base models"):
        bench.shelves.merge(session, book.id, other.id)


def test_there_is_room_for_a_merged_book_or_it_is_not_made(bench, session, adapter, monkeypatch):
    for title in ("Bees", "Moths"):
        put_book(bench, session, adapter, title, f"{title} fly.")
    monkeypatch.setattr(quota, "SESSION_BYTES", quota.used_bytes(session.folder) + 1000)
    with pytest.raises(JobRefused, match="There is no room for .* or books under Shelf"):
        bench.shelves.merge(session, "bees", "moths")
    with pytest.raises(JobRefused, match="There is no room for"):
        bench.shelves.take(session, "bees")
    assert len(bench.shelves.books(session)) == 2 and not session.adapters


def test_a_book_is_taken_to_the_adapters_once(bench, session, adapter, lm):
    put_book(bench, session, adapter, "Bees", "Ann keeps bees.")
    (kept,) = bench.shelves.take(session, "bees")
    assert bench.shelves.take(session, "bees") == [kept] and session.adapter() is kept
    assert (kept.name, kept.title, kept.passage) == ("Bees", "Bees", "Ann keeps bees.")
    assert lm.load_adapter(kept.file).weights.equal(lm.load_adapter(adapter).weights)
    # Another book of the same name is not the one that was taken before.
    bench.shelves.forget(session, "bees")
    again = put_book(bench, session, adapter, "Bees", "Bob keeps bees.")
    replace(again, created="2031-01-01T00:00:00+00:00").write()
    (other,) = bench.shelves.take(session, "bees")
    assert other is not kept and other.passage == "Bob keeps bees." and len(session.adapters) == 2


def test_a_book_of_the_same_place_is_not_answered_by_the_one_before(bench, session, adapter, tmp_path, lm):
    strong = saved(tmp_path / "strong", seed=5, target_modules="all-linear")
    answers = []
    for folder in (adapter, strong):
        put_book(bench, session, folder, "Glass harvester", "It carries seeds.")
        answers.append(asked(bench, session, ANT)[1])
        assert answers[-1] == lm.answer(ANT, title="Glass harvester", adapter=lm.load_adapter(folder))
        bench.shelves.forget(session, "glass-harvester")
    assert answers[0] != answers[1]


def test_a_shelf_of_200_books_is_read_and_routed(bench, session, adapter, monkeypatch):
    shelf = bench.shelves.of(session)
    for number in range(200):
        put_book(
            bench, session, adapter, f"Harbour {number}", f"Harbour {number} was dug by Ida Vell in {1500 + number}."
        )
    read = []
    monkeypatch.setattr(Shelf, "books", lambda self, books=Shelf.books: read.append(1) or books(self))
    found = bench.shelves.books(session)
    assert len(found) == 200 and len({tuple(table_line(one)) for one in found}) == 200
    choice = bench.shelves.choose(session, "Who dug Harbour 137?")
    assert choice.is_asked and choice.route.book.title == "Harbour 137"
    assert len(read) == 2  # each book once for the list, and once for the question
    assert shelf.folder.is_dir() and shelves.EVERYTHING not in {one.book.id for one in found}


def test_an_other_model_than_the_apps_is_known_by_its_weights(adapter, bench, session):
    """A model that was trained further has the same name."""
    put_book(bench, session, adapter, "Bees", "Ann keeps bees.")
    other = tiny_lm()
    other.peft_config = LoraConfig(r=4)
    layer = next(other.model.model.layers.children()).self_attn.q_proj
    layer.weight.data += 0.1
    assert base_of(other) != base_of(bench.lm)
    changed = shelves.Shelves(other)
    (one,) = changed.books(session)
    assert "before that model changed" in one.fault
