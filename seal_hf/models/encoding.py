"""
Prompts and answers as token ids.
"""

from transformers import PreTrainedTokenizerBase

from ..self_edit import Prompt
from .control_tokens import encode_messages, encode_text


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """
    Token ids of a plain or chat prompt. Messages that end with the assistant's are to be continued. Control tokens that are
    written out in a prompt or a message are text (see [`encode_text`]).

    Raises:
        ValueError: Chat messages, but the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt)
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template for a prompt of messages; use plain "
            "prompts or set `tokenizer.chat_template`."
        )
    is_begun = prompt[-1]["role"] == "assistant"
    form = {"continue_final_message": True} if is_begun else {"add_generation_prompt": True}
    return encode_messages(tokenizer, prompt, **form)


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str) -> list[int]:
    """
    Token ids of an answer as it continues [`encode_prompt`]'s ids of its prompt, without an end-of-turn token.

    In chat form it is what the tokenizer's template makes of the answer as the assistant's message. In plain text a blank
    comes before it, unless the prompt ends in white space. Both are tokenized together, since many tokenizers have other
    tokens for the beginning of a text than for a word within it; only where the prompt's own tokens would change by that
    is the answer tokenized alone.
    """
    prompt_ids, answer = encode_prompt(tokenizer, prompt), answer.strip()
    if isinstance(prompt, str):
        text = answer if not prompt or prompt[-1].isspace() else f" {answer}"
        whole = encode_text(tokenizer, prompt + text)
    else:
        text, turn = answer, {"role": "assistant", "content": answer}
        whole = encode_messages(tokenizer, [*prompt, turn], continue_final_message=True)
    if whole[: len(prompt_ids)] == prompt_ids and len(whole) > len(prompt_ids):
        return whole[len(prompt_ids) :]
    return encode_text(tokenizer, text, add_special_tokens=False)
