"""The likelihood of gold answers: that of PEFT, one prompt at a time, and tokens as generation would write them."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from tokenizers import AddedToken

from helpers.adapters import BASE_ID
from helpers.generating import adapters_of, generate
from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import KINDS, tiny_llama, tiny_model, tiny_policy_model, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.adapters.bank import AdapterBank
from seal_hf.domains import KnowledgeDomain
from seal_hf.generation import likelihood
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.models.encoding import encode_answer, encode_prompt
from seal_hf.self_edit import TrainingExample


CONFIG = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
PROMPTS = ["Who?\nAnswer:", [{"role": "user", "content": "Where is it?"}], "A", "What was it, and when?\n"]
GOLDS = [["Ann"], ["at Orr", "in Vell by the sea"], ["b c d e f"], ["x"]]


def random_bank(model, number=3, config=CONFIG, scale=0.1):
    bank = AdapterBank.initialize(model, config, list(range(number)))
    generator = torch.Generator().manual_seed(5)
    bank.weights.copy_(scale * torch.randn(bank.weights.shape, generator=generator))
    return bank


def answer_log_likelihoods(model, tokenizer, prompts, golds, adapters=None):
    return TransformersGenerator(model, tokenizer, BASE_ID).answer_log_likelihoods(prompts, golds, adapters)


def by_hand(model, prompt_ids, answer_ids):
    """Mean log-probability of the answer's tokens, by one plain forward pass over all positions."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + answer_ids])).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    places = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
    return sum(log_probabilities[place, token].item() for place, token in zip(places, answer_ids, strict=True)) / len(
        answer_ids
    )


