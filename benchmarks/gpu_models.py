"""
What the GPU benchmark runs on: models with random weights in the shapes of Qwen2.5, made on the device without a download,
with a tokenizer and texts of random tokens.
"""

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config
from ways import TARGETS, lora_config

from seal_hf import Adapter
from seal_hf.adapters.layout import LoraLayout, lora_layout
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate, TrainingSequence
from seal_hf.models.architecture import linear_modules
from seal_hf.models.memory import activation_bytes_per_token, free_memory


# Hidden and intermediate size, layers, query heads, key heads, vocabulary.
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
}
TINY_SHAPES = {
    "0.5B": (64, 96, 2, 4, 2, 512),
    "1.5B": (96, 128, 2, 6, 2, 512),
    "7B": (128, 160, 2, 8, 4, 512),
}
BASE_ID = "random"  # the base model's identity, which adapters name
PAD, UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1
# An adapter's fp32 weights and two moments of AdamW, and its bf16 weights and gradients for the forward pass.
BYTES_PER_PARAMETER = 16


class Skipped(Exception):
    """A part or a row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """
    How much is measured.

    Parameters:
        shapes (`dict[str, tuple[int, ...]]`):
            The models.
        check_layers (`int`):
            Layers of the models of the correctness checks.
        banks (`tuple[int, ...]`):
            Sizes of the banks whose speed is measured.
        lengths (`tuple[int, ...]`):
            Tokens of a training sequence: adapter `k` has those of entry `k`, counted round. 48 on average.
        longest (`int`):
            The longest sequence that attention is checked with.
        warm_up, timed (`int`):
            Steps that are not counted, and that are.
        adapters (`int`):
            Adapters of the bank that is asked, copied and profiled.
        rows, new_tokens (`int`):
            Prompts that are answered in one batch, and the length of the answers.
        gemm (`tuple[int, ...]`):
            Sizes of the square products.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    check_layers: int = 4
    banks: tuple[int, ...] = (1, 4, 16, 64)
    lengths: tuple[int, ...] = (48, 40, 56, 32, 64, 44, 52, 48)
    longest: int = 600
    warm_up: int = 3
    timed: int = 10
    adapters: int = 16
    rows: int = 256
    new_tokens: int = 32
    gemm: tuple[int, ...] = (2048, 8192)


TINY = Sizes(
    shapes=TINY_SHAPES,
    check_layers=2,
    banks=(1, 4),
    lengths=(12, 10, 14, 8),
    longest=150,
    warm_up=1,
    timed=2,
    adapters=4,
    rows=12,
    new_tokens=4,
    gemm=(128, 256),
)


