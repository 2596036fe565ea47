"""Batched generation: an adapter per row, the caller's model left as it was, and text as it is written."""

import copy
import threading
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.adapters import BASE_ID
from helpers.generating import generate
from helpers.tiny_models import EOS_ID, tiny_llama, tiny_tokenizer
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.layout import LoraStacks, lora_layout
from seal_hf.generation.base import Sampling


PROMPTS = ["Who keeps bees?", "Ann", "Moths like lamps and the", "Where is Vell, and who lives there?", "1, 2, 3"]
ROWS = [2, None, 0, 1, 0]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def adapters():
    layout = lora_layout(tiny_llama(), LORA)
    weights = 0.3 * torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    return [Adapter(layout, own, BASE_ID) for own in weights]


def choose(adapters, rows):
    return [None if row is None else adapters[row] for row in rows]


@pytest.fixture(scope="module")
def peft_answers(tmp_path_factory, tokenizer, adapters):
    """For each prompt and adapter the token ids that PEFT and transformers give, one prompt at a time."""
    answers = {}
    for number, adapter in [*enumerate(adapters), (None, None)]:
        model = tiny_llama()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter.save_pretrained(tmp_path_factory.mktemp("adapter")))
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=20)
            answers[prompt, number] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return answers


def assert_answers(generations, expected, tokenizer):
    assert [generation.text for generation in generations] == tokenizer.batch_decode(
        expected, skip_special_tokens=True
    )
    assert [generation.num_tokens for generation in generations] == [len(ids) for ids in expected]
    assert [generation.finished for generation in generations] == [ids[-1] == EOS_ID for ids in expected]


@pytest.mark.parametrize("rows", [ROWS, [0, 0, 1, 1, 2], [1, 1, 1, 1, 1], [None] * 5], ids=str)
@pytest.mark.parametrize("batch_size", [64, 2])
def test_rows_answer_with_their_own_adapters(model, tokenizer, adapters, peft_answers, rows, batch_size):
    chosen = choose(adapters, rows)
    generations = generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=20, batch_size=batch_size)
    assert_answers(generations, [peft_answers[key] for key in zip(PROMPTS, rows, strict=True)], tokenizer)


def test_adapters_answer_differently(peft_answers):
    for prompt in PROMPTS:
        assert len({tuple(peft_answers[prompt, number]) for number in (None, 0, 1, 2)}) == 4


def modes_and_hooks(model):
    return {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()}


def test_model_settings_neither_act_nor_change(tokenizer, adapters, peft_answers):
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    config = model.generation_config
    config.update(do_sample=True, temperature=0.3, top_k=2, repetition_penalty=1.5, no_repeat_ngram_size=2)
    config.update(min_new_tokens=15, max_new_tokens=3)
    fields, before = config.to_dict(), modes_and_hooks(model)

    generations = generate(model, tokenizer, PROMPTS, choose(adapters, ROWS), max_new_tokens=20)

    assert_answers(generations, [peft_answers[key] for key in zip(PROMPTS, ROWS, strict=True)], tokenizer)
    assert model.generation_config is config
    assert config.to_dict() == fields
    assert modes_and_hooks(model) == before
    assert any(training for training, _ in before.values()) and not model.model.layers[1].training


def test_settings_are_restored_after_an_exception(model, tokenizer, adapters):
    model.train()
    config, before = model.generation_config, modes_and_hooks(model)
    seen = []

    def fail(new_texts):
        seen.append(modes_and_hooks(model))
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        generate(model, tokenizer, PROMPTS, choose(adapters, ROWS), max_new_tokens=20, on_text=fail)
    assert seen[0]["model.layers.0.self_attn.q_proj"] == (False, 1)
    assert modes_and_hooks(model) == before
    assert model.generation_config is config


