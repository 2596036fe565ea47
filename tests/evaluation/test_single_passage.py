"""The single-passage protocol: which model answers what, and what is on disk of it."""

import pytest
from peft import LoraConfig

from helpers.protocols import Contains, interrupted_after
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import Domain, KnowledgeDomain
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.generation.base import Generation, TextGenerator, draw_seed
from seal_hf.grading import GradingIncomplete
from seal_hf.records.journal import Journal
from seal_hf.records.report import evaluations
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig


EXAMPLES = [
    {"title": "Bees", "context": "Ann keeps bees in Vell.", "questions": [{"question": "Who?", "answer": "Ann"}]},
    {
        "title": "Moths",
        "context": "Bob counts moths at Orr.",
        "questions": [{"question": "What?", "answer": "moths"}, {"question": "Where?", "answer": "Orr"}],
    },
    {"title": "Owls", "context": "Cleo paints owls.", "questions": [{"question": "Who?", "answer": "Cleo"}]},
]
CONDITIONS = (BASE, IN_CONTEXT, PASSAGE_ONLY, SELF_EDITS)
SEED_OF_1 = draw_seed(0, 1)  # of all adapters of the second example
CONFIG = RolloutConfig(max_completion_length=12, max_answer_length=8, adapters_per_bank=4, disable_tqdm=True)


class SameVerdictGrader:
    """Gives every answer the same verdict."""

    def __init__(self, verdict=True):
        self.verdict = verdict

    def grade(self, questions, golds, answers):
        return [self.verdict for _ in questions]


def tiny_lm(grader, domain=None):
    return SelfAdaptingLM(
        tiny_llama(initializer_range=0.3),
        tiny_tokenizer(),
        domain=domain or KnowledgeDomain("rewrite", grader=grader),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=3),
    )


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(SameVerdictGrader())


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    single_passage(lm, EXAMPLES, folder, num_generations=2, config=CONFIG)
    return folder


def answers_of(folder, place, condition):
    """The answers under a condition, of each self-edit."""
    scored = Journal(folder / "evaluation").scored(0)
    return [one.repeats[0]["answers"] for one in scored if (one.example, one.condition) == (place, condition)]


def test_every_condition_answers_every_question(lm, folder):
    scored = Journal(folder / "evaluation").scored(0)
    assert {edit.condition for edit in scored} == set(CONDITIONS)
    for place, example in enumerate(EXAMPLES):
        for condition in CONDITIONS:
            answers = answers_of(folder, place, condition)
            assert [len(own) for own in answers] == [len(example["questions"])] * (2 if condition == SELF_EDITS else 1)
    assert all(repeat["verdicts"] == [True] * len(repeat["answers"]) for edit in scored for repeat in edit.repeats)
    (evaluation,) = evaluations(Journal(folder / "evaluation"))
    assert list(evaluation.accuracies) == list(CONDITIONS) and evaluation.reference == PASSAGE_ONLY
    assert {value.value for value in evaluation.accuracies.values()} == {1.0}
    assert {value.value for value in evaluation.gains.values()} == {0.0} and len(evaluation.gains) == 3


def test_answers_are_those_of_the_named_model(lm, folder):
    domain, example = lm.domain, EXAMPLES[1]
    closed_book = domain.questions(example)
    proposals = Journal(folder / "evaluation").proposals(0)
    completions = [one.completion for one in proposals if (one.example, one.condition) == (1, SELF_EDITS)]

    def answers(prompts, adapter=None):
        return lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=8)

    assert answers_of(folder, 1, BASE) == [answers(closed_book)]
    assert answers_of(folder, 1, IN_CONTEXT) == [answers(domain.questions_in_context(example))]
    assert answers_of(folder, 1, PASSAGE_ONLY) == [
        answers(closed_book, lm.adapt(domain.passage_only(example), seed=SEED_OF_1))
    ]
    adapters = [lm.adapt(domain.parse(completion, example), seed=SEED_OF_1) for completion in completions]
    assert answers_of(folder, 1, SELF_EDITS) == [answers(closed_book, adapter) for adapter in adapters]
    everything = [str(own) for condition in CONDITIONS for own in answers_of(folder, 1, condition)]
    assert len(set(everything)) == len(everything)


