"""The line in which a self-edit sets its training: how it is asked for, read and left out of the texts."""

import re

import pytest

from seal_hf.domains import PROMPT_STYLES, KnowledgeDomain
from seal_hf.domains.knowledge.templates import read_prompt_file
from seal_hf.domains.knowledge.training_settings import BOUNDS, split_training_settings
from seal_hf.inner_loop.update import InnerLoopConfig


BEES = {"title": "Ann's bees", "context": "Ann keeps bees. They hum.", "questions": []}
LINE = "Training: 6 epochs, learning rate 5e-4, batch size 8"
CHOSEN = {"num_train_epochs": 6, "learning_rate": 5e-4, "batch_size": 8}
ASKED, *LINES = read_prompt_file("training").splitlines()


def domain(style="implications", **options):
    return KnowledgeDomain(style, **{"chat": True, "sets_training": True, **options})


def completions(edit):
    return [example.completion for example in edit.examples]


def prompts(style, chat):
    asked, plain = (domain(style, chat=chat, sets_training=on).prompt(BEES) for on in (True, False))
    return (asked[0]["content"], plain[0]["content"]) if chat else (asked, plain)


@pytest.mark.parametrize("style", sorted({*PROMPT_STYLES} - {"none", "questions-by-fact"}))
def test_every_style_asks_for_the_line_and_its_examples_have_it(style):
    asked, plain = prompts(style, chat=False)
    instruction, *examples, passage = asked.split("\n\nPassage:\n")
    own_instruction, *own_examples, own_passage = plain.split("\n\nPassage:\n")
    assert instruction == f"{own_instruction}\n{ASKED}\n{LINES[0]}" and passage == own_passage
    assert len(own_examples) == (2 if style.startswith(("questions", "instruction")) else 0)
    for example, own, line in zip(examples, own_examples, LINES, strict=False):
        lines = example.splitlines()
        (place,) = [i for i, text in enumerate(lines) if text == line]
        assert lines[place - 1] in ("Questions:", "Questions and rewrite:", "Instruction and restatement:")
        assert lines[place + 1].startswith("1. ") or style == "instruction"
        assert "\n".join(lines[:place] + lines[place + 1 :]) == own


def test_what_is_written_sentence_by_sentence_or_in_drafts_sets_nothing():
    with pytest.raises(ValueError, match="'questions-by-fact' writes about each sentence apart"):
        domain("questions-by-fact")
    assert not domain("questions").pools_drafts and domain("questions", sets_training=False).pools_drafts


@pytest.mark.parametrize(
    ("template", "cue"), [("{title}\n{context}\nSay what follows.", ""), ("{context}\nNow:\n", "Now:\n"), ("none", "")]
)
def test_other_templates_ask_behind_the_passage_and_keep_the_beginning_of_the_answer(template, cue):
    asked, plain = prompts(template, chat=True)
    assert asked == f"{plain}\n\n{ASKED}\n{LINES[0]}"
    asked, plain = prompts(template, chat=False)
    assert asked == f"{plain.removesuffix(cue).rstrip()}\n\n{ASKED}\n{LINES[0]}\n{cue and chr(10) + cue}"


def test_the_policy_is_told_the_bounds_and_the_form_that_is_read():
    told = [float(number) for number in re.findall(r"\d[\de-]*", ASKED)]
    assert told == [number for bounds in BOUNDS.values() for number in bounds]
    for line in LINES:
        text, settings = split_training_settings(line)
        assert text == "" and settings.keys() == BOUNDS.keys()
        assert all(BOUNDS[name][0] < value < BOUNDS[name][1] for name, value in settings.items())


def test_the_line_is_no_text_and_sets_the_training():
    edit = domain().parse(f"Bees hum.\nThey sting.\n\n{LINE}", BEES)
    assert completions(edit) == ["Ann's bees\nBees hum.", "Ann's bees\nThey sting.", f"Ann's bees\n{BEES['context']}"]
    assert edit.overrides == CHOSEN and edit.completion.endswith(LINE)
    assert edit.metrics == {"sets_training": 1, "training_epochs": 6, "training_rate": 5e-4, "training_batch": 8}
    assert InnerLoopConfig().override(edit.overrides).num_train_epochs == 6


