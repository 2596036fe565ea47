"""The work on the device as ZeroGPU does it, in another process."""

import importlib
import pickle
import sys
from types import SimpleNamespace

import gradio as gr
import pytest

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish, written
from seal_hf.webui.work import device, device_work
from seal_hf.webui.work.jobs import DONE, FAILED, STOPPED, Job
from seal_hf.webui.work.limits import ZERO_GPU
from seal_hf.webui.work.session_items import Draft
from seal_hf.webui.work.settings import PRESETS, preset_for
from seal_hf.webui.work.workbench import Workbench


def test_gpu_work_is_plain_data_and_asks_for_its_time(lm, monkeypatch, tmp_path):
    """As on ZeroGPU, which sends arguments to a worker and results back."""
    durations = []

    def gpu(duration):
        def decorate(function):
            def call(*arguments):
                arguments = pickle.loads(pickle.dumps(arguments))
                durations.append(duration(*arguments))
                try:
                    return pickle.loads(pickle.dumps(function(*arguments)))
                except gr.Error:
                    raise
                except Exception as error:  # only its class comes back
                    raise gr.Error(type(error).__name__) from None

            return call

        return decorate

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
        patch.setenv("SPACES_ZERO_GPU", "true")
        importlib.reload(device)
        workbench = Workbench(lm, tmp_path, limits=ZERO_GPU)
        session = workbench.sessions.open()
        for job in (
            lambda: workbench.propose(session, "Lighthouse", PASSAGE, [], QUICK),
            lambda: workbench.adapt(session, [0, 1], QUICK, QUESTIONS),
            lambda: workbench.ask(session, "Who drew it?"),
        ):
            log, _ = finish(workbench, job())
            assert (log.state, log.error) == (DONE, None)
        patch.setattr(device_work, "answer", run_out_of_memory)
        log, _ = finish(workbench, workbench.ask(session, "Who drew it again?"))
        assert log.state == FAILED and log.error.startswith("The device is out of memory.")
    importlib.reload(device)
    assert len(session.adapters) == 2 and session.asked
    assert len(durations) == 4 and all(30 <= seconds <= 60 for seconds in durations)


def run_out_of_memory(*arguments):
    raise MemoryError


def test_no_more_than_a_minute_of_a_gpu_is_asked_for():
    assert [device._reserved(seconds) for seconds in (1, 10, 15, 25, 60, 1000)] == [30, 30, 40, 60, 60, 60]


def test_work_is_stopped_before_zerogpu_kills_it_and_keeps_what_it_has(lm, monkeypatch, tmp_path):
    timers, emit = [], Job.emit

    def stop_after(seconds, job, reason):
        timers.append((seconds, reason))
        return SimpleNamespace(cancel=lambda: None)

    def over_at_the_first_step(job, event, **values):
        emit(job, event, **values)
        if event == "step":
            job.stop.set(timers[-1][1])

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: function))
        patch.setenv("SPACES_ZERO_GPU", "true")
        importlib.reload(device)
        patch.setattr(device, "stop_after", stop_after)
        workbench = Workbench(lm, tmp_path, limits=ZERO_GPU)
        session = workbench.sessions.open()
        written(workbench, session)
        patch.setattr(Job, "emit", over_at_the_first_step)
        job = workbench.adapt(session, [0, 1], QUICK, QUESTIONS)
        log, _ = finish(workbench, job)
        reserved = device._reserved(job.seconds)
    importlib.reload(device)
    assert len(timers) == 2 and timers[1][0] == reserved - 10 >= 20
    assert (log.state, log.error) == (
        STOPPED,
        f"The {reserved} seconds of GPU time were almost over: try again, with shorter self-edits or fewer epochs.",
    )
    kept = list(session.adapters.values())
    assert len(kept) == 2 and all(one.reward is None and one.file.is_file() for one in kept)


def test_what_is_too_long_for_the_gpu_time_is_refused_before_it_starts(lm, tmp_path):
    workbench = Workbench(lm, tmp_path, limits=ZERO_GPU)
    session = workbench.sessions.open()
    session.example = {"title": "Lighthouse", "context": PASSAGE, "questions": []}
    session.settings = vars(QUICK)
    session.drafts = [Draft("\n".join(f"It has {number} steps." for number in range(200)))]
    with pytest.raises(ValueError, match="402 steps, and 200 is the limit here: choose fewer"):
        workbench.adapt(session, [0], QUICK, QUESTIONS)
    said = ZERO_GPU.say()
    assert (
        "a GPU for 60 seconds at most (ZeroGPU)" in said and "200 steps" in said and "longer than 50 seconds" in said
    )
    # What the preset writes about a passage of a page fits: 60 questions in each self-edit.
    preset = PRESETS[preset_for(lm, ZERO_GPU)]
    steps = preset.num_train_epochs * preset.num_generations * -(-61 // preset.batch_size)
    assert steps <= ZERO_GPU.job_steps


def test_a_refusal_of_zerogpu_is_told_as_it_is(lm, monkeypatch, tmp_path):
    def refused(*arguments):
        raise gr.Error("You have exceeded your GPU quota.")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: refused))
        patch.setenv("SPACES_ZERO_GPU", "true")
        importlib.reload(device)
        workbench = Workbench(lm, tmp_path)
        log, _ = finish(workbench, workbench.propose(workbench.sessions.open(), "", PASSAGE, [], QUICK))
    importlib.reload(device)
    assert (log.state, log.error) == (FAILED, "You have exceeded your GPU quota.")