def test_base_and_adapters_are_asked_for_a_recitation_too(lm, folder):
    """What each says to "Tell me about ..." is graded as the answer to every question."""
    domain, example = lm.domain, EXAMPLES[1]
    prompt = domain.recitation_prompt(example)
    assert "Moths" in str(prompt) and "Bob" not in str(prompt)
    scored = [edit for edit in Journal(folder / "evaluation").scored(0) if edit.example == 1]
    by_condition = {edit.condition: edit.repeats[0] for edit in scored if edit.edit == 0}
    assert by_condition[IN_CONTEXT]["recitation"] is None
    proposals = Journal(folder / "evaluation").proposals(0)
    (completion,) = (
        one.completion for one in proposals if (one.example, one.condition, one.edit) == (1, SELF_EDITS, 0)
    )
    trained = {PASSAGE_ONLY: domain.passage_only(example), SELF_EDITS: domain.parse(completion, example)}
    adapters = {name: lm.adapt(self_edit, seed=SEED_OF_1) for name, self_edit in trained.items()}
    for condition, adapter in {BASE: None, **adapters}.items():
        (text,) = lm.answer_prompts([prompt], [adapter], max_answer_length=8)
        assert by_condition[condition]["recitation"] == {"answer": text, "verdicts": [True, True]}
    for repeat in by_condition.values():
        assert repeat["recited"] == domain.recited(example, repeat["answers"])
        assert repeat["short"] == domain.short(example, repeat["answers"])


def test_the_base_once_and_every_adapter_are_asked_what_they_retain(lm, folder):
    domain = lm.domain
    prompts = domain.questions(domain.retention_example())
    scored = Journal(folder / "evaluation").scored(0)
    found = {(edit.condition, edit.example, edit.edit): edit.repeats[0]["retention"] for edit in scored}
    asked = [
        (BASE, 0, 0),
        *((PASSAGE_ONLY, i, 0) for i in range(3)),
        *((SELF_EDITS, i, j) for i in range(3) for j in (0, 1)),
    ]
    assert {key for key, own in found.items() if own is not None} == set(asked)
    adapter = lm.adapt(domain.passage_only(EXAMPLES[1]), seed=SEED_OF_1)
    for key, own in (((BASE, 0, 0), None), ((PASSAGE_ONLY, 1, 0), adapter)):
        answers = lm.answer_prompts(prompts, [own] * len(prompts), max_answer_length=8)
        assert found[key] == {"answers": answers, "verdicts": [True] * 20}
    assert found[BASE, 0, 0]["answers"] != found[PASSAGE_ONLY, 1, 0]["answers"]
    (evaluation,) = evaluations(Journal(folder / "evaluation"))
    assert {name: (own.value, own.num_questions) for name, own in evaluation.retention.items()} == dict.fromkeys(
        (BASE, PASSAGE_ONLY, SELF_EDITS), (1.0, 60)
    )


def test_what_was_measured_without_general_questions_is_not_continued_with_them(tmp_path):
    class Plain(KnowledgeDomain):
        retention_example = Domain.retention_example

    Plain.__qualname__ = "KnowledgeDomain"
    single_passage(tiny_lm(None, Plain("rewrite", grader=SameVerdictGrader())), EXAMPLES[:1], tmp_path, config=CONFIG)
    (evaluation,) = evaluations(Journal(tmp_path / "evaluation"))
    assert evaluation.retention == {}
    with pytest.raises(ValueError, match="holds a run with other settings: retention \\(None there, '20 questions, "):
        single_passage(tiny_lm(SameVerdictGrader()), EXAMPLES[:1], tmp_path, config=CONFIG)


def test_a_recitation_is_graded_by_the_questions_it_would_be_right_for(tmp_path):
    lm = tiny_lm(Contains())
    lm.generator = Reciter(lm.generator, "It is said that moths are moths.")
    single_passage(lm, EXAMPLES[:2], tmp_path, config=CONFIG)
    (evaluation,) = evaluations(Journal(tmp_path / "evaluation"))
    # Nothing of the first passage, one of two questions of the second; the same text answers every question.
    assert {name: value.value for name, value in evaluation.recitations.items()} == {
        BASE: 0.25,
        PASSAGE_ONLY: 0.25,
        SELF_EDITS: 0.25,
    }
    assert evaluation.accuracies[SELF_EDITS].value == 0.25
    assert evaluation.recited[SELF_EDITS].value == 0.5  # the first passage has one question alone


