"""SelfAdaptingLM on tiny models: adapting to self-edits and answering."""

import json
import pickle
import threading
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel

from helpers.adapters import random_adapter
from helpers.small_lm import BASE_ID, EDITS, PASSAGE, QUESTIONS, tiny_lm
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.domains import KnowledgeDomain
from seal_hf.generation.base import Sampling
from seal_hf.inner_loop import within_memory
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import tokenize_self_edit
from seal_hf.self_adapting_lm import topic_of
from seal_hf.self_edit import TrainingExample


@pytest.fixture
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def adapters():
    return tiny_lm().adapt(EDITS)


class TestAdapt:
    def test_one_alone_and_among_others(self, lm, adapters):
        for edit, among_others in zip(EDITS, adapters, strict=True):
            alone = lm.adapt(edit)
            assert (alone.weights - among_others.weights).abs().max() < 1e-5
            (listed,) = lm.adapt([edit])
            assert torch.equal(listed.weights, alone.weights)

    def test_seed_decides(self, lm):
        first, again, other = lm.adapt(EDITS[0], seed=4), lm.adapt(EDITS[0], seed=4), lm.adapt(EDITS[0], seed=5)
        assert torch.equal(first.weights, again.weights)
        assert (first.weights - other.weights).abs().max() > 1e-2

    def test_how_it_was_trained(self, adapters):
        training = [adapter.training for adapter in adapters]
        assert [row["num_steps"] for row in training] == [12, 5, 4]
        assert [row["num_train_epochs"] for row in training] == [4, 5, 4]
        assert [row["learning_rate"] for row in training] == [2e-2, 2e-2, 1e-2]
        assert [row["batch_size"] for row in training] == [1, 1, 2]
        # Characters, and the end of every text.
        assert [row["num_tokens"] for row in training] == [4 * (29 + 24 + 5), 5 * (19 + 31 + 1), 4 * (18 + 6)]
        assert all(len(row["losses"]) == row["num_steps"] for row in training)
        assert all(row["seed"] == 0 and row["stopped"] is None for row in training)
        assert {"lr_scheduler_type", "warmup_steps", "max_grad_norm", "max_length"} <= set(training[0])
        assert all(adapter.base_model_id == BASE_ID and adapter.policy is None for adapter in adapters)

    def test_learns(self, tmp_path):
        # Output weights of this size allow losses near 0.
        lm = tiny_lm(
            tiny_llama(initializer_range=0.3), inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=60)
        )
        adapter = lm.adapt(SelfEdit("", "", (TrainingExample("", "Ann keeps bees."),)))
        losses = adapter.training["losses"]
        assert losses[-1] < 0.1 * losses[0]

        inputs = lm.processing_class("Ann keeps bees.</s>", return_tensors="pt", return_token_type_ids=False)
        labels = inputs["input_ids"]
        with torch.no_grad():
            before = lm.model(**inputs, labels=labels).loss
            adapted = PeftModel.from_pretrained(tiny_llama(initializer_range=0.3), adapter.save_pretrained(tmp_path))
            after = adapted(**inputs, labels=labels).loss
        assert before == pytest.approx(losses[0], rel=1e-4)
        assert after < 0.1 * before
        assert lm.answer_prompts(["Ann k"], [adapter], max_answer_length=10) == ["eeps bees."]

    def test_checkpointing_gives_the_same_adapters(self, adapters, monkeypatch):
        asked = []

        def noted(*args, gradient_checkpointing, **options):
            asked.append(gradient_checkpointing)
            return train(*args, gradient_checkpointing=gradient_checkpointing, **options)

        monkeypatch.setattr(within_memory, "train", noted)
        for one, other in zip(tiny_lm(inner_gradient_checkpointing=True).adapt(EDITS), adapters, strict=True):
            assert (one.weights - other.weights).abs().max() < 1e-5
        tiny_lm().adapt(EDITS[0])
        assert asked == [True, False]

    def test_a_memory_that_is_too_small_is_recovered_from(self, lm, adapters, monkeypatch, caplog):
        def few(bank, *args, **options):
            if len(bank) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return train(bank, *args, **options)

        monkeypatch.setattr(within_memory, "train", few)
        found = lm.adapt(EDITS)
        assert [record.getMessage() for record in caplog.records] == [
            f"A bank of {size} adapters is too large for the memory; it is trained in halves." for size in (3, 2)
        ]
        for one, other in zip(found, adapters, strict=True):
            assert (one.weights - other.weights).abs().max() < 1e-5
            assert one.training.keys() == other.training.keys()
            assert one.training["losses"] == pytest.approx(other.training["losses"], rel=1e-5)
        assert lm.answer(QUESTIONS, adapter=found[0]) == lm.answer(QUESTIONS, adapter=adapters[0])

    def test_on_step_and_stop(self, lm):
        steps, stop = [], threading.Event()

        def set_at_third(step):
            steps.append(step)
            if step.step == 3:
                stop.set()

        stopped = lm.adapt(EDITS, on_step=set_at_third, stop=stop)
        assert [(step.step, step.num_steps, sorted(step.losses)) for step in steps] == [
            (number, 12, [0, 1, 2]) for number in (1, 2, 3)
        ]
        assert [adapter.training["stopped"] for adapter in stopped] == ["stop"] * 3
        assert [adapter.training["num_steps"] for adapter in stopped] == [3] * 3
        assert [adapter.training["losses"][2] for adapter in stopped] == [steps[2].losses[k] for k in range(3)]

    def test_stop_before_the_start(self, lm):
        stop = threading.Event()
        stop.set()
        adapter = lm.adapt(EDITS[0], stop=stop)
        assert adapter.training["stopped"] == "stop" and adapter.training["losses"] == ()
        assert lm.answer(QUESTIONS, adapter=adapter, max_answer_length=16) == lm.answer(
            QUESTIONS, max_answer_length=16
        )

    @pytest.mark.parametrize(
        ("edits", "message"),
        [
            ([], "adapt.. got no self-edits"),
            (SelfEdit("", "", ()), "no sequence of at least two tokens"),
            ([EDITS[0], SelfEdit("", "", (TrainingExample("", "a"),))], "no sequence of at least two tokens"),
            (
                SelfEdit("", "", (TrainingExample("", "bees"),), {"learning_rate": -1.0}),
                "learning_rate=-1.0 must be a number above 0",
            ),
            (
                SelfEdit("", "", (TrainingExample("", "bees"),), {"lr": 1.0}),
                "sets 'lr', which is not one of learning_rate",
            ),
            (SelfEdit("", "", (TrainingExample("", "bees " * 820),)), "4101 tokens .* context of 4096 tokens"),
        ],
    )
    def test_refused_before_training(self, edits, message):
        lm = tiny_lm(inner_config=InnerLoopConfig(max_length=5000))
        calls = []
        with pytest.raises(ValueError, match=message):
            lm.adapt(edits, on_step=calls.append)
        assert not calls

    def test_self_edits_that_are_tokenized_already(self, lm, adapters):
        updates = [tokenize_self_edit(edit, lm.processing_class, lm.inner_config) for edit in EDITS]
        found = lm.adapt([updates[0], EDITS[1], updates[2]])
        assert all(torch.equal(one.weights, other.weights) for one, other in zip(found, adapters, strict=True))
        assert [adapter.training for adapter in found] == [adapter.training for adapter in adapters]
        assert torch.equal(lm.adapt(updates[1]).weights, lm.adapt(EDITS[1]).weights)

    def test_adapters_lie_in_their_bank_until_they_leave_it(self, lm):
        adapters = lm.adapt(EDITS)
        assert len({adapter.device_weights.untyped_storage().data_ptr() for adapter in adapters}) == 1
        expected = lm.answer(QUESTIONS, adapter=adapters[1], max_answer_length=16)
        assert not any("weights" in vars(adapter) for adapter in adapters)  # no copy on the CPU was needed

        own = adapters[1].layout.num_parameters * 4
        sent = pickle.dumps(adapters[1])
        assert own < len(sent) < 1.5 * own
        weights = adapters[1].weights.clone()
        adapters[1].leave_bank()
        assert adapters[1].device_weights.untyped_storage().nbytes() == own
        for adapter in (adapters[1], pickle.loads(sent)):
            assert torch.equal(adapter.weights, weights) and adapter.weights is adapter.device_weights
            assert lm.answer(QUESTIONS, adapter=adapter, max_answer_length=16) == expected

    def test_each_adapter_may_have_a_seed_of_its_own(self, lm):
        first, second = lm.adapt(EDITS[:2], seed=[4, 9])
        for edit, seed, adapter in ((EDITS[0], 4, first), (EDITS[1], 9, second)):
            alone = lm.adapt(edit, seed=seed)
            torch.testing.assert_close(adapter.weights, alone.weights, atol=1e-5, rtol=0)
            assert adapter.training["seed"] == seed
        with pytest.raises(ValueError, match="3 seeds were given for 2 self-edits"):
            lm.adapt(EDITS[:2], seed=[1, 2, 3])
        with pytest.raises(ValueError, match="must be 0 or more"):
            lm.adapt(EDITS[:2], seed=[1, -1])

    def test_negative_seed(self, lm):
        with pytest.raises(ValueError, match="seed=-1 must be 0 or more"):
            lm.adapt(EDITS[0], seed=-1)

    def test_base_is_never_changed(self, lm, adapters):
        inputs = lm.processing_class(PASSAGE["context"], return_tensors="pt", return_token_type_ids=False)
        weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
        with torch.no_grad():
            logits = lm.model(**inputs).logits
        answers = lm.answer(QUESTIONS, max_answer_length=24)

        lm.adapt(EDITS)
        assert lm.answer(QUESTIONS, adapter=adapters[0], max_answer_length=24) != answers

        assert lm.answer(QUESTIONS, adapter=None, max_answer_length=24) == answers
        with torch.no_grad():
            assert torch.equal(lm.model(**inputs).logits, logits)
        after = lm.model.state_dict()
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
        assert all(parameter.grad is None for parameter in lm.model.parameters())


