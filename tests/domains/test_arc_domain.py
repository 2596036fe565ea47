"""Few-shot ARC as a domain: prompts, training data from choices, questions, votes, and all of it with a model."""

import json
import re
from dataclasses import replace

import pytest
from datasets import Dataset
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import ArcDomain
from seal_hf.domains.arc.augmentation import training_tasks
from seal_hf.domains.arc.generated import generate_tasks
from seal_hf.domains.arc.grids import write_grid
from seal_hf.domains.arc.prediction import questions_of
from seal_hf.domains.arc.tasks import check_task
from seal_hf.domains.arc.transforms import VIEWS
from seal_hf.domains.base import BASE
from seal_hf.inner_loop.update import InnerLoopConfig, tokenize_self_edit
from seal_hf.rollout.rewards import Asked, ask_and_grade


TASKS = generate_tasks(6, seed=1)
TASK = TASKS[0]


def written(groups=("basic",), strategy="train_using_output_tokens", rate=1e-3, epochs=1):
    names = ("basic", "size", "chain", "repeat")
    data = {f"use_{name}_augmentations": name in groups for name in names}
    training = {"strategy": strategy, "learning_rate": rate, "num_train_epochs": epochs}
    return json.dumps({"data_generation": data, "training": training})


def text_of(prompt):
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def right_answers(task, domain):
    (solution,) = (pair["output"] for pair in task["test"])
    return [write_grid(VIEWS[one.view][0](solution)) for one in questions_of(task, domain.seed)]


def test_the_policy_sees_the_demonstrations_and_what_it_may_choose():
    (message,) = ArcDomain().prompt(TASK)
    for pair in TASK["train"]:
        assert f"Input:\n{write_grid(pair['input'])}\n\nOutput:\n{write_grid(pair['output'])}\n" in message["content"]
    assert write_grid(TASK["test"][0]["input"]) not in message["content"]
    shown = re.search(r"\{.*\}", message["content"], re.DOTALL)[0]
    read = json.loads(re.sub(r'bool|number|"[a-z_]*" or ("[a-z_]*")', lambda found: found[1] or "1", shown))
    assert read.keys() == json.loads(written()).keys()
    assert all(read[part].keys() == own.keys() for part, own in json.loads(written()).items())
    plain = ArcDomain().for_model(False)
    assert plain.prompt(TASK) == f"{message['content']}\n" and plain.questions(TASK)[0].endswith("Output:\n")


def test_choices_make_training_data():
    domain = ArcDomain(max_tasks=20)
    edit = domain.parse(f"Let me see: {written(rate=2e-4, epochs=2)}", TASK)
    made = training_tasks(TASK, ("basic",), 0, 20)
    assert len(edit.examples) == len(made) == 20
    for example, task in zip(edit.examples, made, strict=True):
        shown = text_of(example.prompt)
        assert example.completion == write_grid(task.test[1]) and not example.trains_on_prompt
        assert shown.endswith(f"Input:\n{write_grid(task.test[0])}\n\nOutput:")
        assert shown.count("Output:\n") == len(task.demonstrations)
    assert edit.metrics["uses_basic"] == 1 and edit.metrics["uses_size"] == edit.metrics["trains_on_all_tokens"] == 0
    assert (edit.metrics["training_tasks"], edit.metrics["training_epochs"]) == (20, 2)
    assert edit.calls == () and edit.prompt == domain.prompt(TASK)
    # The rest is the run's.
    own = InnerLoopConfig(batch_size=4, lr_scheduler_type="cosine", warmup_steps=11, max_length=4096)
    trained = tokenize_self_edit(edit, tiny_tokenizer(), own)
    assert trained.config == replace(own, learning_rate=2e-4, num_train_epochs=2) and trained.num_steps == 10


def test_the_loss_is_taken_on_what_is_chosen():
    tokenizer, config = tiny_tokenizer(), InnerLoopConfig(max_length=4096)
    domain = ArcDomain(max_tasks=3)
    outputs, everything = (
        tokenize_self_edit(domain.parse(written(strategy=strategy), TASK), tokenizer, config)
        for strategy in ("train_using_output_tokens", "train_using_all_tokens")
    )
    assert [one.input_ids for one in outputs.sequences] == [one.input_ids for one in everything.sequences]
    assert {one.prompt_length for one in everything.sequences} == {0}
    edit = domain.parse(written(), TASK)
    for sequence, example in zip(outputs.sequences, edit.examples, strict=True):
        assert len(sequence.input_ids) - sequence.prompt_length == len(example.completion) + 1  # with an end


@pytest.mark.parametrize(
    ("completion", "options"), [("I choose all.", {}), ("{}", {}), (written(epochs=10), {"max_sequences": 19})]
)
def test_malformed_self_edits(completion, options):
    assert ArcDomain(max_tasks=2, **options).parse(completion, TASK) is None


