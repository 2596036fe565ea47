"""SelfAdaptingLM.propose: sampled self-edits of a passage, or of any other domain."""

import threading
from dataclasses import replace
from unittest.mock import Mock

import pytest
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.domains import Domain, KnowledgeDomain
from seal_hf.self_edit import TrainingExample


PASSAGE = {"title": "Bees", "context": "Ann keeps bees in Vell. They hum at night."}


def tiny_lm(**options):
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), **options)


@pytest.fixture
def lm():
    return tiny_lm()


class TopicDomain(Domain):
    """A task without passages: write a line about a topic; a line that does not please is malformed."""

    def __init__(self, pleases=lambda completion: True):
        self.pleases = pleases

    def prompt(self, example):
        return f"Write about {example['topic']}: "

    def parse(self, completion, example):
        if not self.pleases(completion):
            return None
        return SelfEdit(self.prompt(example), completion, (TrainingExample(f"{example['topic']}: ", completion),))

    def ask(self, questions, title=""):
        return [f"Question: {question} Answer:" for question in questions]


def test_self_edits_of_the_domain(lm):
    edits = lm.propose(PASSAGE, num_generations=3, max_completion_length=16, seed=1)
    domain = KnowledgeDomain(chat=True)
    assert edits == [domain.parse(edit.completion, PASSAGE) for edit in edits]
    assert len({edit.completion for edit in edits}) == 3
    assert all(edit.prompt == domain.prompt(PASSAGE) for edit in edits)
    assert all(edit.examples[-1] == TrainingExample("", f"Bees\n{PASSAGE['context']}") for edit in edits)


def test_text_is_a_passage_without_title(lm):
    text = PASSAGE["context"]
    edits = lm.propose(text, num_generations=2, max_completion_length=16)
    assert edits == lm.propose({"title": "", "context": text}, num_generations=2, max_completion_length=16)
    assert edits[0].examples[-1] == TrainingExample("", text)


def test_plain_prompts_without_a_chat_template():
    lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(chat_template=False))
    (edit,) = lm.propose(PASSAGE, num_generations=1, max_completion_length=16)
    assert edit.prompt == KnowledgeDomain(chat=False).prompt(PASSAGE)


def test_seed_and_place_decide(lm):
    def completions(num_generations, **options):
        edits = lm.propose(PASSAGE, num_generations, max_completion_length=16, **options)
        return [edit.completion for edit in edits]

    assert completions(4, seed=5) == completions(4, seed=5)
    assert completions(2, seed=5) == completions(4, seed=5)[:2]
    assert not set(completions(4, seed=5)) & set(completions(4, seed=6))
    assert len(set(completions(4, temperature=1e-5))) == 1
    assert len(set(completions(4, top_p=1e-5))) == 1


def test_malformed_completions_are_left_out(caplog):
    def completions(lm):
        edits = lm.propose({"topic": "bees"}, num_generations=6, max_completion_length=12)
        return [edit.completion for edit in edits]

    written = completions(tiny_lm(domain=TopicDomain()))
    assert len(set(written)) == 6 and not caplog.records
    kept = completions(tiny_lm(domain=TopicDomain(pleases=lambda text: text not in {written[1], written[4]})))
    assert kept == [written[0], *written[2:4], written[5]]
    assert [record.getMessage() for record in caplog.records] == ["2 of 6 self-edits were malformed and are left out."]


def test_on_text_and_stop(lm):
    calls, stop = [], threading.Event()
    edits = lm.propose(PASSAGE, 3, max_completion_length=16, on_text=calls.append)
    assert ["".join(texts) for texts in zip(*calls, strict=True)] == [edit.completion for edit in edits]

    first = ["".join(texts) for texts in zip(*calls[:5], strict=True)]
    calls.clear()
    stopped = lm.propose(
        PASSAGE, 3, max_completion_length=16, on_text=lambda new: calls.append(new) or len(calls) == 5
    )
    assert [edit.completion for edit in stopped] == first
    calls.clear()
    stopped = lm.propose(
        PASSAGE,
        3,
        max_completion_length=16,
        on_text=lambda new: calls.append(new) or (len(calls) == 5 and stop.set()),
        stop=stop,
    )
    assert [edit.completion for edit in stopped] == first


def test_batch_of_examples():
    def proposals(lm, topics, **options):
        examples = [{"topic": topic} for topic in topics]
        batch = lm.write_batch(examples, 3, temperature=1.0, top_p=0.95, max_completion_length=12, **options)
        edits = [
            [lm.domain.parse(one.text, example) for one in own] for example, own in zip(examples, batch, strict=True)
        ]
        return [[edit and (edit.prompt, edit.completion) for edit in own] for own in edits]

    everything = proposals(tiny_lm(domain=TopicDomain()), ["bees", "moths"], seed=2)
    prompts = [[prompt for prompt, _ in edits] for edits in everything]
    assert prompts == [["Write about bees: "] * 3, ["Write about moths: "] * 3]
    assert len({completion for edits in everything for _, completion in edits}) == 6

    lm = tiny_lm(domain=TopicDomain(pleases=lambda text: text != everything[1][0][1]))
    assert proposals(lm, ["bees", "moths"], seed=2) == [everything[0], [None, *everything[1][1:]]]
    assert proposals(lm, ["bees"], seed=2) == everything[:1]
    single = lm.propose({"topic": "bees"}, 3, max_completion_length=12, seed=2)
    assert [(edit.prompt, edit.completion) for edit in single] == everything[0]
    assert proposals(lm, [], seed=2) == []


