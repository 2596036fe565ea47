"""Who gets another repeat, in which banks, and what a stage's records come to."""

import random

import pytest
from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from peft import LoraConfig

from seal_hf import SelfAdaptingLM, SelfEdit
from seal_hf.domains import KnowledgeDomain
from seal_hf.records.journal import BASE, SELF_EDITS, Proposal, TrialResult
from seal_hf.rollout.examples import ExampleSet
from seal_hf.rollout.stage import Stage, Trial, first_banks, halved, next_banks, num_trained, scored_self_edits


def trial(example, edit, repeat=0):
    return Trial(SELF_EDITS, example, edit, repeat, SelfEdit("", "", (("", "text"),)), 30)


def result(example, edit, reward, repeat=0, condition=SELF_EDITS, **fields):
    return TrialResult(condition, example, edit, repeat, 7, reward, ["a"], [True], 0.5, 30, 1.0, **fields)


def going_on(*rewards, keep_best=1):
    """Which of an example's self-edits go on, each given by the rewards of its repeats."""
    trials = [trial(0, edit, len(own) - 1) for edit, own in enumerate(rewards)]
    results = [
        result(0, edit, reward, repeat) for edit, own in enumerate(rewards) for repeat, reward in enumerate(own)
    ]
    found = halved(trials, results, keep_best)
    assert halved(trials[::-1], results[::-1], keep_best) == found
    assert all(one in trials for one in found)
    return [one.edit for one in found]


@pytest.mark.parametrize(
    ("rewards", "keep_best", "edits"),
    [
        ([[0.2], [0.8], [0.4], [0.6], [0.0]], 1, [1, 2, 3]),
        ([[0.2], [0.8], [0.4], [0.6], [0.0], [0.1]], 1, [1, 2, 3]),
        ([[0.5], [0.5], [0.5], [0.5]], 1, [0, 1]),  # of equals the first
        ([[0.2], [0.8], [0.4]], 1, [1, 2]),
        ([[0.2], [0.8]], 1, [0, 1]),  # the last repeat decides
        ([[0.2]], 1, [0]),
        ([[0.2], [0.8], [0.4], [0.6]], 2, [1, 2, 3]),
        ([[0.2], [0.8], [0.4], [0.6]], 9, [0, 1, 2, 3]),
        ([[1.0, 0.0], [0.5, 0.75], [0.25, 0.75]], 1, [1, 0]),  # by the mean: 0.5, 0.625, 0.5
        ([[-3.0], [-1.0], [-2.0], [-9.0]], 1, [1, 2]),
        ([[None], [0.0], [None], [0.25]], 1, [1, 3]),  # what could not be graded is behind a reward of 0
        ([[None], [0.0], [None], [None]], 1, [0, 1]),
        ([[None, 0.5], [0.25, 0.25], [0.5, 0.75]], 1, [0, 2]),
    ],
)
def test_the_better_half_goes_on(rewards, keep_best, edits):
    assert going_on(*rewards, keep_best=keep_best) == sorted(edits)


def test_means_that_differ_by_rounding_are_equal():
    assert sum([0.3, 0.2, 0.1]) / 3 < sum([0.1, 0.2, 0.3]) / 3
    assert going_on([0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.0] * 3, [0.1, 0.3, 0.2]) == [0, 1]


def test_examples_do_not_compete():
    trials = [trial(example, edit) for example in (3, 1) for edit in range(4)]
    results = [result(1, edit, edit / 8) for edit in range(4)] + [result(3, edit, 1 - edit / 8) for edit in range(4)]
    assert [(one.example, one.edit) for one in halved(trials, results, 1)] == [(1, 2), (1, 3), (3, 0), (3, 1)]


@pytest.mark.parametrize(
    ("number", "repeats", "keep", "expected"),
    [(5, 3, None, 15), (5, 3, 1, 10), (5, 1, 1, 5), (8, 4, 1, 16), (4, 3, 1, 8), (4, 3, 3, 12), (1, 3, 1, 3)],
)
def test_number_of_updates(number, repeats, keep, expected):
    assert num_trained(number, repeats, keep_for_halving=keep) == expected


