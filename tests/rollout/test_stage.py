"""Which trials a stage has, in which banks, what each is asked, and what its records come to."""

from itertools import chain

import pytest
from peft import LoraConfig

from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import EOS_ID, tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import PASSAGE_ONLY
from seal_hf.inner_loop.update import InnerUpdate, TrainingSequence
from seal_hf.records.journal import Journal
from seal_hf.records.schema import Proposal, TrialResult
from seal_hf.rollout.examples import ExampleSet, check_examples
from seal_hf.rollout.processes import Processes
from seal_hf.rollout.rewards import scored_self_edits
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig, Stage, Trial, stage_banks


CONFIG = RolloutConfig(max_completion_length=10, max_answer_length=6, adapters_per_bank=3, disable_tqdm=True)


def result(example, edit, reward, repeat=0, condition=SELF_EDITS):
    return TrialResult(condition, example, edit, repeat, 7, reward, ["a"], [True], 0.5, 30, 1.0)


@pytest.fixture(scope="module")
def lm():
    domain = KnowledgeDomain("{context}", grader=HashGrader(), chat=False)
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=domain, peft_config=LoraConfig(r=2))


def stage(num_examples=2, folder=None, **options):
    data = ExampleSet.of(tiny_examples(num_examples), "data")
    baselines = KnowledgeDomain(chat=False).conditions[:1]
    options = {"num_generations": 4, "inner_seeds": (5, 6, 7), "baselines": baselines, **options}
    journal = None if folder is None else Journal(folder)
    return Stage(name="s", journal=journal, round=0, data=data, seed=1, **options)


def proposal(example, edit, banks, condition=SELF_EDITS):
    return Proposal(0, condition, example, str(example), edit, "", "some text", 4, bool(banks), 90, banks)


UPDATE = InnerUpdate((TrainingSequence((1, 2, 3)),))
PROPOSALS = [
    proposal(0, 0, [0, 2]),
    proposal(0, 1, [0, 2]),
    proposal(0, 2, []),  # malformed
    proposal(0, 3, [1, 3]),
    proposal(1, 0, [0, 2]),
    proposal(1, 1, [1, 3]),
]
UPDATES = [UPDATE if one.banks else None for one in PROPOSALS]


def keys(banks):
    return {number: [key[1:] for one in trials for key in one.keys] for number, trials in banks.items()}


def test_banks_of_a_stage(lm):
    banks = stage_banks(stage(), PROPOSALS, UPDATES, lm.domain.questions)
    assert keys(banks) == {
        0: [(0, 0, 0), (0, 1, 0), (1, 0, 0)],
        1: [(0, 3, 0), (1, 1, 0)],
        2: [(0, 0, 1), (0, 1, 1), (1, 0, 1)],
        3: [(0, 3, 1), (1, 1, 1)],
        4: [(0, 0, 0), (1, 0, 0)],
    }
    assert [(one.condition, one.update) for one in banks[4]] == [(BASE, None)] * 2
    assert [one.update for one in banks[0]] == [UPDATE] * 3
    assert banks[0][0].cost(max_answer_length=6) == 3 * UPDATE.config.num_train_epochs + 6
    assert banks[4][0].cost(max_answer_length=6) == 6


def test_an_evaluation_has_a_seed_for_each_example_and_repeat():
    trials = [Trial(SELF_EDITS, edit, repeat, UPDATE, (example,), None) for edit, repeat, example in
              ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]  # fmt: skip
    seeds = list(map(stage(is_evaluation=True).inner_seed, trials))
    assert seeds[0] == seeds[1] and len(set(seeds)) == 3  # self-edits of one example share theirs
    assert list(map(stage().inner_seed, trials)) == [5, 5, 6, 5]


def test_a_stage_of_malformed_self_edits_asks_the_base_alone(lm):
    own = [proposal(0, edit, []) for edit in range(4)]
    assert keys(stage_banks(stage(1), own, [None] * 4, lm.domain.questions)) == {0: [(0, 0, 0)]}


def test_every_condition_asks_its_own_questions(lm):
    own = stage(1, baselines=lm.domain.conditions, is_evaluation=True)
    proposals = [proposal(0, 0, [0]), proposal(0, 0, [0], PASSAGE_ONLY)]
    banks = stage_banks(own, proposals, [UPDATE, UPDATE], lm.domain.questions)
    example = own.data.examples[0]
    closed_book, in_view = lm.domain.questions(example), lm.domain.questions_in_context(example)
    assert [one.questions(example) for one in banks[0]] == [closed_book, closed_book]
    assert [one.questions(example) for one in banks[1]] == [closed_book, in_view]
    assert [one.condition for one in own.untrained_proposals()] == [BASE, "passage in context"]


def test_records_of_a_stage():
    results = [
        *(result(0, 0, 0.25, 1), result(0, 0, 0.75, 0), result(0, 1, None, 0), result(0, 1, 0.5, 1)),
        *(result(0, 3, None, 0), result(0, 0, 0.125, condition=BASE)),
    ]
    records = scored_self_edits(stage(1), PROPOSALS[:4], results)
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


def test_a_completion_is_parsed_and_tokenized_once(lm, tmp_path, monkeypatch):
    parsed, tokenized = [], []
    parse = lm.domain.parse
    monkeypatch.setattr(lm.domain, "parse", lambda completion, example: parsed.append(1) or parse(completion, example))
    from seal_hf.rollout import proposals as module

    tokenize = module.tokenize_self_edit
    monkeypatch.setattr(module, "tokenize_self_edit", lambda *args: tokenized.append(1) or tokenize(*args))
    own = stage(2, tmp_path)
    rollout = Rollout(lm, CONFIG, Processes(tmp_path))
    scored = rollout.score(own, rollout.propose(own))
    assert len(scored) == len(parsed) == len(tokenized) == 8
    assert all(len(edit.repeats) == 3 for edit in scored if edit.well_formed)


