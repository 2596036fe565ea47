"""How two rewards rank self-edits, by hand."""

import pytest

from seal_hf.grading.ranking import compare_rankings, spearman


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
        ([0.1, 0.5, 0.5, 0.9], [1, 2, 3, 4], 0.948683298051),
        ([0.1 + 0.2, 0.3], [1, 2], None),  # equal but for rounding
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2, 3], [5, 5, 5], None),
        ([1], [2], None),
    ],
)
def test_spearman(first, second, rho):
    assert spearman(first, second) == spearman(second, first) == (rho if rho is None else pytest.approx(rho))


LABELLED = [[[0.2, 0.4], [0.8, 0.6]], [[0.5, 0.7], [0.1, 0.3]], [[0.4, 0.4], [0.4, 0.4]]]


def test_the_labelled_reward_has_all_of_its_own_gain():
    own = compare_rankings(LABELLED, LABELLED)
    assert own.correlation.value == 1 and own.correlation.num_passages == 2
    # Means 0.5, 0.4 and 0.4; the chosen have 0.7, 0.6 and 0.4.
    assert own.gain.value == pytest.approx(0.4 / 3) and own.gain == own.labelled_gain
    assert own.gain.num_passages == 3
    assert (own.share, own.share_low, own.share_high) == pytest.approx((1, 1, 1))


def test_a_reward_that_is_right_in_one_of_two_examples():
    rubric = [[[0.1, 0.1], [0.9, 0.9]], [[0.2, 0.2], [0.6, 0.6]], [[0.3, 0.3], [0.2, 0.2]]]
    found = compare_rankings(rubric, LABELLED)
    assert found.correlation.value == 0 and found.correlation.num_passages == 2
    # +0.2, -0.2 and 0 against +0.2, +0.2 and 0
    assert found.gain.value == pytest.approx(0) and found.share == pytest.approx(0)
    # Without each example in turn: -1, 1 and 0; jackknife variance 2/3 * 2, Student's quantile of 2 degrees 4.303.
    half = 4.3027 * (4 / 3) ** 0.5
    assert (found.share_low, found.share_high) == pytest.approx((-half, half), abs=1e-3)
    assert found.gain.low < 0 < found.gain.high


def test_a_choice_is_scored_by_repeats_that_did_not_make_it():
    noisy = [[[1.0, 0.0], [0.0, 1.0]]]
    found = compare_rankings(noisy, noisy)
    assert found.gain.value == -0.5 and found.share is None and found.share_low is None
    assert found.correlation is None


def test_what_cannot_be_chosen_is_left_out():
    one_repeat = compare_rankings([[[0.1], [0.2]]], [[[0.3], [0.4]]])
    assert one_repeat.gain is None and one_repeat.share is None and one_repeat.correlation.value == 1
    one_self_edit = compare_rankings([[[0.1, 0.2]]], [[[0.3, 0.4]]])
    assert one_self_edit.gain is None and one_self_edit.correlation is None
    gains_once = [[[0.2, 0.4], [0.8, 0.6]], [[0.4, 0.4], [0.4, 0.4]]]
    found = compare_rankings(gains_once, gains_once)
    assert found.share == pytest.approx(1) and found.share_low is None  # nothing without the first example
