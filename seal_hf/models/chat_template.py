"""
A tokenizer's chat template: what is always given to it, and how it ends a turn.
"""

import copy
import datetime
import json
import re
from collections.abc import Mapping

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


_MARK = "seal-hf"
# What templates call for today's date.
_TODAY = "strftime_now"
# The day of all prompts: a run that is resumed tomorrow has those of today.
_DAY = datetime.date(2024, 7, 26)
# What of it a format can ask for; not every system knows the first four.
_PARTS = {"%-d": "26", "%-m": "7", "%e": "26", "%F": "2024-07-26"}
_PARTS |= {one: _DAY.strftime(one) for one in map("%{}".format, "aAbBdHIjmMpSyY")}
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def with_fixed_template(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, object] | None = None
) -> PreTrainedTokenizerBase:
    """
    A tokenizer whose chat template has its arguments in it, and one date where it asks for today's.

    So prompts are the same wherever and whenever they are made: to sample, to finetune and to answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer; it is not changed.
        arguments (`Mapping[str, object]`, *optional*):
            What the template is given, such as `{"enable_thinking": False}`: values that JSON has.

    Returns:
        `PreTrainedTokenizerBase`: the tokenizer itself where there is nothing to fix.

    Raises:
        ValueError: Arguments without a template, or one whose name or value a template cannot have.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # of which transformers takes this one where there are no tools and documents
        template = template.get("default")
    if not isinstance(template, str):
        if arguments:
            raise ValueError(
                f"chat_template_kwargs={dict(arguments)!r:.200} were given, but the tokenizer of {tokenizer.name_or_path} has "
                "no single chat template; leave them out, or set `tokenizer.chat_template`."
            )
        return tokenizer
    begin = "".join(_assignment(name, value) for name, value in (arguments or {}).items())
    day = _macro_of_day()
    if _TODAY in template and day not in template:
        begin = day + begin
    if begin + template == tokenizer.chat_template:
        return tokenizer
    fixed = copy.copy(tokenizer)
    fixed.chat_template = begin + template
    return fixed


def _macro_of_day() -> str:
    """A macro in place of transformers' function, whatever it is called with."""
    filters = "".join(f" | replace({json.dumps(one)}, {json.dumps(part)})" for one, part in _PARTS.items())
    return "{%- macro " + _TODAY + "(format) -%}{{- format" + filters + " -}}{%- endmacro -%}"


def json_object(text: str | None) -> dict[str, object] | None:
    """
    What an option such as `--chat_template_kwargs` says; `None` where it is not given.

    Raises:
        ValueError: It is no JSON object.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"chat_template_kwargs={text!r:.100} is no JSON object; write it as '{{\"enable_thinking\": false}}'."
        )
    return found


def _assignment(name: str, value: object) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"chat_template_kwargs has the name {name!r:.100}, which is none of a variable; rename it.")
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"chat_template_kwargs[{name!r}]={value!r:.100} is no value of JSON; give a text, a number, true or false."
        ) from error
    # JSON's true, false and null are Jinja's, too, but for null.
    return "{%- set " + name + " = " + ("none" if value is None else text) + " -%}"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    The token with which the chat template in use ends an assistant's message: the first special one after it. The
    end-of-sequence token where there is no template, or none that says.
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return tokenizer.eos_token_id
    after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    return next((token for token in after if token in special), tokenizer.eos_token_id)