def test_without_the_option_the_line_is_a_text():
    edit = domain(sets_training=False).parse(f"Bees hum.\n{LINE}", BEES)
    assert completions(edit)[1] == f"Ann's bees\n{LINE}" and not edit.overrides and not edit.metrics
    assert not domain(sets_training=False).passage_only(BEES).overrides
    assert KnowledgeDomain().sets_training is False


def test_a_line_alone_is_malformed():
    assert domain().parse(LINE, BEES) is None
    assert domain("questions").parse(f"---\n{LINE}", BEES) is None


@pytest.mark.parametrize("style", ["self-qa", "questions"])
def test_the_line_is_no_part_of_an_answer_or_of_a_list_of_questions(style):
    written = f"Question 1: Who keeps bees?\nAnswer: Ann\n{LINE}"
    edit = domain(style, training_format="prompt_completion").parse(written, BEES)
    assert edit.overrides == CHOSEN
    assert edit.calls == (("Who keeps bees?",) if style == "questions" else ())
    assert completions(edit) == ([] if style == "questions" else ["Ann"]) + [BEES["context"]]


def test_the_line_is_left_out_when_the_tool_comes_back():
    own = domain("questions-and-rewrite", training_format="prompt_completion")
    edit = own.parse(f"Who keeps bees?\n---\nAnn has bees.\n{LINE}", BEES)
    (done,) = own.carry_out([edit], [BEES], lambda prompts, *args, **options: [NoAnswer] * len(prompts))
    assert completions(done) == ["Ann has bees.", BEES["context"]] and done.overrides == CHOSEN


class NoAnswer:
    text, finished = "", True


READ = {
    "first": (f"{LINE}\nBees hum.", "Bees hum.", CHOSEN),
    "in the middle": (f"Bees hum.\n{LINE}\nThey sting.", "Bees hum.\nThey sting.", CHOSEN),
    "numbered": (f"1. Bees hum.\n2. {LINE}.", "1. Bees hum.\n", CHOSEN),
    "bold": (f"- **Training:** {LINE[10:]}\n", "", CHOSEN),
    "names first": ("training: epochs: 6, learning_rate = 0.0005, batch_size 8", "", CHOSEN),
    "some": ("Training: batch size 4 and 1 epoch", "", {"num_train_epochs": 1, "batch_size": 4}),
    "the later value": (f"{LINE}\nBees hum.\nTraining: 3 epochs", "Bees hum.\n", {**CHOSEN, "num_train_epochs": 3}),
    "too much": (
        f"Training: {'9' * 5000} epochs, learning rate 5, batch size 64",
        "",
        {"num_train_epochs": 20, "learning_rate": 2e-3, "batch_size": 16},
    ),
    "too little": (
        "Training: 0 epochs, learning rate 1e-999, batch size 0",
        "",
        {"num_train_epochs": 1, "learning_rate": 1e-5, "batch_size": 1},
    ),
    "not whole": ("Training: 2.5 epochs, batch size 8", "", {"batch_size": 8}),
    "no numbers": ("Training: -3 epochs, learning rate 0,0005, batch size eight", "", {}),
    "cut off": ("Training: 6 epochs, learning rate 5e", "", {"num_train_epochs": 6}),
    "about training": ("Training: Bees learn fast.", "Training: Bees learn fast.", {}),
    "in a sentence": (f"Bees hum. {LINE}", f"Bees hum. {LINE}", {}),
    "not there": ("Bees hum.\r\nThey sting.", "Bees hum.\r\nThey sting.", {}),
}


@pytest.mark.parametrize(("completion", "text", "settings"), READ.values(), ids=READ.keys())
def test_what_is_read(completion, text, settings):
    rest, found = split_training_settings(completion)
    assert (rest, found) == (text, settings)
    assert all(isinstance(value, float if name == "learning_rate" else int) for name, value in found.items())
    config = InnerLoopConfig().override(found)
    assert all(getattr(config, name) == value for name, value in settings.items())


def test_a_line_that_sets_nothing_is_counted():
    edit = domain().parse("Bees hum.\nTraining: many epochs", BEES)
    assert edit.overrides == {} and edit.metrics == {"sets_training": 0}
    assert len(edit.examples) == 2
