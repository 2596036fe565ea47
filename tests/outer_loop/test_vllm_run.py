"""A run whose texts a server writes comes to what it comes to without, also where the server is gone in between."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest

from helpers.adapters import BASE_ID
from helpers.observing import read
from helpers.outer_loop import SMALLEST, in_child, new_child, tiny_trainer
from helpers.processes import side_by_side, wait_for
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.vllm_server import served
from seal_hf.domains import KnowledgeDomain
from seal_hf.generation import vllm_adapters, vllm_client
from seal_hf.generation.vllm_client import VLLMServerGone
from seal_hf.generation.vllm_process import end_with
from seal_hf.records.journal import Journal
from seal_hf.rollout import rollout


EXPECTED = json.loads((Path(__file__).parent / "small_run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server():
    with served(tiny_llama(), tiny_tokenizer(), BASE_ID) as server:
        yield server


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path, server):
    server.start()  # where a test that failed left it stopped
    monkeypatch.setattr(vllm_adapters, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(vllm_client, "WAIT_SECONDS", 0.2)


# A round without an evaluation.
ONE_ROUND = {"num_rounds": 1, "num_eval": 0}


def vllm_trainer(folder, server, **options):
    model = tiny_llama()
    model.config.name_or_path = BASE_ID
    return tiny_trainer(folder, model=model, use_vllm=True, vllm_server_base_url=server.url, **{**SMALLEST, **options})


def assert_expected(folder, names=("proposals/0", "journal/0", "selected/0")):
    """These records are what a run without a server comes to."""
    for name in names:
        kind, _, number = name.rpartition("/")
        found, expected = read(folder / kind / f"round_{int(number):03d}.jsonl"), EXPECTED[name]
        assert len(found) == len(expected)
        for row, own in zip(found, expected, strict=True):
            own = {key: value for key, value in own.items() if key not in ("losses", "repeats")}
            assert {key: row[key] for key in own} == own


def assert_clean(server, folder):
    """No adapter is on the server or on the disk."""
    assert server.adapters == {}
    assert not any(path.is_dir() for path in folder.glob("seal-hf-*/*/*"))


def test_a_run_that_loses_its_server_is_continued_to_the_same_end(tmp_path, server, without_pictures):
    folder = tmp_path / "out"
    trainer = vllm_trainer(folder, server)
    run_bank, num_banks = trainer._rollout._run_bank, []

    def run_until_gone(stage, trials, *others):
        if not stage.is_evaluation and num_banks.append(stage.round) is None and len(num_banks) == 3:
            server.stop()
        return run_bank(stage, trials, *others)

    trainer._rollout._run_bank = run_until_gone
    with pytest.raises(VLLMServerGone, match="start it again.*resume_from_checkpoint=True"):
        trainer.train()
    assert len(Journal(folder).banks(0)) == 2  # what was scored
    server.start()
    trainer = vllm_trainer(folder, server)
    trainer.train(resume_from_checkpoint=True)
    kinds = ("proposals", "journal", "selected")
    assert_expected(folder, [name for name in EXPECTED if name.rpartition("/")[0].rpartition("/")[2] in kinds])
    assert_clean(server, tmp_path)
    # Nothing was asked of the plain base: the policy is an adapter like others.
    assert BASE_ID not in server.names("begin")


def test_a_full_disk_loses_nothing_that_was_scored(tmp_path, server, without_pictures):
    folder = tmp_path / "out"
    trainer = vllm_trainer(folder, server, **ONE_ROUND)
    export, scored = vllm_adapters.Adapter.export, Journal(folder)

    def export_until_full(adapter, path, *args):
        if len(scored.banks(0)) == 2:
            path.mkdir()
            (path / "adapter_model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        export(adapter, path, *args)

    with mock.patch.object(vllm_adapters.Adapter, "export", export_until_full):
        with pytest.raises(OSError, match="No space left on device"):
            trainer.train()
    assert_clean(server, tmp_path)
    assert len(scored.banks(0)) == 2
    trainer.train(resume_from_checkpoint=True)
    assert_expected(folder)
    assert_clean(server, tmp_path)


def train_with_server(folder, url, memory, resume=False):
    with mock.patch.object(vllm_adapters, "_SHARED_MEMORY", memory):
        vllm_trainer(folder, SimpleNamespace(url=url), **ONE_ROUND).train(resume_from_checkpoint=resume)


def test_two_trainers_take_turns_with_one_server(tmp_path, server):
    children = [
        new_child(tmp_path / f"log{number}", train_with_server, tmp_path / f"out{number}", server.url, tmp_path)
        for number in range(2)
    ]
    for number, child in enumerate(children):
        child.join()
        assert child.exitcode == 0, (tmp_path / f"log{number}").read_text()
        assert_expected(tmp_path / f"out{number}")
    assert server.most_adapters <= server.max_loras
    assert_clean(server, tmp_path)


def train_until_killed(rank, folder, url, memory):
    """Process 1 is killed while the server has its adapter and process 0 has nothing left to do but to wait for it."""
    with mock.patch.object(vllm_adapters, "_SHARED_MEMORY", Path(memory)):
        trainer = vllm_trainer(folder, SimpleNamespace(url=url), **ONE_ROUND)
        if rank == 1:
            share, examine, client = rollout.share_banks, trainer._rollout._examine, trainer.lm.generator._client
            shares = []

            def noted_shares(costs, num_processes):
                shares.extend(share(costs, num_processes))
                return share(costs, num_processes)

            def examine_last(*args):
                wait_for(lambda: len(Journal(folder).banks(0)) == len(shares[0]))
                with mock.patch.object(client, "complete", lambda request: os.kill(os.getpid(), signal.SIGKILL)):
                    return examine(*args)

            rollout.share_banks, trainer._rollout._examine = noted_shares, examine_last
        trainer.train()


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_answers_leaves_no_adapter(tmp_path, server):
    folder = tmp_path / "out"
    (waits, _, log), (killed, _, _) = side_by_side(
        tmp_path, train_until_killed, str(folder), server.url, str(tmp_path)
    )
    assert killed == -signal.SIGKILL and waits == 1
    assert "ProcessEnded: Another process of this run has ended." in log
    assert f"Every bank that was scored is in {folder}; start the run again with" in log
    assert len(Journal(folder).banks(0)) > 0
    assert_clean(server, tmp_path)
    assert in_child(tmp_path / "log", train_with_server, folder, server.url, tmp_path, resume=True) == 0
    assert_expected(folder)
    assert_clean(server, tmp_path)


def hold_an_engine(file):
    """A trainer with an engine in another process, whose number is written to the file."""
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    end_with(hold_an_engine, [psutil.Process(engine.pid)])
    file.with_suffix(".part").write_text(str(engine.pid))
    file.with_suffix(".part").rename(file)
    engine.wait()


def test_an_engine_ends_with_a_trainer_that_is_killed(tmp_path):
    trainer = new_child(tmp_path / "log", hold_an_engine, tmp_path / "engine")
    wait_for((tmp_path / "engine").exists)
    engine = psutil.Process(int((tmp_path / "engine").read_text()))
    assert engine.is_running()
    trainer.kill()
    trainer.join()
    # Where nobody waits for a process whose parent has ended, its number stays.
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_it_is_not_continued_with_another_generator(tmp_path, server, without_pictures):
    folder = tmp_path / "out"
    vllm_trainer(folder, server)._folder.open(False, 0)
    other = tiny_llama()
    other.config.name_or_path = BASE_ID
    with pytest.raises(ValueError, match="other settings: use_vllm .True there, None here."):
        tiny_trainer(folder, model=other, **SMALLEST).train(resume_from_checkpoint=True)


def test_the_servers_context_bounds_the_self_edits(tmp_path, server, monkeypatch):
    monkeypatch.setattr(server, "context", 60)
    with pytest.raises(ValueError, match="exceeds the model's context of 60; shorten or drop the example"):
        vllm_trainer(tmp_path / "out", server, max_completion_length=50)


def test_the_server_is_checked_once_for_both_domains(tmp_path, server):
    server.log.clear()
    trainer = vllm_trainer(tmp_path / "out", server, eval_domain=KnowledgeDomain("{title}: {context}", chat=False))
    assert trainer._eval_lm.domain is not trainer.lm.domain
    assert trainer._eval_lm.generator is trainer.lm.generator
    assert len(server.names("load")) == 2  # a fresh adapter and the policy
