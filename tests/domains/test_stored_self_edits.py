"""Self-edits that somebody else wrote: which passage they belong to, and what is refused."""

import pytest

from seal_hf.domains import Domain, KnowledgeDomain
from seal_hf.domains.stored_self_edits import stored_completions


BEES = {"title": "Bees", "context": "Ann keeps bees.\n", "questions": [{"question": "Who?", "answer": "Ann"}]}
HUMMING = {"title": "", "context": "Ann keeps bees. They hum.", "questions": [{"question": "Who?", "answer": "Ann"}]}
EXAMPLES, IDS = [BEES, HUMMING], ["7", "8"]
DOMAIN = KnowledgeDomain("rewrite", chat=False)


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("writer_chat", [False, True])
@pytest.mark.parametrize("style", ["rewrite", "implications"])
def test_found_by_the_prompt_of_another_model(chat, writer_chat, style):
    """The passage is in the prompt, whatever else is; a passage in a longer one is not what that prompt is about."""
    writer = KnowledgeDomain(style, chat=writer_chat)
    rows = [
        {"prompt": writer.prompt(HUMMING), "completion": assistant("They hum."), "example_id": "7"},
        {"prompt": writer.prompt(BEES), "completion": "Bees!"},
    ]
    domain = KnowledgeDomain("rewrite", chat=chat)
    assert stored_completions(domain, EXAMPLES, IDS, rows, 1) == [("Bees!",), ("They hum.",)]


def test_found_by_the_prompt_alone_where_it_does_not_hold_the_passage_in_one_piece():
    domain = KnowledgeDomain("Write.\n{sentences}", chat=False)
    assert HUMMING["context"] not in domain.prompt(HUMMING)
    rows = [{"prompt": domain.prompt(example), "completion": example["title"]} for example in EXAMPLES]
    assert stored_completions(domain, EXAMPLES, IDS, rows, 1) == [("Bees",), ("",)]


def test_found_by_the_passage_first_ones_first():
    rows = [
        # The passage counts, not the prompt beside it, nor title and questions.
        {"context": " Ann keeps bees.", "completions": ["1", assistant("2")], "prompt": DOMAIN.prompt(HUMMING)},
        {"context": "Ann keeps bees", "completion": "of another passage"},
        {"title": "Hum", "context": "Ann keeps bees. They hum.\n", "completion": "a"},
        {"context": "Ann keeps bees.", "completion": "3"},
        {"context": "Ann keeps bees. They hum.", "completions": ["b", "c"], "questions": []},
        {"context": "Ann keeps bees. They hum.", "completion": "d"},
    ]
    assert stored_completions(DOMAIN, EXAMPLES, IDS, rows, 3) == [("1", "2", "3"), ("a", "b", "c")]
    again = [BEES, {**BEES, "questions": []}]
    assert stored_completions(DOMAIN, again, IDS, rows, 2) == [("1", "2")] * 2


class Colours(Domain):
    def prompt(self, example):
        return f"Colour {example['number']}:"


def test_another_domain_is_found_by_its_whole_example_or_its_prompt():
    examples = [{"id": 1, "number": 3}, {"id": 2, "number": 4}]
    rows = [{"id": 9, "number": 4, "completion": "red"}, {"prompt": "Colour 3:", "completion": "blue", "kept": True}]
    assert stored_completions(Colours(), examples, IDS, rows, 1) == [("blue",), ("red",)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"context": "Ann keeps bees. They hum.", "completion": "a"}],
            "no completion about example 7 ('Bees'), where num_generations=2 are wanted, and too few about 1 more; add rows",
        ),
        (
            [{**BEES, "completions": ["a", "b"]}, {**HUMMING, "completion": "a"}],
            "1 completion about example 8, where num_generations=2 are wanted; add rows with the same passage",
        ),
        ([{**BEES, "completions": []}], "row 1 has no completion"),
        ([{**BEES, "completions": 7}], "row 1 has no completion"),
        ([{**BEES, "completions": "ab"}], "row 1 has no completion"),
        ([{**BEES, "completion": "a"}, BEES], "row 2 has no completion, as a text or chat messages; write {"),
        ([{**BEES, "completions": ["a", 3]}], "row 1 has no completion"),
        ([{**BEES, "completion": [{"role": "assistant"}]}], "row 1 has no completion"),
        (["a"], "row 1 has no completion"),
        ([{"title": "Bees", "completion": "a"}], "row 1 names no passage; write {"),
        ([{"prompt": 3, "completion": "a"}], "row 1 names no passage"),
    ],
)
def test_refused_with_the_remedy(rows, message):
    with pytest.raises(ValueError) as refused:
        stored_completions(DOMAIN, EXAMPLES, IDS, rows, 2)
    assert str(refused.value).startswith(f"self_edits: {message}")
