"""The plan of an evaluation against what the evaluation then does, for every protocol."""

from dataclasses import replace

import pytest

from helpers.counted_work import count_work
from helpers.protocols import (
    CONFIG,
    EXAMPLES,
    OPTIONS,
    ROWS,
    Contains,
    Domain,
    interrupted_after,
    tiny_lm,
    update_of,
)
from seal_hf.domains import Domain as BaseDomain
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.domains.knowledge.retrieval import retrieval_condition
from seal_hf.domains.knowledge.rivals import SPADomain
from seal_hf.evaluation.conditions import ComparedCondition, with_skill
from seal_hf.evaluation.continual import continual
from seal_hf.evaluation.continued_pretraining import continued_pretraining
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.rollout.bank_schedule import work_of
from seal_hf.rollout.planning import Counts
from seal_hf.rollout.probe import Pace


WRITING = {"config": CONFIG, "num_generations": 2}


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture
def done(monkeypatch):
    """Counts what is really done from now on."""
    return count_work(monkeypatch)


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    """A machine of a known pace, on which the bank that was measured is noted."""
    banks = []

    def measure_pace(lm, condition, examples, num_adapters):
        banks.append(num_adapters)
        return Pace(tokens_per_second=10.0, prompt_seconds=2.0, token_seconds=1.0)

    monkeypatch.setattr("seal_hf.evaluation.plan.measure_pace", measure_pace)
    return banks


def everything(plan):
    return sum(plan.conditions.values(), Counts())


@pytest.fixture(scope="module")
def skill(lm):
    return lm.adapt(lm.domain.passage_only(EXAMPLES[0]), seed=5)


def conditions(lm, skill):
    return [
        ComparedCondition("retrieval", lm, baseline=retrieval_condition(lm.domain, EXAMPLES)),
        ComparedCondition("routed", lm, shares_self_edits=True, is_routed=True),
        ComparedCondition("of a file", lm, self_edits=[{**row, "completions": ["Same.", "Same."]} for row in ROWS]),
        ComparedCondition("skill", with_skill(lm, skill), self_edits=ROWS),
    ]


PROTOCOLS = [
    (single_passage, {}),
    (continued_pretraining, {}),
    (continued_pretraining, {"full_finetuning": True}),
    (continual, {"num_orders": 2, "remedies": ("routed", "ties")}),
]


@pytest.mark.parametrize(("protocol", "options"), PROTOCOLS)
def test_a_plan_is_what_is_then_done(lm, skill, done, probed, tmp_path, protocol, options):
    """With recitations and general questions."""
    own = lm.with_domain(KnowledgeDomain("rewrite", grader=Contains()))
    options = {**OPTIONS, **options, "compared": conditions(own, skill) if protocol is single_passage else []}
    plan = protocol(own, EXAMPLES, tmp_path / "out", **options, dry_run=True)
    assert done == Counts() and not (tmp_path / "out").exists()
    assert (plan.protocol, plan.num_examples, plan.num_questions) == (protocol.__name__, 2, 3)
    protocol(own, EXAMPLES, tmp_path / "out", **options)
    found = everything(plan)
    assert found.adapters == done.adapters > 0 and found.prompts_to_answer == done.prompts_to_answer > 0
    assert found.prompts_to_write == done.prompts_to_write == 0
    # Self-edits that another row shares are known once they are written.
    assert found.is_estimated == (options.get("remedies") is not None or bool(options["compared"]))
    assert (plan.seconds is None) == ("full_finetuning" in options) == (probed == [])
    left = protocol(own, EXAMPLES, tmp_path / "out", **options, dry_run=True)
    assert everything(left) == Counts() and left.conditions.keys() == plan.conditions.keys()


@pytest.mark.parametrize(("protocol", "options"), PROTOCOLS)
def test_the_tokens_of_stored_self_edits_are_exact(lm, done, tmp_path, protocol, options):
    options = {name: value for name, value in options.items() if name != "remedies"}
    call = lambda **more: protocol(lm, EXAMPLES, tmp_path / "out", **OPTIONS, **options, **more)  # noqa: E731
    plan = call(dry_run=True)
    call()
    assert everything(plan) == done and done.tokens > 0 and done.adapters_per_bank > 0
    assert plan.conditions[BASE] == plan.conditions[IN_CONTEXT] == Counts(prompts_to_answer=3)
    assert "~" not in str(plan)


def test_remedies_are_counted_exactly_once_the_self_edits_are_written(lm, done, tmp_path):
    remedies, own = ("replay", "routed", "dare_linear"), {"num_orders": 2, "replay_share": 0.5}
    continual(lm, EXAMPLES, tmp_path, **OPTIONS, **own)
    done.adapters = done.tokens = done.prompts_to_answer = done.adapters_per_bank = 0
    plan = continual(lm, EXAMPLES, tmp_path, **OPTIONS, **own, remedies=remedies, dry_run=True)
    assert plan.conditions[SELF_EDITS] == Counts() and not (tmp_path / "conditions").exists()
    continual(lm, EXAMPLES, tmp_path, **OPTIONS, **own, remedies=remedies)
    assert everything(plan) == done
    # Two in each of two orders, or two apart.
    found = {name: counts.adapters for name, counts in plan.conditions.items() if counts.adapters}
    assert found == {f"{SELF_EDITS}, {name}": number for name, number in zip(remedies, (4, 2, 2), strict=True)}


