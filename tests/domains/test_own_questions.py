"""The questions a model asks itself: what is kept, what is dropped, and what it never sees."""

import re
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.domains.knowledge.grounding import is_about, is_grounded
from seal_hf.domains.knowledge.own_questions import (
    own_questions,
    parse_question,
    question_prompts,
    reading_prompts,
)
from seal_hf.domains.knowledge.sentences import likely_answers, split_sentences


BEES = {
    "title": "Vell bees",
    "context": "The bees of Vell are kept by Ann Orr. They made 45 jars of honey in 1911, all of it dark.",
    "questions": [{"question": "Is the zebra watching?", "answer": "xylophone"}],
}


class ScriptedLM:
    """Writes, reads and rates what a test says; remembers the prompts, and what was asked of the student."""

    def __init__(self, written=(), answers=None, passage_answers=None, likelihoods=None, on_write=None):
        self.domain, self.generator = KnowledgeDomain(chat=False), self
        self.written, self.answers = written, answers or {}
        self.passage_answers, self.likelihoods = passage_answers or {}, likelihoods or {}
        self.on_write, self.prompts, self.streams = on_write, [], []
        self.is_student, self.asked = False, set()

    @contextmanager
    def as_student(self):
        self.is_student = True
        yield
        self.is_student = False

    def sample(self, prompts, streams, **options):
        self.asked.add(("write", self.is_student))
        self.prompts += prompts
        self.streams = streams
        if self.on_write:
            self.on_write()
        texts = [self.written[i] if i < len(self.written) else "" for i in range(len(prompts))]
        return [SimpleNamespace(text=text, finished=False) for text in texts]

    def generate(self, prompts, **options):
        self.asked.add(("read", self.is_student))
        self.prompts += prompts
        return [SimpleNamespace(text=self.read(prompt), finished=False) for prompt in prompts]

    def read(self, prompt):
        question = re.findall(r"Question: (.*)\nAnswer:$", prompt)[-1]
        is_passage = BEES["context"] in prompt
        return (self.passage_answers if is_passage else {}).get(question, self.answers.get(question, "")) + "\n\nTopic"

    def answer_prompts(self, prompts, **options):
        self.prompts += prompts
        return ["" for _ in prompts]

    def answer_log_likelihoods(self, prompts, gold_answers):
        self.asked.add(("rate", self.is_student))
        self.prompts += prompts
        return [self.likelihoods.get(gold, -0.1) for [gold] in gold_answers]


def test_sentences():
    assert split_sentences("Dr. Ann came. She left!\nWhy? “Bees.” Good.") == [
        "Dr. Ann came.",
        "She left!",
        "Why?",
        "“Bees.",
        "Good.",
    ]
    assert split_sentences("蜜蜂住在维尔。它们酿蜜！") == ["蜜蜂住在维尔。", "它们酿蜜！"]
    assert split_sentences(" \n… \n") == []


def test_likely_answers_are_numbers_names_and_a_long_word():
    assert likely_answers("The bees of Vell made 1,200 jars for Ann Orr & Sons.", BEES) == ["1,200", "Ann Orr & Sons"]
    assert likely_answers("Die Mühle von Łódź hat sechs Flügel.", {"context": ""}) == ["Flügel", "Mühle", "Łódź"]
    assert likely_answers("It feeds on small snails.", BEES) == ["snails"]
    assert likely_answers("灯塔建于1874年。", {"context": ""}) == ["1874"]
    assert likely_answers("蜜蜂住在维尔。", {"context": ""}) == []


def test_prompts_are_spread_over_the_sentences():
    prompts = question_prompts(BEES, 5)
    assert [prompt.answer for prompt in prompts[:4]] == ["Ann Orr", "45", "1911"] + ["Ann Orr"]
    assert all(prompt.prompt.endswith(f"Answer: {prompt.answer}\nQuestion:") for prompt in prompts)
    assert "\nTopic: Vell bees\nNote: The bees of Vell are kept by Ann Orr.\n" in prompts[0].prompt
    long = {"context": " ".join(f"Mole {n} digs." for n in range(100, 200))}
    numbers = [int(prompt.answer) for prompt in question_prompts(long, 2)]
    assert len(numbers) == 16 and numbers == sorted(numbers) and numbers[-1] > 190
    [unaided, *_] = question_prompts({"context": "蜜蜂住在维尔。"}, 1)
    assert unaided.answer == "" and unaided.prompt.endswith("Note: 蜜蜂住在维尔。\nAnswer:")


