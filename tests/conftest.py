from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from seal_hf.embedded import embedded_model_path


# Small models on a busy machine are many times slower with two threads than with one, and rounding depends on the number.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_path():
    """Folder of the embedded model, prepared once in the cache of the user who runs the tests."""
    return embedded_model_path()


@contextmanager
def no_pictures():
    # They take a third of a small run; test_run_report.py and test_knowledge_script.py draw them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seal_hf.seal_trainer.save_plot", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def without_pictures():
    with no_pictures():
        yield


# The modules of the runs below take seconds to import, which only the tests of the trainer need.


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """An unbroken run of two rounds, with everything that was seen of it."""
    from observing import BASE_ID, Recorder, observed
    from outer_loop import tiny_trainer
    from tiny_models import tiny_llama

    folder = tmp_path_factory.mktemp("run") / "out"
    model = tiny_llama()
    model.config.name_or_path = BASE_ID
    recorder = Recorder()
    trainer = tiny_trainer(folder, model=model, callbacks=[recorder])
    everything = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with no_pictures():
        fits, rows, output = observed(trainer)
    return SimpleNamespace(
        trainer=trainer,
        folder=folder,
        start=everything,
        log=list(trainer.state.log_history),
        events=list(recorder.events),
        passes=list(recorder.passes),
        metrics=list(recorder.metrics),
        recorder=recorder,
        fits=fits,
        rows=rows,
        output=output,
    )


@pytest.fixture(scope="session")
def bf16_run(tmp_path_factory):
    """A run of a bf16 base without evaluation, whose SFT sees the self-edits of all rounds."""
    from observing import Recorder, observed, small_trainer
    from tiny_models import tiny_llama

    folder, recorder = tmp_path_factory.mktemp("bf16"), Recorder()
    model = tiny_llama(dtype=torch.bfloat16)
    trainer = small_trainer(folder, model=model, num_eval=0, sft_on="all", bf16=True, callbacks=[recorder])
    with no_pictures():
        _, rows, _ = observed(trainer)
    return SimpleNamespace(trainer=trainer, folder=folder, rows=rows, events=recorder.events, passes=recorder.passes)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A small unbroken run, to compare broken ones with."""
    from observing import policy_of, records, small_trainer

    folder = tmp_path_factory.mktemp("reference")
    trainer = small_trainer(folder)
    with no_pictures():
        trainer.train()
    return SimpleNamespace(folder=folder, records=records(folder), policy=policy_of(trainer.model))
