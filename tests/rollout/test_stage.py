"""Which trials a stage has, in which banks, and what its records come to."""

import pytest
from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from peft import LoraConfig

from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.records.journal import BASE, SELF_EDITS, Proposal, TrialResult
from seal_hf.rollout.examples import ExampleSet
from seal_hf.rollout.stage import Stage, scored_self_edits, stage_banks


def result(example, edit, reward, repeat=0, condition=SELF_EDITS):
    return TrialResult(condition, example, edit, repeat, 7, reward, ["a"], [True], 0.5, 30, 1.0)


@pytest.fixture(scope="module")
def lm():
    domain = KnowledgeDomain("{context}", grader=HashGrader(), chat=False)
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=domain, peft_config=LoraConfig(r=2))


def stage(num_examples=2, **options):
    data = ExampleSet.of(tiny_examples(num_examples), "data")
    options = {"num_generations": 4, "num_repeats": 3, **options}
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


def test_banks_of_a_stage(lm):
    assert keys(stage_banks(lm, stage(), PROPOSALS)) == {
        0: [(0, 0, 0), (0, 1, 0), (1, 0, 0)],
        1: [(0, 3, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0)],
        2: [(0, 0, 0), (1, 0, 0)],
    }
    assert [one.condition for one in stage_banks(lm, stage(), PROPOSALS)[2]] == [BASE, BASE]


def test_a_stage_of_malformed_self_edits_asks_the_base_alone(lm):
    own = [proposal(0, edit, [], "") for edit in range(4)]
    assert keys(stage_banks(lm, stage(1), own)) == {0: [(0, 0, 0)]}


RESULTS = [
    result(0, 0, 0.25, 1),
    result(0, 0, 0.75, 0),
    result(0, 1, None, 0),
    result(0, 1, 0.5, 1),
    result(0, 3, None, 0),
    result(0, 0, 0.125, condition=BASE),
]


def test_records_of_a_stage():
    records = scored_self_edits(stage(1), PROPOSALS[:4], RESULTS)
    assert [record.reward for record in records] == [0.5, 0.5, 0.0, None]
    assert [record.base_reward for record in records] == [0.125] * 4
    assert [[repeat["reward"] for repeat in record.repeats] for record in records] == [
        [0.75, 0.25],
        [None, 0.5],
        [],
        [None],
    ]
    assert records[0].tokens == 60 and records[0].seconds == 2.0
    assert set(records[0].repeats[0]) == {"seed", "reward", "answers", "verdicts", "loss"}
