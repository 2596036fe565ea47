"""Continued pretraining, continual learning and compared conditions: who is trained on what, and asked what, by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.domains.knowledge.retrieval import retrieval_condition
from seal_hf.evaluation.conditions import with_domain, with_skill, with_writer, written_in
from seal_hf.evaluation.continual import continual
from seal_hf.evaluation.continued_pretraining import continued_pretraining
from seal_hf.evaluation.protocol import ComparedCondition
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.generation.base import draw_seed
from seal_hf.grading import gold_answers
from seal_hf.inner_loop.update import InnerUpdate, tokenize_self_edit
from seal_hf.records.comparison import save_comparison
from seal_hf.records.continual import continual_table, matrices, save_continual
from seal_hf.records.journal import Journal
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig
from seal_hf.self_adapting_lm import SelfEdit


EXAMPLES = [
    {"title": "Bees", "context": "Ann keeps bees.", "questions": [{"question": "Who?", "answer": "a"}]},
    {
        "title": "Owls",
        "context": "Bob has owls.",
        "questions": [{"question": "What owls?", "answer": "e"}, {"question": "Where?", "answer": "o"}],
    },
]
ROWS = [{"context": one["context"], "completions": [f"{one['title']}.", f"Of {one['title']}."]} for one in EXAMPLES]
CONFIG = RolloutConfig(max_completion_length=8, max_answer_length=6, adapters_per_bank=4, disable_tqdm=True)
OPTIONS = {"config": CONFIG, "self_edits": ROWS, "num_generations": 2}


class Contains:
    def grade(self, questions, golds, answers):
        return [any(one in answer for one in gold_answers(gold)) for gold, answer in zip(golds, answers, strict=True)]


class Domain(KnowledgeDomain):
    """Without what is asked besides, which takes time."""

    def retention_example(self):
        return None

    def recitation_prompt(self, example):
        return None


def tiny_lm(model=None):
    return SelfAdaptingLM(
        model or tiny_llama(initializer_range=0.3),
        tiny_tokenizer(),
        domain=Domain("rewrite", grader=Contains()),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        inner_config=InnerLoopConfig(learning_rate=5e-2, num_train_epochs=2),
    )


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def answers(lm, place, adapter=None):
    prompts = lm.domain.questions(EXAMPLES[place])
    return lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=6)


def update_of(lm, *self_edits):
    """All that these self-edits train on, as one update."""
    updates = [tokenize_self_edit(one, lm.processing_class, lm.inner_config) for one in self_edits]
    return InnerUpdate(tuple(one for update in updates for one in update.sequences), lm.inner_config)


def stored(lm, place) -> list[SelfEdit]:
    return [lm.domain.parse(text, EXAMPLES[place]) for text in ROWS[place]["completions"]]


def scored(folder):
    """The journal by condition, example and self-edit, without what depends on the clock."""
    records = Journal(folder / "evaluation").scored(0)
    return {(one.condition, one.example, one.edit): replace(one, seconds=0.0) for one in records}


def interrupted_after(number, monkeypatch, call):
    """Let a call end with an interrupt after so many banks; without it where it has no more."""
    run_bank, done = Rollout._run_bank, []

    def counted(self, *args):
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(1)
        return run_bank(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "_run_bank", counted)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_continued_pretraining_trains_one_adapter_on_everything(lm, tmp_path):
    evaluation = continued_pretraining(lm, EXAMPLES, tmp_path, **OPTIONS)
    found = scored(tmp_path)
    assert set(found) == {(name, i, 0) for name in (BASE, IN_CONTEXT, PASSAGE_ONLY, SELF_EDITS) for i in (0, 1)}
    trained = {
        SELF_EDITS: update_of(lm, *stored(lm, 0), *stored(lm, 1)),
        PASSAGE_ONLY: update_of(lm, *map(lm.domain.passage_only, EXAMPLES)),
    }
    for condition, update in trained.items():
        adapter = lm.adapt(update, seed=draw_seed(0, 0))
        for place in (0, 1):
            record = found[condition, place, 0]
            (repeat,) = record.repeats
            assert repeat["answers"] == answers(lm, place, adapter)
            assert record.tokens == adapter.training["num_tokens"] == evaluation.tokens[condition]
    assert found[SELF_EDITS, 0, 0].completion == "Bees.\n---\nOf Bees."
    # Two self-edits about each, of so many characters with an end each.
    assert found[SELF_EDITS, 0, 0].completion_tokens == sum(len(text) + 1 for text in ROWS[0]["completions"])
    assert evaluation.accuracies[SELF_EDITS].num_questions == 3


def test_continued_pretraining_goes_on_in_the_middle(lm, tmp_path, monkeypatch):
    continued_pretraining(lm, EXAMPLES, tmp_path / "unbroken", **OPTIONS)
    call = lambda: continued_pretraining(lm, EXAMPLES, tmp_path / "broken", **OPTIONS)  # noqa: E731
    interrupted_after(1, monkeypatch, call)
    call()
    assert scored(tmp_path / "broken") == scored(tmp_path / "unbroken")
    with pytest.raises(ValueError, match="protocol [(]'continued_pretraining' there, 'single_passage' here"):
        single_passage(lm, EXAMPLES, tmp_path / "broken", **OPTIONS)


@pytest.fixture(scope="module")
def chained(lm, tmp_path_factory):
    """Two passages in two orders, the second of which is turned round."""
    folder = tmp_path_factory.mktemp("continual")
    continual(lm, EXAMPLES, folder, num_orders=2, seed=1, **OPTIONS)
    return folder


def orders_in(folder):
    """Of each order the places as they were learned."""
    results = Journal(folder / "evaluation").trials(0)
    return [
        [
            next(one.example for one in results if (one.condition, one.repeat, one.edit) == (SELF_EDITS, order, step))
            for step in (0, 1)
        ]
        for order in (0, 1)
    ]


def test_a_continual_run_of_two_passages_by_hand(lm, chained):
    orders = orders_in(chained)
    assert orders == [[0, 1], [1, 0]]
    rewards = np.full((2, 3, 2), np.nan)
    for number, (first, second) in enumerate(orders):
        one = lm.adapt(update_of(lm, *stored(lm, first)), seed=draw_seed(1, first))
        # The second adapter on a model that carries the first, as the policy is carried.
        carrying = tiny_lm(one.as_policy(tiny_llama(initializer_range=0.3)))
        both = carrying.adapt(update_of(lm, *stored(lm, second)), seed=draw_seed(1, second)).on_base()
        assert both.layout.r == 4
        said = {
            (0, 0): answers(lm, first),
            (0, 1): answers(lm, second),
            (1, 0): answers(lm, first, one),
            (2, 0): answers(lm, first, both),
            (2, 1): answers(lm, second, both),
        }
        for (row, column), texts in said.items():
            example = EXAMPLES[(first, second)[column]]
            (verdicts,) = lm.domain.grade([example], [texts])
            rewards[number, row, column] = np.mean(verdicts)
            if row:
                (result,) = (
                    own
                    for own in Journal(chained / "evaluation").trials(0)
                    if (own.condition, own.repeat, own.edit, own.example)
                    == (SELF_EDITS, number, row - 1, (first, second)[column])
                )
                assert result.answers == texts
    matrix = matrices(chained)[SELF_EDITS]
    assert matrix.num_orders == 2
    np.testing.assert_allclose(matrix.mean, rewards.mean(axis=0))
    np.testing.assert_allclose(matrix.std, rewards.std(axis=0))
    assert matrix.at_the_end == pytest.approx(rewards[:, 2].mean())
    assert matrix.when_learned == pytest.approx((rewards[:, 1, 0].mean() + rewards[:, 2, 1].mean()) / 2)


def test_what_the_chains_come_to_is_evaluated(chained):
    found = scored(chained)
    results = Journal(chained / "evaluation").trials(0)
    for place in (0, 1):
        repeats = found[SELF_EDITS, place, 0].repeats
        last = [one for one in results if (one.condition, one.edit, one.example) == (SELF_EDITS, 1, place)]
        assert [one["answers"] for one in repeats] == [one.answers for one in last] and len(repeats) == 2
    tokens = {(one.repeat, one.edit): one.tokens for one in results if one.condition == SELF_EDITS}
    assert found[SELF_EDITS, 0, 0].tokens == sum(tokens.values())
    assert not (chained / "evaluation" / "chains").exists()


@pytest.mark.parametrize("number", [3, 6])
def test_a_continual_run_goes_on_in_the_middle(lm, chained, tmp_path, monkeypatch, number):
    """With the adapter that is on the disk, and where that is gone with one that is trained again."""
    call = lambda: continual(lm, EXAMPLES, tmp_path, num_orders=2, seed=1, **OPTIONS)  # noqa: E731
    interrupted_after(number, monkeypatch, call)
    chains = tmp_path / "evaluation" / "chains"
    assert len(list(chains.iterdir())) == number - 1  # after the bank without adapters
    if number == 6:
        shutil.rmtree(chains)
    call()
    assert scored(tmp_path) == scored(chained)


def test_replay_trains_on_all_so_far(lm, chained, tmp_path):
    continual(lm, EXAMPLES, tmp_path, seed=1, replays=True, **OPTIONS)
    tokens, plain = (
        {
            (one.condition, one.edit): one.tokens
            for one in Journal(folder / "evaluation").trials(0)
            if one.repeat == 0 and one.tokens
        }
        for folder in (tmp_path, chained)
    )
    for condition in (SELF_EDITS, PASSAGE_ONLY):
        assert tokens[condition, 0] == plain[condition, 0]
        assert tokens[condition, 1] == plain[condition, 0] + plain[condition, 1]


def test_the_matrix_as_files(chained):
    json_file, _, picture = save_continual(chained)
    record = json.loads(json_file.read_text())["conditions"][SELF_EDITS]
    expected = np.nan_to_num(matrices(chained)[SELF_EDITS].mean).round(4).tolist()
    assert record["mean_over_sequences"] == expected and record["mean_over_sequences"][1][1] == 0
    assert (record["n_sequences"], record["n_datapoints"]) == (2, 2)
    assert "| learned | " in continual_table(matrices(chained))
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_orders": 0}, "num_orders=0 must be"), ({"num_generations": 0}, "num_generations=0 must be")],
)
def test_what_cannot_be_is_refused_before_any_work(lm, policy, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        continual(lm, EXAMPLES, tmp_path / "out", **{**OPTIONS, **options})
    with pytest.raises(ValueError, match="The model carries a policy, so that no adapter can be trained on top"):
        continual(tiny_lm(tiny_policy_model()), EXAMPLES, tmp_path / "out", **OPTIONS)
    with pytest.raises(ValueError, match="The model has a skill vector added to its adapters"):
        continual(with_skill(lm, policy), EXAMPLES, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def conditions(lm, policy):
    yield ComparedCondition("by a policy", with_writer(lm, policy))
    yield ComparedCondition("implications", with_domain(lm, Domain("implications", grader=Contains())))
    yield ComparedCondition("of a file", lm, self_edits=[{**row, "completions": ["A.", "B."]} for row in ROWS])
    yield ComparedCondition("another model", lm, writer=tiny_lm(tiny_llama(initializer_range=0.3, seed=3)))
    yield ComparedCondition("retrieval", lm, baseline=retrieval_condition(lm.domain, EXAMPLES))
    yield ComparedCondition("routed", lm, self_edits=ROWS[::-1], is_routed=True)
    yield ComparedCondition("skill", with_skill(lm, policy, policy, factor=0.5), self_edits=ROWS)
    yield ComparedCondition("more skill", with_skill(lm, policy, factor=0.5), self_edits=ROWS)


@pytest.fixture(scope="module")
def policy(lm):
    return lm.adapt(lm.domain.passage_only(EXAMPLES[0]), seed=5)


@pytest.fixture(scope="module")
def table(lm, policy, tmp_path_factory):
    """Every kind of condition in one evaluation, of which the own self-edits are written."""
    folder = tmp_path_factory.mktemp("table")
    options = {name: value for name, value in OPTIONS.items() if name != "self_edits"}
    return folder, single_passage(lm, EXAMPLES, folder, **options, compared=conditions(lm, policy))


def written(folder, name=None):
    folder = folder if name is None else folder / "conditions" / name
    return [row["completion"] for row in written_in(folder)]


def test_who_writes_under_every_condition(lm, policy, table):
    folder, evaluation = table
    options = {"temperature": 1.0, "top_p": 0.95, "max_completion_length": 8, "seed": 0}

    def writes(own):
        return [one.text for several in own.write_batch(EXAMPLES, 2, **options) for one in several]

    assert written(folder) == writes(lm)
    carrying = tiny_lm(policy.as_policy(tiny_llama(initializer_range=0.3)))
    assert written(folder, "by-a-policy") == writes(carrying) != writes(lm)
    assert written(folder, "another-model") == writes(tiny_lm(tiny_llama(initializer_range=0.3, seed=3)))
    assert written(folder, "of-a-file") == ["A.", "B."] * 2
    assert written(folder, "retrieval") == []
    proposals = Journal(folder / "conditions" / "implications" / "evaluation").proposals(0)
    assert proposals[0].prompt == Domain("implications", chat=True).prompt(EXAMPLES[0])
    names = ["by a policy", "implications", "of a file", "another model", "retrieval", "routed", "skill", "more skill"]
    assert set(evaluation.compared) == set(names) and set(names) < set(evaluation.accuracies)


def test_a_skill_vector_is_added_to_what_is_trained(lm, policy, table):
    folder, _ = table
    for name, parts in (("skill", ()), ("more-skill", (policy,))):
        records = Journal(folder / "conditions" / name / "evaluation").scored(0)
        (own,) = (one for one in records if (one.example, one.edit) == (1, 1))
        adapter = lm.adapt(stored(lm, 1)[1], seed=draw_seed(0, 1))
        for part in parts:
            adapter = adapter.plus(part, 0.5)
        # A policy minus itself is nothing.
        assert own.repeats[0]["answers"] == answers(lm, 1, adapter)


def test_each_question_is_routed_to_the_adapter_of_its_passage(lm, table):
    folder, _ = table
    records = Journal(folder / "conditions" / "routed" / "evaluation").scored(0)
    own = {one.example: one for one in records}
    # "What owls?" and "Where?" under the topic "Owls"; the words of the other passage under no topic at all.
    assert lm.domain.routes(EXAMPLES)({"questions": [{"question": "Bees, owls, bees?"}, {"question": "Why?"}]}) == [
        0,
        None,
    ]
    for place in (0, 1):
        adapter = lm.adapt(update_of(lm, *stored(lm, place)), seed=draw_seed(0, place))
        assert own[place].repeats[0]["answers"] == answers(lm, place, adapter)
        assert own[place].tokens == adapter.training["num_tokens"]


def test_differences_and_costs_are_those_of_the_records(table):
    folder, evaluation = table
    for one in evaluation.accuracies:
        for other in evaluation.accuracies:
            if one != other:
                difference = evaluation.differences[one, other]
                expected = evaluation.accuracies[one].value - evaluation.accuracies[other].value
                assert difference.value == pytest.approx(expected)
                assert difference.low <= difference.value <= difference.high
    records = [one for one in Journal(folder / "evaluation").scored(0) if one.condition == SELF_EDITS]
    assert evaluation.written_tokens[SELF_EDITS] == np.mean([one.completion_tokens for one in records])
    assert evaluation.written_tokens["of a file"] == 3  # two characters and an end
    assert evaluation.writing_seconds[SELF_EDITS] > 0
    assert {PASSAGE_ONLY, BASE, "retrieval"}.isdisjoint(evaluation.written_tokens)
    json_file, text, picture = save_comparison(folder)
    found = json.loads(json_file.read_text())
    assert found["conditions"]["retrieval"]["accuracy"]["value"] == evaluation.accuracies["retrieval"].value
    assert found["conditions"]["implications"]["trained_tokens"] == evaluation.tokens["implications"]
    assert len(found["differences"]) == len(evaluation.accuracies) * (len(evaluation.accuracies) - 1)
    shown = text.read_text()
    assert "self-edits minus retrieval" in shown and "implications minus passage only" in shown
    assert "tokens written" in shown and picture.read_bytes()[:4] == b"\x89PNG"


def test_a_table_goes_on_in_the_middle_and_grows(lm, policy, table, tmp_path, monkeypatch):
    folder, _ = table
    options = {name: value for name, value in OPTIONS.items() if name != "self_edits"}

    def call(*names):
        chosen = (one for one in conditions(lm, policy) if one.name in names)
        single_passage(lm, EXAMPLES, tmp_path, **options, compared=chosen)

    interrupted_after(4, monkeypatch, lambda: call("by a policy", "implications"))
    call("by a policy", "implications")
    call("retrieval")  # a later one is added
    assert scored(tmp_path) == scored(folder)
    for name in ("by-a-policy", "implications", "retrieval"):
        assert scored(tmp_path / "conditions" / name) == scored(folder / "conditions" / name)
    with pytest.raises(ValueError, match="Two conditions are called 'self-edits'"):
        single_passage(lm, EXAMPLES, tmp_path, **options, compared=[ComparedCondition(SELF_EDITS, lm)])
    changed = ComparedCondition("implications", with_domain(lm, Domain("self-qa", grader=Contains())))
    with pytest.raises(
        ValueError, match="conditions/implications holds a run with other settings: domain.prompt_style"
    ):
        single_passage(lm, EXAMPLES, tmp_path, **options, compared=[changed])
