"""What is kept of a round: the best of each example, and nothing that cannot be learned from."""

import random
from pathlib import Path

import pytest

from seal_hf.domains.base import SELF_EDITS
from seal_hf.outer_loop.selection import select_self_edits, warn_of_little
from seal_hf.records.schema import ScoredSelfEdit, SelectedSelfEdit


def scored(example, edit, reward, well_formed=True, finished=True):
    return ScoredSelfEdit(
        round=0,
        condition=SELF_EDITS,
        example=example,
        example_id=f"id {example}",
        edit=edit,
        prompt=[{"role": "user", "content": f"prompt {example}"}],
        completion=f"text {example}.{edit}",
        completion_tokens=3,
        well_formed=well_formed,
        repeats=[{"reward": reward}] if well_formed else [],
        reward=reward,
        base_reward=0.5,
        tokens=30,
        seconds=1.0,
        finished=finished,
        completion_ids=[example, edit],
    )


def one_example(*rewards):
    return [scored(0, edit, reward) for edit, reward in enumerate(rewards)]


def places(selected):
    """Example and edit of each."""
    return [(int(edit.example_id.removeprefix("id ")), edit.edit) for edit in selected]


def kept(edits, **options):
    """The edits kept of a single example."""
    return [edit for _, edit in places(select_self_edits(edits, **options))]


def test_a_selected_self_edit_has_its_prompt_text_and_reward():
    assert select_self_edits([scored(4, 2, 0.75)]) == [
        SelectedSelfEdit([{"role": "user", "content": "prompt 4"}], "text 4.2", "id 4", 2, 0.75, [4, 2])
    ]


@pytest.mark.parametrize(
    ("keep_best", "edits"), [(1, [3]), (2, [3, 1]), (3, [3, 1, 0]), (4, [3, 1, 0, 2]), (9, [3, 1, 0, 2])]
)
def test_the_best_are_kept_best_first(keep_best, edits):
    assert kept(one_example(0.5, 0.75, 0.0, 1.0), keep_best=keep_best) == edits


def test_all_are_kept_without_a_limit():
    assert kept(one_example(0.5, 0.75, 0.0, 1.0), keep_best=None) == [3, 1, 0, 2]


def test_of_equals_the_first_is_kept_in_whatever_order_they_come():
    edits = one_example(0.5, 0.75, 0.75, 0.75, 0.0)
    for order in (edits, edits[::-1], edits[2:] + edits[:2]):
        assert kept(order) == [1]
        assert kept(order, keep_best=2) == [1, 2]


def test_of_equals_those_that_were_not_cut_off_are_kept_first():
    edits = [
        scored(0, edit, reward, finished=edit in (2, 3)) for edit, reward in enumerate((0.5, 0.75, 0.75, 0.5, 0.5))
    ]
    for order in (edits, edits[::-1]):
        assert kept(order) == [2]
        assert kept(order, keep_best=None) == [2, 1, 3, 0, 4]
    # A record of the first schema does not say.
    assert kept([scored(0, 0, 0.5, finished=False), scored(0, 1, 0.5, finished=None)]) == [1]


@pytest.mark.parametrize(
    ("min_reward", "edits"), [(None, [1, 3, 0, 2]), (0.0, [1, 3, 0, 2]), (0.5, [1, 3]), (0.75, [1]), (1.0, [])]
)
def test_min_reward_is_the_least_that_is_kept(min_reward, edits):
    assert kept(one_example(0.25, 0.75, 0.0, 0.5), keep_best=None, min_reward=min_reward) == edits


def test_limit_and_least_reward_together():
    edits = one_example(0.25, 0.75, 0.5, 0.5) + [scored(1, 0, 0.25), scored(1, 1, 0.0)]
    assert places(select_self_edits(edits, keep_best=2, min_reward=0.5)) == [(0, 1), (0, 2)]
    assert places(select_self_edits(edits, keep_best=1, min_reward=0.25)) == [(0, 1), (1, 0)]


