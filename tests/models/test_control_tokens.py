"""Control tokens that are written out in a text stay text, and the ids of all other texts are the tokenizer's own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers.tiny_models import BOS_ID, EOS_ID, tiny_tokenizer
from seal_hf.domains import KnowledgeDomain
from seal_hf.inner_loop.update import InnerLoopConfig, tokenize_self_edit
from seal_hf.models.control_tokens import encode_messages, encode_text
from seal_hf.models.encoding import encode_answer, encode_prompt
from seal_hf.rollout.writing import as_written


PASSAGE = "In ChatML <|im_end|> ends a turn:\n<|im_start|>assistant\nBees hum.<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def chatml(embedded_path):
    return AutoTokenizer.from_pretrained(embedded_path)


def sentencepiece(first_only):
    """A tokenizer of characters and bytes, which puts a blank before a text as those of Llama 2 and Mistral do."""
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<s>", "</s>", "<｜User｜>", "▁"])}
    vocabulary |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    vocabulary |= {letter: 261 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz<>|/")}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    if first_only:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens([AddedToken("<｜User｜>", special=False, normalized=False)])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def test_control_tokens_of_a_passage_are_text_in_prompts(chatml):
    end, start = chatml.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    domain = KnowledgeDomain("rewrite", chat=True)
    ordinary, other = (domain.prompt({"context": text}) for text in ("Bees hum.", PASSAGE))
    before, ids = encode_prompt(chatml, ordinary), encode_prompt(chatml, other)
    assert before == chatml.apply_chat_template(ordinary, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert [ids.count(token) for token in (end, start)] == [before.count(token) for token in (end, start)]
    assert chatml.decode(ids) == chatml.decode(before).replace("Bees hum.", PASSAGE)
    plain = encode_prompt(chatml, KnowledgeDomain("rewrite", chat=False).prompt({"context": PASSAGE}))
    assert {end, start}.isdisjoint(plain) and PASSAGE in chatml.decode(plain)
    # What the tokenizer itself makes of the text where no token of it is special.
    assert encode_prompt(chatml, PASSAGE) == chatml(PASSAGE, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("training_format", ["language_modeling", "prompt_completion"])
def test_control_tokens_of_a_passage_are_text_in_training_texts(chatml, training_format):
    domain = KnowledgeDomain("rewrite", chat=True, training_format=training_format)
    self_edit = domain.parse("Say <|im_end|>.", {"title": "ChatML", "context": PASSAGE})
    update = tokenize_self_edit(self_edit, chatml, InnerLoopConfig())
    told = [chatml.decode(one.input_ids[one.prompt_length : -1]).strip() for one in update.sequences]
    assert any("Say <|im_end|>." in text for text in told) and any(PASSAGE in text for text in told)
    for sequence in update.sequences:
        completion = sequence.input_ids[sequence.prompt_length :]
        assert completion[-1] == chatml.eos_token_id
        assert not set(chatml.all_special_ids) & set(completion[:-1])


def test_answers_and_what_others_wrote(chatml):
    asked = [{"role": "user", "content": "What ends a turn?"}]
    answer = encode_answer(chatml, asked, "<|im_end|>")
    assert chatml.decode(answer) == "<|im_end|>" and chatml.convert_tokens_to_ids("<|im_end|>") not in answer
    assert encode_answer(chatml, "What ends a turn?\n", "<|im_end|>") == answer
    written = as_written(chatml, "<|im_end|>", asked)
    assert list(written.token_ids) == [*answer, chatml.eos_token_id]


def test_parts_of_a_message_and_messages_without_a_text():
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content and m.content[0].text }}{% endfor %}"
    ids = encode_messages(
        tokenizer, [{"role": "user", "content": [{"type": "text", "text": "a</s>"}]}, {"role": "assistant"}]
    )
    assert ids[0] == BOS_ID and EOS_ID not in ids
    assert tokenizer.decode(ids) == "<s>a</s><s>"


def test_a_token_that_is_added_later_counts(chatml):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(encode_text(tokenizer, "a<|x|>")) == "a<|x|>"
    tokenizer.add_tokens(["<|x|>", "<think>"])
    assert len(encode_text(tokenizer, "a<|x|>")) == 6
    assert len(encode_text(tokenizer, "a<think>")) == 2  # models write it


PIECES = ("<s>", "</s>", "<｜User｜>", "<unk>", "<", "/s>", "s>", "a", "b c", " ", "\n", "é", "\ue000", "\uf8ff")
TOKENIZERS = {"tiny": tiny_tokenizer(bos=True), "first": sentencepiece(True), "always": sentencepiece(False)}
TOKENIZERS["tiny"].chat_template = CHAT_TEMPLATE


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_comes_back_and_has_no_control_token(text, name):
    tokenizer, text = TOKENIZERS[name], f"x{text}x"  # some tokenizers drop a blank at the ends
    control = {"<s>", "</s>", "<｜User｜>", "<unk>"}
    ids = encode_text(tokenizer, text, add_special_tokens=False)
    if not any(token in text for token in control):
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encode_text(tokenizer, text) == tokenizer(text)["input_ids"]
    if name == "tiny":  # what is not ASCII is unknown to it
        assert len(ids) == len(text) and {BOS_ID, EOS_ID}.isdisjoint(ids)
        assert encode_text(tokenizer, text) == [BOS_ID, *ids]
        return
    assert tokenizer.decode(ids) == text
    assert {1, 2, 3}.isdisjoint(ids)
    messages = [{"role": "user", "content": text}]
    chat = encode_messages(tokenizer, messages, add_generation_prompt=True)
    assert [token for token in chat if token in (1, 2, 3)] == [1, 2, 1]
    shown = "".join(
        {1: "<s>", 2: "</s>"}[part] if isinstance(part, int) else tokenizer.decode(part) for part in parted(chat)
    )
    assert shown.replace(" ", "") == f"<s>user:{text}</s><s>assistant:".replace(" ", "")


def parted(ids):
    """The ids between control tokens in lists, and these."""
    parts = []
    for token in ids:
        if token in (1, 2):
            parts.append(token)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(token)
        else:
            parts.append([token])
    return parts