def test_what_is_trained_is_apart_from_who_is_asked(lm, tmp_path):
    """One adapter on two self-edits, asked about every example; and one on the first passage, asked about the second."""
    own = stage(3, tmp_path, num_generations=1)
    rollout = Rollout(lm, CONFIG, Processes(tmp_path))
    updates = rollout.updates_of(own, rollout.propose(own)[:2])
    both = InnerUpdate(tuple(chain.from_iterable(update.sequences for update in updates)), lm.inner_config)
    trials = [
        Trial("both", 0, 1, both, (0, 1, 2), lm.domain.questions),
        Trial("first", 0, 1, updates[0], (1,), lm.domain.questions),
        Trial("nothing", 0, 1, None, (2,), lm.domain.questions),
    ]
    results = rollout.run(own, {0: trials})
    assert [one.key for one in results] == [
        *(("both", place, 0, 1) for place in range(3)),
        ("first", 1, 0, 1),
        ("nothing", 2, 0, 1),
    ]
    adapters = lm.adapt([both, updates[0]], seed=own.inner_seeds[1])
    for one, adapter in zip(results, [*[adapters[0]] * 3, adapters[1], None], strict=True):
        prompts = lm.domain.questions(own.data.examples[one.example])
        assert one.answers == lm.answer_prompts(prompts, [adapter] * 3, max_answer_length=6)
        assert one.reward == sum(one.verdicts) / 3
    assert results[0].tokens == sum(len(one.input_ids) for one in both.sequences) * lm.inner_config.num_train_epochs
    # Finished banks are on disk and not run again.
    lm_adapt = lm.adapt
    try:
        lm.adapt = None
        assert rollout.run(own, {0: trials}) == results
    finally:
        lm.adapt = lm_adapt


def test_self_edits_are_no_longer_than_the_context_allows(tmp_path):
    model = tiny_llama(max_position_embeddings=290)
    lm = SelfAdaptingLM(model, tiny_tokenizer(), domain=KnowledgeDomain("{context}", chat=False))
    own = stage(2, tmp_path, num_generations=2)
    check_examples(lm, own.data, "data", 2048, 6)
    config = RolloutConfig(adapters_per_bank=3, disable_tqdm=True)
    assert config.max_completion_length == 2048
    for one in Rollout(lm, config, Processes(tmp_path)).propose(own):
        room = 290 - len(one.prompt)  # a token a character
        assert one.completion_tokens == len(one.completion_ids) <= room
        assert one.finished or one.completion_tokens == room
        assert one.finished == (one.completion_ids[-1] == EOS_ID)


def test_a_prompt_that_leaves_little_of_the_context_is_refused():
    lm = SelfAdaptingLM(
        tiny_llama(max_position_embeddings=290), tiny_tokenizer(), domain=KnowledgeDomain("{context}", chat=False)
    )
    long = [{**tiny_examples(1)[0], "context": "a" * 35}]
    with pytest.raises(ValueError) as raised:
        check_examples(lm, ExampleSet.of(long, "data"), "data", 2048, 6)
    assert str(raised.value) == (
        "data: example 0 has a prompt of 35 tokens, which leaves fewer than 256 of the model's context of 290 for a "
        "self-edit; shorten or drop the example."
    )
    check_examples(lm, ExampleSet.of(long, "data"), "data", 255, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 0}, "num_generations=0 must be a whole number of at least 1"),
        ({"inner_seeds": (5, -1)}, "The seed -1 of an inner update must be"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stage(**options)


@pytest.mark.parametrize("verdicts", [[[True] * 3], [[True] * 3, []], [True, False]])
def test_verdicts_that_are_not_one_list_for_each_example_are_refused(lm, tmp_path, monkeypatch, verdicts):
    monkeypatch.setattr(lm.domain, "grade", lambda examples, answers: verdicts)
    own = stage(2, tmp_path, num_generations=1)
    with pytest.raises(ValueError, match=r"KnowledgeDomain.grade\(\) must return a list for each of the 2 examples"):
        Rollout(lm, CONFIG, Processes(tmp_path)).run(
            own, {0: [Trial("base", 0, 0, None, (0, 1), lm.domain.questions)]}
        )


def test_a_self_edit_that_is_read_in_another_way_than_it_was_recorded_is_not_scored(lm, tmp_path, monkeypatch):
    own = stage(2, tmp_path)
    Rollout(lm, CONFIG, Processes(tmp_path)).propose(own)
    monkeypatch.setattr(lm.domain, "parse", lambda completion, example: None)
    resumed = Rollout(lm, CONFIG, Processes(tmp_path))
    with pytest.raises(
        ValueError, match="is not read as it was when it was recorded; use the domain that recorded it"
    ):
        resumed.score(own, resumed.propose(own))


def test_stages_do_not_share_what_is_trained(lm, tmp_path):
    rollout = Rollout(lm, CONFIG, Processes(tmp_path))
    first, second = stage(1, tmp_path / "first"), stage(2, tmp_path / "second", num_generations=2)
    proposals = rollout.propose(first)
    alone = rollout.updates_of(first, proposals)
    rollout.propose(second)
    assert rollout.updates_of(first, proposals) == alone
