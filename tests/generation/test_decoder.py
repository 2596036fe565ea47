"""The own decode loop against transformers' `generate`, one prompt at a time, and that it saves the work it should."""

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from helpers.generating import generate, generate_with, random_bank
from helpers.tiny_models import EOS_ID, KINDS, PAD_ID, VOCAB_SIZE, tiny_model, tiny_policy_model, tiny_tokenizer
from seal_hf.adapters.bank import AdapterBank, StackedAdapters
from seal_hf.generation import decoder as decoding
from seal_hf.generation.attention import GROUPED_ATTENTION
from seal_hf.generation.decoder import Decoder
from seal_hf.generation.key_values import roomy_cache
from seal_hf.models.access import unwrap
from seal_hf.models.architecture import runs_in_batches


COMMON = "Answer the question about the keeper of the bees in one word, as briefly as you can: "
# Two groups that begin alike, one of them again in two, a prompt that is the beginning of others, and one of its own.
PROMPTS = [
    COMMON + "who keeps them?",
    COMMON + "where?",
    "moth",
    COMMON + "who was it that kept the moths in Vell?",
    COMMON + "w",
    "A lamp of the harbour stands upon a reef and it is seen from afar. Which colour has it?",
    "A lamp of the harbour stands upon a reef and it is seen from afar. When was it lit?",
]
ADAPTERS = [0, 0, 0, 1, 1, None, None]
NUM_TOKENS = 40  # beyond the room of the first buffers


def stacked_of(bank: AdapterBank) -> StackedAdapters:
    return StackedAdapters(bank.model, bank.layout, bank.weights)


def alone(model: nn.Module, prompt: list[int], bank: AdapterBank, adapter: int | None, num_tokens: int) -> list[int]:
    """transformers' own greedy continuation of one prompt."""
    config = GenerationConfig(do_sample=False, max_new_tokens=num_tokens, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    with bank.attach([adapter]), torch.no_grad():
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        return unwrap(model).generate(input_ids=ids, attention_mask=mask, generation_config=config)[0].tolist()


def tokens_read(model: nn.Module) -> list[int]:
    """Filled with the tokens, padding included, of every forward pass from now on."""
    counts = []
    unwrap(model).get_input_embeddings().register_forward_hook(
        lambda module, args, output: counts.append(args[0].numel())
    )
    return counts


@pytest.mark.parametrize("tokens_per_pass", [1024, 100], ids=["one-pass", "passes"])
@pytest.mark.parametrize("kind", [*KINDS, "policy"])
def test_continuations_equal_those_alone(monkeypatch, kind, tokens_per_pass):
    """With windows of 8 tokens in three of the architectures, so that shared beginnings are longer than what is seen."""
    monkeypatch.setattr(decoding, "tokens_per_pass", lambda model: tokens_per_pass)
    model, tokenizer = tiny_policy_model() if kind == "policy" else tiny_model(kind), tiny_tokenizer()
    bank = random_bank(model)
    found = generate_with(bank, tokenizer, PROMPTS, ADAPTERS, max_new_tokens=NUM_TOKENS)
    for prompt, adapter, generation in zip(PROMPTS, ADAPTERS, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        expected = alone(model, ids, bank, adapter, NUM_TOKENS)[len(ids) :]
        assert generation.num_tokens == len(expected)
        assert generation.text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_alone(kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    bank, prompts = random_bank(model), [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    added = torch.arange(len(prompts)) + 10
    with Decoder(model, PAD_ID, ADAPTERS, stacked_of(bank)) as decoder:
        first = decoder.read(prompts)
        second = decoder.step(added)
    for row, (ids, adapter) in enumerate(zip(prompts, ADAPTERS, strict=True)):
        with bank.attach([adapter]), torch.no_grad():
            logits = model(torch.tensor([[*ids, added[row].item()]])).logits[0, -2:]
        torch.testing.assert_close(torch.stack([first[row], second[row]]), logits, rtol=1e-4, atol=1e-4)


def test_rows_that_are_kept_go_on_as_before():
    model, tokenizer = tiny_model("mistral"), tiny_tokenizer()
    bank, prompts = random_bank(model), [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    tokens = torch.arange(len(prompts)) + 10
    with Decoder(model, PAD_ID, ADAPTERS, stacked_of(bank)) as whole:
        whole.read(prompts)
        whole.step(tokens)
        expected = whole.step(tokens)
    kept = [1, 3, 6]
    with Decoder(model, PAD_ID, ADAPTERS, stacked_of(bank)) as part:
        part.read(prompts)
        part.step(tokens)
        part.keep(kept)
        found = part.step(tokens[kept])
    torch.testing.assert_close(found, expected[kept], rtol=1e-4, atol=1e-4)


def test_beginnings_are_read_once():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    counts = tokens_read(model)
    prompts = [COMMON + question for question in ("who?", "how?", "why?", "me?")]
    generate(model, tokenizer, prompts, max_new_tokens=1)
    assert sum(counts) == len(COMMON) + len(prompts) * len("who?")
    counts.clear()
    # another adapter reads its own
    generate_with(random_bank(model), tokenizer, prompts, [0, 0, 1, 1], max_new_tokens=1)
    assert sum(counts) == 2 * len(COMMON) + len(prompts) * len("who?")


def test_rows_that_are_done_leave():
    """A model that after a digit writes the next lower one, and after 1 ends the text."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    digits = tokenizer("0123456789")["input_ids"]
    following = torch.full((VOCAB_SIZE,), EOS_ID)
    following[digits[2:]] = torch.tensor(digits[1:-1])
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: nn.functional.one_hot(following[seen[-1][:, -1:]], VOCAB_SIZE).float()
    )
    found = generate(model, tokenizer, ["a2", "b3", "c4", "d9"], max_new_tokens=20)
    assert [generation.text for generation in found] == ["1", "21", "321", "87654321"]
    assert all(generation.finished for generation in found)
    assert [generation.num_tokens for generation in found] == [2, 3, 4, 9]
    assert [len(ids) for ids in seen] == [4, 4, 3, 2, 1, 1, 1, 1, 1]


def test_model_with_states_of_other_kinds_generates():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=2))
    model, tokenizer = model.eval(), tiny_tokenizer()
    assert not runs_in_batches(model)
    (found,) = generate(model, tokenizer, ["Ann keeps bees"], max_new_tokens=6)
    ids = tokenizer("Ann keeps bees")["input_ids"]
    config = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    expected = model.generate(input_ids=torch.tensor([ids]), generation_config=config)[0, len(ids) :]
    assert found.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_attention_is_grouped_inside_and_restored():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    seen = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(model.config._attn_implementation)
    )
    own = model.config._attn_implementation
    generate(model, tokenizer, ["ab", "cde"], max_new_tokens=2)
    assert set(seen) == {GROUPED_ATTENTION}
    assert model.config._attn_implementation == own

    def stop(texts: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, tokenizer, ["ab", "cde"], max_new_tokens=2, on_text=stop)
    assert model.config._attn_implementation == own


def test_buffers_grow_with_room():
    layer = roomy_cache(1).layers[0]
    torch.manual_seed(0)
    states = torch.randn(2, 3, 70, 4)
    buffers = set()
    for start, end in [(0, 5), *((i, i + 1) for i in range(5, 70))]:
        keys, values = layer.update(states[:, :, start:end], -states[:, :, start:end])
        assert torch.equal(keys, states[:, :, :end]) and torch.equal(values, -states[:, :, :end])
        buffers.add(layer.buffers[0].data_ptr())
    assert len(buffers) == 2  # of 5 + 32 tokens, and from the 38th on of 38 + 32