def test_one_verdict_for_a_task():
    domain = ArcDomain()
    right = right_answers(TASK, domain)
    # Of two attempts one may be wrong; what is no grid does not vote.
    wrong = ["1\n2"] * len(right)
    mixed = [own if place % 3 == 0 else "?" if place % 3 == 1 else "1\n2" for place, own in enumerate(right)]
    assert domain.grade([TASK] * 4, [right, wrong, mixed, ["It is 7."] * len(right)]) == [
        [True],
        [False],
        [True],
        [False],
    ]
    assert len(domain.questions(TASK)) == len(right) == len(questions_of(TASK, 0))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task["id"])
def test_answers_may_be_as_long_as_what_is_right(task):
    limit = ArcDomain().max_answer_length(task)
    assert all(len(text) < limit for text in right_answers(task, ArcDomain()))
    assert limit < 4 * max(map(len, right_answers(task, ArcDomain()))) + 50


def test_a_larger_input_has_a_larger_output():
    small, large = (((1, 2),) * side for side in (2, 10))
    task = check_task(
        {"id": "t", "train": [{"input": small, "output": small * 2}], "test": [{"input": large, "output": large * 2}]}
    )
    assert ArcDomain().max_answer_length(task) > len(write_grid(large * 2))


def test_what_self_edits_are_compared_with():
    base, by_hand = ArcDomain(max_tasks=30).conditions
    assert (base.name, base.self_edit, by_hand.name) == (BASE, None, "all tools")
    edit = by_hand.self_edit(TASK)
    assert len(edit.examples) == 30 and (edit.overrides["learning_rate"], edit.overrides["num_train_epochs"]) == (
        1e-4,
        2,
    )
    assert base.questions(TASK) == by_hand.questions(TASK)
    with pytest.raises(ValueError, match="max_sequences=59 is too few for two epochs of 30 training tasks"):
        ArcDomain(max_tasks=30, max_sequences=59).all_tools(TASK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "has no demonstration"),
        ({"test": [{"input": [[1]]}]}, "has a test input without an output, so that nothing can be graded"),
        ({"test": [{"input": [[1]], "output": [[1], [2, 3]]}]}, "test input 1: the output has rows of 1 to 2 cells"),
        ({"id": None}, 'has no "id"'),
    ],
)
def test_what_cannot_be_learned(changes, message):
    example = {name: value for name, value in {**TASK, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        ArcDomain().check(example)


@pytest.mark.parametrize("options", [{"seed": -1}, {"max_tasks": 0}, {"max_sequences": 0}])
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={options[name]} must be at least"):
        ArcDomain(**options)


def test_the_demonstrations_are_what_is_learned():
    domain = ArcDomain()
    assert domain.content(TASK) == domain.content({**TASK, "id": "other", "test": TASKS[1]["test"]})
    assert domain.content(TASK) != domain.content(TASKS[1])


def test_a_row_of_a_dataset_is_a_task():
    domain, row = ArcDomain(max_tasks=5), Dataset.from_list(TASKS)[0]
    assert isinstance(row["train"][0]["input"], list)
    domain.check(row)
    assert domain.questions(row) == domain.questions(TASK) and domain.prompt(row) == domain.prompt(TASK)
    assert domain.parse(written(), row).examples == domain.parse(written(), TASK).examples
    assert domain.grade([row], [right_answers(TASK, domain)]) == [[True]]


def test_a_model_learns_and_is_asked_with_a_limit_for_each_task(monkeypatch):
    lm = SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=ArcDomain(max_tasks=4),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        inner_config=InnerLoopConfig(batch_size=2, max_length=4096),
    )
    edits = [
        lm.domain.parse(written(strategy=name, rate=1e-2), task)
        for name, task in zip(("train_using_all_tokens", "train_using_output_tokens"), TASKS, strict=False)
    ]
    adapters = lm.adapt(edits)
    assert [adapter.training["num_steps"] for adapter in adapters] == [2, 2]
    limits, generate = [], lm.generator.generate

    def noted(prompts, own, **options):
        limits.extend(options["max_new_tokens"])
        return generate(prompts, own, **options)

    monkeypatch.setattr(lm.generator, "generate", noted)
    asked = [Asked(adapter, task, lm.domain.questions(task)) for adapter, task in zip(adapters, TASKS, strict=False)]
    graded = ask_and_grade(lm, asked, 7)
    assert [one.reward for one in graded] == [0.0, 0.0]
    expected = [
        limit for task in TASKS[:2] for limit in [lm.domain.max_answer_length(task)] * len(lm.domain.questions(task))
    ]
    assert limits == expected and len(set(limits)) == 2
