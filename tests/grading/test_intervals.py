import json

import numpy as np
import pytest

from helpers.folders import SHARED_DATA
from seal_hf.grading.intervals import accuracy, paired_difference


NUM_SAMPLES = 600
EVAL_BASE = SHARED_DATA / "eval_base.json"


def beta(draws, mean, correlation, size):
    """Numbers from 0 to 1 around `mean`; verdicts drawn with one of them correlate by `correlation`."""
    strength = 1 / correlation - 1
    return draws.beta(mean * strength, (1 - mean) * strength, size)


def sampled_verdicts(draws, passages, questions, correlation, mean, edits=1):
    """Verdicts of passages with an ability each; of several self-edits each with an ability, averaged."""
    ability = beta(draws, mean, correlation, (passages, 1, 1))
    if edits > 1:
        ability = beta(draws, ability, 0.2, (passages, 1, edits))
    return (draws.random((passages, questions, edits)) < ability).mean(axis=2)


def sampled_runs(draws, passages, questions, correlation, mean, gain, edits=1):
    """Verdicts before and after each self-edit teaches a passage's share, around `gain`, of what was not known."""
    ability = beta(draws, mean, correlation, (passages, 1, 1))
    learned = beta(draws, gain, 0.2, (passages, 1, edits)) if gain else 0.0
    before = draws.random((passages, questions, 1)) < ability
    after = draws.random((passages, questions, edits)) < ability + (1 - ability) * learned
    return before.mean(axis=2), after.mean(axis=2)


def coverage(estimates, truth):
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


# Behind each line: how often the percentile bootstrap over passages covered the truth in the same samples.
@pytest.mark.parametrize(
    ("passages", "questions", "correlation", "mean", "edits"),
    [
        (12, 5, 0.15, 0.5, 1),  # 93.0 %
        (12, 5, 0.15, 0.9, 1),  # 87.7 %
        (12, 5, 0.4, 0.05, 1),  # 78.8 %
        (12, 5, 0.15, 0.5, 3),  # 92.0 %
        (4, 5, 0.15, 0.5, 1),  # 86.0 %
        (8, 10, 0.6, 0.7, 1),  # 88.5 %
        (40, 5, 0.4, 0.05, 1),  # 89.8 %
    ],
)
def test_accuracy_interval_covers_what_it_claims(passages, questions, correlation, mean, edits):
    draws = np.random.default_rng(0)
    estimates = [
        accuracy(sampled_verdicts(draws, passages, questions, correlation, mean, edits)) for _ in range(NUM_SAMPLES)
    ]
    assert coverage(estimates, mean) >= 0.94
    assert all(0 <= one.low <= one.value <= one.high <= 1 and one.low < one.high for one in estimates)


@pytest.mark.parametrize(
    ("passages", "questions", "correlation", "mean", "gain", "edits"),
    [
        (12, 5, 0.15, 0.3, 0.4, 1),  # 92.0 %
        (12, 5, 0.15, 0.5, 0.0, 1),  # 92.0 %
        (12, 5, 0.15, 0.3, 0.4, 3),  # 92.5 %
        (12, 5, 0.15, 0.02, 0.1, 1),  # 90.2 %
        (4, 5, 0.15, 0.3, 0.4, 1),  # 78.2 %
        (8, 10, 0.6, 0.7, 0.2, 1),  # 81.5 %
        (40, 5, 0.4, 0.9, 0.3, 1),  # 93.7 %
    ],
)
def test_paired_interval_covers_what_it_claims(passages, questions, correlation, mean, gain, edits):
    draws = np.random.default_rng(0)
    estimates = [
        paired_difference(*sampled_runs(draws, passages, questions, correlation, mean, gain, edits))
        for _ in range(NUM_SAMPLES)
    ]
    assert coverage(estimates, (1 - mean) * gain) >= 0.94
    assert all(-1 <= one.low <= one.value <= one.high <= 1 and one.low < one.high for one in estimates)


def test_accuracy_weighs_passages_alike():
    result = accuracy([[True], [True, False, False, False]])
    assert result.value == 0.625  # (1 + 1/4) / 2
    assert result.per_question == 0.4  # 2/5
    assert (result.num_questions, result.num_passages) == (5, 2)


