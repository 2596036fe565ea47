"""Tiny random models and a character tokenizer, for tests of mechanics that need no trained weights."""

import string
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)


KINDS = ("llama", "qwen2", "gemma2", "gemma3", "mistral")
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(len(SPECIAL_TOKENS))
VOCAB_SIZE = 104  # the special tokens and every printable ASCII character

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,  # large enough for logits that differ, small enough to stay calm
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}
# A window below the length of the test sequences, so that it takes part.
_ARCHITECTURES = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "gemma2": (Gemma2Config, {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "mistral": (MistralConfig, {"sliding_window": 8, "head_dim": 8}),
}
_CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny_model(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides
) -> PreTrainedModel:
    """A random causal LM of one of `KINDS` in evaluation mode; `overrides` are fields of its configuration."""
    config_class, options = _ARCHITECTURES[kind]
    config = config_class(**{**_SIZES, **options, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        if dtype == torch.float32:
            return model
        # Older versions of torch draw other numbers in half precision.
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter, wide in zip(model.parameters(), drawn.parameters(), strict=True):
            parameter.copy_(wide)
    return model


def tiny_llama(**overrides) -> PreTrainedModel:
    return tiny_model("llama", **overrides)


def tiny_policy_model(
    kind: str = "llama", *, peft_config: LoraConfig | None = None, seed: int = 7, **overrides
) -> PeftModel:
    """A tiny model with a policy adapter whose weights are random and not zero."""
    config = peft_config or LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"])
    model = get_peft_model(tiny_model(kind, **overrides), config).eval()
    randomize_lora(model, seed)
    return model


def randomize_lora(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def tiny_tokenizer(
    chat_template: bool = True, pad: bool = True, eos: bool = True, bos: bool = False
) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; other characters are unknown. With `bos`, texts begin with `<s>`."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *string.printable))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
        padding_side="left",
    )
    if chat_template:
        fast.chat_template = _CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: Path) -> Path:
    """A model whose texts differ and its tokenizer, for scripts that load it by its folder."""
    tiny_llama(initializer_range=0.3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
