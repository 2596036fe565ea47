"""SEALTrainer with tasks of one's own, other than passages with questions."""

from statistics import fmean

import pyarrow.parquet as pq
import pytest
from peft import LoraConfig

from helpers.observing import equal, hashed, policy_of, read
from helpers.outer_loop import tiny_config
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SEALTrainer, SelfEdit
from seal_hf.domains import Domain
from seal_hf.records.tables import results_table
from seal_hf.self_edit import TrainingExample


pytestmark = pytest.mark.usefixtures("without_pictures")


class Sums(Domain):
    """A task of one's own; a self-edit's first character decides how it is trained on."""

    def prompt(self, example):
        return f"{example['a']}+{example['b']}="

    def parse(self, completion, example):
        if not completion:
            return None
        overrides = [{}, {"num_train_epochs": 3}, {"num_train_epochs": 0}][self.kind(completion)]
        return SelfEdit(
            self.prompt(example), completion, (TrainingExample(self.prompt(example), completion),), overrides
        )

    def kind(self, completion):
        return ord(completion[0]) % 3

    def questions(self, example):
        return [self.prompt(example), self.prompt({"a": example["b"], "b": example["a"]})]

    def grade(self, examples, answers):
        return [[hashed(answer) for answer in own] for own in answers]


def test_domain_of_ones_own(tmp_path):
    domain = Sums()
    examples = [{"id": f"{a}+{b}", "a": a, "b": b} for a, b in ((1, 2), (3, 4), (5, 67))]
    trainer = SEALTrainer(
        model=tiny_llama(),
        args=tiny_config(tmp_path, num_rounds=1, num_repeats=1, num_generations=4),
        domain=domain,
        train_dataset=examples,
        eval_dataset=[{"a": 8, "b": 9}, {"a": 9, "b": 11}],
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    plan = trainer.plan()
    assert plan.everything.tokens == 0 and plan.seconds is None and " unknown |" in str(plan)
    assert [one.adapters for one in plan.rounds] == [12] and [one.adapters for one in plan.evaluations] == [2, 2]
    assert str(plan).startswith("rounds: 1, examples: 3, evaluated on: 2, processes: 1; left to be done:")
    start = policy_of(trainer.model)
    trainer.train()
    assert not equal(policy_of(trainer.model), start)

    edits = read(tmp_path / "journal" / "round_000.jsonl")
    assert [edit["example_id"] for edit in edits] == [example["id"] for example in examples for _ in range(4)]
    assert {domain.kind(edit["completion"]) for edit in edits} == {0, 1, 2}
    for edit in edits:
        kind = domain.kind(edit["completion"])
        assert edit["well_formed"] == (kind != 2)
        if kind == 2:
            assert edit["reward"] == 0.0 and edit["repeats"] == [] and edit["tokens"] == 0
        else:
            epochs = 3 if kind == 1 else 2
            # One token a character, and the end of the sequence.
            assert edit["tokens"] == epochs * (len(edit["prompt"]) + len(edit["completion"]) + 1)
            assert edit["reward"] == pytest.approx(fmean(edit["repeats"][0]["verdicts"]))
    kept = read(tmp_path / "selected" / "round_000.jsonl")
    assert all(domain.kind(edit["completion"]) != 2 for edit in kept)

    conditions = [edit["condition"] for edit in read(tmp_path / "evaluation" / "journal" / "round_000.jsonl")]
    assert conditions == ["self-edits"] * 2 + ["base"] * 2
    first = trainer.state.log_history[0]
    names = {name for name in first if name.endswith("accuracy") or "gain" in name and name.endswith("base")}
    assert names == {"eval_base_accuracy", "eval_self_edits_accuracy", "eval_gain_over_base"}
    assert "minus base" in results_table(tmp_path)


class Voting(Sums):
    """One verdict for each example, right where most of its answers are."""

    def grade(self, examples, answers):
        assert all(len(own) == 2 for own in answers)
        return [[all(map(hashed, own))] for own in answers]


def test_one_verdict_for_each_example(tmp_path):
    trainer = SEALTrainer(
        model=tiny_llama(),
        args=tiny_config(tmp_path, num_rounds=1, num_repeats=2, num_generations=4),
        domain=Voting(),
        train_dataset=[{"a": 1, "b": 2}, {"a": 3, "b": 4}],
        eval_dataset=[{"a": 8, "b": 9}],
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    trainer.train()
    repeats = [repeat for edit in read(tmp_path / "journal" / "round_000.jsonl") for repeat in edit["repeats"]]
    assert repeats and all(len(one["answers"]) == 2 and len(one["verdicts"]) == 1 for one in repeats)
    assert all(one["reward"] == all(map(hashed, one["answers"])) for one in repeats)
    assert {one["reward"] for one in repeats} == {0.0, 1.0}
    table = pq.read_table(tmp_path / "self_edits" / "round_000.parquet").to_pylist()
    assert [len(entry["verdicts"]) for entry in table if entry["well_formed"]] == [1] * (len(repeats) // 2)
    assert trainer.state.log_history[0]["eval_num_questions"] == 1


class Spaced(Sums):
    """The same task with a prompt of its own, and with its own number of questions."""

    def __init__(self, sign="+"):
        self.sign = sign

    def prompt(self, example):
        return f"{example['a']} {self.sign} {example['b']} ="

    def questions(self, example):
        return [self.prompt(example)] * 3


def test_evaluations_may_have_a_domain_of_their_own(tmp_path):
    def trainer(eval_domain):
        return SEALTrainer(
            model=tiny_llama(),
            args=tiny_config(tmp_path, num_rounds=1, num_repeats=1, num_generations=2),
            domain=Sums(),
            train_dataset=[{"a": 1, "b": 2}, {"a": 3, "b": 4}],
            eval_dataset=[{"a": 8, "b": 9}],
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
            eval_domain=eval_domain,
        )

    run = trainer(Spaced())
    run.train()
    trained = read(tmp_path / "proposals" / "round_000.jsonl")
    assert {one["prompt"] for one in trained} == {"1+2=", "3+4="}
    for number in range(2):
        evaluated = read(tmp_path / "evaluation" / "proposals" / f"round_{number:03d}.jsonl")
        assert {one["prompt"] for one in evaluated} == {"8 + 9 ="}
    assert run.state.log_history[0]["eval_num_questions"] == 3
    assert run.evaluate([{"a": 5, "b": 6}, {"a": 6, "b": 7}])["eval_num_questions"] == 6
    with pytest.raises(ValueError, match=r"eval_domain\.sign \('\+' there, 'plus' here\)"):
        trainer(Spaced("plus")).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="eval_domain"):
        trainer(None).train(resume_from_checkpoint=True)
    trainer(Spaced()).train(resume_from_checkpoint=True)
