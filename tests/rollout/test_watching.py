"""Adapters that are asked while they are trained: what they say, and that it changes nothing."""

import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.rollout.watching import AnswerStays, QuestionWatch, WatchedAnswers
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


def step_of(number, losses, num_steps=40):
    return SimpleNamespace(step=number, num_steps=num_steps, losses=losses)


def looks(stays, losses, answers, num_steps=40, verdicts=None, probabilities=None):
    """Whether it is set after each step of one adapter; `None` for a step after which nothing is asked."""
    found = []
    for number, (loss, answer) in enumerate(zip(losses, answers, strict=True), 1):
        told = [None if one is None else {0: one[number - 1]} for one in (verdicts, probabilities)]
        stays.look(step_of(number, {0: loss}, num_steps), answer and WatchedAnswers({0: answer}, *told))
        found.append(stays.is_set())
    return found


def test_a_training_ends_when_equal_answers_come_with_a_low_loss():
    answers = ["Bo", "Ann", "Ann", None, "Ann", "Ann", "Ida", None]
    assert looks(AnswerStays(1), [0.05] * 8, answers) == [False] * 4 + [True] * 2 + [False] * 2
    # A tenth of forty steps: the mean of four losses.
    losses = [9.0, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert looks(AnswerStays(1), losses, ["Ann"] * 6) == [False] * 4 + [True] * 2
    assert not any(looks(AnswerStays(1), [0.101] * 6, ["Ann"] * 6))
    # After the last step there is nothing left to end.
    assert looks(AnswerStays(1), [0.0] * 4, ["Ann"] * 4, num_steps=4) == [False, False, True, False]


def test_a_right_and_likely_answer_needs_no_second_look():
    def looked(loss, verdict, probability, answer="Ann"):
        told = {"verdicts": [verdict], "probabilities": [probability]}
        return looks(AnswerStays(1), [loss], [answer], **told)[0]

    assert looked(0.1, True, 0.8) and not looked(0.1, True, 0.79) and not looked(0.11, True, 1.0)
    assert not looked(0.0, False, 1.0) and not looked(0.0, None, None) and not looked(0.0, True, None)


def test_all_adapters_have_settled_or_are_through():
    stays, ann = AnswerStays(2, num_looks=1), WatchedAnswers({0: "Ann"})
    stays.look(step_of(1, {0: 0.0}), ann)
    assert not stays.is_set()  # the other is trained after it, for want of memory
    stays.look(step_of(2, {0: 0.0, 1: 9.0}), WatchedAnswers({0: "Ann", 1: "Bo"}))
    assert not stays.is_set()
    stays.look(step_of(3, {0: 0.0}), None)  # the other has had its steps
    assert stays.is_set()
    stop = threading.Event()
    stays = AnswerStays(1, stop=stop)
    assert not stays.is_set()
    stop.set()
    assert stays.is_set() and not stays.has_settled


def test_adapters_of_a_bank_that_ran_out_of_memory_are_watched_anew():
    stays, ann = AnswerStays(4, num_looks=1), WatchedAnswers(dict.fromkeys(range(4), "Ann"))
    stays.look(step_of(1, dict.fromkeys(range(4), 0.0)), None)
    stays.look(step_of(1, dict.fromkeys((0, 1), 0.0)), ann)  # the first half
    stays.look(step_of(2, dict.fromkeys((0, 1), 0.0)), ann)
    assert not stays.is_set()  # the others have lost their step
    stays.look(step_of(3, dict.fromkeys((2, 3), 0.0)), None)
    stays.look(step_of(3, {2: 0.0}), ann)  # the second half is halved again
    assert not stays.is_set()
    stays.look(step_of(4, {3: 0.0}), ann)
    assert stays.is_set()


def test_an_early_end_keeps_the_adapter_of_that_step(lm, edits):
    full = lm.adapt(edits[0]).training["losses"]
    watch = QuestionWatch(lm, EXAMPLE, max_share=float("inf"), max_answer_length=4)
    stays = AnswerStays(1, num_looks=1, max_loss=full[2])
    weights, losses = [], []

    def on_step(step):
        stays.look(step, watch.ask(step))
        weights.append(step.weights[0].clone())
        losses.append(step.losses[0])

    adapter = lm.adapt(edits[0], on_step=on_step, stop=stays)
    assert len(full) == 6 and full[1] > full[2]
    assert tuple(losses) == full[:3]
    assert torch.equal(adapter.weights, weights[-1]) and adapter.training["stopped"] == "stop"
    assert adapter.training["num_steps"] == 3


@pytest.mark.parametrize(
    "options", [{"num_adapters": 0}, {"num_looks": 0}, {"min_probability": 1.1}, {"max_loss": float("nan")}]
)
def test_numbers_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AnswerStays(**{"num_adapters": 1, **options})