class TestAnswer:
    def test_one_question_and_many(self, lm, adapters):
        for adapter in (None, adapters[0]):
            answers = lm.answer(QUESTIONS, adapter=adapter, max_answer_length=24)
            assert [lm.answer(question, adapter=adapter, max_answer_length=24) for question in QUESTIONS] == answers
            assert all(isinstance(answer, str) and answer == answer.strip() for answer in answers)

    def test_title_is_in_the_prompt(self, lm):
        prompts = KnowledgeDomain(chat=True).questions({**PASSAGE, "questions": [{"question": QUESTIONS[0]}]})
        answer = lm.answer(QUESTIONS[0], title="Bees", max_answer_length=24)
        assert [answer] == lm.answer_prompts(prompts, max_answer_length=24)
        assert answer != lm.answer(QUESTIONS[0], max_answer_length=24)

    def test_prompts_of_many_adapters_at_once(self, lm, adapters):
        prompts = ["Ann", "Moths like", "Ann", "Where do they hum?"]
        mixed = [adapters[2], None, adapters[0], adapters[2]]
        expected = [
            lm.answer_prompts([prompt], [adapter], max_answer_length=24)[0]
            for prompt, adapter in zip(prompts, mixed, strict=True)
        ]
        assert lm.answer_prompts(prompts, mixed, max_answer_length=24) == expected
        assert lm.answer_prompts(prompts, [None] * 4, max_answer_length=24) == lm.answer_prompts(
            prompts, max_answer_length=24
        )
        assert lm.answer_prompts(prompts, max_answer_length=24) != expected

    def test_adapters_of_one_bank_and_of_others(self, lm, adapters, tmp_path):
        other = lm.adapt(EDITS[1], seed=3)
        loaded = lm.load_adapter(adapters[0].save_pretrained(tmp_path))
        mixed = [adapters[2], other, loaded, adapters[0], None]
        expected = [lm.answer(QUESTIONS[0], adapter=adapter, max_answer_length=24) for adapter in mixed]
        assert expected[2] == expected[3] and len(set(expected)) == 4
        prompts = lm.domain.questions({"title": "", "context": "", "questions": [{"question": QUESTIONS[0]}]})
        assert lm.answer_prompts(prompts * 5, mixed, max_answer_length=24) == expected

    def test_generate(self, lm, adapters):
        prompts, chosen = ["Ann", "Moths like", "Where do they hum?"], [adapters[0], None, adapters[2]]
        sampling = Sampling((1, 2, 3))
        found = lm.generator.generate(prompts, chosen, max_new_tokens=[2, 9, 5], sampling=sampling)
        assert found == lm.generator.generate(prompts, chosen, max_new_tokens=[2, 9, 5], sampling=sampling)
        assert [generation.num_tokens for generation in found] == [2, 9, 5]
        greedy = [generation.text.strip() for generation in lm.generator.generate(prompts, chosen, max_new_tokens=9)]
        assert greedy == lm.answer_prompts(prompts, chosen, max_answer_length=9)

    def test_on_text_and_stop(self, lm):
        calls, stop = [], threading.Event()
        answers = lm.answer(QUESTIONS, max_answer_length=24, on_text=calls.append)
        assert ["".join(texts).strip() for texts in zip(*calls, strict=True)] == answers
        stop.set()
        calls.clear()
        lm.answer(QUESTIONS, max_answer_length=24, on_text=calls.append, stop=stop)
        assert len(calls) == 1

    @pytest.mark.parametrize("question", ["", " \n", ["Who?", ""]])
    def test_empty_question(self, lm, question):
        with pytest.raises(ValueError, match="A question is empty"):
            lm.answer(question)

    @pytest.mark.parametrize("with_adapter", [True, False])
    def test_adapters_are_one_per_prompt(self, lm, adapters, with_adapter):
        with pytest.raises(ValueError, match="2 adapters were given for 3 prompts"):
            lm.answer_prompts(["a", "b", "c"], [adapters[0] if with_adapter else None, None])

    def test_adapters_of_different_shapes(self, lm, adapters):
        wide = tiny_lm(peft_config=LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"))
        with pytest.raises(ValueError, match="these 2 have 2"):
            lm.answer_prompts(["a", "b"], [adapters[0], wide.adapt(EDITS[0])])

    def test_adapter_for_another_base(self, adapters):
        lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), base_model_id="me/other")
        with pytest.raises(ValueError, match=r"adapts me/tiny, but the loaded base model is me/other; load me/tiny"):
            lm.answer("Who?", adapter=adapters[0])


