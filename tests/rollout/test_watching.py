"""Adapters that are asked while they are trained: what they say, and that it changes nothing."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.rollout.watching import QuestionWatch
from seal_hf.self_edit import TrainingExample


EXAMPLE = {"title": "Bees", "context": "", "questions": [{"question": "Who keeps bees?", "answer": ["Ann", "Bo"]}]}
OTHER = {**EXAMPLE, "questions": [{"question": "Who keeps moths?", "answer": "Ida"}]}


@pytest.fixture(params=[("policy", None), ("policy", "policy"), ("base", "policy")], ids=["base", "policy", "teacher"])
def lm(request):
    student, policy = request.param
    model = tiny_policy_model() if policy else tiny_llama()
    return SelfAdaptingLM(
        model,
        tiny_tokenizer(),
        base_model_id="me/tiny",
        student=student,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=6, batch_size=2),
    )


@pytest.fixture
def edits(lm):
    def edit(example, *answers):
        (prompt,) = lm.domain.questions(example)
        return SelfEdit("", "", tuple(TrainingExample(prompt, answer) for answer in answers))

    return [edit(EXAMPLE, "Ann", "Ann does"), edit(OTHER, "Ida", "Ida does", "Moths like lamps")]


def test_it_sees_the_adapters_of_each_step_and_leaves_them_alone(lm, edits):
    watch, seen = QuestionWatch(lm, EXAMPLE, max_share=float("inf"), max_answer_length=6), {}
    trained = lm.adapt(edits, on_step=lambda step: seen.update({step.step: watch.ask(step)}))
    assert [sorted(seen[step].answers) for step in seen] == [[0, 1]] * 6 + [[1]] * 6
    for one, alone in zip(trained, lm.adapt(edits), strict=True):
        assert torch.equal(one.weights, alone.weights)
    (prompt,) = lm.domain.questions(EXAMPLE)
    answers = lm.answer_prompts([prompt] * 2, trained, max_answer_length=6)
    assert [seen[6].answers[0], seen[12].answers[1]] == answers
    assert seen[6].verdicts == {
        place: lm.domain.grade([EXAMPLE], [[answer]])[0][0] for place, answer in seen[6].answers.items()
    }
    if lm.student == "policy":  # elsewhere the policy is left out while adapters are trained alone
        (likely,) = lm.generator.answer_log_likelihoods([prompt], [["Ann", "Bo"]], trained[:1])
        assert seen[6].probabilities[0] == pytest.approx(math.exp(likely), rel=1e-5)
    assert seen[6].probabilities[0] > seen[1].probabilities[0]
    assert not any("forward" in vars(module) for module in lm.model.modules())


def test_asking_takes_its_share_of_the_time(lm, edits, monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr("seal_hf.rollout.watching.time.perf_counter", lambda: float(next(now)))
    watch, asked = QuestionWatch(lm, OTHER, max_share=0.1, max_answer_length=2), []

    def on_step(step):
        # Four seconds a step; asking takes one, by the clock above.
        if watch.ask(replace(step, seconds=4.0 * step.step)):
            asked.append(step.step)

    lm.adapt(edits[1], on_step=on_step)
    assert asked == [1, 5, 8, 10, 12]
    assert watch.seconds == len(asked)
    # With the time that the base model took known, the first answer waits for its share, too.
    watch, asked[:] = QuestionWatch(lm, OTHER, max_share=0.1, max_answer_length=2), []
    watch.ask_base()
    lm.adapt(edits[1], on_step=on_step)
    assert asked == [3, 5, 8, 10, 12]


def test_without_a_gold_answer_nothing_is_graded(lm, edits):
    watch, seen = QuestionWatch(lm, {**EXAMPLE, "questions": [{"question": "Who keeps bees?"}]}), []
    lm.adapt(edits[0], on_step=lambda step: seen.append(watch.ask(step)))
    assert seen[-1].answers[0] and seen[-1].verdicts is seen[-1].probabilities is None


def test_one_question_alone_can_be_watched(lm):
    with pytest.raises(ValueError, match="the example has 2"):
        QuestionWatch(lm, {**EXAMPLE, "questions": EXAMPLE["questions"] * 2})
