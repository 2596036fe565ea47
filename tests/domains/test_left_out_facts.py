"""Questions that the model writes for facts that a self-edit leaves out: for which facts, how it is asked, what is kept."""

from types import SimpleNamespace

import pytest

from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.left_out_facts import ask_for_left_out


BEES = {
    "title": "Vell bees",
    "context": "The bees of Vell are kept by Ann Orr. They made 45 jars of golden honey in 1911.",
    "questions": [{"question": "Is the zebra watching?", "answer": "xylophone"}],
}
KEEPER, JARS, YEAR = "Who keeps the bees of Vell?", "How many jars of honey were made?", "When was the honey made?"


class Model:
    """Continues lines by their facts, and answers questions; notes what it is asked."""

    def __init__(self, **questions):
        self.questions = {"Ann Orr": KEEPER, "45": JARS, "1911": YEAR, **questions}
        self.calls, self.writers, self.one_line = [], [], []

    def __call__(self, prompts, max_new_tokens, as_writer=False, one_line=False):
        self.calls.append(list(prompts))
        self.writers.append(as_writer)
        self.one_line.append(one_line)
        return [SimpleNamespace(text=self.answer(prompt), finished=True) for prompt in prompts]

    def answer(self, prompt):
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            return f" {self.questions.get(prompt[-1]['content'].removesuffix(':'), '')}\n1912: And then?"
        text = prompt if isinstance(prompt, str) else prompt[0]["content"]
        question = text.rpartition("Question: ")[2].removesuffix("\nAnswer:")
        return {KEEPER: "Ann Orr", JARS: "45 jars", YEAR: "In 1911."}.get(question, "It is not said.")


def domain(**options):
    options = {
        "chat": True,
        "training_format": "prompt_completion",
        "asks_for_left_out": True,
        "num_left_out_words": 1,
        **options,
    }
    return KnowledgeDomain("questions-by-fact", **options)


def carried_out(completion, model, own=None):
    own = own or domain()
    (edit,) = own.carry_out([own.parse(completion, BEES)], [BEES], model)
    return edit


def test_every_fact_that_no_question_asks_for_is_asked_for():
    model = Model()
    edit = carried_out(f"45: {JARS}", model)
    begun, _ = model.calls
    assert model.writers == [True, False]  # the policy writes, and the student reads
    # Of what is written the first line counts, and of what is read in a plain text, whose prompts are every second one.
    assert model.one_line == [True, [isinstance(prompt, str) for prompt in model.calls[1]]]
    assert set(model.one_line[1]) == {True, False}
    # "Vell" and "bees" are in the title.
    assert [prompt[-1]["content"] for prompt in begun] == ["Ann Orr:", "kept:", "1911:", "golden:"]
    sentences = BEES["context"].replace(". ", ".\n").split("\n")
    assert [prompt[:-1] for prompt in begun] == [
        domain().prompt({**BEES, "context": sentence}) for sentence in (*2 * sentences[:1], *2 * sentences[1:])
    ]
    assert edit.kept == f"Ann Orr: {KEEPER}\n---\n45: {JARS}\n1911: {YEAR}"
    assert [example.completion for example in edit.examples] == ["45 jars", "Ann Orr", "In 1911.", BEES["context"]]
    assert (edit.metrics["questions"], edit.metrics["questions_added"], edit.metrics["coverage"]) == (3, 2, 1)


def test_a_question_that_is_not_clear_leaves_its_fact_out():
    model = Model()
    carried_out(f"45: Where are the 45 jars?\n1911: {YEAR}", model)
    assert [prompt[-1]["content"] for prompt in model.calls[0]] == ["Ann Orr:", "kept:", "45:", "golden:"]


@pytest.mark.parametrize(
    ("num_words", "words"),
    [(0, []), (2, ["kept:", "honey:", "golden:"]), (6, ["kept:", "made:", "jars:", "honey:", "golden:"])],
)
def test_of_the_words_of_a_sentence_so_many_are_asked_for(num_words, words):
    model = Model()
    carried_out(f"45: {JARS}", model, domain(num_left_out_words=num_words))
    facts = [prompt[-1]["content"] for prompt in model.calls[0]]
    assert [fact for fact in facts if fact not in ("Ann Orr:", "1911:")] == words and "Ann Orr:" in facts