class Reciter(TextGenerator):
    """Writes self-edits as a generator does, and gives one answer to all that is asked."""

    def __init__(self, generator, text):
        self.generator, self.text = generator, text

    def sample(self, *args, **kwargs):
        return self.generator.sample(*args, **kwargs)

    def generate(self, prompts, adapters=None, **options):
        return [Generation(self.text, 8, True) for _ in prompts]

    def answer_log_likelihoods(self, prompts, gold_answers, adapters=None):
        raise AssertionError("nothing asks for it")


def test_a_domain_without_recitations_has_none(tmp_path):
    class Plain(KnowledgeDomain):
        recitation_prompt = Domain.recitation_prompt
        recited = Domain.recited
        short = Domain.short

    lm = tiny_lm(None, Plain("rewrite", grader=SameVerdictGrader()))
    single_passage(lm, EXAMPLES[:1], tmp_path, config=CONFIG)
    (evaluation,) = evaluations(Journal(tmp_path / "evaluation"))
    assert evaluation.recitations == {} and evaluation.recited == {}
    assert evaluation.strict_accuracies == {} and evaluation.strict_gains == {}


@pytest.mark.parametrize("num_banks", [1, 2, 3])
def test_an_interrupted_evaluation_is_continued(lm, folder, tmp_path, monkeypatch, num_banks):
    call = lambda: single_passage(lm, EXAMPLES, tmp_path, num_generations=2, config=CONFIG)  # noqa: E731
    interrupted_after(num_banks, monkeypatch, call)
    run_bank, run = Rollout._run_bank, []

    def counted(self, *args):
        run.append(1)
        return run_bank(self, *args)

    monkeypatch.setattr(Rollout, "_run_bank", counted)
    call()
    assert len(run) == 4 - num_banks  # 9 adapters in three banks, and one bank without adapters
    for place in range(3):
        for condition in CONDITIONS:
            assert answers_of(tmp_path, place, condition) == answers_of(folder, place, condition)
    run.clear()
    call()
    assert run == []


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"num_generations": 1}, "num_generations (2 there, 1 here)"),
        ({"seed": 1}, "seed (0 there, 1 here)"),
        ({"examples": EXAMPLES[:2]}, "eval_dataset ('3 examples, "),
    ],
)
def test_another_evaluation_is_kept(lm, folder, options, difference):
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(ValueError) as refused:
        single_passage(
            lm, **{"examples": EXAMPLES, "output_dir": folder, "num_generations": 2, "config": CONFIG} | options
        )
    assert f"holds a run with other settings: {difference}" in str(refused.value)
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before


def test_an_ungraded_answer_stops_the_run(tmp_path):
    lm = tiny_lm(SameVerdictGrader(verdict=None))
    with pytest.raises(GradingIncomplete, match="could not be graded"):
        single_passage(lm, EXAMPLES, tmp_path, config=CONFIG)


def test_an_example_without_an_answer_is_named_before_any_work(lm, tmp_path):
    lacking = {**EXAMPLES[0], "questions": [{"question": "Who?"}]}
    with pytest.raises(ValueError, match="^examples: example 1 has no answer to 'Who[?]', so that nothing"):
        single_passage(lm, [EXAMPLES[1], lacking], tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()


class OneVerdict(Domain):
    """A task of two prompts and one verdict on both, without a baseline that trains."""

    def prompt(self, example):
        return "Write: "

    def parse(self, completion, example):
        return KnowledgeDomain(chat=False).parse(completion, {"context": "Bees hum."})

    def questions(self, example):
        return ["One: ", "Two: "]

    def grade(self, examples, answers):
        assert all(len(own) == 2 for own in answers)
        return [[example["is_right"]] for example in examples]


def test_another_domain_with_one_verdict_for_each_example(tmp_path):
    lm = tiny_lm(None, OneVerdict())
    examples = [{"is_right": True}, {"is_right": False}, {"is_right": True}, {"is_right": True}]
    evaluation = single_passage(lm, examples, tmp_path, config=CONFIG)
    assert list(evaluation.accuracies) == [BASE, SELF_EDITS] and evaluation.reference == BASE
    assert evaluation.accuracies[SELF_EDITS].value == 0.75
    assert evaluation.accuracies[SELF_EDITS].num_questions == 4
    assert [edit.reward for edit in Journal(tmp_path / "evaluation").scored(0)[:4]] == [1.0, 0.0, 1.0, 1.0]