def test_interval_of_one_question_per_passage_is_wilsons():
    # 50 of 100 with 1.984217 standard errors, Student's 97.5 % quantile with 99 degrees of freedom.
    result = accuracy([[True]] * 50 + [[False]] * 50)
    half = 1.984217 / (100 + 1.984217**2) * (100 / 4 + 1.984217**2 / 4) ** 0.5
    assert (result.low, result.value, result.high) == pytest.approx((0.5 - half, 0.5, 0.5 + half), abs=1e-6)
    # Two passages have one degree of freedom, whose quantile is 12.7062; then the interval is known in closed form.
    result = accuracy([[True], [False]])
    half = 12.7062 / (2 + 12.7062**2) * (2 / 4 + 12.7062**2 / 4) ** 0.5
    assert (result.low, result.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


@pytest.mark.parametrize(("passages", "margin"), [(12, 1.15), (40, 1.06), (200, 1.02)])
def test_interval_is_hardly_wider_than_with_a_known_variance(passages, margin):
    draws = np.random.default_rng(0)
    results = [accuracy(sampled_verdicts(draws, passages, 5, 0.15, 0.5)) for _ in range(200)]
    deviation = (0.5 * 0.5 * (0.15 + 0.85 / 5) / passages) ** 0.5
    assert 0.98 < np.mean([one.high - one.low for one in results]) / (2 * 1.96 * deviation) < margin


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_interval_without_variation_is_no_point(share):
    result = accuracy([[share] * 5] * 12)
    assert 0 <= result.low <= share <= result.high <= 1
    assert 0.1 < result.high - result.low < 0.25


def test_all_right_is_bounded_as_by_the_rule_of_three():
    few, many = accuracy([[True] * 5] * 12), accuracy([[True] * 5] * 200)
    # Between as many answers as passages and as many as questions: 3 / 12 and 3 / 60, 3 / 200 and 3 / 1000.
    assert 1 - 3 / 12 < few.low < 1 - 3 / 60 and few.high == 1.0
    assert 1 - 3 / 200 < many.low < 1 - 3 / 1000 and many.high == 1.0
    mirrored = accuracy([[False] * 5] * 12)
    assert (mirrored.low, mirrored.high) == pytest.approx((0.0, 1 - few.low))


def test_one_passage_says_nothing_about_others():
    result = accuracy([[True, False, True, True]])
    assert (result.low, result.value, result.high) == (0.0, 0.75, 1.0)
    result = paired_difference([[True, False]], [[True, True]])
    assert (result.low, result.value, result.high) == (-1.0, 0.5, 1.0)


def test_answers_given_several_times_count_as_their_share():
    # The same shares from two self-edits per question are the same evidence: passages are the sample.
    shares = [[0.5, 1.0], [0.0, 0.5], [1.0, 1.0]]
    assert accuracy(shares) == accuracy([values[::-1] for values in shares])
    assert accuracy(shares).value == pytest.approx(2 / 3)
    assert accuracy(shares).num_questions == 6


@pytest.mark.parametrize("seed", range(5))
def test_interval_covers_the_value_and_is_the_same_again(seed):
    draws = np.random.default_rng(seed)
    verdicts = [(draws.random(draws.integers(1, 6)) < 0.4).tolist() for _ in range(30)]
    result = accuracy(verdicts)
    assert 0 <= result.low < result.value < result.high <= 1
    assert result == accuracy(verdicts)


def test_higher_confidence_is_wider():
    verdicts = [[True]] * 7 + [[False]] * 13
    narrow, wide = accuracy(verdicts, confidence=0.5), accuracy(verdicts, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_alike_questions_count_as_one():
    # Five alike questions per passage carry the information of one.
    clustered = [[passage % 2 == 0] * 5 for passage in range(40)]
    independent = [[verdict] for verdicts in clustered for verdict in verdicts]
    of_passages, of_questions = accuracy(clustered), accuracy(independent)
    assert of_passages.value == of_questions.value == 0.5
    ratio = (of_passages.high - of_passages.low) / (of_questions.high - of_questions.low)
    assert ratio == pytest.approx(5**0.5, rel=0.05)


def test_accuracy_formats_in_percent():
    assert str(accuracy([[True], [True, False, False, False]])) == "62.5 % [0.7, 99.8]"


def test_paired_difference_is_second_minus_first():
    a = [[True, False], [False], [True, True, True, False]]
    b = [[True, True], [True], [True, False, False, False]]
    result = paired_difference(a, b)
    assert result.value == pytest.approx((0.5 + 1.0 - 0.5) / 3)
    assert (result.num_questions, result.num_passages) == (7, 3)
    assert str(result) == "+33.3 points [-74.3, +92.9]"
    reverse = paired_difference(b, a)
    assert (reverse.low, reverse.value, reverse.high) == pytest.approx((-result.high, -result.value, -result.low))


def test_paired_difference_of_a_run_to_itself_is_zero_and_no_point():
    verdicts = [[True, False], [False], [True]] * 4
    result = paired_difference(verdicts, verdicts)
    assert result.value == 0.0
    assert result.low == pytest.approx(-result.high)
    assert 0 < result.high < 0.2


def test_pairing_cancels_what_both_runs_know():
    # The passages differ widely, but each gains the same.
    a = [[False] * 4] * 10 + [[True, True, True, False]] * 10
    b = [[True, False, False, False]] * 10 + [[True] * 4] * 10
    result = paired_difference(a, b)
    assert result.value == 0.25
    assert 0.15 < result.low < result.high < 0.35
    assert accuracy(a).high - accuracy(a).low > 0.3


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


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(ValueError, match=f"`confidence` must lie between 0 and 1, but is {confidence}"):
        accuracy([[True]], confidence)


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
