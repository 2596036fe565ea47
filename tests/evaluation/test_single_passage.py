"""The single-passage protocol: which model answers what, and how its results are summed up."""

import pytest
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from peft import LoraConfig

from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import Domain, KnowledgeDomain
from seal_hf.evaluation.single_passage import (
    CONDITIONS,
    IN_CONTEXT,
    PASSAGE_ONLY,
    SELF_EDITS,
    PassageResult,
    single_passage,
    summarize,
)
from seal_hf.grading import GradingIncomplete


EXAMPLES = [
    {"title": "Bees", "context": "Ann keeps bees in Vell.", "questions": [{"question": "Who?", "answer": "Ann"}]},
    {
        "title": "Moths",
        "context": "Bob counts moths at Orr.",
        "questions": [{"question": "What?", "answer": "moths"}, {"question": "Where?", "answer": "Orr"}],
    },
    {"title": "Owls", "context": "Cleo paints owls.", "questions": [{"question": "Who?", "answer": "Cleo"}]},
]
OPTIONS = {"num_generations": 2, "max_completion_length": 12, "max_answer_length": 8, "passages_per_bank": 2}


class SameVerdictGrader:
    """Gives every answer the same verdict."""

    def __init__(self, verdict=True):
        self.verdict = verdict

    def grade(self, questions, golds, answers):
        return [self.verdict for _ in questions]


def tiny_lm(grader):
    return SelfAdaptingLM(
        tiny_llama(initializer_range=0.3),
        tiny_tokenizer(),
        domain=KnowledgeDomain("rewrite", grader=grader),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=3),
    )


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(SameVerdictGrader())


@pytest.fixture(scope="module")
def results(lm):
    return list(single_passage(lm, EXAMPLES, **OPTIONS))


def test_every_condition_answers_every_question(results):
    assert [result.title for result in results] == ["Bees", "Moths", "Owls"]
    for example, result in zip(EXAMPLES, results, strict=True):
        num_questions = len(example["questions"])
        assert len(result.self_edits) == 2
        assert set(result.answers) == set(result.verdicts) == set(CONDITIONS)
        for condition in CONDITIONS:
            num_runs = 2 if condition == SELF_EDITS else 1
            assert [len(run) for run in result.answers[condition]] == [num_questions] * num_runs
            assert result.verdicts[condition] == [[True] * num_questions] * num_runs


def test_answers_are_those_of_the_named_model(lm, results):
    domain, example, result = lm.domain, EXAMPLES[1], results[1]
    closed_book = domain.questions(example)

    def answers(prompts, adapter=None):
        return lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=8)

    assert result.answers["base"] == [answers(closed_book)]
    assert result.answers[IN_CONTEXT] == [answers(domain.questions_in_context(example))]
    assert result.answers[PASSAGE_ONLY] == [answers(closed_book, lm.adapt(domain.passage_only(example)))]
    assert result.answers[SELF_EDITS] == [answers(closed_book, lm.adapt(edit)) for edit in result.self_edits]
    everything = [str(run) for condition in CONDITIONS for run in result.answers[condition]]
    assert len(set(everything)) == len(everything)


def test_goes_on_where_it_ended(lm, results):
    assert list(single_passage(lm, EXAMPLES, start=2, **OPTIONS)) == results[2:]


def test_ungraded_answer_stops_the_run():
    protocol = single_passage(tiny_lm(SameVerdictGrader(verdict=None)), EXAMPLES, **OPTIONS)
    with pytest.raises(GradingIncomplete, match="could not be graded"):
        next(protocol)


def test_other_domains_are_refused(lm):
    other = SelfAdaptingLM(lm.model, lm.processing_class, domain=Domain())
    with pytest.raises(TypeError, match="needs a KnowledgeDomain, not a Domain"):
        next(single_passage(other, EXAMPLES))


def result_of(verdicts):
    """A result from its verdicts: base, in context, passage only, then one list per self-edit."""
    base, in_context, passage_only, *self_edits = verdicts
    runs = dict(zip(CONDITIONS, ([base], [in_context], [passage_only], self_edits), strict=True))
    return PassageResult("", tuple(self_edits), {}, runs)


def test_summary():
    right, wrong = True, False
    results = [
        result_of([[wrong, wrong], [right, right], [right, wrong], [right, right], [right, wrong]]),
        result_of([[wrong], [right], [wrong], [wrong], [right]]),
    ]
    summary = summarize(results)
    assert summary.num_self_edits == 4
    values = {condition: summary.accuracies[condition].value for condition in CONDITIONS}
    # Passages weigh alike: self-edits (3/4 + 1/2) / 2, passage only (1/2 + 0) / 2.
    assert values == {"base": 0.0, IN_CONTEXT: 1.0, PASSAGE_ONLY: 0.25, SELF_EDITS: 0.625}
    differences = {condition: difference.value for condition, difference in summary.differences.items()}
    assert differences == {"base": 0.625, IN_CONTEXT: -0.375, PASSAGE_ONLY: 0.375}


def test_passage_without_self_edits_counts_as_the_base():
    summary = summarize([result_of([[True, False], [True, True], [True, True]])])
    assert summary.accuracies[SELF_EDITS].value == 0.5
    assert summary.differences["base"].value == 0.0
