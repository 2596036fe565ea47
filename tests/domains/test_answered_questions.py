"""Questions of self-edits that the model answers itself: what is kept, what is dropped and why, and what is counted."""

import re
from types import SimpleNamespace

import pytest

from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.answered_questions import answer_questions, split_questions
from seal_hf.domains.knowledge.grounding import nearest_sentence, news
from seal_hf.domains.knowledge.sentences import coverage, names_and_numbers
from seal_hf.domains.knowledge.templates import PURE_QUESTION_STYLES
from seal_hf.self_edit import TrainingExample


BEES = {
    "title": "Vell bees",
    "context": "The bees of Vell are kept by Ann Orr. They made 45 jars of honey in 1911. All of it went to Lord Hask.",
    "questions": [{"question": "Is the zebra watching?", "answer": "xylophone"}],
}
KEEPER, JARS, YEAR = "Who keeps the bees of Vell?", "How many jars of honey were made?", "When was the honey made?"
LORD = "Who got all of the honey?"
ANSWERS = {KEEPER: "Ann Orr", JARS: "45 jars", YEAR: "1911", LORD: "Lord Hask"}


class ScriptedModel:
    """Answers by the question and the kind of reading; notes what it is asked."""

    def __init__(self, answers=None, whole=None, near=None, few_words=None, finished=True):
        answers = ANSWERS | (answers or {})
        self.few_words = answers | (few_words or {})
        self.answers = {True: answers | (whole or {}), False: answers | (near or {})}
        self.finished, self.calls = finished, []

    def __call__(self, prompts, max_new_tokens, one_line=False):
        self.calls.append(list(prompts))
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt):
        text = prompt if isinstance(prompt, str) else prompt[0]["content"]
        # The few-shot prompt of a reading in few words shows other questions before.
        *shown, question = re.findall(r"Question: (.*)$", text.removesuffix("\nAnswer:\n"), re.MULTILINE)
        answers = self.few_words if shown else self.answers[BEES["context"] in text]
        return SimpleNamespace(text=answers.get(question, "It is not said."), finished=self.finished or bool(shown))


def domain(style="questions-and-rewrite", **options):
    options = {"chat": True, "training_format": "prompt_completion", "asks_for_left_out": False, **options}
    return KnowledgeDomain(style, **options)


def carried_out(completions, model=None, examples=None, own=None):
    own, model = own or domain(), model or ScriptedModel()
    examples = examples or [BEES] * len(completions)
    edits = [own.parse(text, example) for text, example in zip(completions, examples, strict=True)]
    return own.carry_out(edits, examples, model)


def answered(questions, **options):
    model = ScriptedModel(**options)
    (result,) = answer_questions([questions], [BEES], model, domain().questions_in_context)
    return result


def dropped(result):
    return {name.removeprefix("dropped_"): n for name, n in result.metrics.items() if "dropped" in name and n}


@pytest.mark.parametrize(
    ("completion", "questions", "texts"),
    [
        (f"1. {KEEPER}\n2. {JARS}", [KEEPER, JARS], []),
        (f"Here are the questions:\n\n- {KEEPER}\n(2) {JARS}\nQ3: {YEAR}", [KEEPER, JARS, YEAR], []),
        (f"Question 1: {KEEPER}\nAnswer: Bob\nQuestion 2: {JARS}\nAnswer: 44", [KEEPER, JARS], []),
        (f"1. {KEEPER} {JARS}\n2. {LORD}", [KEEPER, JARS, LORD], []),
        ("谁养蜜蜂？蜜蜂做什么？\n¿Quién?\nكم؟", ["谁养蜜蜂？", "蜜蜂做什么？", "¿Quién?", "كم؟"], []),
        ("1. Ποιος ήρθε; Πότε;\n2. ማን መጣ፧ መቼ፧", ["Ποιος ήρθε;", "Πότε;", "ማን መጣ፧", "መቼ፧"], []),
        ("Ո՞վ է եկել։ Ե՞րբ։\n誰が飼うか。いつですか。", ["Ո՞վ է եկել։", "Ե՞րբ։", "誰が飼うか。", "いつですか。"], []),
        (f"{KEEPER}\nHow many jars of", [KEEPER], []),
        (f"{KEEPER}\n---\nBees hum.\nThey sting.", [KEEPER], ["Bees hum.", "They sting."]),
        (f"Bees hum.\n-----\n{KEEPER}\n---\n{JARS}", [KEEPER, JARS], ["Bees hum."]),
        ("Bees hum.\nDo they?\nThey sting.", [], ["Bees hum.", "Do they?", "They sting."]),
        (" \n---\n", [], []),
    ],
)
def test_questions_and_other_texts(completion, questions, texts):
    assert split_questions(completion) == (questions, texts)


