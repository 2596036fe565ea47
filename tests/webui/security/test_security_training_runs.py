"""Attacks by training runs and on those of others."""

import json
import time
from dataclasses import replace

import pytest

from seal_hf.webui.work.jobs import DONE, STOPPED
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.settings import TrainingSettings


def said(answer):
    """All that the server sent back, as a text."""
    return json.dumps(answer, ensure_ascii=False)


def of_train_tab(app, name):
    """The number of a handler of the tab Train."""
    functions = {key: one.fn for key, one in app.page.fns.items() if one.fn is not None}
    return next(
        key
        for key, fn in functions.items()
        if getattr(fn, "__name__", "") == name and fn.__module__.endswith("train_tab")
    )


def values_of(settings):
    """The widgets' values of the tab Train."""
    names = ["prompt_style", "num_train_passages", "num_eval_passages", "num_rounds", "num_generations", "temperature"]
    names += [
        "max_completion_length",
        "inner_num_train_epochs",
        "inner_batch_size",
        "inner_learning_rate",
        "num_train_epochs",
        "seed",
    ]
    return [getattr(settings, name) for name in names]


@pytest.mark.parametrize(
    "values",
    [
        {"num_rounds": 10, "num_train_passages": 200, "num_generations": 8, "inner_num_train_epochs": 50},
        {"num_eval_passages": 200, "num_rounds": 1},
    ],
)
def test_a_stranger_starts_no_large_training_run(public, pressed, values):
    session = public.workbench.sessions.open()
    answer = pressed(public, "on_start", [session.id, None, *values_of(TrainingSettings(**values))])
    assert "is the limit here: choose fewer passages" in said(answer)
    assert not public.workbench.runs.is_running(session.id)


def test_an_id_that_anybody_can_guess_has_no_training_run(public, pressed):
    settings = TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1)
    for guessed in ("", "A" * 32, None):
        assert "load the page again" in said(pressed(public, "on_start", [guessed, None, *values_of(settings)]))
        for handler in ("on_resume", "on_stop"):
            assert "load the page again" in said(pressed(public, of_train_tab(public, handler), [guessed]))
        assert "load the page again" in said(pressed(public, of_train_tab(public, "on_use"), [guessed, 0]))
    owner = public.workbench.sessions.open()
    public.workbench.runs.start(owner.id, settings)
    try:
        for guessed in ("", "A" * 32, public.workbench.sessions.open().id):
            assert "Round 1" not in said(pressed(public, of_train_tab(public, "watch"), [guessed]))
            assert "Round 1" not in said(pressed(public, of_train_tab(public, "on_round"), [guessed, 0]))
    finally:
        public.workbench.runs.forget(owner.id)


def test_a_stranger_reads_no_path_of_this_machine(public, pressed, tmp_path):
    runs, owner = public.workbench.runs, public.workbench.sessions.open()
    runs.start(owner.id, TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1))
    try:
        end = time.monotonic() + 30
        while "missing" not in runs.snapshot(owner.id).log and time.monotonic() < end:
            time.sleep(0.05)
        runs.stop(owner.id)
        while runs.is_running(owner.id) and time.monotonic() < end:
            time.sleep(0.05)
        # A finished one.
        (runs.folders.runs(owner.id)[-1] / "run").mkdir(exist_ok=True)
        (runs.folders.runs(owner.id)[-1] / "run" / "adapter_model.safetensors").touch()
        states = [runs.snapshot(owner.id).state]
        answers = [said(pressed(public, of_train_tab(public, "watch"), [owner.id]))]
        del runs._runs[owner.id]  # as after a restart of the app
        states.append(runs.snapshot(owner.id).state)
        answers.append(said(pressed(public, of_train_tab(public, "watch"), [owner.id])))
    finally:
        runs.forget(owner.id)
    assert states == [STOPPED, DONE]
    for answer in answers:
        assert "place.txt is missing" in answer
        assert "/home/ann" not in answer and str(runs.folders.path) not in answer
    assert not runs.folders.of(owner.id).exists()


def test_a_visitor_who_is_gone_leaves_no_training_run(serve, tmp_path):
    script = tmp_path / "wait.py"
    script.write_text("import time\ntime.sleep(60)")
    app = serve(limits=replace(SHARED, unattended_seconds=0.1), keep_seconds=0.2, script=script)
    runs, session = app.workbench.runs, app.workbench.sessions.open()
    runs.start(session.id, TrainingSettings(1, 0, num_generations=2, inner_num_train_epochs=1))
    folder = runs.snapshot(session.id).folder
    end = time.monotonic() + 40
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
        app.workbench.sessions.sweep()
    assert not folder.exists() and not runs.is_running(session.id)
    assert app.workbench.sessions.find(session.id) is None