def test_what_is_not_written_yet_is_taken_to_be_as_long_as_the_passage(lm, done, tmp_path):
    call = lambda **more: single_passage(lm, EXAMPLES, tmp_path / "out", **WRITING, **more)  # noqa: E731
    plan = call(dry_run=True)
    passages = [work_of(update_of(lm, lm.domain.passage_only(example))).num_tokens for example in EXAMPLES]
    own, passage = plan.conditions[SELF_EDITS], plan.conditions[PASSAGE_ONLY]
    assert own.is_estimated and own.tokens == 2 * 2 * sum(passages) and own.prompts_to_write == 4
    assert not passage.is_estimated and passage.tokens == sum(passages)
    assert f"~{own.tokens:,}" in str(plan) and "is estimated" in str(plan)
    # What is trained at ten tokens a second, two seconds a prompt, one a token of 8 at most and 6 of answers.
    found = everything(plan)
    assert found.tokens_to_write == 2 * 2 * 8 and min(passages) / lm.inner_config.num_train_epochs > 8
    expected = found.tokens / 10 + 2 * (4 + found.prompts_to_answer) + 32 + 6 * found.prompts_to_answer
    assert plan.seconds == pytest.approx(expected)
    call()
    assert (own.prompts_to_write, found.prompts_to_answer) == (done.prompts_to_write, done.prompts_to_answer)
    assert found.adapters == done.adapters  # all that the tiny model writes is well-formed, and no two are the same


def test_parts_are_as_long_as_what_is_in_them(lm, tmp_path):
    """A self-edit of which every sentence has a part is not longer for that."""
    example = {**EXAMPLES[0], "context": "Ann keeps bees. Bob has owls. Cleo paints them."}
    own = lm.with_domain(Domain("questions-by-fact", grader=Contains()))
    plan = single_passage(own, [example], tmp_path, config=CONFIG, dry_run=True)
    counts, passage = plan.conditions[SELF_EDITS], plan.conditions[PASSAGE_ONLY].tokens
    assert counts.prompts_to_write == 3 and 2 * passage < counts.tokens < 4 * passage
    sentences = ("Ann keeps bees.", "Bob has owls.", "Cleo paints them.")
    parts = [own.domain.passage_only({**example, "context": sentence}) for sentence in sentences]
    assert counts.tokens == passage + sum(work_of(update_of(own, part)).num_tokens for part in parts)


def test_a_method_of_many_prompts(lm, done, tmp_path):
    spa = ComparedCondition("SPA", lm.with_domain(SPADomain(grader=Contains())))
    options = {**OPTIONS, "num_generations": 1, "compared": [spa]}
    plan = single_passage(lm, EXAMPLES[:1], tmp_path, **options, dry_run=True)
    single_passage(lm, EXAMPLES[:1], tmp_path, **options)
    assert plan.conditions["SPA"].prompts_to_write == done.prompts_to_write == 7
    assert everything(plan).adapters == done.adapters


def test_adapters_apart_are_trained_in_banks_as_large_as_those_of_the_self_edits(lm, done, tmp_path):
    routed = ComparedCondition("routed", lm, shares_self_edits=True, is_routed=True)
    for size in (1, 2):
        done.adapters = done.adapters_per_bank = 0
        options = {**OPTIONS, "config": replace(CONFIG, adapters_per_bank=size)}
        single_passage(lm, EXAMPLES, tmp_path / f"routed {size}", **options, compared=[routed])
        continual(lm, EXAMPLES, tmp_path / f"merged {size}", **options, remedies=("routed", "ties"))
        assert done.adapters_per_bank == size and done.adapters == 6 + 2 + 4 + 2 * 2


@pytest.mark.parametrize(("protocol", "number"), [(single_passage, 0), (single_passage, 1), (continual, 2)])
def test_the_plan_of_an_interrupted_evaluation_is_what_is_left(lm, done, tmp_path, monkeypatch, protocol, number):
    call = lambda **more: protocol(lm, EXAMPLES, tmp_path, **OPTIONS, **more)  # noqa: E731
    interrupted_after(number, monkeypatch, call)
    done.adapters = done.tokens = done.prompts_to_answer = done.adapters_per_bank = 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    plan = call(dry_run=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    call()
    assert everything(plan) == done != Counts()


class Untrained(BaseDomain):
    """A task without a baseline that trains."""

    def prompt(self, example):
        return "Write: "

    def parse(self, completion, example):
        return KnowledgeDomain(chat=False).parse(completion, {"context": "Bees hum."})

    def questions(self, example):
        return ["One: ", "Two: "]

    def grade(self, examples, answers):
        return [[True] for _ in examples]


def test_without_a_baseline_that_trains_the_length_is_unknown(lm, done, tmp_path):
    own = lm.with_domain(Untrained())
    plan = single_passage(own, [{}, {"id": "2"}], tmp_path, **WRITING, dry_run=True)
    assert plan.seconds is None and plan.conditions[SELF_EDITS].tokens == 0
    row = next(line for line in str(plan).splitlines() if line.startswith("| self-edits"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [SELF_EDITS, "4", "4", "unknown", "unknown", "8"]


def test_a_dry_run_refuses_what_the_run_would(lm, tmp_path):
    single_passage(lm, EXAMPLES, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="holds a run with other settings: seed [(]0 there, 1 here"):
        single_passage(lm, EXAMPLES, tmp_path, **OPTIONS, seed=1, dry_run=True)
    with pytest.raises(ValueError, match="no completion about example 1 [(]'Owls'"):
        single_passage(lm, EXAMPLES, tmp_path / "out", **OPTIONS | {"self_edits": ROWS[:1]}, dry_run=True)