def test_texts_that_are_split_at_marks_alone():
    assert split_questions(f"{KEEPER}\n---\nBees hum.\nThey sting.", False) == ([KEEPER], ["Bees hum.\nThey sting."])


def test_questions_become_pairs_in_the_form_in_which_they_will_be_asked():
    own = domain(num_passages=2)
    (edit,) = carried_out([f"1. {KEEPER}\n2. {JARS}\n---\nAnn Orr has bees.\nThey hum."], own=own)
    prompts = own.ask([KEEPER, JARS], "Vell bees")
    known = [{"role": "user", "content": "What do you know about Vell bees?"}]
    assert edit.examples == (
        TrainingExample(prompts[0], "Ann Orr"),
        TrainingExample(prompts[1], "45 jars"),
        TrainingExample(known, "Ann Orr has bees.\nThey hum."),
        *[TrainingExample(known, BEES["context"])] * 2,
    )
    assert edit.calls == () and edit.prompt == own.prompt(BEES)


def test_pairs_in_the_papers_format():
    (edit,) = carried_out([KEEPER], own=KnowledgeDomain("questions", chat=True))
    assert edit.examples == (
        TrainingExample("", f"Vell bees\nQuestion 1: {KEEPER}\nAnswer: Ann Orr"),
        TrainingExample("", f"Vell bees\n{BEES['context']}"),
    )


def test_before_the_tool_there_are_calls():
    edit = domain().parse(f"{KEEPER}\n{JARS}\n---\nAnn Orr has bees.", BEES)
    assert edit.calls == (KEEPER, JARS) and not edit.metrics
    assert [example.completion for example in edit.examples] == ["Ann Orr has bees.", BEES["context"]]
    assert domain().parse("---", BEES) is None
    assert domain().parse("Bees hum.", BEES).calls == ()


@pytest.mark.parametrize("style", PURE_QUESTION_STYLES)
def test_styles_that_ask_for_questions_alone_train_on_nothing_else(style):
    edit = domain(style).parse(f"{KEEPER}\n---\nAnn Orr has bees.", BEES)
    assert edit.calls == (KEEPER,) and [example.completion for example in edit.examples] == [BEES["context"]]
    assert domain(style).parse("Ann Orr has bees.", BEES) is None


@pytest.mark.parametrize("style", ["implications", "self-qa", "rewrite"])
def test_other_styles_call_no_tool(style):
    edit = domain(style).parse(f"{KEEPER}\n{JARS}", BEES)
    assert edit.calls == () and edit.examples[0].completion == f"{KEEPER}\n{JARS}"


def test_a_style_of_ones_own_may_call_it():
    template = "Ask about {title}:\n{context}"
    assert domain(template).parse(KEEPER, BEES).calls == ()
    assert domain(template, answers_questions=True).parse(KEEPER, BEES).calls == (KEEPER,)
    assert domain("questions", answers_questions=False).parse(KEEPER, BEES).calls == ()


def test_all_self_edits_are_answered_with_one_call_and_no_prompt_comes_twice():
    model, moths = ScriptedModel(), {"title": "", "context": "Moths like Ann Orr. Moths hum."}
    edits = carried_out([f"{KEEPER}\n{JARS}", f"{JARS}\n{YEAR}", "Whom do moths like?"], model, [BEES, BEES, moths])
    (prompts,) = model.calls
    texts = [prompt[0]["content"] for prompt in prompts]
    # Three questions about the bees and one about the moths, each with the whole passage and with a part of it in view.
    assert len(texts) == len(set(texts)) == 8
    assert sum(BEES["context"] in text for text in texts) == 3
    assert not any("zebra" in text or "xylophone" in text for text in texts)
    assert [edit.metrics["questions_kept"] for edit in edits] == [2, 2, 0]


def test_no_question_is_left_to_answer():
    model = ScriptedModel()
    (edit,) = carried_out(["What is the capital of France?"], model)
    assert model.calls == [] and edit.examples == () and edit.calls == ()
    assert edit.metrics["questions"] == 1 and edit.metrics["dropped_unclear"] == 1


def test_a_rewrite_is_left_where_no_question_is_kept():
    (edit,) = carried_out([f"{KEEPER}\n---\nAnn Orr has bees."], ScriptedModel({KEEPER: ""}))
    assert [example.completion for example in edit.examples] == ["Ann Orr has bees.", BEES["context"]]
    assert edit.metrics["questions_kept"] == 0


