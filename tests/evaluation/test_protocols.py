"""Continued pretraining and compared conditions: who is trained on what, and asked what, by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.inner_updates import assert_same_tensors, snapshot
from helpers.protocols import (
    EXAMPLES,
    OPTIONS,
    ROWS,
    Contains,
    Domain,
    answers,
    interrupted_after,
    scored,
    stored,
    tiny_lm,
    update_of,
)
from helpers.tiny_models import tiny_llama, tiny_policy_model
from seal_hf.domains.base import BASE, SELF_EDITS, Condition
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.domains.knowledge.retrieval import retrieval_condition
from seal_hf.evaluation.conditions import ComparedCondition, with_skill, with_writer, written_in
from seal_hf.evaluation.continual import continual
from seal_hf.evaluation.continued_pretraining import continued_pretraining
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.generation.base import draw_seed
from seal_hf.inner_loop.full_finetuning import finetune
from seal_hf.records.comparison import save_comparison
from seal_hf.records.journal import Journal
from seal_hf.records.tables import results_table
from seal_hf.self_edit import SelfEdit, TrainingExample


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


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


def test_continued_pretraining_of_all_weights(tmp_path):
    lm = tiny_lm()
    lm.inner_config = replace(lm.inner_config, learning_rate=1e-3)
    before = snapshot(lm.model)
    evaluation = continued_pretraining(lm, EXAMPLES, tmp_path, full_finetuning=True, **OPTIONS)
    assert_same_tensors(lm.model, before)
    found = scored(tmp_path)
    trained = {
        SELF_EDITS: update_of(lm, *stored(lm, 0), *stored(lm, 1)),
        PASSAGE_ONLY: update_of(lm, *map(lm.domain.passage_only, EXAMPLES)),
    }
    for condition, update in trained.items():
        model, result = finetune(lm.model, update, seed=draw_seed(0, 0))
        finetuned, values = tiny_lm(model), []
        for place in (0, 1):
            (repeat,) = found[condition, place, 0].repeats
            assert repeat["answers"] == answers(finetuned, place)
            assert condition == PASSAGE_ONLY or repeat["answers"] != answers(lm, place)
            assert found[condition, place, 0].tokens == result.num_tokens == evaluation.tokens[condition]
            prompts = lm.domain.questions(EXAMPLES[place])
            own = finetuned.divergences_from_base(prompts, repeat["answers"], [None] * len(prompts), lm.model)
            values.append(sum(one.nats for one in own) / sum(one.num_tokens for one in own))
            assert repeat["kl"] == pytest.approx(values[-1], abs=1e-4) and values[-1] > 1e-3
        assert evaluation.kl[condition] == pytest.approx(np.mean(values))
    # What an adapter learned is another thing, and its records are not continued with it.
    with pytest.raises(ValueError, match="other settings: full_finetuning [(]True there, None here"):
        continued_pretraining(lm, EXAMPLES, tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lm, policy: tiny_lm(tiny_policy_model()), "Full finetuning: the model carries a policy adapter"),
        (lambda lm, policy: with_skill(lm, policy), "A skill vector is added to adapters"),
    ],
)
def test_full_finetuning_refuses_before_any_work(lm, policy, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        continued_pretraining(change(lm, policy), EXAMPLES, tmp_path / "out", full_finetuning=True, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_divergence_from_the_base_is_that_of_the_answers(lm, table):
    folder, evaluation = table
    records = [one for one in Journal(folder / "evaluation").scored(0) if one.condition == SELF_EDITS]
    by_example = {0: [], 1: []}
    for one in records:
        (repeat,) = one.repeats
        adapter = lm.adapt(lm.domain.parse(one.completion, EXAMPLES[one.example]), seed=draw_seed(0, one.example))
        prompts = lm.domain.questions(EXAMPLES[one.example])
        own = lm.divergences_from_base(prompts, repeat["answers"], [adapter] * len(prompts))
        value = sum(kl.nats for kl in own) / sum(kl.num_tokens for kl in own)
        assert repeat["kl"] == pytest.approx(value, abs=1e-6) and value > 0
        by_example[one.example].append(value)
    assert evaluation.kl[SELF_EDITS] == pytest.approx(np.mean([np.mean(own) for own in by_example.values()]))
    # Nothing is adapted in the base model, and in retrieval; in the others something is.
    assert set(evaluation.kl) == set(evaluation.accuracies) - {BASE, IN_CONTEXT, "retrieval"}
    shown = [[cell.strip() for cell in line.split("|")] for line in results_table(folder).splitlines()]
    header = next(cells for cells in shown if "KL" in cells)
    row = next(cells for cells in shown if cells[1:2] == [SELF_EDITS])
    assert row[header.index("KL")] == f"{evaluation.kl[SELF_EDITS]:.3f}"


def test_continued_pretraining_goes_on_in_the_middle(lm, tmp_path, monkeypatch):
    continued_pretraining(lm, EXAMPLES, tmp_path / "unbroken", **OPTIONS)
    call = lambda: continued_pretraining(lm, EXAMPLES, tmp_path / "broken", **OPTIONS)  # noqa: E731
    interrupted_after(1, monkeypatch, call)
    call()
    assert scored(tmp_path / "broken") == scored(tmp_path / "unbroken")
    with pytest.raises(ValueError, match="protocol [(]'continued_pretraining' there, 'single_passage' here"):
        single_passage(lm, EXAMPLES, tmp_path / "broken", **OPTIONS)


def conditions(lm, policy):
    yield ComparedCondition("by a policy", with_writer(lm, policy))
    yield ComparedCondition("implications", lm.with_domain(Domain("implications", grader=Contains())))
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
    return [one.completion for one in written_in(folder)]


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
    changed = ComparedCondition("implications", lm.with_domain(Domain("self-qa", grader=Contains())))
    with pytest.raises(
        ValueError, match="conditions/implications holds a run with other settings: domain.prompt_style"
    ):
        single_passage(lm, EXAMPLES, tmp_path, **options, compared=[changed])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a b", "c", "A-b"], "Two conditions are called 'a b' and 'A-b'; give each"),
        (["c", BASE], f"Two conditions are called '{BASE}'"),
        (["?"], "The condition '[?]' has no letter"),
    ],
)
def test_names_that_clash_are_refused_before_any_work(lm, tmp_path, names, message):
    compared = [ComparedCondition(name, lm, self_edits=ROWS) for name in names]
    for protocol in (single_passage, continual):
        with pytest.raises(ValueError, match=message):
            protocol(lm, EXAMPLES, tmp_path / "out", **OPTIONS, compared=compared)
    assert not (tmp_path / "out").exists()


def test_what_decides_the_results_of_a_condition_is_recorded(lm, tmp_path):
    def of_weights(seed):
        writer = tiny_lm(tiny_llama(initializer_range=0.3, seed=seed))
        return ComparedCondition("by another", lm, writer=writer)

    def of_text(text):
        trained = lambda example: SelfEdit("", "", (TrainingExample("", text),))  # noqa: E731
        return ComparedCondition("a text", lm, baseline=Condition("a text", lm.domain.questions, trained))

    def call(condition):
        single_passage(lm, EXAMPLES[:1], tmp_path, **OPTIONS, compared=[condition])

    for condition, other, setting in (
        (of_weights(3), of_weights(4), "writer.weights"),
        (of_text("Bees."), of_text("Owls."), "baseline"),
    ):
        call(condition)
        call(condition)
        with pytest.raises(ValueError, match=f"holds a run with other settings: {setting} "):
            call(other)


class Asking(Domain):
    """Its tool gives something else each time, and keeps another text than was written."""

    def __init__(self):
        super().__init__("rewrite", grader=Contains(), chat=True)
        self.asked = []

    @property
    def pools_drafts(self):
        return True

    def parse(self, completion, example):
        return SelfEdit(self.prompt(example), completion, (), calls=(completion,))

    def carry_out(self, self_edits, examples, ask):
        self.asked += self_edits
        return [
            replace(
                edit,
                calls=(),
                kept=f"{edit.completion} kept",
                examples=(TrainingExample("", f"{len(self.asked)}, {i}"), TrainingExample("", example["context"])),
            )
            for i, (edit, example) in enumerate(zip(self_edits, examples, strict=True))
        ]


def test_a_row_of_shared_self_edits_trains_on_what_the_tool_gave_at_first(lm, tmp_path):
    own = lm.with_domain(Asking())
    options = {**OPTIONS, "config": replace(OPTIONS["config"], num_drafts=2), "self_edits": None}
    shared = ComparedCondition("self-edits, routed", own, shares_self_edits=True, is_routed=True)

    def call(**more):
        return single_passage(own, EXAMPLES, tmp_path, **options, compared=[shared], **more)

    call()
    assert len(own.domain.asked) == 4
    first, routed = (written_in(tmp_path / name) for name in (".", "conditions/self-edits-routed"))
    assert all(one.completion.endswith(" kept") and len(one.tool_examples) == 2 for one in first)
    # The banks alone are others, since the baselines are not among them.
    assert [replace(one, banks=[]) for one in routed] == [replace(one, banks=[]) for one in first]
    records = {one.example: one for one in Journal(tmp_path / "conditions/self-edits-routed/evaluation").scored(0)}
    for place in (0, 1):
        edits = [
            SelfEdit("", "", tuple(TrainingExample(**text) for text in one.tool_examples))
            for one in first
            if one.example == place
        ]
        adapter = own.adapt(update_of(own, *edits), seed=draw_seed(0, place))
        assert records[place].tokens == adapter.training["num_tokens"]
        assert records[place].repeats[0]["answers"] == answers(own, place, adapter)
    shutil.rmtree(tmp_path / "conditions/self-edits-routed/evaluation")
    assert not call(dry_run=True).conditions["self-edits, routed"].is_estimated
    call()
    assert len(own.domain.asked) == 4 and written_in(tmp_path / "conditions/self-edits-routed") == routed
