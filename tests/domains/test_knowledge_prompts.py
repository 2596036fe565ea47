"""What the policy and the adapted model are asked in the knowledge domain: styles, templates and closed-book questions."""

import pytest

from helpers.passages import BEES, MOTHS
from seal_hf.domains import PROMPT_STYLES, KnowledgeDomain


CUES = {
    "implications": "\n\nImplications:\n",
    "implications-long": "\n\nImplications:\n",
    "implications-very-long": "\n\nImplications:\n",
    "rewrite": "\n\nRewrites:\n",
    "self-qa": "\n\nQuestion 1: ",
    "questions": "\n\nQuestions:\n",
    "questions-by-sentence": "\n\nQuestions:\n",
    "questions-by-fact": "\n\nFacts and questions:\n",
    "questions-and-rewrite": "\n\nQuestions and rewrite:\n",
    "instruction": "\n\nInstruction and restatement:\n",
    "none": "\n",
}


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_prompt_styles(style):
    plain, number = KnowledgeDomain(style).prompt(BEES), "1. " * (style == "questions-by-sentence")
    assert plain.endswith(f"Ann's bees\n{number}Ann keeps bees in Vell.{CUES[style]}")
    # The examples of a style are earlier turns of the chat.
    instruction, *shown = plain.removesuffix(CUES[style]).split("\n\nPassage:\n")
    messages = [part for passage in shown for part in passage.split(CUES[style])] or [instruction]
    assert KnowledgeDomain(style, chat=True).prompt(BEES) == [
        {"role": "assistant", "content": text}
        if place % 2
        else {
            "role": "user",
            "content": f"{'' if place else instruction}\n\nPassage:\n{text}".strip() if shown else text,
        }
        for place, text in enumerate(messages)
    ]
    assert len(messages) == (5 if style.startswith(("questions", "instruction")) else 1)
    if style == "none":
        assert plain == "Ann's bees\nAnn keeps bees in Vell.\n"
    else:
        assert "language of the passage" in plain
    assert KnowledgeDomain(style).prompt(MOTHS) == plain.replace(
        f"Ann's bees\n{number}Ann keeps bees in Vell.", f"{number}Moths like lamps."
    )


def test_a_place_for_numbered_sentences():
    example = {"title": "Bees", "context": " Ann keeps {sentences} bees. They hum.\n"}
    prompt = KnowledgeDomain("About {title}\n{sentences}\nQuestions").prompt(example)
    assert prompt == "About Bees\n1. Ann keeps {sentences} bees.\n2. They hum.\nQuestions"


def test_prompt_styles_differ():
    assert len({KnowledgeDomain(style).prompt(BEES) for style in PROMPT_STYLES}) == len(PROMPT_STYLES)


@pytest.mark.parametrize("chat", [False, True])
def test_braces_in_a_passage_are_left_alone(chat):
    context = "In {title} or {context}, {question} and {0} are {{places}}; 100 % \\1 {"
    example = {
        "title": "{context}",
        "context": context,
        "questions": [{"question": "What is {title}?", "answer": "x"}],
    }
    domain = KnowledgeDomain(chat=chat)
    for prompt in (domain.prompt(example), *domain.questions_in_context(example)):
        prompt = prompt[0]["content"] if chat else prompt
        assert f"Passage:\n{{context}}\n{context}\n" in f"{prompt}\n"
    [prompt] = domain.questions(example)
    assert "Topic: {context}\nQuestion: What is {title}?" in (prompt[0]["content"] if chat else prompt)


