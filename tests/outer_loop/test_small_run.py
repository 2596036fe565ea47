"""
A small run gives the records, rewards, choices and adapters that it gave before the code was last rebuilt.

`small_run.json` is what a run with the same seeds gave then, on another machine and another version of the code: texts,
rewards and choices are equal, and weights are up to rounding. A change that is meant to alter them says so, and writes the
file anew: `PYTHONPATH=.:tests python tests/outer_loop/test_small_run.py`.
"""

import json
import re
import tempfile
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


FILE = Path(__file__).parent / "small_run.json"
EXPECTED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("small run"))


def small_run(folder):
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
    return tiny_lm()


def tiny_lm():
    return SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=1e-2, num_train_epochs=2),
    )


def test_adapters_are_the_same(lm):
    for (norm, first), (expected_norm, expected) in zip(trained_adapters(lm), EXPECTED["adapters"], strict=True):
        assert norm == pytest.approx(expected_norm, rel=1e-2)
        assert first == pytest.approx(expected, abs=5e-3)


def trained_adapters(lm):
    """Norm of all weights, and the first values of the first module's B, of two adapters."""
    edits = lm.propose(tiny_examples(1)[0], 2, temperature=1.5, max_completion_length=12)
    for adapter in lm.adapt(edits):
        (_, lora_b), *_ = adapter.layout.views(adapter.weights).values()
        yield adapter.weights.norm().item(), lora_b.flatten()[:4].tolist()


def test_the_single_passage_protocol_is_the_same(lm, tmp_path):
    for own, expected in zip(single_passage_answers(lm, tmp_path), EXPECTED["single_passage"], strict=True):
        assert own == expected


def single_passage_answers(lm, folder):
    """For each example the self-edits, and by condition the answers and verdicts."""
    config = RolloutConfig(temperature=1.5, max_completion_length=12, max_answer_length=6, disable_tqdm=True)
    single_passage(lm, tiny_examples(3), folder, num_generations=2, config=config)
    scored = Journal(folder / "evaluation").scored(0)
    for place in range(3):
        own = [edit for edit in scored if edit.example == place]
        answers, verdicts = {}, {}
        for edit in own:
            answers.setdefault(edit.condition, []).append(edit.repeats[0]["answers"])
            verdicts.setdefault(edit.condition, []).append(edit.repeats[0]["verdicts"])
        completions = [edit.completion for edit in own if edit.condition == "self-edits"]
        yield {"completions": completions, "answers": answers, "verdicts": verdicts}


# The fields that are compared.
_FIELDS = {
    "proposals": ("condition", "example", "edit", "completion", "well_formed", "tokens", "banks", "finished"),
    "journal": ("condition", "example", "edit", "reward", "base_reward"),
    "selected": ("completion", "example_id", "edit", "reward"),
}
_REPEAT_FIELDS = ("seed", "reward", "answers", "verdicts")


def write_expected():
    with tempfile.TemporaryDirectory() as directory:
        folder = small_run(Path(directory) / "run")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found = {"files": [str(path.relative_to(folder)) for path in files]}
        for path in files:
            kind = path.parent.name
            if kind not in _FIELDS or not (number := re.fullmatch(r"round_(\d+)\.jsonl", path.name)):
                continue
            found[f"{path.parent.relative_to(folder)}/{int(number[1])}"] = [
                fields(row, _FIELDS[kind])
                | (
                    {
                        "repeats": [fields(one, _REPEAT_FIELDS) for one in row["repeats"]],
                        "losses": [one["loss"] and round(one["loss"], 4) for one in row["repeats"]],
                    }
                    if kind == "journal"
                    else {}
                )
                for row in rows(path)
            ]
        for number in range(2):
            weights = load_file(folder / f"policy/round_{number:03d}" / "adapter_model.safetensors")
            found[f"policy/{number}"] = {
                name: [round(value.norm().item(), 5), [round(one, 5) for one in value.flatten()[:3].tolist()]]
                for name, value in sorted(weights.items())
            }
        lm = tiny_lm()
        found["single_passage"] = list(single_passage_answers(lm, Path(directory) / "single"))
        found["adapters"] = [
            [round(norm, 5), [round(one, 5) for one in first]] for norm, first in trained_adapters(lm)
        ]
    lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write_expected()
