"""Which backend writes the texts."""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from .transformers_generation import TransformersGenerator
from .vllm_colocated_generation import VLLMColocatedGenerator
from .vllm_engine import VLLMColocateConfig
from .vllm_generation import VLLMGenerator
from .vllm_server_generation import VLLMServerGenerator


def text_generator(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    base_model_id: str,
    *,
    peft_config: LoraConfig,
    on_policy: bool,
    vllm_server_base_url: str | None = None,
    vllm_colocate: VLLMColocateConfig | None = None,
) -> TransformersGenerator | VLLMGenerator:
    """
    The generator that the options ask for, checked against the adapters that it will be asked with.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM, which writes the texts where both options of vLLM are absent.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        base_model_id (`str`):
            Identity of the base model.
        peft_config (`LoraConfig`):
            Shape of the inner adapters.
        on_policy (`bool`):
            Whether the inner adapters stand on the policy that the model carries.
        vllm_server_base_url (`str`, *optional*):
            A vLLM server of the same base model (see [`VLLMServerGenerator`]).
        vllm_colocate ([`VLLMColocateConfig`], *optional*):
            An engine of vLLM of this process (see [`VLLMColocatedGenerator`]).

    Raises:
        VLLMServerGone: Nothing answers at `vllm_server_base_url`.
        ImportError: `vllm_colocate` without vLLM.
        ValueError: A vLLM that does not fit (see [`VLLMGenerator.check`]).
    """
    own = (model, tokenizer, base_model_id)
    if vllm_server_base_url is not None:
        generator = VLLMServerGenerator(*own, vllm_server_base_url)
    elif vllm_colocate is not None:
        generator = VLLMColocatedGenerator(*own, peft_config, on_policy=on_policy, config=vllm_colocate)
    else:
        return TransformersGenerator(*own)
    generator.check(peft_config, on_policy=on_policy)
    return generator
