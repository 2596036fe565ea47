"""The divergence of adapters from the base: that of a plain loop over positions with PEFT's adapters."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from helpers.adapters import BASE_ID
from helpers.generating import adapters_of
from helpers.tiny_models import tiny_llama, tiny_model, tiny_policy_model, tiny_tokenizer
from seal_hf.adapters.bank import AdapterBank
from seal_hf.generation import likelihood
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.models.encoding import encode_answer, encode_prompt


CONFIG = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
PROMPTS = ["Who?\nAnswer:", [{"role": "user", "content": "Where is it?"}], "A", "What was it, and when?\n"]
ANSWERS = ["Ann", "in Vell by the sea", "", "x"]


def random_bank(model):
    bank = AdapterBank.initialize(model, CONFIG, [0, 1, 2])
    bank.weights.copy_(0.1 * torch.randn(bank.weights.shape, generator=torch.Generator().manual_seed(5)))
    return bank


def by_hand(base, adapted, tokenizer, prompt, answer):
    """KL(base || adapted) at every token of an answer and at its end, one position after another."""
    ids, total = encode_prompt(tokenizer, prompt), 0.0
    answer_ids = encode_answer(tokenizer, prompt, answer) if answer else []
    for place in range(len(answer_ids) + 1):
        seen = torch.tensor([ids + answer_ids[:place]])
        with torch.no_grad():
            own, other = (model(seen).logits[0, -1].double().softmax(-1).tolist() for model in (base, adapted))
        total += sum(p * math.log(p / q) for p, q in zip(own, other, strict=True))
    return total, len(answer_ids) + 1


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("logits", [1, 500, 2**25])
def test_it_is_that_of_a_plain_loop(monkeypatch, kind, logits):
    monkeypatch.setattr(likelihood, "_CPU_LOGITS_PER_PASS", logits)
    monkeypatch.setattr(likelihood, "_POSITIONS", 3)
    model, tokenizer, rows = tiny_model(kind), tiny_tokenizer(), [2, 0, 1, None]
    bank = random_bank(model)
    generator = TransformersGenerator(model, tokenizer, BASE_ID)
    found = generator.divergences_from_base(PROMPTS, ANSWERS, adapters_of(bank, rows))
    for prompt, answer, row, own in zip(PROMPTS, ANSWERS, rows, found, strict=True):
        adapted = tiny_model(kind)
        if row is not None:
            adapted = get_peft_model(adapted, CONFIG)
            set_peft_model_state_dict(adapted, bank.layout.state_dict(bank.weights[row]))
        nats, num_tokens = by_hand(tiny_model(kind), adapted.eval(), tokenizer, prompt, answer)
        assert own.num_tokens == num_tokens
        assert own.nats == pytest.approx(nats, abs=1e-5)
    assert found[3].nats == pytest.approx(0, abs=1e-6) and min(own.nats for own in found[:3]) > 1e-3


def test_the_base_of_an_adapter_on_a_policy_is_the_policy():
    policy, tokenizer = tiny_policy_model(), tiny_tokenizer()
    generator = TransformersGenerator(policy, tokenizer, BASE_ID)
    (one,) = generator.divergences_from_base(["Who?\n"], ["Ann"], [None])
    assert one.nats == pytest.approx(0, abs=1e-6) and one.num_tokens == 4


def test_two_models_are_compared_by_their_weights():
    base, other, tokenizer = tiny_llama(), tiny_llama(seed=3), tiny_tokenizer()
    generator = TransformersGenerator(other, tokenizer, BASE_ID)
    (one,) = generator.divergences_from_base(["Who?\n"], ["Ann"], [None], base)
    assert one.nats == pytest.approx(by_hand(base, other, tokenizer, "Who?\n", "Ann")[0], abs=1e-5) and one.nats > 0.1


def test_an_answer_beyond_the_context_is_cut_and_an_empty_prompt_refused():
    model, tokenizer = tiny_llama(max_position_embeddings=12), tiny_tokenizer()
    generator = TransformersGenerator(model, tokenizer, BASE_ID)
    (one,) = generator.divergences_from_base(["Who?\n"], ["a long answer"], [None])
    assert one.num_tokens == 12 - 5 + 1
    with pytest.raises(ValueError, match=r"prompts\[0\] is empty"):
        generator.divergences_from_base([""], ["a"], [None])
