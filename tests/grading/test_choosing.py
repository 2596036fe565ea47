"""A choice by noisy rewards is scored by rewards that did not choose."""

from seal_hf.grading.choosing import scored_apart


def test_each_repeat_scores_what_the_others_choose():
    rewards = [[0.2, 0.4, 0.2], [0.6, 0.8, 0.4]]
    assert scored_apart(rewards, rewards) == [0.6, 0.8, 0.4]
    # Chosen by other rewards than those that score: the second, the first of equals, the first.
    assert scored_apart([[1, 0, 0], [0, 0, 1]], rewards) == [0.6, 0.4, 0.2]


def test_of_equals_the_first_is_chosen_also_where_they_differ_by_rounding():
    first, second = [9.0, 0.3, 0.3], [8.0, 0.2, 0.4]
    assert (0.3 + 0.3) / 2 != (0.2 + 0.4) / 2
    assert scored_apart([first, second], [first, second])[0] == 9.0
    assert scored_apart([second, first], [second, first])[0] == 8.0
