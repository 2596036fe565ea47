"""Rewards without labels in a run: what is asked, recorded, summed, logged and resumed, and when no adapter is trained."""

import hashlib
import json
from dataclasses import replace
from statistics import fmean, pstdev

import pyarrow.parquet
import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import HashGrader, tiny_config, tiny_examples, tiny_trainer
from helpers.reported_runs import read_table
from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import SEALTrainer, SelfAdaptingLM
from seal_hf.domains import ArcDomain, KnowledgeDomain
from seal_hf.grading.rubric import CRITERIA, rubric_reward
from seal_hf.grading.words import normalize
from seal_hf.records.journal import Journal
from seal_hf.records.tables import results_table
from seal_hf.rollout.planning import Counts
from seal_hf.self_edit import TrainingExample


pytestmark = pytest.mark.usefixtures("without_pictures")
ALL = ["accuracy", "rubric", "own_questions", "self_consistency"]
WEIGHTS = [0, 1, 2, 1]
OPTIONS = {
    "num_train": 3,
    "num_eval": 1,
    "num_generations": 3,
    "num_repeats": 2,
    "num_rounds": 1,
    "adapters_per_bank": 4,
}
OPTIONS |= {"reward_funcs": ALL, "reward_weights": WEIGHTS}


class HashJudge:
    """Scores that depend on every character."""

    model = "hash"

    def __init__(self):
        self.num_scored = 0

    def score(self, texts, notes):
        self.num_scored += len(notes)
        digests = [hashlib.sha256(f"{text}{own}".encode()).digest() for text, own in zip(texts, notes, strict=True)]
        return [{name: 1.0 + byte % 5 for name, byte in zip(CRITERIA, digest[:4], strict=True)} for digest in digests]


class PairDomain(KnowledgeDomain):
    """Every self-edit also asks one question, which its text gives."""

    def __init__(self):
        super().__init__("{title}: {context}", grader=HashGrader(), chat=False)

    def parse(self, completion, example):
        self_edit = super().parse(completion, example)
        pair = TrainingExample(
            "", f"{example['title']}\nQuestion 1: {question_of(completion)}\nAnswer: {completion[:3]}."
        )
        return self_edit and replace(self_edit, examples=(*self_edit.examples, pair))

    def open_book(self, examples, lm):
        # A random model reads nothing in a passage.
        return [
            {
                **example,
                "questions": [{"question": f"{item['question']}?", "answer": "cats"} for item in example["questions"]],
            }
            for example in examples
        ]


def question_of(completion):
    return f"What is {completion.encode().hex()[:4]}?"