def test_a_number_of_words_below_zero_is_refused():
    with pytest.raises(ValueError, match="num_left_out_words=-1 must be 0 or more"):
        domain(num_left_out_words=-1)


def test_what_is_added_is_read_like_all_else():
    model = Model(**{"Ann Orr": "Who is Ann Orr?", "1911": JARS})
    edit = carried_out(f"45: {JARS}", model)
    assert edit.kept == f"\n---\n45: {JARS}"
    assert edit.metrics["dropped_unclear"] == edit.metrics["dropped_duplicate"] == 1


def test_self_edits_about_one_passage_are_asked_for_in_common():
    model, own = Model(), domain()
    edits = [own.parse(text, BEES) for text in (f"45: {JARS}", f"Ann Orr: {KEEPER}")]
    done = own.carry_out(edits, [BEES] * 2, model)
    assert [prompt[-1]["content"] for prompt in model.calls[0]] == ["Ann Orr:", "kept:", "1911:", "golden:", "45:"]
    assert done[0].kept == done[1].kept and [edit.metrics["questions_added"] for edit in done] == [2, 2]


def test_a_base_model_continues_plain_text():
    asked = []

    def ask(prompts, max_new_tokens, as_writer, one_line):
        asked.extend(prompts)
        return [SimpleNamespace(text=KEEPER, finished=True) for _ in prompts]

    own = domain(chat=False)
    (added,) = ask_for_left_out([[f"45: {JARS}", f"1911: {YEAR}"]], [BEES], ask, own.parts, own.prompt, 1)
    first = own.prompt(own.parts(BEES)[0])
    assert asked[0] == f"{first}Ann Orr:" and first.endswith("Facts and questions:\n")
    assert added == [f"{fact}: {KEEPER}" for fact in ("Ann Orr", "kept", "golden")]


def test_nothing_is_left_out_where_it_is_not_wanted():
    model = Model()
    edit = carried_out(f"45: {JARS}", model, domain(asks_for_left_out=False))
    assert len(model.calls) == 1 and "questions_added" not in edit.metrics


@pytest.mark.parametrize(("style", "answers"), [("questions", None), ("questions-by-fact", False)])
def test_it_needs_the_style_with_facts(style, answers):
    with pytest.raises(ValueError, match="asks_for_left_out=True needs the style 'questions-by-fact'"):
        KnowledgeDomain(style, answers_questions=answers, asks_for_left_out=True)


class FewShot(Model):
    """Knows how to go on after the examples in plain text alone."""

    def answer(self, prompt):
        if isinstance(prompt, str) and prompt.endswith("\nQuestion:"):
            fact = prompt.rpartition("Answer: ")[2].removesuffix("\nQuestion:")
            return f" {self.questions.get(fact, 'Hm.')}\nAnswer: {fact}"
        is_begun = not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"
        return "" if is_begun else super().answer(prompt)


@pytest.mark.parametrize("model", [Model, FewShot])
@pytest.mark.parametrize(
    ("fact", "pair"), [("1911", (YEAR, "In 1911.")), ("Ann Orr", (KEEPER, "Ann Orr")), ("45", (JARS, "45 jars"))]
)
def test_a_question_about_one_fact_is_written_in_one_of_two_ways_and_answered(model, fact, pair):
    asked = model()
    assert domain().pair_about(fact, BEES, asked) == pair
    writing, _ = asked.calls
    assert asked.writers == [True, False] and len(writing) == 2  # of the one sentence that says it


@pytest.mark.parametrize(
    "question",
    [
        "",  # it writes nothing
        "Is it 1911?",  # that tells the answer
        "How many jars of honey were made?",  # that asks for something else
        "When was the zebra seen in Oslo?",  # that the passage does not say
    ],
)
def test_where_no_question_passes_there_is_none(question):
    assert domain().pair_about("1911", BEES, Model(**{"1911": question})) is None


def test_what_the_passage_does_not_say_is_not_asked_for():
    model = Model()
    assert domain().pair_about("Oslo", BEES, model) is None and model.calls == []
    with pytest.raises(ValueError, match="'questions' does not ask for facts; use KnowledgeDomain"):
        KnowledgeDomain("questions").pair_about("1911", BEES, model)
