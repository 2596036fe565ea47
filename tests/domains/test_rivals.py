"""Other methods to turn a passage into texts, and retrieval: what is asked for, what is trained on, and what is found."""

import pytest

from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.domains.knowledge.retrieval import retrieval_condition
from seal_hf.domains.knowledge.rivals import SPA_PROMPTS, ActiveReadingDomain, EntiGraphDomain, SPADomain
from seal_hf.domains.retrieval import Retriever
from seal_hf.generation.base import Generation


BEES = {
    "title": "Bees",
    "context": "Ann keeps bees in Vell since 1911.",
    "questions": [{"question": "Who?", "answer": "Ann"}],
}
OWLS = {
    "title": "Owls",
    "context": "Cleo paints owls.",
    "questions": [{"question": "What is painted?", "answer": "owls"}],
}


class Asked:
    """Answers each prompt with its number, and notes what it was asked."""

    def __init__(self, answers=()):
        self.prompts, self.options, self.given = [], [], list(answers)

    def __call__(self, prompts, max_new_tokens, *, as_writer=False):
        self.prompts += prompts
        self.options.append((max_new_tokens, as_writer))
        return [Generation(self.given[i] if self.given else f"Text {i}.", 2, True) for i in range(len(prompts))]


def test_spa_asks_for_every_kind_of_text():
    domain = SPADomain(chat=False)
    prompts = [domain.prompt(part) for part in domain.parts(BEES)]
    assert len(set(prompts)) == len(SPA_PROMPTS) == 7
    assert all(BEES["context"] in prompt and "Bees" in prompt for prompt in prompts)
    assert domain.pools_drafts
    (message,) = SPADomain(chat=True).prompt(domain.parts(BEES)[6])
    assert message["role"] == "user" and "teacher" in message["content"]
    with pytest.raises(ValueError, match="The passage is empty"):
        domain.prompt({"context": " "})


@pytest.mark.parametrize("training_format", ["language_modeling", "prompt_completion"])
def test_every_text_is_trained_on_alone(training_format):
    domain = SPADomain(chat=False, training_format=training_format)
    edit = domain.parse("Bees.\n- Ann\n---\n\n---\nA keeper.", BEES)
    assert edit.title == "Bees" and domain.parse("Bees.", {"context": "Bees hum."}).title == ""
    shown = [example.completion.removeprefix("Bees\n") for example in edit.examples]
    assert shown == ["Bees.\n- Ann", "A keeper.", BEES["context"]]
    known = {example.prompt for example in edit.examples}
    assert known == {domain.passage_only(BEES).examples[0].prompt}
    assert domain.parse(" \n---\n", BEES) is None
    many = SPADomain(chat=False, training_format="prompt_completion", num_passages=3).parse("Bees.", BEES)
    assert [example.completion for example in many.examples] == ["Bees.", *[BEES["context"]] * 3]


def test_active_reading_applies_the_ways_that_it_finds():
    domain = ActiveReadingDomain(chat=False, max_text_length=9)
    edit = domain.parse("1. Retell it.\n- Ask why.\n\n2) Retell it.\n", BEES)
    assert edit.calls == ("Retell it.", "Ask why.") and edit.examples == ()
    none = domain.parse("1. Sing.", OWLS)
    ask = Asked(["Notes.", " ", ""])
    done, empty = domain.carry_out([edit, none], [BEES, OWLS], ask)
    assert ask.options == [(9, True)]
    assert ["Retell it." in ask.prompts[0], "Ask why." in ask.prompts[1], "Sing." in ask.prompts[2]] == [True] * 3
    assert BEES["context"] in ask.prompts[1] and OWLS["context"] in ask.prompts[2]
    assert [example.completion for example in done.examples] == ["Bees\nNotes.", f"Bees\n{BEES['context']}"]
    assert done.metrics == {"texts": 1} and done.calls == () and done.title == "Bees"
    assert empty.examples == ()
    assert len(domain.parse("\n".join(map("Way {}.".format, range(20))), BEES).calls) == 8
    assert domain.parse("\n \n", BEES) is None


@pytest.mark.parametrize(("num_triples", "number"), [(0, 6), (3, 9), (99, 10)])
def test_entigraph_relates_pairs_and_triples(num_triples, number):
    domain = EntiGraphDomain(num_triples, chat=False)
    edit = domain.parse("Ann\nbees\nVell\n1911", BEES)
    assert edit.calls == ("Ann", "bees", "Vell", "1911")
    ask = Asked()
    (done,) = domain.carry_out([edit], [BEES], ask)
    assert len(set(ask.prompts)) == len(ask.prompts) == number == done.metrics["texts"]
    assert "Ann; bees. Say" in ask.prompts[0] and "Vell; 1911. Say" in ask.prompts[5]
    assert all(prompt.count("; ") == 2 for prompt in ask.prompts[6:])
    again = Asked()
    domain.carry_out([edit], [BEES], again)
    assert again.prompts == ask.prompts
    (alone,) = domain.carry_out([domain.parse("Ann", BEES)], [BEES], again)
    assert alone.examples == ()


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_demo_question_finds_its_passage(split):
    passages = load_demo_passages(split)
    found = KnowledgeDomain().routes(passages)
    assert all(place == own for own, passage in enumerate(passages) for place in found(passage))
    retriever = Retriever([f"{passage['title']}\n{passage['context']}" for passage in passages])
    # Without the topic nearly all do.
    alone = [
        place == own
        for own, passage in enumerate(passages)
        for place in retriever.find([item["question"] for item in passage["questions"]])
    ]
    assert sum(alone) >= 0.99 * len(alone)


def test_what_was_found_is_in_view():
    domain = KnowledgeDomain("rewrite", chat=False)
    condition = retrieval_condition(domain, [BEES, OWLS])
    assert condition.self_edit is None
    assert condition.questions(BEES) == domain.questions_in_context(BEES)
    # About bees, yet the words are those of the other passage.
    asked = {
        "title": "",
        "context": BEES["context"],
        "questions": [{"question": "What does Cleo do?"}, {"question": "Why?"}],
    }
    view, closed = condition.questions(asked)
    assert OWLS["context"] in view and BEES["context"] not in view
    assert closed == domain.questions({**asked, "questions": [{"question": "Why?"}]})[0]


def test_a_retriever_without_words():
    assert Retriever(["", "the"]).find(["Ann", ""]) == [None, None]
    assert Retriever(["moths", "Ann's moths", "bees"]).find(["MOTHS"]) == [0]
    with pytest.raises(ValueError, match="needs texts to search"):
        Retriever([])