AGAIN = "who keeps the bees of Vell ?"


@pytest.mark.parametrize(
    ("questions", "options", "reasons"),
    [
        ([KEEPER, AGAIN, JARS, KEEPER], {}, {"duplicate": 2}),
        (["What is the capital of France?"], {}, {"unclear": 1}),
        (["How many jars of honey were made in 1912?"], {}, {"unclear": 1}),
        (["What does the passage say about honey?"], {}, {"unclear": 1}),
        ([f"Who keeps the bees {'of Vell ' * 40}?"], {}, {"unclear": 1}),
        ([KEEPER], {"whole": {KEEPER: "Lord Hask"}}, {"disagreement": 1}),
        ([KEEPER], {"near": {KEEPER: "1911"}}, {"disagreement": 1}),
        ([KEEPER], {"whole": {KEEPER: ""}}, {"disagreement": 1}),
        ([KEEPER], {"answers": {KEEPER: "Bob Moll"}}, {"unsupported": 1}),
        ([KEEPER], {"answers": {KEEPER: "The bees of Vell."}}, {"unsupported": 1}),
        # Both say the same, and one of them more than the passage does.
        ([KEEPER], {"whole": {KEEPER: "Ann Orr of Paris"}}, {"unsupported": 1}),
        ([JARS], {"whole": {JARS: "45 jars in 1912"}}, {"unsupported": 1}),
        ([KEEPER], {"finished": False}, {"long": 1}),
        ([KEEPER], {"answers": {KEEPER: f"Ann Orr, {'who keeps the bees of Vell, ' * 9}"}}, {"long": 1}),
    ],
)
def test_dropped_questions(questions, options, reasons):
    result = answered(questions, **options)
    assert dropped(result) == reasons
    kept = [JARS] if len(questions) == 4 else []
    assert [question for question, _ in result.pairs] == questions[:1] * bool(kept) + kept
    assert result.metrics["questions"] == len(questions)
    assert result.metrics["questions_kept"] == len(result.pairs) == len(questions) - sum(reasons.values())


@pytest.mark.parametrize(
    ("whole", "near", "answer"),
    [
        ("The bees of Vell are kept by Ann Orr.", "Ann Orr", "The bees of Vell are kept by Ann Orr."),
        ("Ann Orr", "Ann Orr keeps the bees of Vell.", "Ann Orr"),
        ("Ann Orr keeps them. She came from Paris.", "Ann Orr", "Ann Orr keeps them."),
        (
            "Ann Orr looks after the bees of Vell.",
            "The bees of Vell are kept by Ann Orr.",
            "Ann Orr looks after the bees of Vell.",
        ),
        # What repeats the question may be longer, if there is nothing shorter.
        (
            *[f"Ann Orr, who keeps the bees of Vell, {'the bees of Vell, ' * 4}"] * 2,
            f"Ann Orr, who keeps the bees of Vell, {'the bees of Vell, ' * 4}".strip(),
        ),
        # What is too long gives way to what the other reading says.
        (f"Ann Orr, who keeps the bees of Vell, {'the bees of Vell, ' * 4}", "Ann Orr", "Ann Orr"),
    ],
)
def test_agreement_is_on_what_the_question_does_not_say(whole, near, answer):
    assert answered([KEEPER], whole={KEEPER: whole}, near={KEEPER: near}).pairs == ((KEEPER, answer),)


def test_an_answer_that_goes_on_is_complete_in_its_first_sentence():
    assert answered([KEEPER], answers={KEEPER: "Ann Orr keeps the bees. She"}, finished=False).pairs == (
        (KEEPER, "Ann Orr keeps the bees."),
    )


def test_the_second_reading_sees_the_nearest_sentences():
    model = ScriptedModel()
    first, second, third = BEES["context"].replace(". ", ".\n").split("\n")
    longer = {"title": "Vell bees", "context": f"{first} It rains. {second} {third} It snows."}
    carried_out(["\n".join((KEEPER, JARS))] * 2, model, [BEES, longer])
    shown = [prompt[0]["content"].partition("Vell bees\n")[2].partition("\n\n")[0] for prompt in model.calls[0]]
    assert shown[:4:2] == [BEES["context"]] * 2 and shown[4::2] == [longer["context"]] * 2
    assert shown[1::2] == [first, second, f"{first} It rains.", f"It rains. {second} {third}"]