@pytest.mark.parametrize(
    ("completion", "question"),
    [
        (" Who keeps bees?\n\nTopic: Moths\nQuestion: Who?", "Who keeps bees?"),
        (" Ann\nQuestion: Who keeps bees?\nAnswer", "Who keeps bees?"),
        (" ¿Quién cuida abejas?", "¿Quién cuida abejas?"),
        ("谁养蜜蜂？\n", "谁养蜜蜂？"),
        (" Ποιος έχει μέλισσες;\nΑπάντηση", "Ποιος έχει μέλισσες;"),
        (" Άνα\nQuestion: Ποιος έχει μέλισσες\u037e", "Ποιος έχει μέλισσες\u037e"),
        (" ንቦችን ማን ያረባል፧\n", "ንቦችን ማን ያረባል፧"),
        (" Ո՞վ է պահում մեղուներ։", "Ո՞վ է պահում մեղուներ։"),
        ("蜂を飼うのは誰ですか。\n答え", "蜂を飼うのは誰ですか。"),
        (" Ann; Bob;", None),
        ("蜂が飛ぶ。", None),
        (" Who keeps", None),
        ("", None),
        (" Ann\nQuestion: Who keeps", None),
    ],
)
def test_parse_question(completion, question):
    assert parse_question(completion) == question


def test_sentences_of_scripts_with_ends_of_their_own():
    assert split_sentences("አና ንቦች አላት። ማን መጣ፧ ቦብ።") == ["አና ንቦች አላት።", "ማን መጣ፧", "ቦብ።"]
    assert split_sentences("Աննան եկել է։ Բոբը գնաց։") == ["Աննան եկել է։", "Բոբը գնաց։"]


GERMAN = {"title": "Turm", "context": "Der Turm wurde 1643 von der Baumeisterin Agnes Tölk errichtet."}
CHINESE = {"title": "", "context": "灯塔由哈尔达在1874年建造，塔身用绿色石板砌成。"}


@pytest.mark.parametrize(
    ("question", "answer", "example", "kept"),
    [
        ("Who keeps the bees of Vell?", "ann orr", BEES, True),
        ("Who keeps the bees of Vell?", "Bob Orr", BEES, False),
        ("How many jars of honey were made?", "45 jars", BEES, True),
        ("How many jars of honey were made?", "4", BEES, False),
        ("Did Ann Orr keep the bees?", "Ann Orr", BEES, False),
        ("What are they?", "bees of Vell", BEES, False),
        ("What is dark?", "", BEES, False),
        ("What is known?", BEES["context"], BEES, False),
        ("Wer baute den Turm?", "Agnes Tolk", GERMAN, True),
        ("Wer baute den Turm?", "der Baumeister", GERMAN, True),
        ("Wer baute den Turm?", "Maurer", GERMAN, False),
        ("谁建造了灯塔？", "哈尔达", CHINESE, True),
        ("谁建造了灯塔？", "约翰", CHINESE, False),
        ("哈尔达建造了什么？", "哈尔达", CHINESE, False),
    ],
)
def test_grounding(question, answer, example, kept):
    assert is_grounded(question, answer, example) is kept


@pytest.mark.parametrize(
    ("question", "example", "kept"),
    [
        ("Who keeps the bees?", BEES, True),
        ("What year did the Vell bees make honey?", BEES, True),
        ("What is the capital of France?", BEES, False),
        ("How many jars of honey were made in 1912?", BEES, False),
        ("What does the passage say about bees and honey?", BEES, False),
        ("Who wrote the text of the bees?", {"context": "The text of the bees is old."}, True),
        ("Was steht im Text über Agnes Tölk?", GERMAN, False),
        ("Wer errichtete den Turm?", GERMAN, True),
        ("谁建造灯塔？", CHINESE, True),
        ("根据文章，灯塔是谁建造的？", CHINESE, False),
        ("北京在哪里？", CHINESE, False),
        ("Who?", BEES, False),
    ],
)
def test_questions_are_about_the_passage_and_do_not_point_at_it(question, example, kept):
    assert is_about(question, example) is kept


KEEPER, JARS, YEAR = "Who keeps the bees of Vell?", "How many jars of honey were made?", "When was dark honey made?"


