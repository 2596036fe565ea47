"""How long jobs take: an estimate for a slow machine, which the time of the jobs before corrects."""

import threading


# Tokens per second of a small model on two CPU cores, written in one text and trained on.
WRITTEN_PER_SECOND, TRAINED_PER_SECOND = 12.0, 250.0


class Pace:
    """How many times as long as on the slow machine of the estimates `"write"`, `"learn"` and `"answer"` take on this one."""

    def __init__(self):
        self._lock = threading.Lock()
        self._factors = {"write": 1.0, "learn": 1.0, "answer": 1.0}

    def seconds(self, kind: str, estimate: float) -> float:
        """The time that work of a kind will probably take here, by the estimate for the slow machine, both in seconds."""
        return estimate * self._factors[kind]

    def correct(self, kind: str, estimate: float, seconds: float) -> None:
        """Learn that work of a kind has taken so many seconds."""
        with self._lock:
            # Only half of the difference, so that one slow job does not spoil all estimates.
            self._factors[kind] = (self._factors[kind] + seconds / estimate) / 2