def test_empty_passage_among_others(lm, monkeypatch):
    monkeypatch.setattr(lm.model, "generate", Mock())
    with pytest.raises(ValueError, match="The passage is empty"):
        lm.write_batch(
            [PASSAGE, {"title": "Moths", "context": ""}],
            2,
            temperature=1.0,
            top_p=1.0,
            max_completion_length=9,
            seed=0,
        )
    lm.model.generate.assert_not_called()


@pytest.mark.parametrize(
    ("passage", "options", "message"),
    [
        (PASSAGE, {"num_generations": 0}, "num_generations=0 must be at least 1"),
        ("", {}, "The passage is empty"),
        (" \n\t", {}, "The passage is empty"),
        ({"title": "Bees", "context": " "}, {}, "The passage is empty"),
        ("bees " * 800, {}, r"A prompt of \d{4} tokens and up to 512 new ones exceed .* context of 4096 tokens"),
        (PASSAGE, {"temperature": 0}, "temperature=0 must be above 0"),
        (PASSAGE, {"top_p": 2}, "top_p=2 must be above 0 and at most 1"),
        (PASSAGE, {"max_completion_length": 0}, "max_completion_length=0 must be at least 1"),
    ],
)
def test_refused_before_generating(lm, monkeypatch, passage, options, message):
    monkeypatch.setattr(lm.model, "generate", Mock())
    with pytest.raises(ValueError, match=message):
        lm.propose(passage, **options)
    lm.model.generate.assert_not_called()


class AskingTopics(TopicDomain):
    """Every self-edit asks a tool; `answered` is what the tool comes to. It says whether the model has ended its answers."""

    def __init__(self, answered=lambda answers: answers):
        super().__init__()
        self.answered, self.asked = answered, []

    def parse(self, completion, example):
        return replace(super().parse(completion, example), calls=(f"{completion[:3]}?",))

    def carry_out(self, self_edits, examples, ask):
        self.asked.append([(edit.calls, example["topic"]) for edit, example in zip(self_edits, examples, strict=True)])
        answers = self.answered([answer.text for answer in ask([edit.calls[0] for edit in self_edits], 6)])
        return [
            replace(edit, examples=(TrainingExample(edit.calls[0], answer),) if answer else (), calls=())
            for edit, answer in zip(self_edits, answers, strict=True)
        ]


def test_a_tool_is_carried_out_for_all_self_edits_at_once(caplog):
    domain = AskingTopics()
    lm = tiny_lm(domain=domain)
    edits = lm.propose({"topic": "bees"}, 4, max_completion_length=12)
    questions = [f"{edit.completion[:3]}?" for edit in edits]
    assert domain.asked == [[((question,), "bees") for question in questions]]
    answers = [one.text for one in lm.generator.generate(questions, max_new_tokens=6)]
    assert len(set(answers)) > 1
    assert [edit.examples for edit in edits] == [
        (TrainingExample(question, answer),) for question, answer in zip(questions, answers, strict=True)
    ]
    assert not any(edit.calls for edit in edits) and not caplog.records

    domain.answered = lambda answers: ["", *answers[1:]]
    assert lm.propose({"topic": "bees"}, 4, max_completion_length=12) == edits[1:]
    assert [record.getMessage() for record in caplog.records] == ["1 of 4 self-edits were malformed and are left out."]


def test_a_prompt_that_does_not_fit_is_answered_with_nothing():
    domain = AskingTopics()
    lm = SelfAdaptingLM(tiny_llama(max_position_embeddings=64), tiny_tokenizer(), domain=domain)
    edits = [SelfEdit("", "", (), calls=(call,)) for call in ("Who?", "W" * 59, "W" * 58)]
    found = lm.carry_out([edits[0], None, *edits[1:]], [{"topic": "bees"}] * 4)
    assert found[1] is None and [bool(edit.examples) for edit in (found[0], *found[2:])] == [True, False, True]


def test_a_stop_leaves_out_what_a_tool_has_not_done():
    stop = threading.Event()
    lm = tiny_lm(domain=AskingTopics(lambda answers: stop.set() or answers))
    assert lm.propose({"topic": "bees"}, 2, max_completion_length=12, stop=stop) == []


def test_what_no_tool_has_done_is_not_trained_on():
    class Forgetful(AskingTopics):
        def carry_out(self, self_edits, examples, ask):
            return list(self_edits)

    lm = tiny_lm(domain=Forgetful())
    with pytest.raises(
        ValueError, match=r"Forgetful.carry_out\(\) must return a self-edit without calls for each of the 2"
    ):
        lm.propose({"topic": "bees"}, 2, max_completion_length=12)
    with pytest.raises(ValueError, match=r"calls a tool \('Who\?'\); let SelfAdaptingLM.carry_out\(\) do"):
        lm.adapt(SelfEdit("", "", (TrainingExample("", "Bees hum."),), calls=("Who?",)))


def test_another_domain():
    lm = tiny_lm(
        domain=TopicDomain(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=4),
    )
    edits = lm.propose({"topic": "bees"}, num_generations=2, max_completion_length=12)
    assert [edit.prompt for edit in edits] == ["Write about bees: "] * 2
    assert edits[0].examples == (TrainingExample("bees: ", edits[0].completion),)
    adapter = lm.adapt(edits[0])
    assert adapter.training["losses"][-1] < adapter.training["losses"][0]
    prompt = "Question: Who? Answer:"
    assert [lm.answer("Who?", adapter=adapter)] == lm.answer_prompts([prompt], [adapter])
