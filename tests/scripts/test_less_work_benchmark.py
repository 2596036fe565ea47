"""The measurement of what less work keeps: choices and gains by hand."""

import json
import sys

import numpy as np
import pytest
from helpers.folders import BENCHMARKS


@pytest.fixture(scope="module")
def less_work():
    sys.path.insert(0, str(BENCHMARKS))
    import less_work

    yield less_work
    sys.path.remove(str(BENCHMARKS))


REWARDS = np.array([[0.8, 0.0, 0.0], [0.6, 0.6, 0.6], [0.5, 0.7, 0.9], [0.2, 1.0, 1.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("single", (0, 5)),
        ("halving", (2, 5 + 3 + 2)),  # 3 is dropped after the first repeat, 0 after the second
        ("full", (3, 15)),
    ],
)
def test_choices(less_work, scheme, expected):
    assert less_work.choose(REWARDS, scheme) == expected


def test_of_equals_the_first_is_chosen(less_work):
    assert {less_work.choose(np.full((4, 3), 0.5), scheme)[0] for scheme in ("single", "halving", "full")} == {0}


def test_gains_and_shares(less_work):
    """Two questions and two repeats: the first self-edit is always right, the second never; a likelihood that is wrong."""
    accuracy = np.array([np.ones((2, 2)), np.zeros((2, 2))])
    comparison = less_work.compare([less_work.Passage(accuracy, -accuracy)] * 3)
    assert (comparison["num_passages"], comparison["num_questions"], comparison["mean_accuracy"]) == (3, 6, 0.5)
    own = comparison["estimates"]["other repeat"]
    assert own["accuracy, full"]["gain"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert own["likelihood, full"]["gain"]["value"] == -0.5
    assert own["likelihood, full"]["share_kept"]["value"] == -1.0
    saved = {name: scheme["updates_saved"] for name, scheme in comparison["estimates"]["in sample"].items()}
    assert saved["accuracy, single"] == saved["likelihood, single"] == 0.5
    assert saved["accuracy, full"] == saved["accuracy, halving"] == 0.0  # two self-edits race to the end


def test_noise_has_a_gain_in_sample_alone(less_work):
    """Coin tosses: a choice by them is worth nothing on other questions or repeats, which the first figure hides."""
    draws = np.random.default_rng(0).integers(0, 2, size=(60, 5, 3, 4)).astype(float)
    estimates = less_work.compare([less_work.Passage(own) for own in draws])["estimates"]
    full = {split: own["accuracy, full"]["gain"] for split, own in estimates.items()}
    assert full["in sample"]["low"] > 0.1
    for split in ("other questions", "other repeat"):
        assert full[split]["low"] < 0 < full[split]["high"] < 0.1


def test_stored_verdicts_are_read_by_repeat(less_work, tmp_path):
    def row(rep, right):
        texts = dict.fromkeys(("question", "answer", "adapter_answer", "baseline_answer"), "text")
        return {"rep": rep, "adapter_correct": right, "baseline_correct": False, **texts}

    edit = {"stats": {"adapter_mean": 0.5}, "questions": [row(1, True), row(0, False), row(1, False), row(0, False)]}
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"articles": [{"completions": [edit, edit]}]}))
    (passage,) = less_work.stored_passages(str(file))
    assert passage.accuracy.tolist() == [[[0, 0], [1, 0]]] * 2 and passage.likelihood is None


def test_records_of_banks_are_put_together_by_passage(less_work):
    def record(first, repeat):
        # Two passages of two self-edits with a question each.
        return {
            "first": first,
            "repeat": repeat,
            "accuracy": [[True], [False], [repeat == 1], [False]],
            "likelihood": [[-first - repeat], [-2], [-3], [-4]],
        }

    passages = less_work.live_passages([record(2, 1), record(0, 0), record(0, 1), record(2, 0)], num_edits=2)
    assert [passage.accuracy[..., 0].tolist() for passage in passages] == [[[1, 1], [0, 0]], [[0, 1], [0, 0]]] * 2
    assert [passage.likelihood[0, :, 0].tolist() for passage in passages] == [[0, -1], [-3, -3], [-2, -3], [-3, -3]]


def test_records_go_on_behind_a_line_that_was_cut_off(less_work, tmp_path):
    file, settings = tmp_path / "runs" / "records.jsonl", {"passages": 4}
    assert less_work.read_records(file, settings) == []
    with file.open("a") as opened:
        opened.write('{"first": 0}\n{"first": 1, "rew')
    assert less_work.read_records(file, settings) == [{"first": 0}]
    with file.open("a") as opened:
        opened.write('{"first": 1}\n')
    assert less_work.read_records(file, settings) == [{"first": 0}, {"first": 1}]
    with pytest.raises(ValueError, match="holds a run with other settings.*give another --records"):
        less_work.read_records(file, {"passages": 5})
