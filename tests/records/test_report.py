"""What a run's records say: hand-computed metrics and evaluations."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.reported_runs import (
    EVALUATIONS,
    FURTHER,
    RIGHT,
    TRAINING,
    WRONG,
    answered,
    read_table,
    scored,
    selected,
    write_evaluations,
)
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.grading.intervals import accuracy, paired_difference
from seal_hf.records.journal import Journal
from seal_hf.records.report import evaluations, metrics
from seal_hf.records.round_metrics import best_of_k, round_metrics
from seal_hf.records.schema import ScoredSelfEdit
from seal_hf.records.tables import results_table


def test_round_metrics():
    result = round_metrics(TRAINING, [selected(TRAINING[0]), selected(TRAINING[2])])
    assert result == {
        "reward": 0.5,  # (0.5 + 0 + 0.75 + 0.75) / 4: the malformed one counts, the one without a reward does not
        "reward_std": 0.125,  # 0.25 and 0, of the two examples with rewards
        "frac_reward_zero_std": 0.5,
        "reward/best": 0.625,
        "completions/mean_length": 20.0,
        "completions/min_length": 2,
        "completions/max_length": 40,
        "self_edits/valid_ratio": 0.8,
        "self_edits/kept_ratio": 0.4,
        # "text 0.0"; "text 1.0" and "text 1.1", of whose four words three are distinct; "text 2.0"
        "self_edits/distinct_1": pytest.approx((1 + 3 / 4 + 1) / 3),
        "self_edits/distinct_2": 1.0,
        "inner/loss": 3.0,
        "inner/gain": pytest.approx((0.25 - 0.25 + 0.25) / 3),
        "inner/tokens_per_second": 100.0,
        "num_examples": 3,
    }


def test_the_share_of_completions_that_were_cut_off():
    edits = [replace(scored(0, i, 0.5), finished=finished) for i, finished in enumerate((True, False, True, True))]
    assert round_metrics(edits, [])["completions/clipped_ratio"] == 0.25


def test_round_metrics_leave_out_what_has_no_value():
    result = round_metrics([scored(0, 0, None)], [])
    assert set(result) == {
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "self_edits/valid_ratio",
        "self_edits/kept_ratio",
        "self_edits/distinct_1",  # of its two words; it has no three
        "self_edits/distinct_2",
        "num_examples",
    }
    assert result["self_edits/kept_ratio"] == 0.0
    assert round_metrics([], []) == {"num_examples": 0}


def repeated(example, edit, *rewards, well_formed=True):
    """A self-edit with these rewards of its repeats."""
    known = [reward for reward in rewards if reward is not None]
    record = scored(example, edit, sum(known) / len(known) if known else 0.0, well_formed=well_formed)
    repeats = [{"seed": i, "reward": reward, "loss": 1.0} for i, reward in enumerate(rewards)]
    return ScoredSelfEdit(**vars(record) | {"repeats": repeats})


def test_best_of_k_is_scored_by_repeats_that_did_not_choose():
    # Repeat 0 chooses edit 0, which repeat 1 scores with 0; repeat 1 chooses edit 1, which repeat 0 scores with 0.
    noise = [repeated(0, 0, 1.0, 0.0), repeated(0, 1, 0.0, 1.0)]
    assert best_of_k(noise).value == 0.0
    # The better edit is chosen by any two of the repeats.
    better = [repeated(1, 0, 0.2, 0.4, 0.2), repeated(1, 1, 0.6, 0.8, 0.4), repeated(1, 2, well_formed=False)]
    assert best_of_k(better).value == pytest.approx(0.6)
    both = best_of_k([*noise, repeated(1, 0, 0.2, 0.4), repeated(1, 1, 0.6, 0.8)])
    assert (both.value, both.num_passages) == (pytest.approx(0.35), 2)


def test_best_of_k_chooses_as_the_selection_does():
    # By repeat 1 both earn nothing; the selection never takes the malformed one.
    assert best_of_k([repeated(0, 0, well_formed=False), repeated(0, 1, 1.0, 0.0)]).value == 0.5
    # Of equals it takes the first that was not cut off.
    cut_off, finished = repeated(0, 0, 0.2, 0.2), replace(repeated(0, 1, 1.0, 0.2), finished=True)
    assert best_of_k([replace(cut_off, finished=False), finished]).value == pytest.approx(0.6)
    assert best_of_k([replace(cut_off, finished=True), finished]).value == pytest.approx(0.2)
    # Where it can take nothing, nothing is earned, as in the mean reward.
    nothing = best_of_k([repeated(0, 0, well_formed=False), repeated(1, 0, 1.0, 1.0)])
    assert (nothing.value, nothing.num_passages) == (0.5, 2)


def test_best_of_k_needs_two_repeats():
    once = [repeated(0, 0, 1.0), repeated(0, 1, 0.0)]
    assert best_of_k(once) is None
    assert "reward/best" not in round_metrics(once, [])
    assert best_of_k([repeated(0, 0, well_formed=False)]) is None
    assert best_of_k([repeated(0, 0, 1.0, None), repeated(0, 1, 0.0, 0.5)]) is None


def test_noise_alone_gains_nothing_by_choosing():
    draws = np.random.default_rng(0)
    edits = [repeated(passage, edit, *draws.random(3)) for passage in range(400) for edit in range(5)]
    assert best_of_k(edits).value == pytest.approx(0.5, abs=0.03)
    assert np.mean([max(own.reward for own in edits[i : i + 5]) for i in range(0, 2000, 5)]) > 0.65


def test_rewards_that_differ_by_rounding_are_equal():
    rewards = [(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3]
    assert rewards[0] != rewards[1]
    result = round_metrics([scored(0, edit, reward) for edit, reward in enumerate(rewards)], [])
    assert result["frac_reward_zero_std"] == 1.0


def test_no_evaluation(tmp_path):
    assert evaluations(Journal(tmp_path / "evaluation")) == []


def test_evaluations(run):
    first, second, third = evaluations(Journal(run / "evaluation"))
    assert [first.round, second.round, third.round] == [0, 1, 2]
    values = {name: estimate.value for name, estimate in first.accuracies.items()}
    assert values == {BASE: 0.25, IN_CONTEXT: 1.0, PASSAGE_ONLY: 0.5, SELF_EDITS: 0.5}
    assert first.accuracies[BASE] == accuracy([[1.0, 0.0], [0.0]])
    assert {name: round(one.per_question, 4) for name, one in first.accuracies.items()} == {
        BASE: 0.3333,
        IN_CONTEXT: 1.0,
        PASSAGE_ONLY: 0.3333,
        SELF_EDITS: 0.5,
    }
    assert {name: gain.value for name, gain in first.gains.items()} == {
        BASE: 0.25,
        IN_CONTEXT: -0.5,
        PASSAGE_ONLY: 0.0,
    }
    # Passage 0: (1 + 1/2) / 2; passage 1: 1 and the base's 0.
    assert {name: estimate.value for name, estimate in second.accuracies.items()} == {SELF_EDITS: 0.625}
    assert {name: gain.value for name, gain in second.gains.items()} == {
        BASE: 0.375,
        IN_CONTEXT: -0.375,
        PASSAGE_ONLY: 0.125,
        "self-edits, round 0": 0.125,
    }
    assert {name: gain.value for name, gain in third.gains.items()} == {
        BASE: 0.75,
        IN_CONTEXT: 0.0,
        PASSAGE_ONLY: 0.5,
        "self-edits, round 0": 0.5,
        "self-edits, round 1": 0.375,
    }
    assert (first.accuracies[SELF_EDITS].num_passages, first.accuracies[SELF_EDITS].num_questions) == (2, 3)


def test_recitations_and_recited_answers(tmp_path):
    write_evaluations(
        tmp_path,
        [
            [
                answered(0, BASE, 0, [WRONG, WRONG], recited=[True, True], recitation=[WRONG, RIGHT]),
                answered(0, PASSAGE_ONLY, 0, [RIGHT, WRONG], recited=[True, True], recitation=[RIGHT, WRONG]),
                answered(0, SELF_EDITS, 0, [RIGHT, RIGHT], recited=[True, False], recitation=[RIGHT, WRONG]),
                answered(0, SELF_EDITS, 0, [RIGHT, RIGHT], edit=1, recited=[False, False], recitation=[WRONG, WRONG]),
                answered(0, SELF_EDITS, 0, edit=2),
            ],
            [
                answered(1, PASSAGE_ONLY, 0, [WRONG, WRONG], recited=[True, True], recitation=[WRONG, WRONG]),
                answered(1, SELF_EDITS, 0, [RIGHT, WRONG], recited=[False, False], recitation=[RIGHT, RIGHT]),
            ],
        ],
    )
    first, second = evaluations(Journal(tmp_path / "evaluation"))
    assert {name: value.value for name, value in first.recitations.items()} == {
        BASE: 0.5,
        PASSAGE_ONLY: 0.5,
        SELF_EDITS: pytest.approx(1 / 3),  # 1/2 and 0, and the base's 1/2 for the malformed one
    }
    assert {name: value.value for name, value in first.recited.items()} == {
        BASE: 1.0,
        PASSAGE_ONLY: 1.0,
        SELF_EDITS: 0.5,  # 1/2 and 0, and the base's 1 for the malformed one
    }
    # The passage alone was measured again with the policy of round 1.
    assert second.accuracies[PASSAGE_ONLY].value == 0.0
    assert (first.gains[PASSAGE_ONLY].value, second.gains[PASSAGE_ONLY].value) == (pytest.approx(1 / 6), 0.5)
    flat = metrics(first)
    names = ("self_edits_recitation", "self_edits_recited", "base_recitation", "base_recited")
    assert [flat[name] for name in names] == [pytest.approx(1 / 3), 0.5, 0.5, 1.0]
    rows = {row.pop("condition"): row for row in read_table(results_table(tmp_path), "condition")}
    assert list(rows) == [
        "base",
        "recitation, base",
        "passage only before round 1",
        "recitation, passage only before round 1",
        "self-edits before round 1",
        "recitation, self-edits before round 1",
        "passage only after round 1",
        "recitation, passage only after round 1",
        "self-edits after round 1",
        "recitation, self-edits after round 1",
    ]
    own, recitation = rows["self-edits before round 1"], rows["recitation, self-edits before round 1"]
    assert recitation["accuracy"].startswith("33.3 %")
    assert [[row[name] for name in ("per question", "recited")] for row in (own, recitation)] == [
        ["66.7 %", "50.0 %"],
        ["33.3 %", ""],
    ]


def test_gains_are_paired_by_passage_whatever_the_order_of_the_records(run, tmp_path):
    write_evaluations(tmp_path / "other", [EVALUATIONS[0][::-1], *EVALUATIONS[1:]])
    other = evaluations(Journal(tmp_path / "other" / "evaluation"))
    assert other == evaluations(Journal(run / "evaluation"))
    gain = other[0].gains[PASSAGE_ONLY]
    assert gain == paired_difference([[0.0, 0.0], [1.0]], [[0.75, 0.25], [0.5]])


def test_single_passage_says_nothing_about_others(tmp_path):
    write_evaluations(tmp_path, [[answered(0, BASE, 0, [RIGHT, WRONG]), answered(0, SELF_EDITS, 0)]])
    (only,) = evaluations(Journal(tmp_path / "evaluation"))
    own = only.accuracies[SELF_EDITS]
    assert (own.low, own.value, own.high, own.num_passages) == (0.0, 0.5, 1.0, 1)
    assert only.gains[BASE].value == 0.0
    assert set(only.accuracies) == {BASE, SELF_EDITS}


def test_metrics_of_an_evaluation(run):
    first, _, third = evaluations(Journal(run / "evaluation"))
    flat = metrics(first)
    estimates = [f"{name}_accuracy" for name in ("base", "passage_in_context", "passage_only", "self_edits")]
    estimates += [f"gain_over_{name}" for name in ("base", "passage_in_context", "passage_only")]
    bounds = [f"{name}_{bound}" for name in estimates for bound in ("low", "high")]
    per_question = {f"{name}_per_question" for name in estimates if name.endswith("accuracy")}
    training = {f"{name}_tokens" for name in ("passage_only", "self_edits")}
    assert set(flat) == {*estimates, *bounds, *per_question, *training, "num_passages", "num_questions"}
    assert (flat["base_accuracy"], flat["base_accuracy_per_question"]) == (0.25, pytest.approx(1 / 3))
    base = first.accuracies[BASE]
    bounds = (flat["base_accuracy_low"], flat["base_accuracy"], flat["base_accuracy_high"])
    assert bounds == (base.low, 0.25, base.high)
    assert (flat["num_passages"], flat["num_questions"]) == (2, 3)
    flat = metrics(third)
    assert (flat["gain_over_round_0"], flat["gain_over_round_1"]) == (0.5, 0.375)
    gain = third.gains[f"{SELF_EDITS}, round 1"]
    assert (flat["gain_over_round_1_low"], flat["gain_over_round_1_high"]) == (gain.low, gain.high)
    assert "base_accuracy" not in flat


def test_strict_accuracy_retention_and_what_training_took(tmp_path):
    write_evaluations(tmp_path, FURTHER)
    first, second = evaluations(Journal(tmp_path / "evaluation"))
    # Of passage 0 the base is right once, at length; the malformed self-edit counts as the base.
    strict = {BASE: 0.5, PASSAGE_ONLY: 0.5, SELF_EDITS: 0.875}
    assert {name: value.value for name, value in first.strict_accuracies.items()} == strict
    assert {name: value.value for name, value in first.strict_gains.items()} == {BASE: 0.375, PASSAGE_ONLY: 0.375}
    gains = {BASE: 0.0, PASSAGE_ONLY: 0.0, f"{SELF_EDITS}, round 0": -0.375}
    assert {name: value.value for name, value in second.strict_gains.items()} == gains
    assert first.strict_gains[PASSAGE_ONLY] == paired_difference([[0.0, 0.0], [1.0]], [[1.0, 0.5], [1.0]])
    retention = {BASE: 0.75, PASSAGE_ONLY: 0.5, SELF_EDITS: 0.875}
    assert {name: value.value for name, value in first.retention.items()} == retention
    assert first.retention[BASE].num_passages == 2
    assert second.retention[SELF_EDITS].value == 0.25
    # Of the adapters that were trained: a malformed self-edit has none.
    assert (first.tokens, first.seconds) == ({PASSAGE_ONLY: 30, SELF_EDITS: 30}, {PASSAGE_ONLY: 1.5, SELF_EDITS: 4.5})
    flat = metrics(first)
    names = ("strict_accuracy", "retention", "tokens")
    assert [flat[f"self_edits_{name}"] for name in names] == [0.875, 0.875, 30]
    assert (flat["strict_gain_over_base"], flat["base_retention"]) == (0.375, 0.75)
    assert flat["self_edits_retention_low"] < 0.875 < flat["self_edits_retention_high"]
    assert metrics(second)["strict_gain_over_round_0"] == -0.375


def test_some_of_the_examples_alone(tmp_path):
    write_evaluations(tmp_path, FURTHER)
    own, _ = evaluations(Journal(tmp_path / "evaluation"), {1})
    assert {name: value.value for name, value in own.accuracies.items()} == dict.fromkeys(
        (BASE, PASSAGE_ONLY, SELF_EDITS), 1.0
    )
    assert (own.accuracies[BASE].num_passages, own.accuracies[BASE].num_questions) == (1, 1)
    # It was asked for with example 0.
    assert own.retention[BASE].value == own.retention[SELF_EDITS].value == 0.75
    assert own.tokens == {PASSAGE_ONLY: 30}
