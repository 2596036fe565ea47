"""What adapters are asked for rewards without labels."""

import pytest

from seal_hf.domains import ArcDomain, KnowledgeDomain
from seal_hf.domains.knowledge import reward_questions
from seal_hf.domains.knowledge.reward_questions import MOST_QUESTIONS, cross_fitted, examples_with_own_answers


BEES = {
    "id": "b",
    "title": "Bees",
    "context": "Ann keeps bees in Vell.",
    "questions": [{"question": "Who?", "answer": "Bob"}],
}
ASKED = [
    "Question 1: Who keeps bees?\nAnswer: Ann\nQuestion 2: Where?\nAnswer: in Vell",
    "Question 1: where\nAnswer: Vell\nQuestion 2: What does Ann keep?\nAnswer: bees",
    "Bees hum.",
]


def pairs_of(asked):
    return None if asked is None else [(item["question"], item["answer"]) for item in asked["questions"]]


@pytest.fixture
def about_passage(monkeypatch):
    """The questions that the model writes about a passage itself, and how often it was asked."""
    calls = []

    def own_questions(lm, example, num_questions, *, seed):
        calls.append((lm, example["context"], num_questions, seed))
        return [{"question": "Whose bees?", "answer": "Ann's"}]

    monkeypatch.setattr(reward_questions, "own_questions", own_questions)
    return calls


@pytest.mark.parametrize("training_format", ["language_modeling", "prompt_completion"])
def test_a_self_edit_is_asked_what_the_others_ask(about_passage, training_format):
    domain = KnowledgeDomain("self-qa", chat=False, training_format=training_format)
    edits = [domain.parse(text, BEES) for text in ASKED]
    found = domain.own_examples(BEES, [*edits, None], "the model", 7)
    who, where, what = ("Who keeps bees?", "Ann"), ("Where?", "in Vell"), ("What does Ann keep?", "bees")
    assert [pairs_of(one) for one in found] == [[what], [who], [who, where, what], None]
    assert all(one["context"] == BEES["context"] and one["title"] == "Bees" for one in found[:3])
    assert about_passage == []
    # What the example has as labels is not looked at.
    assert "Who?" not in str(found) and "Bob" not in str(found)


def test_where_the_others_ask_nothing_new_the_passage_is_asked_about(about_passage):
    domain = KnowledgeDomain("self-qa", chat=False)
    asking, also, plain = (domain.parse(text, BEES) for text in (ASKED[0], ASKED[0], ASKED[2]))
    expected = [("Whose bees?", "Ann's")]
    assert [pairs_of(one) for one in domain.own_examples(BEES, [asking], "lm", 7)] == [expected]
    both = [pairs_of(one) for one in domain.own_examples(BEES, [asking, also], "lm", 7)]
    assert both == [expected, expected]
    assert [pairs_of(one) for one in domain.own_examples(BEES, [plain, plain], "lm", 7)] == [expected, expected]
    assert about_passage == [("lm", BEES["context"], 5, 7)] * 3  # once an example


def test_without_any_question_there_is_no_reward(monkeypatch):
    monkeypatch.setattr(reward_questions, "own_questions", lambda *args, **options: [])
    domain = KnowledgeDomain("rewrite", chat=False)
    assert domain.own_examples(BEES, [domain.parse("Bees hum.", BEES)], "lm", 7) == [None]


def test_many_questions_are_taken_at_even_distances():
    pairs = [(f"What is {number}?", str(number)) for number in range(25)]
    (found, own) = cross_fitted([[], pairs])
    assert [int(answer) for _, answer in found] == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22] and len(
        found
    ) == MOST_QUESTIONS
    assert own == []


class Reader:
    """Answers as given, in order, and notes what it was asked."""

    def __init__(self, *answers):
        self.answers, self.prompts = answers, []

    def answer_prompts(self, prompts, **options):
        self.prompts += prompts
        return list(self.answers)


def test_the_model_reads_the_answers_in_the_passage():
    moths = {"context": "Moths fly.", "questions": [{"question": "What fly?"}, {"question": "Where?"}]}
    reader = Reader("Ann\nTopic: Bees", "Moths", " .")
    found = examples_with_own_answers(reader, [BEES, {"context": "Ants."}, moths])
    assert [pairs_of(one) for one in found] == [[("Who?", "Ann")], None, [("What fly?", "Moths")]]
    assert all("Bob" not in prompt for prompt in reader.prompts)
    assert "Note: Ann keeps bees in Vell.\nQuestion: Who?" in reader.prompts[0]
    assert examples_with_own_answers(Reader(), [{"context": "Ants."}]) == [None]


def test_what_a_domain_can_be_rewarded_by():
    assert KnowledgeDomain().reward_funcs == ("accuracy", "rubric", "own_questions", "self_consistency")
    assert ArcDomain().reward_funcs == ("accuracy",)