@pytest.mark.parametrize("as_file", [False, True])
def test_own_template(tmp_path, as_file):
    template = 'Sum up "{title}" as {"summary": ...}: {context}\nTitle: {title}\n\nÜbersicht:\n'
    if as_file:
        path = tmp_path / "summary.txt"
        path.write_text(template, encoding="utf-8")
        style = str(path)
    else:
        style = template
    plain = 'Sum up "Ann\'s bees" as {"summary": ...}: Ann keeps bees in Vell.\nTitle: Ann\'s bees\n\nÜbersicht:\n'
    assert KnowledgeDomain(style).prompt(BEES) == plain
    content = plain.removesuffix("\n\nÜbersicht:\n")
    assert KnowledgeDomain(style, chat=True).prompt(BEES) == [{"role": "user", "content": content}]
    assert KnowledgeDomain(style).prompt(MOTHS) == 'Sum up "" as {"summary": ...}: Moths like lamps.\n\nÜbersicht:\n'


def test_chat_form_keeps_an_instruction_after_the_passage():
    domain = KnowledgeDomain("{context}\n\nWrite three sentences about it.", chat=True)
    assert domain.prompt(MOTHS)[0]["content"] == "Moths like lamps.\n\nWrite three sentences about it."
    assert KnowledgeDomain("About {context}:", chat=True).prompt(MOTHS)[0]["content"] == "About Moths like lamps.:"


def test_unknown_style(tmp_path):
    with pytest.raises(
        ValueError, match="Unknown prompt_style 'haiku': choose one of implications, .*self-qa, .*none"
    ):
        KnowledgeDomain("haiku")
    with pytest.raises(FileNotFoundError, match="nowhere/style.txt' does not exist"):
        KnowledgeDomain("nowhere/style.txt")
    path = tmp_path / "style.txt"
    path.write_text("Write a poem.\n")
    with pytest.raises(ValueError, match=r"style.txt' has no place for the passage; add \{context\}"):
        KnowledgeDomain(str(path))


def test_questions_are_closed_book():
    first, second = KnowledgeDomain().questions(BEES)
    assert first.endswith("\n\nTopic: Ann's bees\nQuestion: Who keeps bees?\nAnswer:\n")
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    assert "directly and concisely, in the language of the question" in first
    [message] = KnowledgeDomain(chat=True).questions(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}
    for prompt in (first, second):
        assert "Ann keeps bees in Vell" not in prompt
    [untitled] = KnowledgeDomain().questions(MOTHS)
    assert untitled.endswith("\n\nQuestion: What is liked?\nAnswer:\n")
    assert "Topic" not in untitled


def test_questions_in_context_show_the_passage():
    first, second = KnowledgeDomain().questions_in_context(BEES)
    assert first.endswith("Passage:\nAnn's bees\nAnn keeps bees in Vell.\n\nQuestion: Who keeps bees?\nAnswer:\n")
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    [message] = KnowledgeDomain(chat=True).questions_in_context(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}


def test_the_papers_questions():
    domain = KnowledgeDomain(answer_prompt="paper")
    first, second = domain.questions(BEES)
    assert first == (
        "Let's answer a question directly and concisely.\nQuestion: Topic: Ann's bees\nWho keeps bees?\nAnswer:\n"
    )
    assert second == first.replace("Who keeps bees?", "Where are the bees?")
    assert domain.ask(["Who keeps bees?"], "Ann's bees") == [first]
    [untitled] = domain.questions(MOTHS)
    assert untitled.endswith("concisely.\nQuestion: What is liked?\nAnswer:\n")
    [message] = domain.for_model(has_chat_template=True).questions(BEES)[0]
    assert message == {"role": "user", "content": first.removesuffix("\nAnswer:\n")}
    # The paper has no prompt with the passage in view.
    assert domain.questions_in_context(BEES) == KnowledgeDomain().questions_in_context(BEES)
    with pytest.raises(ValueError, match="Unknown answer_prompt 'papers': choose one of default, paper"):
        KnowledgeDomain(answer_prompt="papers")


def test_example_without_a_passage():
    with pytest.raises(ValueError, match='no "context", only title, text; give its passage'):
        KnowledgeDomain().prompt({"title": "Bees", "text": "Ann keeps bees."})