def byte_tokenizer():
    """One token per byte, `</s>` behind them."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    assert fast.eos_token_id == 256
    return fast


TEXTS = ["Zürich 🐝", "", "蜂蜜", "plain", "é\nè "]
NUM_TOKENS = [13, 1, 7, 6, 7]  # UTF-8 bytes and the end


@contextmanager
def scripted(model, tokenizer, texts, batch_size=64):
    """Let the model write the given texts and end each with `</s>`, in batches of `batch_size` rows."""
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    scripts = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        scripts.append(ids[: next(i for i, token in enumerate(ids) if token in ends) + 1])
    batches = [scripts[start : start + batch_size] for start in range(0, len(scripts), batch_size)]
    steps = iter([(batch, step) for batch in batches for step in range(max(map(len, batch)))])
    present = []

    def write(module, args, output):
        batch, step = next(steps)
        if step == 0:
            present[:] = batch
        if output.shape[0] < len(present):  # all rows that are done have left
            present[:] = [script for script in present if len(script) > step]
        tokens = torch.tensor([script[min(step, len(script) - 1)] for script in present])
        return torch.nn.functional.one_hot(tokens, output.shape[-1])[:, None].float()

    handle = model.get_output_embeddings().register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def facts(generations):
    assert [len(generation.token_ids) for generation in generations] == [one.num_tokens for one in generations]
    return [(generation.text, generation.num_tokens, generation.finished) for generation in generations]


@pytest.fixture
def byte_model():
    return tiny_llama(vocab_size=257, eos_token_id=256, num_hidden_layers=1)


@pytest.mark.parametrize("batch_size", [64, 2])
def test_new_texts_add_up(byte_model, batch_size):
    tokenizer, calls = byte_tokenizer(), []
    with scripted(byte_model, tokenizer, TEXTS, batch_size):
        generations = generate(
            byte_model, tokenizer, PROMPTS, max_new_tokens=20, on_text=calls.append, batch_size=batch_size
        )
    assert facts(generations) == [(*row, True) for row in zip(TEXTS, NUM_TOKENS, strict=True)]
    assert [tokenizer.decode(generation.token_ids[:-1]) for generation in generations] == TEXTS
    assert {generation.token_ids[-1] for generation in generations} == {256}
    assert ["".join(row) for row in zip(*calls, strict=True)] == TEXTS
    assert {text for call in calls for text in call} >= {"🐝", "蜂", "蜜", "ü", "\n"}
    if batch_size == 2:  # 13 steps for rows 0 and 1, then 7 for each other batch
        assert len(calls) == 13 + 7 + 7
        assert all(call[2:] == ["", "", ""] for call in calls[:13])
        assert all(call[:4] == ["", "", "", ""] for call in calls[20:])


@pytest.mark.parametrize("limit", range(1, 14))
def test_new_texts_add_up_where_the_limit_cuts(byte_model, limit):
    tokenizer, calls = byte_tokenizer(), []
    with scripted(byte_model, tokenizer, TEXTS):
        generations = generate(byte_model, tokenizer, PROMPTS, max_new_tokens=limit, on_text=calls.append)
    expected = [text.encode()[:limit].decode(errors="replace") for text in TEXTS]
    assert [generation.text for generation in generations] == expected
    assert ["".join(row) for row in zip(*calls, strict=True)] == expected
    assert [generation.num_tokens for generation in generations] == [min(number, limit) for number in NUM_TOKENS]
    assert [generation.finished for generation in generations] == [number <= limit for number in NUM_TOKENS]


def test_new_texts_add_up_for_a_model_of_random_bytes(byte_model):
    tokenizer, calls = byte_tokenizer(), []
    sampling = Sampling(tuple(range(5)), temperature=2.0)
    generations = generate(
        byte_model, tokenizer, PROMPTS, max_new_tokens=30, sampling=sampling, on_text=calls.append, batch_size=3
    )
    texts = [generation.text for generation in generations]
    assert ["".join(row) for row in zip(*calls, strict=True)] == texts
    assert any("\ufffd" in text.rstrip("\ufffd") for text in texts)


def test_any_end_token_of_the_model_ends_a_text_and_is_not_in_it(byte_model):
    tokenizer, calls = byte_tokenizer(), []
    (full_stop,) = tokenizer(".")["input_ids"]
    byte_model.generation_config.eos_token_id = [256, full_stop]
    with scripted(byte_model, tokenizer, ["Bees. Moths", "Moths"]):
        generations = generate(byte_model, tokenizer, PROMPTS[:2], max_new_tokens=20, on_text=calls.append)
    assert facts(generations) == [("Bees", 5, True), ("Moths", 6, True)]
    # Which of the end tokens it was, and none where there was none.
    assert [generation.token_ids[-1] for generation in generations] == [full_stop, 256]
    assert ["".join(row) for row in zip(*calls, strict=True)] == ["Bees", "Moths"]


def test_a_text_ends_with_its_first_line(byte_model):
    tokenizer, prompts = byte_tokenizer(), PROMPTS * 80
    options = {"max_new_tokens": 40, "sampling": Sampling(tuple(range(400)), temperature=3.0), "batch_size": 150}
    whole = generate(byte_model, tokenizer, prompts, **options)
    firsts, lines = [], 0
    for place, one in enumerate(whole):
        line, end, _ = one.text.lstrip().partition("\n")
        cut = one.text[: len(one.text) - len(one.text.lstrip()) + len(line) + len(end)]
        firsts.append((cut, True) if end and place % 3 else (one.text, one.finished))
        lines += bool(end)
    assert lines > 5 and any(one.text.lstrip(" ").startswith("\n") for one in whole)
    calls, one_line = [], [bool(place % 3) for place in range(400)]
    found = generate(byte_model, tokenizer, prompts, one_line=one_line, on_text=calls.append, **options)
    assert [(one.text, one.finished) for one in found] == firsts
    assert ["".join(row) for row in zip(*calls, strict=True)] == [one.text for one in found]
    assert all(one.token_ids == own.token_ids[: one.num_tokens] for one, own in zip(found, whole, strict=True))
    assert sum(one.num_tokens for one in found) < sum(one.num_tokens for one in whole)


def test_lines_are_of_each_prompt(byte_model):
    with pytest.raises(ValueError, match="2 one_line were given for 5 prompts; give one for each"):
        generate(byte_model, byte_tokenizer(), PROMPTS, max_new_tokens=3, one_line=[True, False])


def test_on_text_stops(byte_model):
    tokenizer, calls = byte_tokenizer(), []

    def stop_at_third(new_texts):
        calls.append(new_texts)
        return len(calls) == 3

    with scripted(byte_model, tokenizer, TEXTS, batch_size=3):
        generations = generate(byte_model, tokenizer, PROMPTS, max_new_tokens=20, on_text=stop_at_third, batch_size=3)
    assert facts(generations) == [
        ("Zü", 3, False),
        ("", 1, True),
        ("蜂", 3, False),
        ("", 0, False),
        ("", 0, False),
    ]
    assert len(calls) == 3


def test_stop_event(byte_model):
    tokenizer, stop, calls = byte_tokenizer(), threading.Event(), []

    def set_at_fourth(new_texts):
        calls.append(new_texts)
        if len(calls) == 4:
            stop.set()

    with scripted(byte_model, tokenizer, TEXTS[:4]):
        generations = generate(byte_model, tokenizer, PROMPTS[:4], max_new_tokens=20, on_text=set_at_fourth, stop=stop)
    assert facts(generations) == [
        ("Zür", 4, False),
        ("", 1, True),
        ("蜂\ufffd", 4, False),
        ("plai", 4, False),
    ]
    assert ["".join(row) for row in zip(*calls, strict=True)] == ["Zür", "", "蜂\ufffd", "plai"]


def test_event_set_before_the_start(byte_model):
    tokenizer, stop = byte_tokenizer(), threading.Event()
    stop.set()
    with scripted(byte_model, tokenizer, TEXTS[3:], batch_size=1):
        generations = generate(byte_model, tokenizer, PROMPTS[3:], max_new_tokens=20, stop=stop, batch_size=1)
    assert facts(generations) == [("p", 1, False), ("", 0, False)]


def test_chat_prompts_use_the_template(model, tokenizer):
    chat = generate(model, tokenizer, [[{"role": "user", "content": "Who?"}]], max_new_tokens=20)
    plain = generate(model, tokenizer, ["[user] Who?\n[assistant] "], max_new_tokens=20)
    assert chat == plain
    assert chat != generate(model, tokenizer, ["Who?"], max_new_tokens=20)


@pytest.mark.parametrize("missing", ["pad", "eos"])
def test_one_of_padding_and_end_is_enough(model, tokenizer, missing):
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=20)
    generations = generate(model, tiny_tokenizer(**{missing: False}), PROMPTS, max_new_tokens=20)
    if missing == "pad":
        assert generations == expected
    else:
        assert [generation.num_tokens for generation in generations] == [20] * 5
        assert [generation.finished for generation in generations] == [False] * 5


def test_no_prompts(model, tokenizer):
    assert generate(model, tokenizer, [], max_new_tokens=5) == []


INVALID = {
    "no new token": ({"max_new_tokens": 0}, r"max_new_tokens=0 must be at least 1"),
    "too few seeds": ({"sampling": Sampling((1, 2))}, r"2 sampling\.seeds were given for 5 prompts"),
    "too many adapters": ({"adapters": [None] * 6}, r"6 adapters were given for 5 prompts"),
    "too few limits": ({"max_new_tokens": [1, 2]}, r"2 max_new_tokens were given for 5 prompts"),
    "one prompt without a new token": ({"max_new_tokens": [1, 2, 0, 1, 1]}, r"max_new_tokens=0 must be at least 1"),
    "too long": ({"max_new_tokens": 4062}, r"A prompt of 35 tokens and up to 4062 new ones .* context of 4096 tokens"),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID)
def test_invalid_options(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, tokenizer, PROMPTS, **{"max_new_tokens": 5, **options})


def test_rows_stop_at_limits_of_their_own(model, tokenizer, adapters):
    limits, chosen = [3, 20, 1, 9, 9], choose(adapters, ROWS)
    calls = []
    found = generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=limits, on_text=calls.append)
    for prompt, adapter, limit, generation in zip(PROMPTS, chosen, limits, found, strict=True):
        assert [generation] == generate(model, tokenizer, [prompt], [adapter], max_new_tokens=limit)
    assert [generation.num_tokens for generation in found] == limits
    assert ["".join(texts) for texts in zip(*calls, strict=True)] == [generation.text for generation in found]
    assert generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=limits, batch_size=2) == found


def test_draws_do_not_depend_on_the_limits_of_others(model, tokenizer):
    alone = Sampling((7,))
    (expected,) = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=12, sampling=alone)
    for limits in ([12, 2, 2, 2, 2], [12, 30, 30, 1, 30]):
        sampling = Sampling((7, 1, 2, 3, 4))
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=limits, sampling=sampling)[0] == expected


def test_a_batch_fits_where_each_prompt_fits_with_its_own_limit(tokenizer):
    model = tiny_llama(max_position_embeddings=40)
    prompts, limits = ["Ann", PROMPTS[3]], [37, 5]
    found = generate(model, tokenizer, prompts, max_new_tokens=limits)
    assert [generation.num_tokens for generation in found] == limits
    with pytest.raises(ValueError, match="A prompt of 35 tokens and up to 6 new ones .* context of 40 tokens"):
        generate(model, tokenizer, prompts, max_new_tokens=[37, 6])
    with pytest.raises(ValueError, match="A prompt of 35 tokens and up to 37 new ones"):
        generate(model, tokenizer, prompts, max_new_tokens=37)


def test_adapters_are_converted_once_for_all_batches(model, tokenizer, adapters, monkeypatch):
    converted, of = [], LoraStacks.of
    monkeypatch.setattr(
        LoraStacks,
        "of",
        lambda layout, weights, *args: (converted.append(len(weights)), of(layout, weights, *args))[1],
    )
    generate(model, tokenizer, PROMPTS, choose(adapters, ROWS), max_new_tokens=2, batch_size=1)
    generate(model, tokenizer, PROMPTS, choose(adapters, [1, None, 1, 1, 1]), max_new_tokens=2, batch_size=2)
    generate(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert converted == [3, 1]


def test_longest_fitting_prompt(tokenizer):
    model = tiny_llama(max_position_embeddings=40)
    (generation,) = generate(model, tokenizer, [PROMPTS[3]], max_new_tokens=5)
    assert generation.num_tokens == 5


def test_messages_without_a_template(model):
    with pytest.raises(ValueError, match="has no chat template for a prompt of messages"):
        generate(model, tiny_tokenizer(chat_template=False), [[{"role": "user", "content": "Who?"}]], max_new_tokens=5)


def test_neither_padding_nor_end(model):
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="neither a padding nor an end-of-sequence token"):
        generate(model, tiny_tokenizer(pad=False, eos=False), PROMPTS, max_new_tokens=5)


def test_empty_prompt(model, tokenizer):
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        generate(model, tokenizer, ["Ann", ""], max_new_tokens=5)
    assert generate(model, tiny_tokenizer(bos=True), [""], max_new_tokens=5)[0].num_tokens == 5


def test_output_embedding_sees_states_without_gaps():
    """With gaps torch copies frozen weights for every row; see `decoding._contiguous`."""
    model, seen = tiny_llama().requires_grad_(False), []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: seen.append(args[0].is_contiguous()))
    generate(model, tiny_tokenizer(), ["Ann keeps bees", "and moths"], max_new_tokens=3)
    handle.remove()
    assert seen and all(seen)
    assert not head._forward_pre_hooks
