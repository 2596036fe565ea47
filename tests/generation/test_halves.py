"""Generation where the memory of a GPU runs out: the same texts and draws, in halves."""

import gc
import logging
import weakref

import pytest
import torch

from helpers.adapters import BASE_ID
from helpers.generating import adapters_of, generate, random_bank
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf.generation import halves
from seal_hf.generation.base import Sampling
from seal_hf.generation.halves import in_halves
from seal_hf.generation.transformers_generation import TransformersGenerator


PROMPTS = ["Who keeps bees?", "Ann", "Moths like lamps and the", "Where is Vell, and who lives there?", "1, 2, 3"]
ADAPTERS = [1, None, 0, 1, 0]
LIMITS = [20, 3, 20, 12, 20]


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def too_large(model, most_rows: int, after: int = 0) -> list[tuple[int, int]]:
    """
    Let the memory not hold more rows than these, from some forward pass on.

    Returns the shape of the tokens of every forward pass.
    """
    passes = []

    def run_out(module, args, output):
        passes.append(tuple(args[0].shape[:2]))
        if len(passes) > after and args[0].shape[0] > most_rows:
            raise torch.OutOfMemoryError(f"{args[0].shape[0]} rows")

    model.model.layers[1].mlp.register_forward_hook(run_out)
    return passes


def told(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == halves.__name__]


SAMPLED = Sampling((5, 6, 7, 8, 9), temperature=1.5)


@pytest.mark.parametrize("after", [0, 1, 6, 14], ids=["prefill", "first", "middle", "late"])
@pytest.mark.parametrize("most_rows", [3, 2, 1])
@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
def test_texts_and_draws_are_those_of_a_memory_that_is_large_enough(
    model, tokenizer, caplog, sampling, most_rows, after
):
    bank = random_bank(model)
    options = {"adapters": adapters_of(bank, ADAPTERS), "max_new_tokens": LIMITS, "sampling": sampling}
    expected, calls = generate(model, tokenizer, PROMPTS, **options), []
    passes = too_large(model, most_rows, after)
    with caplog.at_level(logging.WARNING):
        found = generate(model, tokenizer, PROMPTS, **options, on_text=calls.append)
    assert found == expected
    assert ["".join(texts) for texts in zip(*calls, strict=True)] == [generation.text for generation in expected]
    # Of rows that have left, fewer than these are there late.
    if after < 14:
        assert any(rows > most_rows for rows, _ in passes[after:])
        assert len(told(caplog)) == 1 and "A batch of 5 rows is too large for the memory" in told(caplog)[0]


def test_what_was_written_is_not_written_again(model, tokenizer):
    passes = too_large(model, 3, after=6)
    generate(model, tokenizer, PROMPTS, max_new_tokens=10)
    tried = next(place for place, (rows, _) in enumerate(passes) if place >= 6 and rows > 3)
    # The prompts of the first half are read with the six tokens after them, and four are left to write.
    first = [shape for shape in passes[tried + 1 :] if shape[0] == 2]
    assert first[0][1] == max(map(len, PROMPTS)) + 6
    assert first[1:] == [(2, 1)] * 3


def test_later_batches_are_cut_alike(model, tokenizer, caplog):
    passes = too_large(model, 2)
    with caplog.at_level(logging.WARNING):
        found = generate(model, tokenizer, PROMPTS * 4, max_new_tokens=2, batch_size=4)
    assert found == generate(tiny_llama(), tokenizer, PROMPTS * 4, max_new_tokens=2)
    assert sum(rows > 2 for rows, _ in passes) == 1
    assert len(told(caplog)) == 1


def test_one_row_that_does_not_fit_is_an_error(model, tokenizer):
    hooks = len(model.model.layers[0].self_attn.q_proj._forward_hooks)
    too_large(model, 0, after=3)
    with pytest.raises(torch.OutOfMemoryError, match="1 rows"):
        generate(model, tokenizer, PROMPTS, adapters_of(random_bank(model), ADAPTERS), max_new_tokens=9)
    assert len(model.model.layers[0].self_attn.q_proj._forward_hooks) == hooks
    assert model.config._attn_implementation == "sdpa"


def test_an_error_of_the_callers_own_is_not_taken_for_the_batches(model, tokenizer):
    calls = []

    def run_out(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("of the caller")

    with pytest.raises(torch.OutOfMemoryError, match="of the caller"):
        generate(model, tokenizer, PROMPTS, max_new_tokens=9, on_text=run_out)
    assert len(calls) == 3


def test_the_memory_of_a_batch_is_given_back_before_its_halves(model, tokenizer, monkeypatch):
    """Without the garbage collector, which would come too late."""
    held, left = [], []
    attention = model.model.layers[0].self_attn

    def see(module, args, kwargs, output):
        held.append(weakref.ref(kwargs["past_key_values"]))

    attention.register_forward_hook(see, with_kwargs=True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(any(ref() is not None for ref in held)))
    too_large(model, 3, after=5)
    gc.disable()
    try:
        generate(model, tokenizer, PROMPTS, max_new_tokens=9)
    finally:
        gc.enable()
    assert left == [False]


@pytest.mark.parametrize("most_rows", [3, 1])
def test_likelihoods_are_those_of_a_memory_that_is_large_enough(model, tokenizer, caplog, most_rows):
    bank, golds = random_bank(model), [["Ann", "Bob Hale"], ["x"], ["b c"], ["in Vell"], ["4", "5", "6"]]
    generator = TransformersGenerator(model, tokenizer, BASE_ID)
    prompts = [prompt + "\n" for prompt in PROMPTS]
    expected = generator.answer_log_likelihoods(prompts, golds, adapters_of(bank, ADAPTERS))
    passes = too_large(model, most_rows)
    with caplog.at_level(logging.WARNING):
        found = generator.answer_log_likelihoods(prompts, golds, adapters_of(bank, ADAPTERS))
    assert found == pytest.approx(expected, abs=1e-6)
    assert max(passes)[0] == 8 and len(told(caplog)) == 1


def test_a_likelihood_that_does_not_fit_is_an_error(model, tokenizer):
    too_large(model, 0)
    with pytest.raises(torch.OutOfMemoryError, match="1 rows"):
        TransformersGenerator(model, tokenizer, BASE_ID).answer_log_likelihoods(["Who?\n"] * 3, [["Ann"]] * 3)


def test_batches_are_done_in_order_and_halved_until_they_fit():
    tried = []

    def steps(batch):
        tried.append(batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        yield from batch

    assert list(in_halves([range(7), range(7, 9), range(9, 12)], steps)) == list(range(12))
    assert tried == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2], [0], [1, 2], [3, 4], [5, 6], [7, 8], [9], [10, 11]]


def test_other_errors_go_on():
    def steps(batch):
        raise RuntimeError("of another kind")
        yield

    with pytest.raises(RuntimeError, match="of another kind"):
        list(in_halves([[0, 1]], steps))