def test_nothing_is_kept_of_a_round_without_a_reward_unless_it_is_asked_for():
    edits = [scored(example, edit, 0.0) for example in range(3) for edit in range(2)]
    assert select_self_edits(edits) == select_self_edits(edits, keep_best=None) == []
    assert places(select_self_edits(edits, min_reward=0.0)) == [(0, 0), (1, 0), (2, 0)]
    # One that is malformed or not graded earns nothing; with one reward the best of every example is kept.
    assert select_self_edits([*edits, scored(3, 0, 1.0, well_formed=False), scored(3, 1, None)]) == []
    assert places(select_self_edits([*edits, scored(3, 0, 0.25)])) == [(0, 0), (1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("rewards", "options", "said"),
    [
        (
            (0.0, 0.0),
            {},
            "the rewards of all 2 self-edits are 0, so nothing is learned; look at the answers in run/journal",
        ),
        ((0.0, 0.0), {"min_reward": 0.0}, "the rewards of all 2 self-edits are 0, so chance decides what is learned;"),
        ((0.0, None), {}, "the rewards of all 1 self-edits are 0"),
        (
            (0.5, 0.0),
            {"min_reward": 0.75},
            "the selection keeps none of 2 self-edits, so there is nothing new to learn;",
        ),
        ((0.5, 0.0), {}, None),
    ],
)
def test_a_round_that_teaches_nothing_is_warned_of(caplog, rewards, options, said):
    edits = one_example(*rewards)
    warn_of_little(3, edits, select_self_edits(edits, **options), Path("run"))
    assert bool(caplog.messages) == (said is not None)
    assert said is None or caplog.messages[0].startswith(f"Round 3: {said}")


@pytest.mark.parametrize("options", [{"min_reward": 0.0}, {"keep_best": 2, "min_reward": 0.0}])
def test_malformed_and_ungraded_ones_are_never_kept(options):
    edits = [scored(0, 0, 1.0, well_formed=False), scored(0, 1, None), scored(0, 2, 0.0), scored(1, 0, None)]
    assert places(select_self_edits(edits, **options)) == [(0, 2)]


@pytest.mark.parametrize("drop_zero_std", [False, True])
def test_nothing_is_kept_of_malformed_ones_alone(drop_zero_std):
    edits = [scored(example, edit, 0.0, well_formed=False) for example in range(2) for edit in range(3)]
    assert select_self_edits(edits, keep_best=None, drop_zero_std=drop_zero_std) == []
    assert select_self_edits([], drop_zero_std=drop_zero_std) == []


@pytest.mark.parametrize(
    ("edits", "with_std"),
    [
        (one_example(0.5, 0.5, 0.5), []),
        (one_example(0.5, 0.5, 0.75), [2]),
        (one_example(1.0), []),
        (one_example(0.5, None, 0.5), []),  # what could not be graded has no part in it
        ([scored(0, 0, 0.0, well_formed=False), scored(0, 1, 0.5)], [1]),  # a malformed one has, with its 0
        ([scored(0, 0, 0.0, well_formed=False), scored(0, 1, 0.0)], []),
    ],
)
def test_examples_of_equal_rewards_are_dropped(edits, with_std):
    assert kept(edits, drop_zero_std=True) == with_std
    assert len(kept(edits, min_reward=0.0)) == 1


def test_min_reward_has_no_part_in_whether_rewards_are_equal():
    assert kept(one_example(0.0, 0.5, 0.5), keep_best=None, min_reward=0.5, drop_zero_std=True) == [1, 2]


def test_rewards_that_differ_by_rounding_are_equal():
    ascending, descending = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert descending < 0.2 < ascending
    edits = one_example(descending, ascending)
    assert kept(edits) == [0]
    assert kept(edits, keep_best=None, min_reward=0.2) == [0, 1]
    assert kept(edits, drop_zero_std=True) == []
    assert [edit.reward for edit in select_self_edits(edits, keep_best=None)] == [descending, ascending]


def test_selected_are_ordered_by_example():
    edits = [scored(example, edit, 0.5 + edit / 8) for edit in range(3) for example in (10, 2, 0)]
    assert places(select_self_edits(edits, keep_best=2)) == [(0, 2), (0, 1), (2, 2), (2, 1), (10, 2), (10, 1)]


def naive_selection(edits, keep_best, min_reward, drop_zero_std):
    """Take the best remaining self-edit of each example, one at a time."""
    result = []
    if min_reward is None and not any(edit.reward for edit in edits if edit.well_formed):
        return []
    for example in range(max(edit.example for edit in edits) + 1):
        own = [edit for edit in edits if edit.example == example]
        graded = [edit.reward for edit in own if edit.reward is not None]
        if drop_zero_std and (not graded or min(graded) == max(graded)):
            continue
        remaining = [edit for edit in own if edit.well_formed and edit.reward is not None]
        taken = 0
        while remaining and taken != keep_best:
            best = remaining[0]
            for edit in remaining[1:]:
                if edit.reward > best.reward or (
                    edit.reward == best.reward and (edit.finished, -edit.edit) > (best.finished, -best.edit)
                ):
                    best = edit
            remaining.remove(best)
            if min_reward is None or best.reward >= min_reward:
                result.append((example, best.edit))
                taken += 1
    return result


@pytest.mark.parametrize("seed", range(200))
def test_random_rounds_agree_with_a_naive_selection(seed):
    draw = random.Random(seed)
    edits = []
    for example in range(draw.randint(1, 6)):
        for edit in range(draw.randint(1, 6)):
            well_formed = draw.random() < 0.7
            reward = draw.choice([None, 0.0, 0.25, 0.5, 0.75, 1.0]) if well_formed else 0.0
            edits.append(scored(example, edit, reward, well_formed, finished=draw.random() < 0.5))
    draw.shuffle(edits)
    options = {
        "keep_best": draw.choice([None, 1, 2, 3]),
        "min_reward": draw.choice([None, 0.25, 0.5, 1.0]),
        "drop_zero_std": draw.random() < 0.5,
    }
    before = list(edits)
    assert places(select_self_edits(edits, **options)) == naive_selection(edits, **options)
    assert edits == before
