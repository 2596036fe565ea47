"""The weighted sum of rewards."""

import pytest

from seal_hf.grading.rewards import Rewards


def test_the_labelled_reward_alone_is_the_default():
    assert Rewards().is_default and Rewards().needs_adapters
    assert Rewards().total({"accuracy": 0.4}) == 0.4
    assert Rewards().total({"accuracy": None}) is None
    assert not Rewards(("rubric",)).is_default and not Rewards(("rubric",)).needs_adapters
    assert all(Rewards((name,)).needs_adapters for name in ("own_questions", "self_consistency"))


@pytest.mark.parametrize(
    ("weights", "total"),
    [(None, 0.5), ((1, 0), 0.2), ((0, 2), 0.8), ((3, 1), 0.35), ((0.3, 0.1), 0.35)],
)
def test_weights_are_divided_by_their_sum(weights, total):
    assert Rewards(("rubric", "accuracy"), weights).total({"rubric": 0.2, "accuracy": 0.8}) == pytest.approx(total)


def test_what_is_not_known_makes_the_sum_unknown_only_where_it_counts():
    values = {"rubric": None, "accuracy": 0.8}
    assert Rewards(("rubric", "accuracy")).total(values) is None
    assert Rewards(("rubric", "accuracy"), (0, 1)).total(values) == 0.8


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ((), None, r"reward_funcs=\[\] must be one or more of 'accuracy', 'rubric'"),
        (("accurate",), None, r"reward_funcs=\['accurate'\] must be"),
        (("rubric", "rubric"), None, "each once"),
        (("rubric",), (1, 2), r"reward_weights=\[1, 2\] must be one for each of reward_funcs=\['rubric'\]"),
        (("rubric",), (0,), "one of them above 0"),
        (("rubric", "accuracy"), (-1, 2), "at least 0"),
        (("rubric",), (float("nan"),), "at least 0"),
    ],
)
def test_bad_rewards_are_refused(names, weights, message):
    with pytest.raises(ValueError, match=message):
        Rewards(names, weights)
