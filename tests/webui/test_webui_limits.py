"""What one visitor may take of the device."""

from types import SimpleNamespace

import pytest

from seal_hf.webui.work import limits
from seal_hf.webui.work.limits import OWN_MACHINE, SHARED, Usage, minutes


def test_uses_count_for_a_while(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: clock.now))
    usage = Usage(100)
    usage.add("ann", 5)
    clock.now = 60
    usage.add("ann", 7)
    assert (usage.total("ann"), usage.total("bob"), usage.next_free("ann")) == (12, 0, 40)
    clock.now = 110
    assert (usage.total("ann"), usage.next_free("ann")) == (7, 50)
    clock.now = 170
    assert (usage.total("ann"), usage.next_free("ann"), usage._uses) == (0, 0, {})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "1 minute"), (61, "2 minutes"), (600, "10 minutes"), (7200, "2 hours"), (86400, "24 hours")],
)
def test_times_are_said_in_words(seconds, said):
    assert minutes(seconds) == said


def test_limits_are_said_where_others_reach_the_page():
    assert OWN_MACHINE.say() == OWN_MACHINE.say_of_runs() == ""
    assert "ended after 10 minutes" in SHARED.say() and "10,000 steps" in SHARED.say()
    assert (
        "30 minutes in an hour, with 2,000,000 tokens of trainings. People behind one address count as one"
        in SHARED.say()
    )
    assert "30 minutes in 2 hours" in SHARED.say_of_runs()