CONSTRUCTOR_ERRORS = {
    "targets": (
        {"peft_config": LoraConfig(target_modules=["c_attn"])},
        r"\['c_attn'\] match no linear module; .*q_proj",
    ),
    "domain": (
        {"domain": KnowledgeDomain(chat=True)},
        "has no chat template, which a domain in chat form needs; use KnowledgeDomain.chat=False., or set",
    ),
}


@pytest.mark.parametrize(("options", "message"), CONSTRUCTOR_ERRORS.values(), ids=CONSTRUCTOR_ERRORS)
def test_constructor_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SelfAdaptingLM(tiny_llama(), tiny_tokenizer(chat_template=False), **options)


def test_constructor_refuses_a_rank_of_0():
    config = LoraConfig(r=1)
    config.r = 0
    with pytest.raises(ValueError, match="rank r=0 must be at least 1"):
        tiny_lm(peft_config=config)


def test_constructor_refuses_a_tokenizer_without_padding_and_end():
    with pytest.raises(
        ValueError, match="me/tiny has neither a padding nor an end-of-sequence token; set `tokenizer.pad"
    ):
        SelfAdaptingLM(tiny_llama(), tiny_tokenizer(pad=False, eos=False), base_model_id=BASE_ID)


def test_defaults_are_the_papers():
    lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer())
    adapter = lm.adapt(EDITS[2])
    assert (adapter.layout.r, adapter.layout.lora_alpha, adapter.layout.target_modules) == (
        32,
        64,
        ("q_proj", "v_proj"),
    )
    assert lm.inner_config == InnerLoopConfig(learning_rate=1e-3, num_train_epochs=10, batch_size=1)
    assert lm.domain.prompt_style == "implications" and lm.domain.chat


