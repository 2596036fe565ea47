import json

import numpy as np
import pytest

from helpers.folders import SHARED_DATA
from seal_hf.grading.intervals import accuracy, paired_difference


EVAL_BASE = SHARED_DATA / "eval_base.json"


def test_accuracy_weighs_passages_alike():
    result = accuracy([[True], [True, False, False, False]])
    assert result.value == 0.625  # (1 + 1/4) / 2; pooled questions would give 2/5
    assert (result.num_questions, result.num_passages) == (5, 2)


def test_interval_of_two_passages_is_their_range():
    # Of two passages, a quarter of the resamples draws only the first and a quarter only the second.
    result = accuracy([[True], [True, False, False, False]])
    assert (result.low, result.high) == (0.25, 1.0)


def test_interval_matches_the_binomial_distribution():
    # The mean of 100 resampled passages, half of them right, is Binomial(100, 0.5) / 100: its 2.5 % and 97.5 %
    # quantiles are 0.40 and 0.60.
    result = accuracy([[True]] * 50 + [[False]] * 50)
    assert result.value == 0.5
    assert result.low == pytest.approx(0.40, abs=0.011)
    assert result.high == pytest.approx(0.60, abs=0.011)


def test_interval_without_variation_is_a_point():
    result = accuracy([[True, False]] * 10)
    assert (result.low, result.value, result.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_interval_covers_the_value_and_depends_on_the_seed_alone(seed):
    draws = np.random.default_rng(seed)
    verdicts = [(draws.random(draws.integers(1, 6)) < 0.4).tolist() for _ in range(30)]
    result = accuracy(verdicts, seed=seed)
    assert 0 <= result.low < result.value < result.high <= 1
    assert result == accuracy(verdicts, seed=seed)
    assert result.value == accuracy(verdicts, seed=seed + 1).value
    assert (result.low, result.high) != tuple(
        getattr(accuracy(verdicts, seed=seed + 1, num_resamples=50), bound) for bound in ("low", "high")
    )


def test_higher_confidence_is_wider():
    verdicts = [[True]] * 7 + [[False]] * 13
    narrow, wide = accuracy(verdicts, confidence=0.5), accuracy(verdicts, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_resampling_passages_is_wider_than_resampling_questions_of_one_kind():
    # Five alike questions per passage carry the information of one.
    clustered = [[passage % 2 == 0] * 5 for passage in range(40)]
    independent = [[verdict] for verdicts in clustered for verdict in verdicts]
    of_passages, of_questions = accuracy(clustered), accuracy(independent)
    assert of_passages.value == of_questions.value == 0.5
    ratio = (of_passages.high - of_passages.low) / (of_questions.high - of_questions.low)
    assert ratio == pytest.approx(5**0.5, rel=0.1)


def test_accuracy_formats_in_percent():
    assert str(accuracy([[True], [True, False, False, False]])) == "62.5 % [25.0, 100.0]"


def test_paired_difference_is_second_minus_first():
    a = [[True, False], [False], [True, True, True, False]]
    b = [[True, True], [True], [True, False, False, False]]
    result = paired_difference(a, b)
    assert result.value == pytest.approx((0.5 + 1.0 - 0.5) / 3)
    assert (result.num_questions, result.num_passages) == (7, 3)
    assert (result.low, result.high) == (-0.5, 1.0)
    assert str(result) == "+33.3 points [-50.0, +100.0]"
    assert paired_difference(b, a).value == -result.value


def test_paired_difference_of_a_run_to_itself_is_zero():
    verdicts = [[True, False], [False], [True]]
    result = paired_difference(verdicts, verdicts)
    assert (result.low, result.value, result.high) == (0.0, 0.0, 0.0)


def test_pairing_uses_the_same_draws_for_both_runs():
    # The passages differ widely, but each gains the same: unpaired intervals would be wide, the paired one is a point.
    a = [[False] * 4] * 10 + [[True, True, True, False]] * 10
    b = [[True, False, False, False]] * 10 + [[True] * 4] * 10
    result = paired_difference(a, b)
    assert (result.low, result.value, result.high) == (0.25, 0.25, 0.25)
    assert accuracy(a).high - accuracy(a).low > 0.2


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([], "`verdicts_per_passage` is empty"),
        ([[True], []], "no verdict for passage 1"),
        ([[True], [False, None]], r"passage 1 that could not be graded \(None\)"),
    ],
)
def test_accuracy_refuses_missing_verdicts(verdicts, message):
    with pytest.raises(ValueError, match=message):
        accuracy(verdicts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "`confidence` must lie between 0 and 1, but is 95"),
        ({"num_resamples": 0}, "`num_resamples` must be at least 1, but is 0"),
    ],
)
def test_accuracy_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        accuracy([[True]], **options)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "is empty"),
        ([[True]], [[True], [False]], "same passages, but have 1 and 2"),
        ([[True], [True]], [[True], [False, True]], "same questions, but have 1 and 2 for passage 1"),
        ([[True]], [[None]], "`verdicts_b` has an answer to passage 0 that could not be graded"),
    ],
)
def test_paired_difference_refuses_unequal_runs(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b)


@pytest.mark.shared_data
@pytest.mark.skipif(not EVAL_BASE.is_file(), reason="the paper authors' stored runs are absent")
def test_accuracy_is_defined_as_in_the_paper():
    run = json.loads(EVAL_BASE.read_text(encoding="utf-8"))
    verdicts = [
        [row["baseline_correct"] for row in article["completions"][0]["questions"]] for article in run["articles"]
    ]
    result = accuracy(verdicts)
    # Pooled questions would give 0.3203.
    assert round(result.value, 4) == run["overall"]["baseline_mean_accuracy"] == 0.3267
    assert (result.num_questions, result.num_passages) == (974, 200)