# --- facts before their questions ---


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        (f"45: {JARS}", {}, None),
        (f"2. Ann Orr: {KEEPER}", {}, None),
        # The number of the question is no fact, nor is what the passage does not say.
        (f"7: {JARS}", {}, None),
        (f"Tell me: {JARS}", {"answers": {f"Tell me: {JARS}": "45 jars"}}, None),
        ("1911: How many jars of honey were made?", {}, "disagreement"),
        ("honey: Where was the honey made?", {}, "unclear"),
        ("Vell: Where was the honey made?", {"answers": {"Where was the honey made?": "Vell"}}, "unclear"),
        (f"1911: {YEAR}", {"whole": {YEAR: "In 1911 of 1912"}}, "unsupported"),
        (f"45: {JARS}", {"finished": False, "few_words": {JARS: "45 jars " * 13}}, "long"),
        # The sentence says more than is asked for: in few words the answer is something else.
        (f"1911: {JARS}", {"whole": {JARS: "They made 45 jars in 1911."}}, "disagreement"),
        (f"45: {JARS}", {"few_words": {JARS: "45 in 1911"}}, "disagreement"),
        (f"45 jars: {JARS}", {"few_words": {JARS: "45"}}, None),
        (f"45: {JARS}", {"few_words": {JARS: "the 45"}}, None),
        (f"45: {JARS}", {"whole": {JARS: "Some jars."}}, "disagreement"),
    ],
)
def test_an_answer_must_hold_the_fact_that_was_written_before_its_question(line, options, reason):
    model = ScriptedModel(**options)
    (edit,) = carried_out([line], model)
    assert (edit.metrics["questions_kept"] == 1) == (reason is None)
    assert reason is None or edit.metrics[f"dropped_{reason}"] == 1
    if reason is None:
        question = KEEPER if "Ann" in line else JARS
        says_colon = line.startswith("Tell")
        assert edit.examples[0].prompt == domain().ask([line if says_colon else question], "Vell bees")[0]
        assert edit.examples[0].completion == ANSWERS[question]


@pytest.mark.parametrize(
    ("line", "few_words", "kept"),
    [
        (JARS, "45 jars", f"45 jars: {JARS}"),
        (f"7: {JARS}", "45 jars.", f"45 jars: {JARS}"),
        (f"Bob Moll: {KEEPER}", "Ann Orr", f"Ann Orr: {KEEPER}"),
        # The question asks for another fact than the one before it, or tells that one.
        (f"Vell: {KEEPER}", "Ann Orr", f"Ann Orr: {KEEPER}"),
        (f"1911: {JARS}", "45 jars", f"45 jars: {JARS}"),
        # What is read must be a short fact of the passage, be new, and be what the whole passage says, too.
        (JARS, "45 jars and 45 jars and 45 jars of", None),
        (JARS, "Bob Moll", None),
        (JARS, "jars of honey", None),
        (JARS, "Lord Hask", None),
        (JARS, "", None),
    ],
)
def test_where_facts_are_asked_for_a_question_without_its_fact_gets_what_is_read(line, few_words, kept):
    question = KEEPER if KEEPER in line else JARS
    model = ScriptedModel(few_words={question: few_words})
    (edit,) = carried_out([f"{line}\n1911: {YEAR}"], model, own=domain("questions-by-fact"))
    assert [one for one in edit.kept.splitlines() if one not in ("---", "")] == [*[kept] * bool(kept), f"1911: {YEAR}"]
    assert edit.metrics["questions_kept"] == 1 + bool(kept)
    if kept:
        assert ANSWERS[question] in [example.completion for example in edit.examples]


def test_a_question_with_its_own_fact_stands_before_one_that_came_to_it_by_reading():
    other = "How much honey was made?"
    model = ScriptedModel({other: "45 jars"})
    (edit,) = carried_out([f"1911: {other}\n45: {JARS}"], model, own=domain("questions-by-fact"))
    assert edit.metrics["questions_kept"] == 2 and edit.kept == f"\n---\n45: {JARS}\n---\n"


def test_the_sentence_with_the_fact_is_read_in_few_words():
    model = ScriptedModel()
    carried_out([f"Lord Hask: {JARS}"], model, own=domain("questions-by-fact"))
    whole, near = model.calls[0]
    assert BEES["context"] in whole[0]["content"]
    # The nearest to the question would be the one before.
    assert near.endswith(f"Topic: Vell bees\nNote: All of it went to Lord Hask.\nQuestion: {JARS}\nAnswer:")


def test_what_is_kept_stands_in_the_order_of_the_passage_once_for_each_fact():
    again = "In what year was the honey of Vell made?"
    lines = [f"Lord Hask: {LORD}", f"1911: {YEAR}", f"1911: {again}", f"Ann Orr: {JARS}", JARS, f"Ann Orr: {KEEPER}"]
    (edit,) = carried_out(["\n".join(lines)], ScriptedModel({again: "1911"}))
    assert edit.kept.splitlines() == [f"Ann Orr: {KEEPER}", f"1911: {YEAR}", f"Lord Hask: {LORD}"]
    assert edit.metrics["questions_kept"] == 4  # with both wordings


