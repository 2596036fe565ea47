"""Self-edits that begin with their own instruction."""

import pytest

from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.instructions import MAX_CHARACTERS, split_instruction


BEES = {"title": "Bees", "context": "Ann keeps bees.", "questions": [{"question": "Who?", "answer": "Ann"}]}


@pytest.mark.parametrize(
    ("completion", "instruction", "text"),
    [
        ("Say it twice.\nBees hum.\nThey sting.", "Say it twice.", "Bees hum.\nThey sting."),
        ("  Instruction: Say  it.\n\nBees hum.\n", "Say it.", "Bees hum."),
        ("Say it.", "Say it.", ""),
        ("", "", ""),
        ("x" * 300 + "\nBees.", "x" * MAX_CHARACTERS, "Bees."),
    ],
)
def test_the_first_line_is_the_instruction(completion, instruction, text):
    assert split_instruction(completion) == (instruction, text)


def test_the_instruction_is_not_trained_on():
    domain = KnowledgeDomain("instruction", chat=False)
    self_edit = domain.parse("Say it.\nBees hum.\nThey sting.", BEES)
    assert [one.completion for one in self_edit.examples] == [
        "Bees\nBees hum.",
        "Bees\nThey sting.",
        "Bees\nAnn keeps bees.",
    ]
    assert domain.instruction(self_edit.completion) == "Say it."
    assert domain.parse("Say it.", BEES) is None and domain.parse("Say it.\n ", BEES) is None
    assert domain.instruction(" ") is None
    assert KnowledgeDomain("rewrite").instruction("Say it.\nBees hum.") is None


def test_a_line_that_sets_the_training_comes_before_it():
    domain = KnowledgeDomain("instruction", chat=False, sets_training=True)
    completion = "Training: 6 epochs\nSay it.\nBees hum."
    self_edit = domain.parse(completion, BEES)
    assert domain.instruction(completion) == "Say it." and self_edit.overrides == {"num_train_epochs": 6}
    assert self_edit.examples[0].completion == "Bees\nBees hum."


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_shows_instructions_that_paid(chat):
    domain = KnowledgeDomain("instruction", chat=chat)
    shown = domain.with_instructions(BEES, ["Be brief.", "Say it {title} times."])
    plain, prompt = domain.prompt(BEES), domain.prompt(shown)
    if chat:
        assert [turn["content"] for turn in prompt[1:]] == [turn["content"] for turn in plain[1:]]
        plain, prompt = plain[0]["content"], prompt[0]["content"]
    before, _, rest = prompt.partition("\nInstructions that have worked well")
    assert rest.partition("\n")[2].startswith("- Be brief.\n- Say it {title} times.\n\nPassage:\n")
    assert plain == before + rest[rest.index("\n\nPassage:") :]
    assert domain.questions(shown) == domain.questions(BEES) and domain.content(shown) == domain.content(BEES)
    assert domain.with_instructions(BEES, []) is BEES
    assert KnowledgeDomain("rewrite").with_instructions(BEES, ["Be brief."]) is BEES


def test_a_template_of_ones_own_may_have_a_place_for_them():
    domain = KnowledgeDomain("{context}\n{instructions}\nNow:", chat=False)
    assert domain.prompt(BEES) == "Ann keeps bees.\nNow:"
    assert domain.prompt(domain.with_instructions(BEES, ["Be brief."])).endswith("- Be brief.\nNow:")
    assert domain.instruction("Say it.\nBees hum.") == "Say it."
