"""What a reasoning model says after its thought is what counts, of self-edits and of answers."""

import pytest

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.generation.base import Generation
from seal_hf.generation.thoughts import after_thought, without_thoughts


OPENING = "{{ messages[0]['content'] }}[assistant] <think>\n"
MESSAGES = [{"role": "user", "content": "Who?"}]
WRITTEN = "<think>\nOkay, the user wants ...\n</think>\n\nThe kiln is fired with peat."


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        (WRITTEN, False, "The kiln is fired with peat."),
        ("<think>\nIs it peat or coal? Probably it burns", False, ""),
        ("It might be peat.</think>\n\nIt burns coal.", False, "It burns coal."),
        ("It might be peat.</think>\n\nIt burns coal.", True, "It burns coal."),
        ("Is it peat or coal?", True, ""),
        ("  <think> peat", False, ""),
        ("It burns <think> peat", False, "It burns <think> peat"),
        (" Peat.\n", False, " Peat.\n"),
    ],
)
def test_what_follows_the_thought(text, is_open, expected):
    assert after_thought(text, is_open=is_open) == expected


def test_template_may_open_the_thought_in_the_prompt():
    opening, plain = tiny_tokenizer(), tiny_tokenizer()
    opening.chat_template = OPENING
    cut, closed = Generation("It may be", 3, False, (5, 6)), Generation("Hm.</think> Ann", 4, True, (7,))
    found = without_thoughts([cut, closed], [MESSAGES] * 2, opening)
    assert [(one.text, one.token_ids) for one in found] == [("", (5, 6)), ("Ann", (7,))]
    assert without_thoughts([cut], [MESSAGES], plain) == [cut]
    assert without_thoughts([cut], ["Who?"], opening) == [cut]


GPT_OSS = "<|channel|>analysis<|message|>Peat or coal?"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>Peat.<|return|>"


@pytest.mark.parametrize(
    ("marks", "written", "said"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]Peat or coal?[/THINK]\nPeat.</s>", "Peat."),
        (["[THINK]", "[/THINK]"], "[THINK]Peat or", ""),
        (["[THINK]", "[/THINK]"], " Peat.\n</s>", " Peat.\n"),
        (["<seed:think>", "</seed:think>"], "<seed:think>Hm.</seed:think>Peat.", "Peat."),
        (["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"], GPT_OSS + FINAL, "Peat."),
        (["<|channel|>", "<|message|>"], GPT_OSS, ""),
        ([], "He wrote [/THINK] and </seed:think>.", "He wrote [/THINK] and </seed:think>."),
    ],
)
def test_thoughts_that_special_tokens_tell_apart(marks, written, said):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = tokenizer(written)["input_ids"]
    one = Generation(tokenizer.decode(ids, skip_special_tokens=True), len(ids), True, tuple(ids))
    assert without_thoughts([one], [MESSAGES], tokenizer) == [Generation(said, len(ids), True, tuple(ids))]


@pytest.fixture
def lm(monkeypatch):
    lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=KnowledgeDomain())
    texts = [WRITTEN, "<think>\nIt never clo"]
    written = [Generation(text, 9, True, tuple(range(9))) for text in texts]
    monkeypatch.setattr(lm.generator, "generate", lambda prompts, *args, **options: written[: len(prompts)])
    return lm


def test_self_edits_and_answers_are_what_is_said(lm):
    (edit,) = lm.propose("The kiln.", num_generations=2)
    trained = "".join(example.completion for example in edit.examples)
    assert "fired with peat" in trained
    assert not any(word in example.completion for example in edit.examples for word in ("think", "Okay"))
    assert lm.answer(["What burns?", "Which?"]) == ["The kiln is fired with peat.", ""]


def test_policy_learns_the_tokens_that_it_wrote(lm):
    ((written, _),) = lm.write_batch(
        [{"context": "The kiln.", "questions": []}], 2, temperature=1.0, top_p=1.0, max_completion_length=9, seed=0
    )
    assert written.text == "The kiln is fired with peat." and written.token_ids == tuple(range(9))