def expected(model, tokenizer, prompt, golds):
    return max(
        by_hand(model, encode_prompt(tokenizer, prompt), encode_answer(tokenizer, prompt, gold)) for gold in golds
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_is_that_of_peft_one_prompt_at_a_time(monkeypatch, kind, batch_size):
    monkeypatch.setattr(likelihood, "_CPU_ANSWERS_PER_PASS", batch_size)
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    bank = random_bank(model)
    rows = [2, 0, None, 1]
    found = answer_log_likelihoods(model, tokenizer, PROMPTS, GOLDS, adapters_of(bank, rows))
    for place, row in enumerate(rows):
        plain = tiny_model(kind)
        if row is not None:
            plain = get_peft_model(plain, CONFIG)
            set_peft_model_state_dict(plain, bank.layout.state_dict(bank.weights[row]))
        value = expected(plain.eval(), tokenizer, PROMPTS[place], GOLDS[place])
        assert found[place] == pytest.approx(value, abs=1e-5)
    # Adapters and answers matter.
    assert len({round(value, 3) for value in found}) == 4
    base = answer_log_likelihoods(model, tokenizer, PROMPTS, GOLDS)
    assert max(abs(value - other) for value, other in zip(found, base, strict=True)) > 0.01
    assert found[2] == pytest.approx(base[2], abs=1e-5)


def test_a_policy_stays_active():
    policy, tokenizer = tiny_policy_model(), tiny_tokenizer()
    found = answer_log_likelihoods(policy, tokenizer, PROMPTS, GOLDS)
    for place, value in enumerate(found):
        assert value == pytest.approx(expected(policy, tokenizer, PROMPTS[place], GOLDS[place]), abs=1e-5)
        with policy.disable_adapter():
            assert value != pytest.approx(expected(policy, tokenizer, PROMPTS[place], GOLDS[place]), abs=1e-3)


def test_the_likeliest_of_several_answers_counts_wherever_it_stands():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    golds = ["Ann", "Bob, of course", "moths"]
    single = [answer_log_likelihoods(model, tokenizer, ["Who?\n"], [[gold]])[0] for gold in golds]
    assert len(set(single)) == 3
    for order in (golds, golds[::-1], golds[1:] + golds[:1]):
        (found,) = answer_log_likelihoods(model, tokenizer, ["Who?\n"], [order])
        assert found == pytest.approx(max(single), abs=1e-6)


def test_only_the_answer_counts_and_every_token_equally():
    """A model that gives all tokens the same probability: the length of the answer does not matter."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = answer_log_likelihoods(model, tokenizer, ["Who?\n"] * 2, [["A"], ["A long answer"]])
    assert found == pytest.approx([-math.log(model.config.vocab_size)] * 2, abs=1e-6)


@pytest.mark.parametrize("prompt", ["Who?\nAnswer:\n", [{"role": "user", "content": "Who?"}]])
def test_what_the_model_writes_itself_is_encoded_as_it_was_written(prompt):
    model, tokenizer = tiny_llama(initializer_range=0.3), tiny_tokenizer()
    (written,) = generate(model, tokenizer, [prompt], max_new_tokens=8)
    assert written.text == written.text.strip()
    tokens = encode_answer(tokenizer, prompt, written.text)
    assert tokenizer.decode(tokens) == written.text and len(tokens) == len(written.text)
    prompt_ids, logits = encode_prompt(tokenizer, prompt), []
    for place in range(len(tokens)):
        logits.append(model(torch.tensor([prompt_ids + tokens[:place]])).logits[0, -1])
    assert torch.stack(logits).argmax(-1).tolist() == tokens


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Who?\nAnswer:\n", "Ann"),
        ("Who? Answer:", " Ann"),
        ("Who? ", "Ann"),
        ([{"role": "user", "content": "Who?"}], "Ann"),
    ],
)
def test_how_an_answer_goes_on_from_its_prompt(prompt, text):
    tokenizer = tiny_tokenizer(bos=isinstance(prompt, str))
    for answer in ("Ann", " Ann\n"):
        assert tokenizer.decode(encode_answer(tokenizer, prompt, answer)) == text


def test_the_template_says_how_the_assistants_turn_begins():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}]{{ ' ' + message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompt = [{"role": "user", "content": "Who?"}]
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == "[user] Who?[assistant]"
    assert tokenizer.decode(encode_answer(tokenizer, prompt, "Ann")) == " Ann"


def test_an_answer_that_would_change_the_prompts_tokens_is_encoded_alone():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(":\nA")])
    tokens = encode_answer(tokenizer, "Who:\n", "Ann")
    assert tokenizer.convert_ids_to_tokens(tokens) == ["A", "n", "n"]


def test_the_embedded_models_answers_begin_as_in_generation(embedded_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_path)
    chat = encode_answer(tokenizer, [{"role": "user", "content": "Who?"}], "Halda Tremmery")
    assert chat == tokenizer("Halda Tremmery")["input_ids"]
    plain = encode_answer(tokenizer, "Question: Who?\nAnswer:", "Halda Tremmery")
    assert plain == tokenizer(" Halda Tremmery")["input_ids"] != chat


def test_a_model_in_training_mode_is_left_so():
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    one, other = (answer_log_likelihoods(model, tiny_tokenizer(), PROMPTS, GOLDS) for _ in range(2))
    assert one == other
    assert all(module.training for module in model.modules())


def test_what_is_not_finite_is_none():
    model = tiny_llama()
    bank = random_bank(model)
    bank.weights[1] = math.nan
    found = answer_log_likelihoods(model, tiny_tokenizer(), PROMPTS, GOLDS, adapters_of(bank, [1, 1, 0, 2]))
    assert found[:2] == [None, None] and all(map(math.isfinite, found[2:]))


@pytest.mark.parametrize(
    ("prompts", "golds", "options", "message"),
    [
        (["a", "b"], [["c"]], {}, "1 lists of gold answers were given for 2 prompts"),
        (["a", "b"], [["c"], []], {}, r"prompts\[1\] has no gold answer; give at least one"),
        (["a", "b"], [["c"], ["d", " "]], {}, r"prompts\[1\] or its gold answer ' ' is empty"),
        (["a", ""], [["c"], ["d"]], {}, r"prompts\[1\] or its gold answer 'd' is empty"),
        (["a" * 30], [["c" * 30]], {}, "have 61 tokens, more than the model's context of 50"),
        (["a"], [["c"]], {"adapters": [None, None]}, "2 adapters were given for 1 prompts"),
    ],
)
def test_refusals_name_what_is_wrong(prompts, golds, options, message):
    with pytest.raises(ValueError, match=message):
        answer_log_likelihoods(tiny_llama(max_position_embeddings=50), tiny_tokenizer(), prompts, golds, **options)


def test_an_adapter_learns_what_it_is_taught():
    domain = KnowledgeDomain("{context}", grader=HashGrader(), chat=False)
    lm = SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=domain,
        peft_config=CONFIG,
        inner_config=InnerLoopConfig(learning_rate=2e-2, num_train_epochs=8),
    )
    (example,) = tiny_examples(1)
    prompts, golds = domain.questions(example)[:1], [[example["questions"][0]["answer"]]]
    adapter = lm.adapt(SelfEdit("", "", (TrainingExample(prompts[0], golds[0][0]),)))
    before, after = lm.generator.answer_log_likelihoods(prompts * 2, golds * 2, [None, adapter])
    assert after > before + 0.5
    assert lm.generator.answer_log_likelihoods(prompts, golds) == [pytest.approx(before, abs=1e-6)]


def test_a_prompt_that_ends_with_the_assistants_words_is_continued():
    tokenizer, asked = tiny_tokenizer(), [{"role": "user", "content": "Who?"}]
    begun = encode_prompt(tokenizer, [*asked, {"role": "assistant", "content": "Ann"}])
    assert begun == encode_prompt(tokenizer, asked) + tokenizer("Ann")["input_ids"]
