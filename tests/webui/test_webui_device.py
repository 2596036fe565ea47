"""The work on the device as ZeroGPU does it, in another process."""

import importlib
import pickle
import sys
from types import SimpleNamespace

import gradio as gr

from helpers.web_page import PASSAGE, QUESTIONS, QUICK, finish
from seal_hf.webui.work import device
from seal_hf.webui.work.jobs import DONE, FAILED
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
        importlib.reload(device)
        workbench = Workbench(lm, tmp_path)
        session = workbench.sessions.open()
        for job in (
            lambda: workbench.propose(session, "Lighthouse", PASSAGE, [], QUICK),
            lambda: workbench.adapt(session, [0, 1], QUICK, QUESTIONS),
            lambda: workbench.ask(session, "Who drew it?"),
        ):
            log, _ = finish(workbench, job())
            assert (log.state, log.error) == (DONE, None)
        patch.setattr(device, "answer", run_out_of_memory)
        log, _ = finish(workbench, workbench.ask(session, "Who drew it again?"))
        assert log.state == FAILED and log.error.startswith("The device is out of memory.")
    importlib.reload(device)
    assert len(session.adapters) == 2 and session.asked
    assert len(durations) == 4 and all(30 <= seconds <= 120 for seconds in durations)


def run_out_of_memory(*arguments):
    raise MemoryError


def test_no_more_than_two_minutes_of_a_gpu_are_asked_for():
    assert [device._reserved(seconds) for seconds in (1, 15, 40, 60, 1000)] == [30, 30, 80, 120, 120]


def test_a_refusal_of_zerogpu_is_told_as_it_is(lm, monkeypatch, tmp_path):
    def refused(*arguments):
        raise gr.Error("You have exceeded your GPU quota.")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: refused))
        importlib.reload(device)
        workbench = Workbench(lm, tmp_path)
        log, _ = finish(workbench, workbench.propose(workbench.sessions.open(), "", PASSAGE, [], QUICK))
    importlib.reload(device)
    assert (log.state, log.error) == (FAILED, "You have exceeded your GPU quota.")