def rewarded_trainer(output_dir, judge=None, **options):
    return tiny_trainer(output_dir, domain=PairDomain(), rubric_judge=judge or HashJudge(), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewarded")
    rewarded_trainer(folder).train()
    return folder


def journal_of(folder):
    return read(folder / "journal" / "round_000.jsonl")


def right(answers):
    return HashGrader().grade(None, None, answers)


def test_each_reward_is_recorded_and_their_weighted_sum_chooses(folder):
    edits = journal_of(folder)
    assert len(edits) == 9 and sum(edit["well_formed"] for edit in edits) > 6
    differing = {name: set() for name in ALL}
    for edit in edits:
        if not edit["well_formed"]:
            assert edit["reward"] == 0 and edit["rewards"] == dict.fromkeys(ALL, 0.0) and edit["rubric"] is None
            continue
        (scores,) = HashJudge().score([tiny_examples(3)[edit["example"]]["context"]], [edit["completion"]])
        assert edit["rubric"] == scores
        totals = []
        for repeat in edit["repeats"]:
            own = {"accuracy": fmean(right(repeat["answers"])), "rubric": rubric_reward(scores)}
            for name, said in repeat["unlabelled"].items():
                assert said["verdicts"] == right(said["answers"])
                own[name] = fmean(said["verdicts"])
            assert repeat["rewards"] == pytest.approx(own) and list(repeat["rewards"]) == ALL
            totals.append(fmean([own["rubric"], own["own_questions"], own["own_questions"], own["self_consistency"]]))
            assert repeat["reward"] == pytest.approx(totals[-1])
        assert edit["reward"] == pytest.approx(fmean(totals))
        for name in ALL:
            assert edit["rewards"][name] == pytest.approx(fmean(one["rewards"][name] for one in edit["repeats"]))
            differing[name].add(round(edit["rewards"][name], 6))
    assert all(len(values) > 1 for values in differing.values())
    best = {}
    for edit in edits:
        best[edit["example_id"]] = max(best.get(edit["example_id"], 0.0), edit["reward"])
    kept = read(folder / "selected" / "round_000.jsonl")
    assert {one["example_id"]: one["reward"] for one in kept} == pytest.approx(best)


def test_no_adapter_is_asked_what_its_self_edit_trains_on(folder):
    by_edit = {(edit["example"], edit["edit"]): edit for edit in journal_of(folder)}
    asked = [one for one in read(folder / "reward_questions" / "round_000.jsonl") if one["reward"] == "own_questions"]
    num_asked = 0
    for one in asked:
        edit = by_edit[one["example"], one["edit"]]
        others = {
            normalize(question_of(other["completion"]))
            for (example, number), other in by_edit.items()
            if example == one["example"] and number != one["edit"] and other["well_formed"]
        }
        own = normalize(question_of(edit["completion"]))
        found = {normalize(item["question"]) for item in (one["asked"] or {"questions": []})["questions"]}
        if edit["well_formed"]:
            assert found == others - {own}
            num_asked += len(found)
    assert num_asked > 10


def test_the_base_is_measured_by_labels_alone(folder):
    edits = journal_of(folder)
    assert all(0 <= edit["base_reward"] <= 1 for edit in edits)
    evaluated = read(folder / "evaluation" / "journal" / "round_001.jsonl")
    assert evaluated and all(edit["rewards"] is None and edit["rubric"] is None for edit in evaluated)
    assert all("unlabelled" not in repeat for edit in evaluated for repeat in edit["repeats"])


def test_each_reward_is_logged_and_in_the_tables(folder):
    edits = journal_of(folder)
    state = Journal(folder).scored(0)
    assert state[0].rewards == edits[0]["rewards"] and state[0].accuracy == edits[0]["rewards"]["accuracy"]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    (logged,) = (entry for entry in log if "reward" in entry)
    for name in ALL:
        values = [edit["rewards"][name] for edit in edits]
        assert logged[f"rewards/{name}/mean"] == pytest.approx(fmean(values))
        assert logged[f"rewards/{name}/std"] == pytest.approx(pstdev(values))
    lengths = [edit["rubric"]["length"] for edit in edits if edit["rubric"]]
    assert logged["rubric/length"] == pytest.approx(fmean(lengths))
    gains = [edit["rewards"]["accuracy"] - edit["base_reward"] for edit in edits]
    assert logged["inner/gain"] == pytest.approx(fmean(gains))
    (row,) = read_table(results_table(folder), "round")
    assert row["self consistency"] == f"{100 * logged['rewards/self_consistency/mean']:.1f} %"
    table = pyarrow.parquet.read_table(folder / "self_edits" / "round_000.parquet").to_pylist()
    assert [one["reward_rubric"] for one in table] == [edit["rewards"]["rubric"] for edit in edits]


def test_a_run_that_was_stopped_goes_on_without_asking_again(folder, tmp_path):
    judge = HashJudge()
    # After the first bank of the training round; the evaluation before it has one of its own and one of the passages.
    first = rewarded_trainer(tmp_path, judge, callbacks=[Act("on_substep_end", 3, stop)])
    first.train()
    assert (tmp_path / "reward_questions" / "round_000.jsonl").exists()
    assert not (tmp_path / "journal" / "round_000.jsonl").exists()
    num_scored = judge.num_scored
    assert num_scored == sum(edit["well_formed"] for edit in journal_of(folder))
    again = rewarded_trainer(tmp_path, judge)
    again.lm.domain.own_examples = None  # would be called where it is asked again
    again.train(resume_from_checkpoint=True)
    assert judge.num_scored == num_scored
    assert records(tmp_path) == records(folder)


def test_other_rewards_are_another_run(folder):
    with pytest.raises(ValueError, match=r"reward_weights \(\[0, 1, 2, 1\] there, \[1, 1, 1, 1\] here\)"):
        rewarded_trainer(folder, reward_weights=[1, 1, 1, 1]).train(resume_from_checkpoint=True)
    judge = HashJudge()
    judge.model = "other"
    with pytest.raises(ValueError, match=r"rubric_judge \('hash' there, 'other' here\)"):
        rewarded_trainer(folder, judge).train(resume_from_checkpoint=True)


def test_with_the_rubric_alone_no_adapter_is_trained_and_no_label_needed(tmp_path):
    passages = [{"title": one["title"], "context": one["context"]} for one in tiny_examples(3)]
    options = {"reward_funcs": ["rubric"], "reward_weights": None, "num_eval": 0, "train_dataset": passages}
    trainer = rewarded_trainer(tmp_path, **options)
    plan = trainer.plan()
    assert plan.everything == Counts(prompts_to_write=9, tokens_to_write=plan.everything.tokens_to_write)
    trainer._rollout._run_bank = None  # would be called for a bank
    start = {name: value.clone() for name, value in trainer.model.named_parameters() if "lora_B" in name}
    trainer.train()
    assert any(not value.equal(start[name]) for name, value in trainer.model.named_parameters() if name in start)
    assert all(one["banks"] == [] for one in read(tmp_path / "proposals" / "round_000.jsonl"))
    edits = journal_of(tmp_path)
    for edit in edits:
        assert edit["repeats"] == [] and edit["base_reward"] is None and edit["tokens"] == 0
        assert edit["reward"] == (rubric_reward(edit["rubric"]) if edit["well_formed"] else 0)
    assert len(read(tmp_path / "selected" / "round_000.jsonl")) == 3
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert not any(name.startswith("inner/") or name == "reward/best" for name in logged)
    (row,) = read_table(results_table(tmp_path), "round")
    assert row["base reward"] == row["best of k"] == "–" and row["rubric"] == f"{100 * logged['reward']:.1f} %"


@pytest.mark.parametrize(
    ("rewards", "example", "message"),
    [
        (["own_questions"], {"title": "T"}, "example 0 has no passage"),
        (["self_consistency"], {"context": "Bees."}, "example 0 has no question, which the reward 'self_consistency'"),
        (["accuracy", "rubric"], {"context": "Bees."}, "example 0 has no question, so that nothing can be rewarded"),
    ],
)
def test_what_an_example_needs_depends_on_the_rewards(tmp_path, rewards, example, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, train_dataset=[example], num_eval=0, num_rounds=1, reward_funcs=rewards)
    questions = [{"question": "What hums?"}] if "accuracy" not in rewards else tiny_examples(1)[0]["questions"]
    enough = {"context": "Bees.", "questions": questions}
    tiny_trainer(tmp_path, train_dataset=[enough], num_eval=0, num_rounds=1, reward_funcs=rewards)


def test_a_domain_without_a_reward_refuses_it(tmp_path):
    with pytest.raises(
        ValueError, match="reward_funcs=\\['rubric'\\]: ArcDomain has no reward 'rubric', only 'accuracy'"
    ):
        SEALTrainer(
            tiny_llama(),
            tiny_config(tmp_path, reward_funcs=["rubric"]),
            ArcDomain(),
            [{"id": "a", "train": [], "test": []}],
            processing_class=tiny_tokenizer(),
        )


def test_the_base_model_judges_without_its_policy():
    model = tiny_policy_model()
    lm = SelfAdaptingLM(model, tiny_tokenizer(), domain=KnowledgeDomain("{context}", chat=False))
    alone = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=KnowledgeDomain("{context}", chat=False))
    prompts = [
        "Length:",
        [{"role": "user", "content": "Score."}, {"role": "assistant", "content": "Length:"}],
        "x" * 5000,
    ]
    found = lm.ask_base(prompts, 12)
    assert found == alone.ask_base(prompts, 12) and found[2] == ""
    assert found[0] != lm.generator.generate(prompts[:1], max_new_tokens=12)[0].text


@pytest.mark.parametrize("reply", [" 4\nDiversity: 2\nQuality: 3\nCorrectness: 5", " no idea"])
def test_what_the_base_model_replies_is_read(tmp_path, monkeypatch, reply):
    asked = []

    def ask_base(self, prompts, max_new_tokens):
        asked.extend(prompts)
        return [reply] * len(prompts)

    monkeypatch.setattr(SelfAdaptingLM, "ask_base", ask_base)
    options = {"reward_funcs": ["rubric"], "num_train": 2, "num_generations": 2, "num_eval": 0, "num_rounds": 1}
    tiny_trainer(tmp_path, **options).train()
    edits = [edit for edit in journal_of(tmp_path) if edit["well_formed"]]
    assert len(asked) == len(edits) > 2
    assert all(prompt[1] == {"role": "assistant", "content": "Length:"} for prompt in asked)
    assert all(edit["completion"].strip() in prompt[0]["content"] for edit, prompt in zip(edits, asked, strict=True))
    expected = 10 / 16 if "4" in reply else None
    assert all(edit["reward"] == expected for edit in edits)
