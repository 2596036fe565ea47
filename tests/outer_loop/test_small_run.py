"""
A small run gives the records, rewards, choices and adapters that it gave before the code was last rebuilt.

`small_run.json` is what a run with the same seeds gave then, on another machine and another version of the code: texts,
rewards and choices are equal, and weights are up to rounding. A change that is meant to alter them says so, and writes the
file anew from the run below.
"""

import json
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from helpers.outer_loop import SMALLEST, HashGrader, tiny_examples, tiny_trainer
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.records.journal import Journal
from seal_hf.rollout.stage import RolloutConfig


EXPECTED = json.loads((Path(__file__).parent / "small_run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small run")
    tiny_trainer(folder, **SMALLEST).train()
    return folder


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def fields(row, expected):
    return {name: row[name] for name in expected}


def test_its_files_are_the_same(folder):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == EXPECTED["files"]


@pytest.mark.parametrize("kind", ["proposals", "selected", "journal", "evaluation/proposals", "evaluation/journal"])
def test_its_records_are_the_same(folder, kind):
    rounds = sorted(name for name in EXPECTED if name.rpartition("/")[0] == kind)
    assert len(rounds) == (3 if kind.startswith("evaluation") else 2)
    for number, name in enumerate(rounds):
        found = rows(folder / kind / f"round_{number:03d}.jsonl")
        assert len(found) == len(EXPECTED[name])
        for row, expected in zip(found, map(dict, EXPECTED[name]), strict=True):
            losses = expected.pop("losses", None)
            repeats = expected.pop("repeats", None)
            assert fields(row, expected) == expected
            if repeats is not None:
                assert [fields(one, ("seed", "reward", "answers", "verdicts")) for one in row["repeats"]] == repeats
                assert [one["loss"] for one in row["repeats"]] == [
                    loss if loss is None else pytest.approx(loss, abs=2e-3) for loss in losses
                ]


@pytest.mark.parametrize("round_index", [0, 1])
def test_its_policies_are_the_same(folder, round_index):
    weights = load_file(folder / f"policy/round_{round_index:03d}" / "adapter_model.safetensors")
    expected = EXPECTED[f"policy/{round_index}"]
    assert sorted(weights) == list(expected)
    for name, (norm, first) in expected.items():
        assert weights[name].norm().item() == pytest.approx(norm, rel=1e-2)
        assert weights[name].flatten()[:3].tolist() == pytest.approx(first, abs=5e-3)


@pytest.fixture(scope="module")
def lm():
    return SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=1e-2, num_train_epochs=2),
    )


def test_adapters_are_the_same(lm):
    edits = lm.propose(tiny_examples(1)[0], 2, temperature=1.5, max_completion_length=12)
    for adapter, (norm, first) in zip(lm.adapt(edits), EXPECTED["adapters"], strict=True):
        (_, lora_b), *_ = adapter.layout.views(adapter.weights).values()
        assert adapter.weights.norm().item() == pytest.approx(norm, rel=1e-2)
        assert lora_b.flatten()[:4].tolist() == pytest.approx(first, abs=5e-3)


def test_the_single_passage_protocol_is_the_same(lm, tmp_path):
    config = RolloutConfig(temperature=1.5, max_completion_length=12, max_answer_length=6, disable_tqdm=True)
    single_passage(lm, tiny_examples(3), tmp_path, num_generations=2, config=config)
    scored = Journal(tmp_path / "evaluation").scored(0)
    for place, expected in enumerate(EXPECTED["single_passage"]):
        own = [edit for edit in scored if edit.example == place]
        completions = [edit.completion for edit in own if edit.condition == "self-edits"]
        assert completions == expected["completions"]
        for condition, answers in expected["answers"].items():
            repeats = [edit.repeats[0] for edit in own if edit.condition == condition]
            assert [one["answers"] for one in repeats] == answers
            assert [one["verdicts"] for one in repeats] == expected["verdicts"][condition]