@pytest.fixture(scope="module")
def lm():
    domain = KnowledgeDomain("{context}", grader=HashGrader(), chat=False)
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=domain, peft_config=LoraConfig(r=2))


def stage(num_examples=2, **options):
    data = ExampleSet.of(tiny_examples(num_examples), "data")
    options = {"num_generations": 4, "num_repeats": 3, "keep_for_halving": 1, **options}
    return Stage(name="s", journal=None, round=0, data=data, seed=1, **options)


def proposal(example, edit, banks, completion="some text", tokens=90):
    own = (0, SELF_EDITS, example, str(example), edit, "", completion, 4, bool(banks), tokens if banks else 0)
    return Proposal(*own, banks)


PROPOSALS = [
    proposal(0, 0, [0], "a longer text than the others"),
    proposal(0, 1, [0]),
    proposal(0, 2, [], ""),  # malformed
    proposal(0, 3, [1]),
    proposal(1, 0, [0], "a longer text than the others"),
    proposal(1, 1, [1]),
    proposal(1, 2, [1], "a longer text than the others"),
    proposal(1, 3, [1]),
]


def keys(banks):
    return {number: [one.key[1:] for one in trials] for number, trials in banks.items()}


def results_of(banks, reward):
    return {
        number: [result(one.example, one.edit, reward(*one.key[1:]), one.repeat, one.condition) for one in trials]
        for number, trials in banks.items()
    }


def test_banks_of_a_stage_that_halves(lm):
    own = stage()
    first = first_banks(lm, own, PROPOSALS)
    assert keys(first) == {
        0: [(0, 0, 0), (0, 1, 0), (1, 0, 0)],
        1: [(0, 3, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0)],
        2: [(0, 0, 0), (1, 0, 0)],
    }
    assert [one.condition for one in first[2]] == [BASE, BASE]
    # 0.2 of a repeat of self-edit 3 of example 0 is behind 0.5 of the first.
    rewards = {(0, 0): 0.5, (0, 1): 0.75, (0, 3): 0.2, (1, 0): 0.0, (1, 1): 0.5, (1, 2): 0.75, (1, 3): 0.6}
    finished = results_of(first, lambda example, edit, repeat: rewards[example, edit])
    second = next_banks(lm, own, PROPOSALS, first, finished)
    # Four adapters in one bank, as in the largest of the first; the numbers go on, long ones and short ones together.
    assert keys(second) == {3: [(0, 0, 1), (0, 1, 1), (1, 2, 1), (1, 3, 1)]}
    finished |= results_of(second, lambda example, edit, repeat: {(0, 0): 0.9}.get((example, edit), 0.0))
    third = next_banks(lm, own, PROPOSALS, second, finished)
    assert keys(third) == {4: [(0, 0, 2), (0, 1, 2), (1, 2, 2), (1, 3, 2)]}
    assert [one.self_edit for one in third[4]] == [one.self_edit for one in second[3]]
    finished |= results_of(third, lambda *key: 0.0)
    assert next_banks(lm, own, PROPOSALS, third, finished) == {}


