"""What a visitor has: who gets it, how long it is kept, and the list of its adapters."""

from types import SimpleNamespace

import pytest

from seal_hf.webui.work import sessions as sessions_module
from seal_hf.webui.work.jobs import JobRefused
from seal_hf.webui.work.session_items import Draft, KeptAdapter
from seal_hf.webui.work.sessions import MAX_ADAPTERS, Sessions


@pytest.fixture
def clock(monkeypatch):
    """The time of the sessions, in seconds, which the test sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sessions_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_only_ids_that_were_given_out_are_taken(tmp_path):
    sessions = Sessions(tmp_path)
    session = sessions.open()
    assert sessions.open(session.id) is session
    name, _, signature = session.id.partition(".")
    forged = (
        "A" * 32,
        f"{'A' * len(name)}.{signature}",
        f"{name}.{'A' * len(signature)}",
        "A" * 10**6,
        Sessions(tmp_path).open().id,
    )
    others = (
        "",
        "a",
        "../../etc",
        "/" * 32,
        "ü" * 32,
        ".",
        session.id[:-1],
        session.id + "a",
        session.id + "\n",
        *forged,
    )
    for other in (*others, None, 5, [session.id], {"id": session.id}):
        assert sessions.open(other).id not in (session.id, other)
    assert {folder.parent for folder in tmp_path.rglob("*")} == {tmp_path}
    assert session.id not in str(session.folder)


def test_ids_are_taken_after_a_restart_with_the_same_key(tmp_path):
    sessions, after = Sessions(tmp_path), Sessions(tmp_path)
    after.key = sessions.key
    session_id = sessions.open().id
    assert after.open(session_id).id == session_id


def test_a_session_that_is_not_used_goes_and_its_id_gives_an_empty_one(tmp_path, clock):
    forgotten, busy = [], set()
    sessions = Sessions(tmp_path, keep_seconds=60, is_busy=lambda name: name in busy, on_forget=forgotten.append)
    idle, working = sessions.open(), sessions.open()
    idle.example = {"title": "Bees"}
    (idle.folder / "adapters").mkdir()
    busy.add(working.id)
    clock.now += 61
    sessions.sweep()
    assert forgotten == [idle.id] and not idle.folder.exists() and working.folder.exists()
    again = sessions.open(idle.id)
    assert again.id == idle.id and again is not idle and again.example is None
    assert again.folder != idle.folder and again.folder.is_dir()
    assert sessions.open(working.id) is working


def test_the_longest_unused_of_too_many_sessions_goes(tmp_path):
    sessions = Sessions(tmp_path, max_sessions=2)
    first, second = sessions.open(), sessions.open()
    sessions.open(first.id)
    third = sessions.open()
    assert not second.folder.exists()
    assert sessions.open(first.id) is first and sessions.open(third.id) is third


def test_too_many_sessions_take_none_that_is_busy(tmp_path):
    busy = set()
    sessions = Sessions(tmp_path, max_sessions=2, is_busy=lambda name: name in busy)
    oldest, second = sessions.open(), sessions.open()
    busy.add(oldest.id)
    sessions.open(second.id)
    third = sessions.open()
    assert sessions.open(oldest.id) is oldest and not second.folder.exists()
    busy.add(third.id)
    with pytest.raises(JobRefused, match="All 2 places are taken .* try again"):
        sessions.open()
    assert sessions.open(oldest.id) is oldest and sessions.open(third.id) is third
    assert len(list(tmp_path.iterdir())) == 2


def test_no_number_of_visitors_takes_the_place_of_one_with_an_adapter(tmp_path):
    sessions = Sessions(tmp_path, max_sessions=4)
    victim = sessions.open()
    victim.keep(KeptAdapter("a", "Bees", victim.folder / "adapters" / "a"), choose=True)
    for _ in range(20):
        sessions.open().drafts = [Draft("Ann keeps bees.")]
    assert sessions.find(victim.id) is victim and victim.folder.is_dir()
    for session in list(sessions._sessions.values()):
        session.keep(KeptAdapter("a", "Bees", session.folder), choose=True)
    with pytest.raises(JobRefused, match="All 4 places are taken"):
        sessions.open()
    assert sessions.find(victim.id) is victim and len(list(tmp_path.iterdir())) == 4


def test_work_of_a_visitor_who_is_gone_is_ended_and_its_session_goes(tmp_path, clock):
    busy, ended, forgotten = set(), [], []
    sessions = Sessions(
        tmp_path,
        keep_seconds=60,
        unattended_seconds=100,
        is_busy=lambda name: name in busy,
        on_unattended=ended.append,
        on_forget=forgotten.append,
    )
    gone, there = sessions.open(), sessions.open()
    busy |= {gone.id, there.id}
    clock.now += 90
    sessions.sweep()
    assert ended == []
    sessions.find(there.id)
    clock.now += 20
    sessions.sweep()
    assert ended == [gone.id] and forgotten == []
    busy.remove(gone.id)
    clock.now += 61
    sessions.sweep()
    assert forgotten == [gone.id] and sessions.find(gone.id) is None and sessions.find(there.id) is there


def test_work_that_cannot_be_ended_concerns_its_session_alone(tmp_path, clock, caplog):
    busy, ended, forgotten = set(), [], []

    def full(seen):
        def end(name):
            seen.append(name)
            if name == first.id:
                raise OSError(28, "No space left on device")

        return end

    options = {"unattended_seconds": 50, "on_unattended": full(ended), "on_forget": full(forgotten)}
    sessions = Sessions(tmp_path, keep_seconds=60, is_busy=lambda name: name in busy, **options)
    first, second = sessions.open(), sessions.open()
    busy |= {first.id, second.id}
    clock.now += 55
    sessions.sweep()
    assert ended == [first.id, second.id] and len(caplog.records) == 1
    busy.clear()
    clock.now += 61
    sessions.sweep()
    assert forgotten == [first.id, second.id] and list(tmp_path.iterdir()) == []


def test_an_unknown_adapter_is_told_from_none(tmp_path):
    session = Sessions(tmp_path).open()
    with pytest.raises(JobRefused, match="learn a passage first"):
        session.adapter("a")
    for name in ("a", "b"):
        session.keep(KeptAdapter(name, "Bees", session.folder / name / "a.zip"), choose=True)
    for name in ("c", "a "):
        with pytest.raises(JobRefused, match="no such adapter .any more.: choose one of those under Adapters"):
            session.delete(name)
    assert session.delete("").id == "b"  # the chosen one
    assert list(session.adapters) == ["a"] and session.chosen == "a"


def test_looking_for_a_session_makes_none(tmp_path):
    sessions = Sessions(tmp_path)
    assert [sessions.find(name) for name in ("", "A" * 32, None, ["a"], {})] == [None] * 5
    assert list(tmp_path.iterdir()) == []


def test_a_session_counts_as_used_while_it_works(tmp_path, clock):
    busy, forgotten = set(), []
    sessions = Sessions(tmp_path, keep_seconds=60, is_busy=lambda name: name in busy, on_forget=forgotten.append)
    session = sessions.open()
    busy.add(session.id)
    clock.now += 61
    sessions.sweep()
    busy.clear()
    sessions.sweep()
    assert forgotten == []
    clock.now += 61
    sessions.sweep()
    assert forgotten == [session.id]


def test_sessions_that_hold_nothing_make_room_first(tmp_path):
    sessions = Sessions(tmp_path, max_sessions=2)
    working, empty = sessions.open(), sessions.open()
    working.drafts = [Draft("Ann keeps bees.")]
    sessions.open(empty.id)
    sessions.open()
    assert working.folder.exists() and not empty.folder.exists()


def test_a_job_of_a_session_that_goes_is_stopped_before_its_files_go(tmp_path):
    seen = []
    sessions = Sessions(tmp_path, max_sessions=1, on_forget=lambda name: seen.append((name, first.folder.is_dir())))
    first = sessions.open()
    sessions.open()
    assert seen == [(first.id, True)] and not first.folder.exists()


def test_adapters_are_kept_chosen_and_deleted(tmp_path):
    session = Sessions(tmp_path).open()
    with pytest.raises(JobRefused, match="There is no adapter yet"):
        session.adapter()
    kept = []
    for name in ("one", "two", "three"):
        adapter_id, file = session.new_file(f"../{name} · Ä")
        file.parent.mkdir(parents=True)
        file.write_bytes(b"12345")
        kept.append(KeptAdapter(adapter_id, name, file))
        session.keep(kept[-1], choose=name == "two")
    assert session.adapter() is kept[1] and session.adapter(kept[0].id) is kept[0]
    assert kept[0].num_bytes == 5 and kept[0].file.name == "one.zip"
    assert session.delete(kept[1].id) is kept[1]
    assert not kept[1].file.parent.exists() and session.adapter() is kept[2]
    assert list(session.adapters) == [kept[0].id, kept[2].id]
    session.delete(kept[0].id)
    assert session.chosen == kept[2].id  # which was not the deleted one
    session.keep(kept[0], choose=False)
    assert session.adapter() is kept[2]
    with pytest.raises(JobRefused):
        session.delete(kept[1].id)
    session.require_room(MAX_ADAPTERS - 2)
    with pytest.raises(JobRefused, match="There are 2 adapters, and 24 is the limit: delete some"):
        session.require_room(MAX_ADAPTERS - 1)
    for adapter_id in list(session.adapters):
        session.delete(adapter_id)
    assert session.chosen is None
    with pytest.raises(JobRefused, match="There is no adapter yet: learn a passage first"):
        session.adapter()
