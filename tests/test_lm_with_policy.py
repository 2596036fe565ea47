"""SelfAdaptingLM on a model with a policy adapter: who writes, learns and answers, and what an adapter holds."""

import pickle
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel

from helpers.small_lm import BASE_ID, EDITS, PASSAGE, QUESTIONS, tiny_lm
from helpers.tiny_models import tiny_llama, tiny_policy_model
from seal_hf.adapters.adapter import Adapter
from seal_hf.domains import KnowledgeDomain
from seal_hf.models.access import policy_parameters


@pytest.fixture
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def adapters():
    return tiny_lm().adapt(EDITS)


def test_adapter_holds_policy_and_update(tmp_path):
    policy_lm = tiny_lm(tiny_policy_model())
    adapter = policy_lm.adapt(EDITS[0])
    prompts = ["Ann", "Moths like", "Where do they hum?"]
    answers = policy_lm.answer_prompts(prompts, [adapter] * 3, max_answer_length=24)

    assert tiny_lm().answer_prompts(prompts, [adapter] * 3, max_answer_length=24) == answers
    exported = PeftModel.from_pretrained(tiny_llama(), adapter.save_pretrained(tmp_path))
    lm = tiny_lm(exported)
    assert lm.answer_prompts(prompts, max_answer_length=24) == answers
    assert tiny_lm().load_adapter(tmp_path).weights.shape == adapter.on_base().weights.shape

    policy_alone = policy_lm.answer_prompts(prompts, max_answer_length=24)
    base_alone = tiny_lm().answer_prompts(prompts, max_answer_length=24)
    assert len({tuple(rows) for rows in (answers, policy_alone, base_alone)}) == 3
    without_policy = Adapter(adapter.layout, adapter.weights, BASE_ID)
    assert tiny_lm().answer_prompts(prompts, [without_policy] * 3, max_answer_length=24) != answers


def test_a_base_student_learns_and_answers_as_if_there_were_no_policy(lm, adapters):
    prompts, model = lm.domain.ask(QUESTIONS, "Bees"), tiny_policy_model()
    student = tiny_lm(model, student="base")
    learned = student.adapt(EDITS)
    for own, other in zip(learned, adapters, strict=True):
        assert own.policy is None and torch.equal(own.weights, other.weights)
    answers = student.answer_prompts(prompts, learned, max_answer_length=24)
    assert answers == lm.answer_prompts(prompts, adapters, max_answer_length=24)
    assert student.answer_prompts(prompts, max_answer_length=24) == lm.answer_prompts(prompts, max_answer_length=24)
    # The policy writes.
    options = {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 16, "seed": 0}
    written = [one.write_batch([PASSAGE], 1, **options) for one in (student, tiny_lm(model), lm)]
    assert written[0] == written[1] != written[2]


def test_the_tool_asks_the_student_or_as_the_writer_the_policy():
    told = {}

    class Asking(KnowledgeDomain):
        def carry_out(self, self_edits, examples, ask):
            for as_writer in (False, True):
                told[as_writer] = [one.token_ids for one in ask(["Who keeps bees?"], 12, as_writer=as_writer)]
            return [replace(edit, calls=()) for edit in self_edits]

    def asked(model, **options):
        lm = tiny_lm(model, domain=Asking(chat=False), **options)
        lm.carry_out([replace(EDITS[0], calls=("?",))], [PASSAGE])
        return dict(told)

    policy, base = asked(tiny_policy_model()), asked(tiny_llama())
    assert policy[False] == policy[True] != base[False] == base[True]
    assert asked(tiny_policy_model(), student="base") == {False: base[False], True: policy[True]}


def test_an_unknown_student():
    with pytest.raises(ValueError, match="student='teacher' must be 'policy' or 'base'"):
        tiny_lm(student="teacher")


def test_policy_is_never_changed():
    lm = tiny_lm(tiny_policy_model())
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    lm.answer("Who?", adapter=lm.adapt(EDITS[0]), max_answer_length=4)
    after = lm.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_plain_adapter_on_a_policy(adapters):
    with pytest.raises(ValueError, match=r"trained on the plain base model, but .*from_pretrained\('me/tiny'\)"):
        tiny_lm(tiny_policy_model()).answer("Who?", adapter=adapters[0])


def test_adapter_of_another_policy():
    adapter = tiny_lm(tiny_policy_model()).adapt(EDITS[0])
    with pytest.raises(ValueError, match="trained on another policy adapter, but"):
        tiny_lm(tiny_policy_model(seed=8)).answer("Who?", adapter=adapter)


def test_policy_is_copied_once_while_it_stays(monkeypatch):
    lm, copies = tiny_lm(tiny_policy_model()), []
    from_peft_model = Adapter.from_peft_model
    monkeypatch.setattr(Adapter, "from_peft_model", lambda *args: copies.append(args) or from_peft_model(*args))
    adapter = lm.adapt(EDITS[0])
    for _ in range(2):
        lm.answer("Who?", adapter=adapter, max_answer_length=2)
    other_view = tiny_lm(lm.model)
    other_view.answer("Who?", adapter=adapter, max_answer_length=2)
    assert copies == [] and adapter.policy is other_view.adapt(EDITS[0]).policy

    optimizer = torch.optim.AdamW(policy_parameters(lm.model), lr=1e-3, fused=True)
    for parameter in policy_parameters(lm.model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(ValueError, match="trained on another policy adapter, but"):
        lm.answer("Who?", adapter=adapter)
    assert len(copies) == 1


def test_adapter_from_another_process_is_of_the_same_policy():
    lm = tiny_lm(tiny_policy_model())
    adapter = lm.adapt(EDITS[0])
    sent = pickle.loads(pickle.dumps(adapter))
    assert sent.policy is not adapter.policy
    answers = [lm.answer(QUESTIONS, adapter=one, max_answer_length=24) for one in (adapter, sent)]
    assert answers[0] == answers[1]


def test_policy_with_dropout():
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], lora_dropout=0.1)
    adapter = tiny_lm(tiny_policy_model(peft_config=config)).adapt(EDITS[0])
    assert adapter.policy.layout.r == 3


def test_policy_that_is_no_plain_lora_stops_before_any_work():
    config = LoraConfig(r=3, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora=True\) is not supported"):
        tiny_lm(tiny_policy_model(peft_config=config))
