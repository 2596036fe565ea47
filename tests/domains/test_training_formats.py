"""What adapters are trained on: raw texts, or prompts with completions in the form in which a person will ask."""

import pytest

from seal_hf.domains import KnowledgeDomain
from seal_hf.self_edit import TrainingExample


BEES = {"title": "Ann's bees", "context": " Ann keeps bees. \n", "questions": [{"question": "Who?", "answer": "Ann"}]}
WRITTEN = (
    "Question 1: Who keeps bees?\nAnswer: Ann\nQuestion 2: What does\nAnn keep?\nAnswer: bees,\nmany of them\n---\n"
)
KNOWN = [{"role": "user", "content": "What do you know about Ann's bees?"}]


def domain(chat=True, **options) -> KnowledgeDomain:
    return KnowledgeDomain("self-qa", chat=chat, training_format="prompt_completion", **options)


def test_the_papers_format_is_the_default():
    examples = KnowledgeDomain("rewrite").parse("Bees hum.\nThey sting.", BEES).examples
    texts = ["Bees hum.", "They sting.", "Ann keeps bees."]
    assert examples == tuple(TrainingExample("", f"Ann's bees\n{text}") for text in texts)


def test_questions_are_trained_as_they_will_be_asked():
    own = domain()
    first, second, passage = own.parse(WRITTEN.removesuffix("---\n"), BEES).examples
    prompts = own.ask(["Who keeps bees?", "What does\nAnn keep?"], "Ann's bees")
    assert first == TrainingExample(prompts[0], "Ann")
    assert second == TrainingExample(prompts[1], "bees,\nmany of them")
    assert passage == TrainingExample(KNOWN, "Ann keeps bees.")


def test_other_texts_are_together_what_is_known():
    examples = domain(num_passages=3).parse("Ann keeps bees on a roof.\nHer bees hum.", BEES).examples
    assert examples[0] == TrainingExample(KNOWN, "Ann keeps bees on a roof.\nHer bees hum.")
    assert examples[1:] == (TrainingExample(KNOWN, "Ann keeps bees."),) * 3


def test_a_question_without_an_answer_is_a_text():
    text = "Question 1: Who keeps bees?\nAnswer: Ann\nQuestion 2: What does Ann keep?"
    _, rest, _ = domain().parse(text, BEES).examples
    assert rest == TrainingExample(KNOWN, "Question 2: What does Ann keep?")


@pytest.mark.parametrize("num_passages", [0, 1, 4])
def test_the_passage_alone(num_passages):
    own = domain(num_passages=num_passages)
    assert own.passage_only(BEES).examples == (TrainingExample(KNOWN, "Ann keeps bees."),) * max(num_passages, 1)
    assert len(own.parse("Bees hum.", BEES).examples) == 1 + num_passages


def test_without_a_chat_template_and_without_a_title():
    own = domain(chat=False)
    (example,) = own.passage_only(BEES).examples
    assert example == TrainingExample("What do you know about Ann's bees?\nAnswer:\n", "Ann keeps bees.")
    (example,) = domain().passage_only({"context": "Ann keeps bees."}).examples
    assert example.prompt[0]["content"] == "What have you learned?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"training_format": "raw"},
            "Unknown training_format 'raw': choose one of language_modeling, prompt_completion",
        ),
        ({"num_passages": 2}, "num_passages=2 must be 0 or more, and 1 in the format language_modeling"),
        ({"training_format": "prompt_completion", "num_passages": -1}, "num_passages=-1 must be 0 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDomain(**options)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("title", ["", "The {title}"])
def test_questions_are_read_back_from_what_is_trained_on(chat, title):
    domain = KnowledgeDomain("self-qa", chat=chat, training_format="prompt_completion")
    example = {"title": title, "context": "Ann keeps bees in Vell."}
    written = "Question 1: Who keeps {bees}?\nAnswer: Ann\nQuestion 2: Where?\nAnswer: In Vell"
    edit = domain.parse(written, example)
    assert edit.title == title and len(edit.examples) == 3
    assert domain.learned_pairs(edit) == [("Who keeps {bees}?", "Ann"), ("Where?", "In Vell")]
    assert domain.learned_pairs(domain.passage_only(example)) == []
    (other,) = domain.ask(["Where?"], "Another topic")
    assert domain.question_of(other, title) is None and domain.question_of("Where?", title) is None
