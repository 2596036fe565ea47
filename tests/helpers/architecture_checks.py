"""What must hold for a model of any architecture: its texts, its training and its files are transformers' and PEFT's."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import GenerationConfig, PreTrainedModel

from helpers.adapters import BASE_ID
from helpers.architectures import tiny_causal_lm
from helpers.inner_updates import ORDER_SEED, train_alone
from helpers.tiny_models import EOS_ID, PAD_ID, tiny_tokenizer
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import lora_layout
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate, TrainingSequence
from seal_hf.models.architecture import check_causal_lm, runs_in_batches


PROMPTS = ("Who keeps the bees?", "Moths")
_NUM_TOKENS = 6
_LEARNING_RATE = 1e-2
# Two adapters, each with two steps on sequences of unequal length and one step more, which shows what those two came to.
_UPDATES = [
    InnerUpdate(
        tuple(
            TrainingSequence(tuple(4 + (7 * i * i + 3 * i + k) % 90 for i in range(length)))
            for length in (9 + k, 6, 11)
        ),
        InnerLoopConfig(num_train_epochs=1, batch_size=1, learning_rate=_LEARNING_RATE, max_grad_norm=0.0),
    )
    for k in range(2)
]


def check_texts(model_type: str, folder: Path, target_modules: str | None = "all-linear") -> str:
    """
    Compare the texts of a tiny model, alone and with an adapter for each row, with transformers' and PEFT's.

    Returns:
        `str`: how it is run, `"batches"` or `"one by one"`.

    Raises:
        AssertionError: Something is not the same.
        ValueError: The model is refused.
    """
    model = tiny_causal_lm(model_type)
    check_causal_lm(model)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=target_modules)
    bank = AdapterBank.initialize(model, config, seeds=[0, 1])
    bank.weights += 0.2 * torch.randn(bank.weights.shape, generator=torch.Generator().manual_seed(5))
    _check_texts(model_type, model, [Adapter(bank.layout, weights, BASE_ID) for weights in bank.weights], folder)
    return "batches" if runs_in_batches(model) else "one by one"


def check_training(model_type: str, target_modules: str | None = "all-linear") -> str:
    """
    Compare the training of two adapters of a tiny model with PEFT's.

    Returns:
        `str`: how a step is run, `"packed"`, `"padded"` or `"apart"`.

    Raises:
        AssertionError: Something is not the same.
        ValueError: The model is refused.
    """
    model = tiny_causal_lm(model_type)
    layout = lora_layout(model, LoraConfig(r=2, lora_alpha=4, target_modules=target_modules))
    forward = _check_training(model_type, model, layout.target_modules)
    return "apart" if forward.apart else "packed" if forward.packs else "padded"


def _check_texts(model_type: str, model: PreTrainedModel, adapters: list[Adapter], folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    generate = TransformersGenerator(model, tokenizer, BASE_ID).generate
    rows = generate([*PROMPTS, *PROMPTS], [None, None, *adapters], max_new_tokens=_NUM_TOKENS)
    found = [list(row.token_ids) for row in rows]
    logits = []
    for adapter, prompt in zip(adapters, prompts, strict=True):
        with torch.no_grad(), AdapterBank(model, adapter.layout, adapter.weights[None]).attach([0]):
            logits.append(model(input_ids=torch.tensor([prompt])).logits)
    assert found[:2] == [_transformers_text(model, prompt) for prompt in prompts], "other texts than transformers'"
    for adapter, prompt, text, own in zip(adapters, prompts, found[2:], logits, strict=True):
        peft_model = PeftModel.from_pretrained(tiny_causal_lm(model_type), adapter.save_pretrained(folder)).eval()
        with torch.no_grad():
            theirs = peft_model(input_ids=torch.tensor([prompt])).logits
        assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-3), "a saved adapter is another model in PEFT"
        assert text == _transformers_text(peft_model.get_base_model(), prompt), (
            "other texts with an adapter than PEFT's"
        )


def _transformers_text(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=_NUM_TOKENS, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    ids = torch.tensor([prompt])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    return output[0, len(prompt) :].tolist()


def _check_training(model_type: str, model: PreTrainedModel, target_modules: tuple[str, ...]) -> TrainingForward:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(target_modules))
    bank = AdapterBank.initialize(model, config, seeds=[0, 1])
    start = bank.weights.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = train(bank, _UPDATES, order_seed=ORDER_SEED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the base changed"
    for weights, trained, update, result in zip(start, bank.weights, _UPDATES, results, strict=True):
        expected, losses = train_alone(tiny_causal_lm(model_type), config, bank.layout, weights, update)
        own_losses, losses = torch.tensor(result.losses), torch.tensor(losses)
        assert torch.allclose(own_losses[:1], losses[:1], rtol=1e-4), "another loss than PEFT's before any step"
        # After the turns that the weights' errors below are of, up to 0.006 in Gemma 4.
        assert torch.allclose(own_losses, losses, rtol=1e-2), "other losses than PEFT's"
        own = bank.layout.state_dict(trained)
        assert set(own) == set(expected), "other modules than PEFT's"
        # AdamW's first steps have the size of the rate for the least gradient, so that rounding turns some of those whose
        # gradient is about zero, more in a model with saturated attention; another gradient turns half of them.
        errors = torch.cat([(own[key] - expected[key]).abs().flatten() for key in own])
        assert errors.mean() < 0.15 * _LEARNING_RATE, "other weights than PEFT's"
    return TrainingForward(model.requires_grad_(False), lora_layout(model, config))
