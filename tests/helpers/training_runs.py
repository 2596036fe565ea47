"""Training runs of the app with a script of the test in place of the trainer's."""

import time
from pathlib import Path

from seal_hf.webui.work.jobs import JobRefused
from seal_hf.webui.work.settings import TrainingSettings


QUICK = TrainingSettings(
    num_train_passages=2,
    num_eval_passages=1,
    num_generations=2,
    prompt_style="rewrite",
    max_completion_length=16,
    inner_num_train_epochs=1,
    num_train_epochs=1,
)
PASSAGES = [
    {"title": name, "context": f"{name} keeps bees.", "questions": [{"question": "Who?", "answer": name}]}
    for name in ("Ann", "Bob", "Cleo")
]


def stub(tmp_path, text):
    """A script that replaces the trainer's."""
    file = tmp_path / "stub.py"
    file.write_text(text)
    return file


def wait_for(runs, owner, *states, seconds=60):
    for _ in range(seconds * 20):
        if (snapshot := runs.snapshot(owner)).state in states:
            return snapshot
        time.sleep(0.05)
    raise AssertionError(f"still {snapshot.state}: {snapshot.log}")


def state_of(process):
    """The state of a process in Linux; "T" for one that is paused."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def launch_when_free(launch):
    """Launch a run as soon as the one before it no longer counts as under way."""
    for _ in range(100):
        try:
            return launch()
        except JobRefused:
            time.sleep(0.02)
    raise AssertionError("another run is still under way")