class Bench:
    """
    The device, how much is measured on it, and the model that is loaded.

    Parameters:
        device (`torch.device`):
            Where everything runs. On a CPU the sizes are tiny.
        deadline (`float`, *optional*):
            When to measure no more, by `time.perf_counter`.
    """

    def __init__(self, device: torch.device, deadline: float = float("inf")):
        self.device, self.deadline = device, deadline
        self.sizes = TINY if device.type == "cpu" else Sizes()
        self._key: tuple | None = None
        self._model: PreTrainedModel | None = None

    @property
    def out_of_time(self) -> bool:
        return time.perf_counter() > self.deadline

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def model(
        self,
        name: str,
        dtype: torch.dtype = torch.bfloat16,
        *,
        num_layers: int | None = None,
        quantized: bool = False,
    ) -> PreTrainedModel:
        """
        A frozen model with random weights; the last one is kept until another is asked for.

        Args:
            name (`str`):
                One of `SHAPES`.
            dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`):
                Of the weights.
            num_layers (`int`, *optional*):
                Fewer layers than the shape has.
            quantized (`bool`, *optional*, defaults to `False`):
                Whether the linear layers are NF4 with double quantization.

        Raises:
            Skipped: Its weights are larger than the free memory.
        """
        key = (name, dtype, num_layers, quantized)
        if self._key != key:
            self.free()
            config = _config(self.sizes.shapes[name], num_layers)
            with torch.device("meta"):
                needed = AutoModelForCausalLM.from_config(config, dtype=dtype).num_parameters() * dtype.itemsize
            self.require(needed, f"{name} in {_short(dtype)}")
            torch.manual_seed(0)
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
            # Logits with a standard deviation of 4: of a nearly uniform head, top-p takes the whole vocabulary and the
            # likeliest token changes with the rounding.
            model.lm_head.weight.normal_(std=4 * config.hidden_size**-0.5)
            self._model, self._key = (_quantize(model) if quantized else model), key
        return self._model

    def free(self) -> None:
        """Give the model and unused memory back."""
        self._model = self._key = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def require(self, needed: int, what: str) -> None:
        """Raise [`Skipped`] where fewer bytes are free than `what` needs."""
        if needed > (free := free_memory(self.device)):
            raise Skipped(f"{what} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")

    def updates(self, num_adapters: int, num_steps: int, lengths: Sequence[int] | None = None) -> list[InnerUpdate]:
        """Work for a bank: one sequence of random tokens a step, as long in every step, of its own length per adapter."""
        generator, lengths = random.Random(0), lengths or self.sizes.lengths
        return [
            InnerUpdate(
                tuple(self.sequence(generator, lengths[adapter % len(lengths)]) for _ in range(num_steps)),
                InnerLoopConfig(num_train_epochs=1),
            )
            for adapter in range(num_adapters)
        ]

    def sequence(self, generator: random.Random, length: int, prompt_length: int = 0) -> TrainingSequence:
        """Random tokens."""
        vocabulary = self.sizes.shapes["0.5B"][-1]
        return TrainingSequence(tuple(generator.randrange(2, vocabulary) for _ in range(length)), prompt_length)

    def prompts(self, count: int) -> list[str]:
        """Texts of random tokens, half to one and a half times as long as a training sequence."""
        generator, mean = random.Random(1), sum(self.sizes.lengths) // len(self.sizes.lengths)
        lengths = [generator.randint(mean // 2, mean * 3 // 2) for _ in range(count)]
        return [" ".join(map(str, self.sequence(generator, length).input_ids)) for length in lengths]


def _config(shape: Sequence[int], num_layers: int | None) -> Qwen2Config:
    hidden, intermediate, layers, heads, key_heads, vocabulary = shape
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=num_layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        # Of tied random weights every token predicts itself. For the counting of FLOPs the input embedding is left out.
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,  # so that all answers have the same length
    )


def _quantize(model: PreTrainedModel) -> PreTrainedModel:
    """Its linear layers in NF4, made from the weights where they are: bitsandbytes quantizes what is loaded only."""
    import bitsandbytes

    options = {"compress_statistics": True, "quant_type": "nf4"}
    for name, module in linear_modules(model).items():
        layer = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            module.bias is not None,
            module.weight.dtype,
            **options,
            device="meta",
        )
        weight = bitsandbytes.nn.Params4bit(module.weight.data, module=layer, **options)
        layer.weight, layer.bias = weight.to(module.weight.device), module.bias
        model.set_submodule(name, layer.requires_grad_(False))
    model.is_loaded_in_4bit = True  # which PEFT asks for
    return model


def tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """A tokenizer whose texts are the numbers of tokens, as `"17 1042"`, so that equal texts are equal tokens."""
    words = [PAD, UNKNOWN, *map(str, range(2, model.config.vocab_size))]
    numbers = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    numbers.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=numbers, pad_token=PAD, unk_token=UNKNOWN, padding_side="left")


def random_adapters(bench: Bench, model: PreTrainedModel, target: str, count: int) -> list[Adapter]:
    """Adapters whose matrices `A` and `B` are both random, on the model's device."""
    layout = lora_layout(model, lora_config(TARGETS[target]))
    generator = torch.Generator(bench.device).manual_seed(0)
    shape = (count, layout.num_parameters)
    weights = 0.02 * torch.randn(shape, generator=generator, device=bench.device)
    weights += layout.initial_weights(0).to(bench.device)
    return [Adapter(layout, own, BASE_ID) for own in weights]


def counted_parameters(model: PreTrainedModel) -> int:
    """Parameters that a token is multiplied with: all but the input embedding, also where weights are quantized."""
    linear = sum(module.in_features * module.out_features for module in linear_modules(model).values())
    return linear + model.lm_head.weight.numel()


def bank_bytes(model: PreTrainedModel, layout: LoraLayout, lengths: Sequence[int]) -> int:
    """The estimate of what a bank takes whose adapters train on sequences of these lengths, in bytes."""
    parameters = len(lengths) * layout.num_parameters * BYTES_PER_PARAMETER
    return parameters + sum(lengths) * activation_bytes_per_token(model)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