def test_kept_questions_come_in_the_order_of_the_passage():
    lm = ScriptedLM([KEEPER, JARS, YEAR, "Why?"], {KEEPER: "Ann Orr", JARS: "45", YEAR: "1911", "Why?": "dark"})
    kept = [{"question": q, "answer": a} for q, a in ((KEEPER, "Ann Orr"), (JARS, "45"), (YEAR, "1911"))]
    assert own_questions(lm, BEES) == kept
    # The policy writes, and the student, which answers, reads and rates.
    assert lm.asked == {("write", False), ("read", True), ("rate", True)}
    assert own_questions(lm, BEES, 2) == kept[:2]
    assert own_questions(lm, {"title": None, "context": BEES["context"]})[0] == kept[0]


@pytest.mark.parametrize(
    "reason",
    [
        {"passage_answers": {KEEPER: "1911"}},
        {"likelihoods": {"Ann Orr": -0.7}},
        {"likelihoods": {"Ann Orr": None}},
        {"answers": {KEEPER: "Bob", JARS: "45"}},
        {"answers": {KEEPER: "honey jars", JARS: "45"}},
    ],
)
def test_dropped_questions(reason):
    lm = ScriptedLM([KEEPER, JARS], **{"answers": {KEEPER: "Ann Orr", JARS: "45"}, **reason})
    assert own_questions(lm, BEES) == [{"question": JARS, "answer": "45"}]


def test_no_two_questions_with_one_answer():
    again = "Who has kept the bees of Vell?"
    written = [KEEPER, "", "", again, "", "", KEEPER.upper()]
    lm = ScriptedLM(written, {KEEPER: "Ann Orr", again: "Orr", KEEPER.upper(): "Ann Orr"})
    assert own_questions(lm, BEES) == [{"question": KEEPER, "answer": "Ann Orr"}]


def test_persons_questions_are_never_seen():
    lm = ScriptedLM([KEEPER], {KEEPER: "Ann Orr"})
    assert len(own_questions(lm, BEES)) == 1
    assert len(lm.prompts) > 8
    assert not any("zebra" in prompt or "xylophone" in prompt for prompt in lm.prompts)
    assert not any("zebra" in prompt for prompt in reading_prompts(BEES, [BEES["context"]], [KEEPER]))


def test_seeds():
    lm = ScriptedLM()
    own_questions(lm, BEES, seed=1)
    first = lm.streams
    own_questions(lm, BEES, seed=2)
    assert len(set(first) | set(lm.streams)) == 2 * len(first)


def test_a_second_attempt_where_nothing_is_kept():
    draws = []
    lm = ScriptedLM([], {KEEPER: "Ann Orr"})

    def on_write():
        draws.append(lm.streams)
        lm.written = [KEEPER] if len(draws) == 2 else []

    lm.on_write = on_write
    assert own_questions(lm, BEES) == [{"question": KEEPER, "answer": "Ann Orr"}]
    assert len(draws) == 2 and draws[0] != draws[1]
    assert own_questions(lm, BEES) == []
    assert len(draws) == 4


def test_stop_gives_no_questions():
    stop = threading.Event()
    lm = ScriptedLM([KEEPER], {KEEPER: "Ann Orr"}, on_write=stop.set)
    assert own_questions(lm, BEES, stop=stop) == []


def test_unusable_arguments():
    lm = ScriptedLM()
    with pytest.raises(ValueError, match="num_questions=0 must be at least 1"):
        own_questions(lm, BEES, 0)
    with pytest.raises(ValueError, match="passage is empty"):
        own_questions(lm, {"context": " \n"})
    assert own_questions(lm, {"context": "…"}) == []


def test_a_model_that_writes_noise_has_no_questions():
    lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer())
    calls = []
    assert own_questions(lm, BEES, 1, max_question_length=6, max_answer_length=2, on_text=calls.append) == []
    assert len(calls) == 12  # two attempts
    stop = threading.Event()
    stop.set()
    assert own_questions(lm, BEES, 1, stop=stop) == []


@pytest.mark.slow
def test_embedded_model():
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny")
    example = load_demo_passages("train")[2]
    found = own_questions(lm, example)
    assert {"Merrin Oakhollow", "Isaura Penn"} & {item["answer"] for item in found}
    assert all(is_grounded(item["question"], item["answer"], example) for item in found)
    assert own_questions(lm, example) == found