def test_a_passage_is_written_about_sentence_by_sentence():
    own, sentences = domain("questions-by-fact"), BEES["context"].replace(". ", ".\n").split("\n")
    parts = own.parts(BEES)
    assert [part["context"] for part in parts] == sentences and {part["title"] for part in parts} == {"Vell bees"}
    assert own.prompt(parts[1])[-1]["content"] == f"Passage:\nVell bees\n{sentences[1]}"
    assert own.parts({"title": "", "context": "Bees"})[0]["context"] == "Bees"
    assert domain().parts(BEES) == (BEES,)


def test_what_is_kept_of_every_sentence():
    lines = [f"Lord Hask: {LORD}", f"45: {JARS}", f"Ann Orr: {KEEPER}", f"1911: {YEAR}", "Vell: What is a zebra?"]
    (edit,) = carried_out(["\n---\n".join(lines)], own=domain("questions-by-fact"))
    assert edit.kept == f"Ann Orr: {KEEPER}\n---\n45: {JARS}\n1911: {YEAR}\n---\nLord Hask: {LORD}"
    (edit,) = carried_out([lines[0]], own=domain("questions-by-fact"))
    assert edit.kept == f"\n---\n\n---\nLord Hask: {LORD}"
    again = domain("questions-by-fact").parse(edit.kept, BEES)
    assert again.calls == (f"Lord Hask: {LORD}",)


def test_a_rewrite_is_kept_behind_the_questions():
    (edit,) = carried_out([f"{JARS}\nWhat is a zebra?\n---\nAnn Orr has bees.\nThey hum."])
    assert edit.kept == f"{JARS}\n---\nAnn Orr has bees.\nThey hum."
    (edit,) = carried_out(["What is a zebra?"])
    assert edit.kept == ""


def test_coverage_is_the_share_of_names_and_numbers_that_kept_questions_ask_for():
    # Ann Orr, 45, 1911 and Lord Hask; Vell is in the title.
    assert names_and_numbers(BEES["context"]) == ["Vell", "Ann Orr", "45", "1911", "Lord Hask"]
    assert answered([KEEPER, JARS, YEAR, LORD]).metrics["coverage"] == 1
    assert answered([KEEPER, JARS, AGAIN]).metrics["coverage"] == 0.5
    assert answered([KEEPER, JARS], near={KEEPER: "1911"}).metrics["coverage"] == 0.25
    assert answered([]).metrics["coverage"] == 0
    assert coverage({"context": "Bees hum at night."}, [("When do they hum?", "at night")]) is None
    # A question that names a fact does not ask for it.
    assert coverage(BEES, [("Who is Ann Orr?", "Ann Orr keeps the bees of Vell.")]) == 0


def test_without_names_and_numbers_there_is_no_coverage():
    bees = {"title": "Bees", "context": "Bees hum at night."}
    question = "When do bees hum?"
    (edit,) = carried_out([question], ScriptedModel({question: "at night"}), [bees])
    assert edit.metrics["questions_kept"] == 1 and "coverage" not in edit.metrics


def test_plain_prompts_for_a_base_model():
    own = domain(chat=False)
    (edit,) = carried_out([KEEPER], own=own)
    assert edit.examples[0] == TrainingExample(own.ask([KEEPER], "Vell bees")[0], "Ann Orr")


def test_nearest_sentence_and_news():
    sentences = ["Ann keeps the bees of Vell.", "The bees of Vell make honey.", "It is dark."]
    assert nearest_sentence("What do the bees of Vell make?", sentences) == 1
    assert nearest_sentence("Who?", sentences) == 0
    lighthouse = ["The Orrick Skerry Lighthouse stands on a reef.", "Its keeper was Jonas."]
    question = "Who was keeper of the Orrick Skerry Lighthouse?"
    assert [nearest_sentence(question, lighthouse, title) for title in ("", "Orrick Skerry Lighthouse")] == [0, 1]
    assert news(f"Vell bees\n{KEEPER}", "The bees of Vell are kept by Ann Orr.") == "ann orr"
    assert news("", "red brick") == "red brick" and news("", "red and dark") == "red and dark"
    assert news("", "they are all of dark red brick") == "brick" and news("", "they are all of a red") != ""
    assert news("谁养蜜蜂？", "安娜养蜜蜂") == "安娜养蜜蜂"