def test_later_banks_are_no_larger_than_the_first(lm):
    own, small = (
        stage(),
        [proposal(example, edit, [2 * example + edit // 2]) for example in range(2) for edit in range(4)],
    )
    first = first_banks(lm, own, small)
    finished = results_of(first, lambda example, edit, repeat: edit / 8)
    second = next_banks(lm, own, small, first, finished)
    # The passage of example 1 is longer.
    assert keys(second) == {5: [(1, 2, 1), (1, 3, 1)], 6: [(0, 2, 1), (0, 3, 1)]}


def test_the_longest_of_those_that_go_on_share_a_bank(lm):
    own = [
        proposal(example, edit, [edit // 2], "a text of many letters" if edit == 3 else "short")
        for example in range(1)
        for edit in range(4)
    ]
    first = first_banks(lm, stage(1, keep_for_halving=2), own)
    finished = results_of(first, lambda example, edit, repeat: edit / 8)
    second = next_banks(lm, stage(1, keep_for_halving=2), own, first, finished)
    assert keys(second) == {3: [(0, 1, 1), (0, 3, 1)], 4: [(0, 2, 1)]}


@pytest.mark.parametrize("options", [{"keep_for_halving": None}, {"num_repeats": 1}])
def test_there_are_no_later_banks(lm, options):
    first = first_banks(lm, stage(**options), PROPOSALS)
    assert next_banks(lm, stage(**options), PROPOSALS, first, results_of(first, lambda *key: 0.5)) == {}


def test_a_stage_of_malformed_self_edits_alone_has_no_later_banks(lm):
    own = [proposal(0, edit, [], "") for edit in range(4)]
    first = first_banks(lm, stage(1), own)
    assert keys(first) == {0: [(0, 0, 0)]}
    assert next_banks(lm, stage(1), own, first, results_of(first, lambda *key: 0.5)) == {}


@pytest.mark.parametrize("seed", range(20))
def test_halving_to_the_end_by_a_naive_race(lm, seed):
    """Random rewards: whoever is in the last repeat of a naive race has all repeats here, and nobody else."""
    draw, own = random.Random(seed), stage(3, num_generations=5)
    proposals = [
        proposal(example, edit, [0] if draw.random() < 0.8 else []) for example in range(3) for edit in range(5)
    ]
    table = {}

    def reward(example, edit, repeat):
        return table.setdefault((example, edit, repeat), draw.choice([None, 0.0, 0.25, 0.5, 1.0]))

    banks, finished = first_banks(lm, own, proposals), {}
    while banks:
        finished |= results_of(banks, reward)
        banks = next_banks(lm, own, proposals, banks, finished)
    found = sorted(one.key[1:] for trials in finished.values() for one in trials if one.condition == SELF_EDITS)
    expected = []
    for example in range(3):
        left = [one.edit for one in proposals if one.example == example and one.banks]
        for repeat in range(3):
            expected += [(example, edit, repeat) for edit in left]
            means = {}
            for edit in left:
                graded = [table[example, edit, r] for r in range(repeat + 1) if table[example, edit, r] is not None]
                means[edit] = sum(graded) / len(graded) if graded else -1.0
            left = sorted(sorted(left), key=lambda edit: -means[edit])[: max(2, (len(left) + 1) // 2)]
    assert found == sorted(expected)


RESULTS = [
    result(0, 0, 0.25, 1),
    result(0, 0, 0.75, 0),
    result(0, 1, None, 0),
    result(0, 1, 0.5, 1),
    result(0, 3, None, 0),
    result(0, 0, 0.125, condition=BASE),
]


@pytest.mark.parametrize(("reward", "of_malformed"), [("accuracy", 0.0), ("likelihood", 0.125)])
def test_records_of_a_stage(reward, of_malformed):
    records = scored_self_edits(stage(1, reward=reward), PROPOSALS[:4], RESULTS)
    assert [record.reward for record in records] == [0.5, 0.5, of_malformed, None]
    assert [record.base_reward for record in records] == [0.125] * 4
    assert [[repeat["reward"] for repeat in record.repeats] for record in records] == [
        [0.75, 0.25],
        [None, 0.5],
        [],
        [None],
    ]
    assert records[0].tokens == 60 and records[0].seconds == 2.0
    assert set(records[0].repeats[0]) == {"seed", "reward", "answers", "verdicts", "loss"}


def test_records_of_likelihoods():
    own = [result(0, 0, -0.5, log_likelihoods=[-0.25, -0.75])]
    (record,) = scored_self_edits(stage(1, reward="likelihood"), PROPOSALS[:1], own)
    assert record.repeats[0]["log_likelihoods"] == [-0.25, -0.75]
    assert (record.reward, record.base_reward) == (-0.5, None)
