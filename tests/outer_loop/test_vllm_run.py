"""A run whose texts a server writes comes to what it comes to without, also where the server is gone in between."""

import json
from pathlib import Path

import pytest

from helpers.adapters import BASE_ID
from helpers.observing import read
from helpers.outer_loop import SMALLEST, tiny_trainer
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.vllm_server import served
from seal_hf.generation import vllm_adapters, vllm_client
from seal_hf.generation.vllm_client import VLLMServerGone
from seal_hf.records.journal import Journal


EXPECTED = json.loads((Path(__file__).parent / "small_run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server():
    with served(tiny_llama(), tiny_tokenizer(), BASE_ID) as server:
        yield server


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_adapters, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(vllm_client, "WAIT_SECONDS", 0.2)


def vllm_trainer(folder, server, **options):
    model = tiny_llama()
    model.config.name_or_path = BASE_ID
    return tiny_trainer(folder, model=model, use_vllm=True, vllm_server_base_url=server.url, **{**SMALLEST, **options})


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
    for name, expected in EXPECTED.items():
        kind, _, number = name.rpartition("/")
        if kind.rpartition("/")[2] not in ("proposals", "journal", "selected"):
            continue
        found = read(folder / kind / f"round_{int(number):03d}.jsonl")
        assert len(found) == len(expected)
        for row, own in zip(found, expected, strict=True):
            own = {key: value for key, value in own.items() if key not in ("losses", "repeats")}
            assert {key: row[key] for key in own} == own
    assert server.adapters == {}
    assert not any(path.is_dir() for path in tmp_path.glob("seal-hf-*/*/*"))
    # Nothing was asked of the plain base: the policy is an adapter like others.
    assert BASE_ID not in server.names("begin")


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
