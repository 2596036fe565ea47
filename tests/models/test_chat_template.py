"""What a chat template decides: arguments and date in all prompts, and the token that ends a turn."""

import pytest
import torch

from helpers.generating import generate
from helpers.tiny_models import EOS_ID, tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.domains import PROMPT_STYLES, KnowledgeDomain
from seal_hf.generation.requests import eos_token_ids
from seal_hf.inner_loop.update import tokenize_self_edit
from seal_hf.models.chat_template import end_of_turn, json_object, with_fixed_template
from seal_hf.models.encoding import encode_answer, encode_prompt
from seal_hf.self_edit import TrainingExample


MESSAGES = [{"role": "user", "content": "Who?"}]
THINKING = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if enable_thinking is not defined or enable_thinking %}<think>\n"
    "{% endif %}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }} {{ messages[0]['content'] }}"


def with_template(template: str, end: str | None = None):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if end is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    return tokenizer


def text_of(tokenizer) -> str:
    return tokenizer.decode(encode_prompt(tokenizer, MESSAGES))


def test_arguments_are_in_every_prompt_and_the_tokenizer_given_is_not_changed():
    tokenizer = with_template(THINKING)
    fixed = with_fixed_template(tokenizer, {"enable_thinking": False})
    assert text_of(tokenizer) == "[user] Who?\n[assistant] <think>\n"
    assert text_of(fixed) == "[user] Who?\n[assistant] "
    assert tokenizer.chat_template == THINKING


@pytest.mark.parametrize("value", ["a \"quoted\" {{ 7 }} 'text'", 3, 0.5, True, None, ["a", {"b": 1}]])
def test_values_of_arguments_come_as_they_are(value):
    tokenizer = with_template("{{ value == expected }}{{ value is none }}{{ messages[0]['content'] }}")
    fixed = with_fixed_template(tokenizer, {"value": value, "expected": value})
    assert text_of(fixed) == f"True{value is None}Who?"


def test_day_of_a_prompt_is_the_same_on_every_day():
    fixed = with_fixed_template(with_template(DATED))
    assert text_of(fixed) == "26 Jul 2024 2024 Who?"
    assert with_fixed_template(fixed) is fixed


@pytest.mark.parametrize(
    "template",
    [
        "{% set form = '%Y-%m-%d' %}{{ strftime_now(form) }}",
        "{{ strftime_now(format='%Y-%m-%d') }}",
        "{% macro today(form) %}{{ strftime_now(form) }}{% endmacro %}{{ today('%Y-%m-%d') }}",
        "{% if strftime_now is defined %}{{ strftime_now('%Y') | int - 0 }}-07-{{ strftime_now('%d') }}{% endif %}",
        {"default": "{{ strftime_now('%F') }}", "rag": "{{ strftime_now('%d %B %Y') }}"},
    ],
)
def test_day_is_the_same_however_a_template_asks_for_it(template):
    fixed = with_fixed_template(with_template(template))
    assert text_of(fixed) == "2024-07-26"
    assert with_fixed_template(fixed) is fixed


def test_template_without_arguments_or_date_stays():
    tokenizer = tiny_tokenizer()
    assert with_fixed_template(tokenizer) is tokenizer
    plain = tiny_tokenizer(chat_template=False)
    assert with_fixed_template(plain) is plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"a b": 1}, "the name 'a b'"), ({"a": object()}, r"chat_template_kwargs\['a'\]=.*no value of JSON")],
)
def test_arguments_that_a_template_cannot_have(arguments, message):
    with pytest.raises(ValueError, match=message):
        with_fixed_template(tiny_tokenizer(), arguments)
    with pytest.raises(ValueError, match="no single chat template"):
        with_fixed_template(tiny_tokenizer(chat_template=False), arguments)


def test_options_of_a_script():
    assert json_object(None) is None
    assert json_object('{"enable_thinking": false}') == {"enable_thinking": False}
    for text in ("enable_thinking=false", "[1]", "[" * 9999):
        with pytest.raises(ValueError, match="chat_template_kwargs=.* is no JSON object"):
            json_object(text)


def test_model_samples_trains_and_answers_with_the_same_arguments():
    lm = SelfAdaptingLM(tiny_llama(), with_template(THINKING), chat_template_kwargs={"enable_thinking": False})
    expected = encode_prompt(with_fixed_template(with_template(THINKING), {"enable_thinking": False}), MESSAGES)
    assert lm.generator.tokenizer is lm.processing_class
    assert encode_prompt(lm.processing_class, MESSAGES) == expected
    edit = SelfEdit(MESSAGES, "", (TrainingExample(MESSAGES, "Ann."),))
    (trained,) = tokenize_self_edit(edit, lm.processing_class, InnerLoopConfig()).sequences
    assert list(trained.input_ids[: trained.prompt_length]) == expected


STRICT = (
    "{% for message in messages %}{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('Only user and assistant take turns.') }}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TURNS = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<end>\n{% endfor %}[assistant] "


def test_turn_ends_where_the_template_ends_it():
    tokenizer = with_template(TURNS, "<end>")
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert end_of_turn(tokenizer) == end != EOS_ID
    assert end_of_turn(tiny_tokenizer()) == end_of_turn(tiny_tokenizer(chat_template=False)) == EOS_ID
    edit = SelfEdit(
        "", "", (TrainingExample(MESSAGES, "Ann."), TrainingExample("Who? ", "Ann."), TrainingExample("", "Ann."))
    )
    ends = [own.input_ids[-1] for own in tokenize_self_edit(edit, tokenizer, InnerLoopConfig()).sequences]
    assert ends == [end, EOS_ID, EOS_ID]


def test_text_stops_at_the_end_of_a_turn(monkeypatch):
    tokenizer = with_template(TURNS, "<end>")
    end, model = tokenizer.convert_tokens_to_ids("<end>"), tiny_llama(vocab_size=len(tokenizer))
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: output.new_zeros(output.shape).index_fill_(-1, output.new_tensor([end]).long(), 1)
    )
    (found,) = generate(model, tokenizer, [MESSAGES], max_new_tokens=5)
    assert (found.text, found.num_tokens, found.finished) == ("", 1, True)
    # A base model may carry a template and end its texts in its own way.
    assert {end, EOS_ID} <= eos_token_ids(model, tokenizer)


def test_answer_ends_with_the_turn():
    tokenizer = with_template(TURNS, "<end>")
    model = tiny_llama(vocab_size=len(tokenizer))
    script = iter(tokenizer("peat<end>\n[user] And why? [assistant]")["input_ids"])
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: output.new_zeros(output.shape).index_fill_(-1, torch.tensor([next(script)]), 1)
    )
    lm = SelfAdaptingLM(model, tokenizer, domain=KnowledgeDomain(chat=True))
    assert lm.answer("What burns?", max_answer_length=20) == "peat"


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_template_without_a_system_role_takes_all_prompts(style):
    tokenizer, domain = with_template(STRICT, "<end>"), KnowledgeDomain(style, chat=True)
    example = {"title": "Kiln", "context": "It burns peat.", "questions": [{"question": "What?", "answer": "peat"}]}
    for prompt in (domain.prompt(example), *domain.questions(example), *domain.questions_in_context(example)):
        text = tokenizer.decode(encode_prompt(tokenizer, prompt))
        assert text.startswith("[user] ") and text.endswith("[assistant] ")
        assert tokenizer.decode(encode_answer(tokenizer, prompt, "peat")) == "peat"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<end>")
