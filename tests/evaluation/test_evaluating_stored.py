"""An evaluation of self-edits that somebody else wrote: nothing is generated, and the records are as for written ones."""

from dataclasses import asdict

import pytest
from peft import LoraConfig

from helpers.protocols import Contains, interrupted_after
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import SELF_EDITS
from seal_hf.evaluation.single_passage import single_passage
from seal_hf.generation.base import Generation, TextGenerator
from seal_hf.hub.stored_self_edits import load_stored_self_edits
from seal_hf.records.journal import Journal
from seal_hf.rollout.stage import RolloutConfig


EXAMPLES = [
    {"title": "Bees", "context": "Ann keeps bees in Vell.", "questions": [{"question": "Who?", "answer": "Ann"}]},
    {"title": "Owls", "context": "Cleo paints owls.", "questions": [{"question": "What?", "answer": "owls"}]},
]
ROWS = [
    {"context": "Cleo paints owls.", "completions": ["Cleo paints.", "Owls are\npainted."]},
    {
        "title": "Bees",
        "context": "Ann keeps bees in Vell.\n",
        "completion": "<think>\nHm.\n</think>\n\n1. Ann keeps bees.",
    },
    {"title": "Bees", "context": "Ann keeps bees in Vell.\n", "completion": " \n"},
]
CONFIG = RolloutConfig(max_completion_length=12, max_answer_length=8, adapters_per_bank=2, disable_tqdm=True)


def tiny_lm(style="rewrite"):
    return SelfAdaptingLM(
        tiny_llama(initializer_range=0.3),
        tiny_tokenizer(),
        domain=KnowledgeDomain(style, grader=Contains()),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=3),
    )


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def run(lm, folder, **options):
    return single_passage(lm, EXAMPLES, folder, **{"num_generations": 2, "config": CONFIG} | options)


def proposals(folder):
    return [one for one in Journal(folder / "evaluation").proposals(0) if one.condition == SELF_EDITS]


def scores(folder):
    """The journal, without what depends on the clock."""
    return [asdict(one) | {"seconds": None} for one in Journal(folder / "evaluation").scored(0)]


def refuse(*args, **options):
    raise AssertionError("a self-edit is written")


def test_what_is_stored_is_trained_on_and_nothing_is_written(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(SelfAdaptingLM, "write_batch", refuse)
    evaluation = run(lm, tmp_path, self_edits=ROWS)
    assert SELF_EDITS in evaluation.accuracies
    found = proposals(tmp_path)
    assert [(one.example, one.edit, one.completion) for one in found] == [
        (0, 0, "1. Ann keeps bees."),
        (0, 1, " \n"),
        (1, 0, "Cleo paints."),
        (1, 1, "Owls are\npainted."),  # longer than max_completion_length: nothing is cut
    ]
    assert [one.well_formed for one in found] == [True, False, True, True]
    assert all(one.finished and one.prompt == lm.domain.prompt(EXAMPLES[one.example]) for one in found)
    assert [one.completion_tokens for one in found] == [len(one.completion) + 1 for one in found]
    tokenizer = lm.processing_class
    assert found[2].completion_ids == [*tokenizer("Cleo paints.")["input_ids"], tokenizer.eos_token_id]
    scored = [one for one in scores(tmp_path) if one["condition"] == SELF_EDITS]
    for one in (scored[0], scored[3]):
        example = EXAMPLES[one["example"]]
        (repeat,) = one["repeats"]
        adapter = lm.adapt(lm.domain.parse(one["completion"], example), seed=repeat["seed"])
        prompts = lm.domain.questions(example)
        assert repeat["answers"] == lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=8)


def test_the_records_are_those_of_the_run_that_wrote_them(lm, tmp_path):
    """Whatever else the stored dataset tells of them."""
    longest = RolloutConfig(max_completion_length=40, max_answer_length=8, adapters_per_bank=2, disable_tqdm=True)
    run(lm, tmp_path / "writing", config=longest)
    run(lm, tmp_path / "reading", config=longest, self_edits=load_stored_self_edits(tmp_path / "writing"))
    written, read = (
        [{k: v for k, v in one.items() if k not in ("finished", "completion_ids", "completion_tokens")} for one in own]
        for own in (scores(tmp_path / "writing"), scores(tmp_path / "reading"))
    )
    assert read == written and len({one["completion"] for one in read if one["completion"]}) == 4


@pytest.mark.parametrize("num_banks", [0, 2])
def test_an_interrupted_evaluation_is_continued_with_the_same_self_edits_alone(lm, tmp_path, monkeypatch, num_banks):
    run(lm, tmp_path / "unbroken", self_edits=ROWS)
    folder = tmp_path / "broken"
    interrupted_after(num_banks, monkeypatch, lambda: run(lm, folder, self_edits=ROWS))
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    other = [*ROWS[:1], {**ROWS[1], "completion": "Ann keeps cows."}, ROWS[2]]
    for options in ({"self_edits": other}, {}):
        with pytest.raises(ValueError, match="holds a run with other settings: self_edits [(]'stored, "):
            run(lm, folder, **options)
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before
    # What is not taken of a file does not matter.
    run(lm, folder, self_edits=[{"context": "Of moths.", "completion": "Moths."}, *ROWS])
    assert scores(folder) == scores(tmp_path / "unbroken")


def test_a_run_that_wrote_its_own_is_not_continued_with_stored_ones(lm, tmp_path):
    run(lm, tmp_path)
    with pytest.raises(ValueError, match="holds a run with other settings: self_edits [(]None there, 'stored, "):
        run(lm, tmp_path, self_edits=ROWS)


def test_a_passage_without_one_is_named_before_any_work(lm, tmp_path):
    with pytest.raises(ValueError, match="^self_edits: no completion about example 0 [(]'Bees'[)]"):
        run(lm, tmp_path / "out", self_edits=ROWS[:1])
    assert not (tmp_path / "out").exists()


class Reader(TextGenerator):
    """Answers every question with what the passage says, and adapted models with nothing."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, adapters=None, **options):
        self.asked += [prompt for prompt in prompts if "Ann keeps bees" in str(prompt)]
        return [Generation("Ann keeps bees in Vell.", 8, True) for _ in prompts]

    def answer_log_likelihoods(self, prompts, gold_answers, adapters=None):
        raise AssertionError("nothing asks for it")


def test_the_tool_answers_the_questions_that_are_stored(tmp_path):
    lm = tiny_lm("questions")
    lm.generator = Reader()
    questions = "Question 1: Where does Ann keep her bees?\nQuestion 2: Who keeps bees in Vell?\n"
    rows = [{"context": "Ann keeps bees in Vell.", "completion": questions}]
    single_passage(lm, EXAMPLES[:1], tmp_path, config=CONFIG, self_edits=rows)
    assert any("Where does Ann keep her bees?" in str(prompt) for prompt in lm.generator.asked)
    (one,) = proposals(tmp_path)
    assert one.completion == questions and one.metrics["questions"] == 2
    assert one.metrics["questions_kept"] >= 1 and one.tool_examples
    assert one.tool_examples[0]["completion"].endswith("?\nAnswer: Ann keeps bees in Vell.")