def test_an_adapter_is_asked_with_the_topic_that_it_learned(tmp_path):
    domain = KnowledgeDomain("rewrite", training_format="prompt_completion")
    lm = tiny_lm(tiny_llama(initializer_range=0.3), domain=domain)
    adapter = lm.adapt(lm.domain.passage_only(PASSAGE))
    adapter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "seal_training.json").read_text())["title"] == "Bees"
    assert "- title: Bees\n" in (tmp_path / "README.md").read_text()
    trained = lm.load_adapter(tmp_path)
    assert topic_of(trained) == "Bees" and "title" not in lm.adapt(EDITS[0]).training
    loaded = replace(random_adapter(), base_model_id=BASE_ID, training=trained.training)
    told, named, without = (
        lm.answer(QUESTIONS[0], adapter=loaded, max_answer_length=12, **options)
        for options in ({}, {"title": "Bees"}, {"title": ""})
    )
    assert told == named != without


@pytest.mark.parametrize(("title", "topic"), [(" The\nbees ", "The bees"), ("b" * 999, "b" * 200), (["Bees"], "")])
def test_the_topic_of_a_strangers_adapter_is_a_short_line(title, topic):
    adapter = replace(random_adapter(), training={"title": title})
    assert topic_of(adapter) == topic and topic_of(None) == topic_of(random_adapter()) == ""
