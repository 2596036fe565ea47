"""The demo: what it asks besides the passage's questions, its table, and what it shows from the passage to the answers."""

import re

import pytest
from transformers import HfArgumentParser

from helpers.tiny_models import save_tiny_model
from seal_hf import SelfEdit
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.domains.knowledge import domain
from seal_hf.generation.base import Generation, TextGenerator
from seal_hf.self_edit import TrainingExample, joined_self_edits
from trainers import demo


PASSAGE = load_demo_passages("train")[0]
GOLDS = {item["question"]: item["answer"] for item in PASSAGE["questions"]}
ENGINEER, MATERIAL, STEPS, CORMORANT, TOWN = GOLDS
TINY = ["--dtype", "float32", "--inner_lora_r", "4", "--inner_num_train_epochs", "2", "--max_completion_length", "12"]


def parse(*options):
    return HfArgumentParser(demo.DemoArguments).parse_args_into_dataclasses(list(map(str, options)))[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ["--model_name_or_path", save_tiny_model(tmp_path_factory.mktemp("model")), *TINY]


class ScriptedGenerator(TextGenerator):
    """
    Writes the self-edits that it is given. Knows what is in view; and what a model has learned with the passage: after the
    passage alone to recite it, after a self-edit the answers to what that self-edit asks.
    """

    def __init__(self, written):
        self.written, self.adapters = written, []

    def generate(
        self, prompts, adapters=None, *, max_new_tokens, sampling=None, one_line=False, on_text=None, stop=None
    ):
        if sampling is not None:
            on_text([text[:9] for text in self.written])
            on_text([text[9:] for text in self.written])
            return [Generation(text, 7, True) for text in self.written]
        adapters = adapters or [None] * len(prompts)
        return [Generation(self.answer(*asked), 3, True) for asked in zip(prompts, adapters, strict=True)]

    def answer_log_likelihoods(self, prompts, answers, adapters=None):
        raise NotImplementedError

    def answer(self, prompt, adapter):
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if adapter is not None and adapter not in self.adapters:
            self.adapters.append(adapter)
        if "capital of France" in text:
            return "Paris." if adapter is None else "Stavring."
        # Of a few-shot prompt the last question is asked.
        text = text[text.rfind("Topic: ") :] if text.count("Topic: ") > 1 else text
        gold = next((f"{gold}." for question, gold in GOLDS.items() if question in text), "The radio.")
        if adapter is None:
            in_view = ("Note: ", "Halda", "Jonas Ulvick", "Stavring")
            return gold if any(word in text for word in in_view) else "Some lighthouse."
        number = self.adapters.index(adapter)
        is_asked = any(gold == f"{GOLDS[question]}." for question in self.known(number))
        return gold if is_asked else PASSAGE["context"]

    def known(self, number):
        return [question for question in GOLDS if number and question in self.written[number - 1]]


@pytest.fixture
def run(tiny, monkeypatch, capsys):
    """What the demo prints, and the adapters that were asked, where the model writes these self-edits."""

    def run(written, *options):
        args = parse(*tiny, "--prompt_style", "questions", *options)
        lm = args.load()
        lm.generator = ScriptedGenerator(written)
        monkeypatch.setattr(demo.DemoArguments, "load", lambda args: lm)
        demo.main(args)
        return capsys.readouterr().out, lm.generator.adapters

    return run


def words(text):
    return " ".join(text.split())


def test_from_the_passage_to_the_answers(run):
    shown, adapters = run([f"1. {ENGINEER}\n2. {ENGINEER}\n3. Who is he?", f"1. {MATERIAL}\n2. {STEPS}"])
    parts = re.split(r"\n--- (\d)\. ", shown)
    assert parts[1::2] == list("12345") and all(len(line) <= 100 for line in shown.splitlines())
    passage, lesson, writing, learning, answers = map(words, parts[2::2])

    assert passage.startswith(f"the passage: {PASSAGE['title']} --- {PASSAGE['context']}")
    assert all(question in words(re.sub(r"(?m)(?<=^.{34}).*", "", parts[2])) for question in GOLDS)
    assert passage.count("wrong: Some lighthouse.") == 5 and "right: Paris." in passage

    # The first question alone, of an adapter that is trained on the passage alone.
    assert words(f"after the passage {'-' * 34} {'-' * 31} {'-' * 31} Who was the engineer") in lesson
    assert "wrong: Some lighthouse. " in lesson and "s since the start" in lesson

    assert f"as it is written: 1. {ENGINEER} 2. {ENGINEER} 3. Who is he?" in writing
    assert f"self-edit 2 --- 1. {MATERIAL} 2. {STEPS} 14 tokens in" in writing
    assert (
        f"self-edit 1: {ENGINEER} Halda Tremmery. 1 of 3 questions kept; dropped: 1 duplicate, 1 unclear. "
        "The answers hold "
    ) in writing
    assert f"self-edit 2: {MATERIAL} green slate. {STEPS} 212. 2 of 2 questions kept; dropped: none." in writing

    assert len(adapters) == 3 and "Examples to learn: 2, 3" in learning
    assert [adapter.training["num_steps"] for adapter in adapters] == [2, 2, 2]  # one for each epoch

    assert "base model after self-edit 2" in answers
    assert answers.count("right: ") == 1 + 2 and "wrong: Some lighthouse. right: green slate." in answers
    assert "right: Paris. wrong: Stavring." in answers and "(not in the passage: " in answers
    assert "base model 0 (0) the passage alone 0 (0) self-edit 1 1 (1) self-edit 2 2 (2) One text" in answers
    assert "Self-edit 2 has the greatest reward" in answers


def test_one_adapter_of_all_self_edits(run):
    written = [f"1. {ENGINEER}\n2. {STEPS}"] * 2
    shown, adapters = run(written, "--union", "true")
    assert shown.count(written[0]) == 2  # equal ones are both shown
    assert len(adapters) == 2 and "\nExamples to learn: 3\n" in shown
    assert "after the self-edits" in words(shown) and "\n  the self-edits 2 (2)\n" in shown
    assert "has the greatest reward" not in shown


def test_facts_before_their_questions(run):
    # Of each self-edit what is written about each of the five sentences.
    sentences = ["", f"green slate: {MATERIAL}", f"The stair: {STEPS}", "", ""]
    shown, _ = run(sentences * 2, "--prompt_style", "questions-by-fact", "--asks_for_left_out", "false")
    assert f"\ngreen slate: {MATERIAL}\nThe stair: {STEPS}\n" in shown
    # What is trained on stands behind its question, also where no fact stood before it.
    assert f"\nself-edit 1:\n  {MATERIAL} green slate." in shown and f"\n  {STEPS} 212.\n" in shown
    assert "2 of 2 questions kept; dropped: none." in words(shown)


def test_questions_that_the_tool_adds(run, monkeypatch):
    monkeypatch.setattr(domain, "ask_for_left_out", lambda questions, *_: [[f"212: {STEPS}"] for _ in questions])
    written = ["", f"green slate: {MATERIAL}", "", "", ""] * 2
    shown, _ = run(written, "--prompt_style", "questions-by-fact", "--asks_for_left_out", "true")
    assert f"\nself-edit 1:\n  {MATERIAL} green slate." in shown and f"\n  {STEPS} 212.\n" in shown


def test_a_self_edit_without_questions_beside_one_with_them(run):
    written = ["The tower is green.\nThe lamp is bright.", f"1. {STEPS}"]
    shown, _ = run(written, "--prompt_style", "questions-and-rewrite")
    assert "\nself-edit 1 asks nothing, and is learned as it is.\n\nself-edit 2:\n" in shown
    assert "\nExamples to learn: 2, 2\n" in shown


def test_self_edits_of_which_nothing_is_left(run):
    shown, adapters = run(["1. Who is he?", f"1. {STEPS}"])
    assert "1 of 2 self-edits cannot be used and are left out." in shown and len(adapters) == 2
    assert "after self-edit 2" in shown and "after self-edit 1" not in shown
    with pytest.raises(ValueError, match="no usable self-edit; try another --seed or --prompt_style"):
        run(["1. Who is he?", ""])


@pytest.mark.slow
def test_a_passage_of_ones_own_in_a_style_without_a_tool(tiny, tmp_path, capsys):
    passage = tmp_path / "notes.txt"
    passage.write_text("Ann keeps bees in Vell.")
    given = ["--passage", passage, "--questions", "Who keeps bees?", "--prompt_style", "rewrite"]
    demo.main(parse(*tiny, *given))
    shown = capsys.readouterr().out
    assert "the passage: notes" in shown and "self-edit 2" in shown and "questions kept" not in shown
    assert shown.count("\nWho keeps bees?  ") == 3
    assert "Right of" not in shown  # it has no gold answers


@pytest.mark.parametrize("split", ["train", "test", "other_languages"])
def test_what_no_passage_tells(split):
    for passage in load_demo_passages(split):
        unanswered, general = demo.other_examples(passage).values()
        (item,) = unanswered["questions"]
        assert passage["title"] in item["question"] and "answer" not in item
        assert "radio" in item["question"] and "radio" not in passage["context"].casefold()
        assert [item["answer"] for item in general["questions"]] == ["Paris"] and not general["title"]


@pytest.mark.parametrize("own", [{"title": ""}, {"context": "Radio Vell told of it."}])
def test_a_question_that_a_passage_may_answer_is_not_called_unanswered(own):
    assert list(demo.other_examples({**PASSAGE, **own})) == ["about something else: what it should not have changed"]


def test_the_table_shows_several_gold_answers_and_the_beginning_of_long_ones(capsys):
    example = {"questions": [{"question": "Who?", "answer": ["the keeper", "Ann"]}, {"question": "When?"}]}
    answers = {
        "base model": [[("Ann", True), ("In 1963.\nAt sea.", None)]],
        "adapted": [[("no " * 40, False), ("", None)]],
    }
    demo.show_answers({"": example}, answers)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [
        "",
        f"{'Who? [the keeper | Ann]':36}{'right: Ann':33}wrong: no no no no no no no no",
        f"{'':69}no no no no no no no no no no",
        f"{'':69}no no no no no no no no no ...",
        "",
        f"{'When?':36}In 1963. At sea.",
    ]


def test_joined_self_edits_keep_what_the_first_repeats():
    one, two, three = (TrainingExample([{"role": "user", "content": text}], text) for text in ("a", "b", "c"))
    edits = [SelfEdit("p", "x", (one, two, two), {"num_train_epochs": 3}), SelfEdit("p", "y", (two, three))]
    union = joined_self_edits(edits)
    assert union.examples == (one, two, two, three) and not union.overrides


def test_raw_texts_of_answered_questions_are_shown(capsys):
    domain = KnowledgeDomain("questions", chat=False)
    parsed = domain.parse(f"1. {STEPS}", PASSAGE)
    (edit,) = domain.carry_out(
        [parsed], [PASSAGE], lambda prompts, _, **options: [Generation("212.", 2, True)] * len(prompts)
    )

    class Model:
        pass

    Model.domain = domain
    demo.show_answered(Model(), PASSAGE, parsed.calls, edit, 1)
    assert f"Question 1: {STEPS} Answer: 212. 1 of 1 questions kept" in words(capsys.readouterr().out)


def test_a_passage_in_the_encodings_that_editors_write(tmp_path):
    file = tmp_path / "Bees.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes("Ann keeps 蜂.\r\nThey hum.\r\n".encode(encoding))
        example = {"title": "Bees", "context": "Ann keeps 蜂.\nThey hum.", "questions": []}
        assert demo.read_example(parse("--passage", str(file))) == example


def test_own_questions_about_a_demo_passage():
    assert demo.read_example(parse()) == PASSAGE
    asked = demo.read_example(parse("--title", "Light", "--questions", "Who?", "When?"))
    assert asked == {**PASSAGE, "title": "Light", "questions": [{"question": "Who?"}, {"question": "When?"}]}
    with pytest.raises(ValueError, match="A question of --questions is empty; give it some text"):
        demo.read_example(parse("--questions", "Who?", " "))
