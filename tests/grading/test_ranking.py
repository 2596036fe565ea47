"""How two rewards rank self-edits, and how one agrees with itself over repeats, by hand."""

import pytest

from seal_hf.grading.ranking import agreement_of_repeats, compare_rankings, spearman


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


def test_a_reward_without_noise_keeps_all_of_its_gain():
    found = agreement_of_repeats([[[0.2, 0.2], [0.8, 0.8]], [[0.5, 0.5], [0.1, 0.1]]])
    assert found.correlation.value == 1 and found.num_repeats == 2
    assert found.gain_when_chosen == found.gain_kept and found.gain_kept.value == pytest.approx((0.3 + 0.2) / 2)
    assert (found.share_kept, found.share_low, found.share_high) == pytest.approx((1, 1, 1))


def test_what_a_choice_by_one_repeat_keeps_in_another():
    # Of three repeats the first two agree; each is paired with each other one.
    noisy = [[[0.9, 0.7, 0.2], [0.1, 0.3, 0.6], [0.2, 0.5, 0.1]], [[0.4, 0.4, 0.8], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]]
    found = agreement_of_repeats(noisy)
    # Ranks (3, 1, 2), (3, 1, 2) and (2, 3, 1): 1, -0.5 and -0.5. In the second all but one are constant.
    assert found.correlation.value == pytest.approx(0) and found.correlation.num_passages == 1
    # Means 0.4, 0.5 and 0.3. Chosen are the first, the first and the second: +0.5, +0.2 and +0.3, and in the second 0, 0 and +0.4.
    assert found.gain_when_chosen.value == pytest.approx((1.0 / 3 + 0.4 / 3) / 2)
    # Of the first in the others +0.2 - 0.1, of the same by the second +0.5 - 0.1, of the second -0.3 - 0.2; in the second example
    # the first is chosen each time: 0 + 0.4, 0 + 0.4 and 0 + 0.
    assert found.gain_kept.value == pytest.approx((0.0 / 6 + 0.8 / 6) / 2)
    assert found.share_kept == pytest.approx((0.8 / 6) / (1.4 / 3)) and found.gain_kept.num_passages == 2
    assert found.share_low < found.share_kept < found.share_high


def test_a_reward_that_is_noise_keeps_nothing():
    found = agreement_of_repeats([[[0.0, 1.0], [1.0, 0.0]]])
    assert found.correlation.value == -1 and found.gain_when_chosen.value == 0.5
    assert found.gain_kept.value == -0.5 and found.share_kept == -1 and found.share_low is None


@pytest.mark.parametrize("values", [[], [[[0.1], [0.2]]], [[[0.1, 0.2]]]])
def test_without_two_repeats_of_two_self_edits_there_is_nothing_to_compare(values):
    found = agreement_of_repeats(values)
    assert found.correlation is found.gain_kept is found.gain_when_chosen is found.share_kept is None


def test_equal_self_edits_have_no_share():
    found = agreement_of_repeats([[[0.5, 0.5], [0.5, 0.5]]])
    assert found.correlation is None and found.gain_kept.value == 0 and found.share_kept is None
