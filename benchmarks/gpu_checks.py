"""
Is the CUDA path right? Every part compares it with a plain form of the same computation and returns a row for each
comparison: what was compared, the difference found, the greatest that passes, and the verdict.
"""

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from gpu_models import Bench, random_adapters, tokenizer
from operations import OperationCounter
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from ways import lora_config, peft_adapter, peft_steps

from seal_hf.adapters.bank import AdapterBank
from seal_hf.adapters.layout import LoraLayout, LoraModule, lora_layout
from seal_hf.generation.decoder import Decoder
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.inner_loop.attention import PackedAttention
from seal_hf.inner_loop.blocks import Batch, Block
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.lora import LoraParameters, has_grouped_products, lora_added
from seal_hf.inner_loop.packing import PackedBatch
from seal_hf.inner_loop.training import train
from seal_hf.models.access import activation_dtype


BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
    SDPBackend.CUDNN_ATTENTION,
)
# Relative differences that pass. On a CPU they are at most 1e-6, 0.005 and 0.016, the last through four layers and back.
EXACT, FP32, BF16, BF16_MODEL = 0.0, 1e-4, 0.02, 0.1


def row(what: str, difference: float, tolerance: float, note: str = "", ours: bool = True) -> dict[str, object]:
    """
    One comparison.

    Args:
        what (`str`):
            What was compared.
        difference (`float`):
            What was found; not a number fails.
        tolerance (`float`):
            The greatest that passes.
        note (`str`, *optional*, defaults to `""`):
            What else there is to say.
        ours (`bool`, *optional*, defaults to `True`):
            Whether it is our code. What torch or transformers do by themselves is shown and does not fail a run.
    """
    passed = math.isfinite(difference) and difference <= tolerance
    verdict = "pass" if passed else "FAIL" if ours else "differs, not used by us"
    return {"what": what, "difference": difference, "tolerance": tolerance, "verdict": verdict, "note": note}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


def worst(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """The greatest relative difference; not a number where one of them is none, which `max` may pass over."""
    differences = [relative(*pair) for pair in zip(found, expected, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


def packed(bench: Bench) -> list[dict]:
    """Losses and gradients of several adapters in one packed pass against each alone."""
    rows = []
    for dtype, tolerance in ((torch.float32, FP32), (torch.bfloat16, BF16_MODEL)):
        model = bench.model("0.5B", dtype, num_layers=bench.sizes.check_layers)
        layout = lora_layout(model, lora_config("all-linear"))
        weights = torch.stack([adapter.device_weights for adapter in random_adapters(bench, model, "all-linear", 5)])
        generator = random.Random(0)
        # Several sequences and prompts, so that there is padding, and a last adapter that is a block of its own.
        lengths = [(48, 33), (40,), (17, 56), (64,), (200,)]
        batches = [[bench.sequence(generator, length, 5) for length in own] for own in lengths]
        losses, gradients = _backward(model, layout, weights, batches)
        alone = [_backward(model, layout, weights[k : k + 1], [batch]) for k, batch in enumerate(batches)]
        losses = worst(losses, [loss[0] for loss, _ in alone])
        gradients = worst(gradients, [gradient[0] for _, gradient in alone])
        packs, name = TrainingForward(model, layout).packs, str(dtype).removeprefix("torch.")
        rows.append(row(f"whether adapters go through the model in one row (0: yes), {name}", int(not packs), EXACT))
        rows.append(row(f"losses of 5 adapters in one pass against each alone, {name}", losses, tolerance / 10))
        rows.append(row(f"their gradients, {name}", gradients, tolerance))
    return rows


def _backward(
    model: PreTrainedModel, layout: LoraLayout, weights: torch.Tensor, batches: Sequence[Batch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss `(K,)` and the gradient `(K, num_parameters)` of each adapter, in fp32."""
    forward = TrainingForward(model, layout)
    losses, gradients = torch.empty(len(batches), device=weights.device), torch.empty_like(weights)
    for blocks in forward.plan.cut(dict(enumerate(batches))):
        order = [adapter for block in blocks for adapter in block]
        parameters = LoraParameters(layout, activation_dtype(model), weights.device, len(order))
        for number, adapter in enumerate(order):
            targets = parameters.weights.segments_of(number)
            for target, source in zip(targets, layout.split(weights[adapter]), strict=True):
                target.copy_(source)
        found = forward.backward(parameters, [[batches[adapter] for adapter in block] for block in blocks])
        for number, adapter in enumerate(order):
            losses[adapter] = found[number]
            parts = [part.flatten().float() for part in parameters.grads.segments_of(number)]
            gradients[adapter] = torch.cat(parts)
    return losses, gradients


def attention(bench: Bench) -> list[dict]:
    """Packed attention in bf16, on CUDA by flash attention, against the same in fp32, which goes block by block."""
    blocks, start = [], 0
    for num_adapters, num_sequences, length in ((2, 2, 37), (1, 1, 64), (2, 1, 129), (1, 1, bench.sizes.longest)):
        first = sum(block.num_adapters for block in blocks)
        blocks.append(Block(first, num_adapters, (length,) * num_sequences, start))
        start = blocks[-1].tokens.stop
    lengths = [length for block in blocks for length in block.lengths * block.num_adapters]
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(bench.device)
    rows = []
    for heads, key_heads, size, window in (
        (14, 2, 64, None),
        (28, 4, 128, None),
        (8, 8, 64, None),
        (8, 8, 128, None),
        (14, 2, 64, 50),
        (28, 4, 128, 50),
    ):
        generator = torch.Generator(bench.device).manual_seed(0)
        shapes = [
            (1, heads, start, size),
            (1, key_heads, start, size),
            (1, key_heads, start, size),
            (1, start, heads, size),
        ]
        values = [torch.randn(shape, generator=generator, device=bench.device).bfloat16() for shape in shapes]
        found, names = {}, {}
        with torch.no_grad():  # once, so that the finding out of what the device has is not counted
            PackedAttention(tuple(blocks), ends)(*values[:3], scale=size**-0.5, window=window)
        for dtype in (torch.float32, torch.bfloat16):
            *states, weights = (value.to(dtype) for value in values)
            states = [state.requires_grad_() for state in states]
            with OperationCounter() as counter:
                attended = PackedAttention(tuple(blocks), ends)(*states, scale=size**-0.5, window=window)
            found[dtype] = [attended, *torch.autograd.grad((attended * weights).sum(), states)]
            names[dtype] = counter.counts
        kernel = "flash" if "_flash_attention_forward" in names[torch.bfloat16] else "by block"
        difference = worst(found[torch.bfloat16], found[torch.float32])
        what = f"output and gradients, {heads} heads of {size}, {key_heads} of keys, window {window or 'none'}"
        rows.append(row(what, difference, BF16, kernel))
        if bench.device.type == "cuda" and kernel != "flash" and torch.cuda.get_device_capability() >= (8, 0):
            rows[-1] |= {"verdict": "FAIL", "note": "flash attention was not used"}
    return rows


def grouped(bench: Bench) -> list[dict]:
    """The adapters' products in bf16, on CUDA grouped, against a plain product for each adapter in fp32."""
    hidden, intermediate, *_ = bench.sizes.shapes["0.5B"]
    numbers, rows = random.Random(0), []
    # Three adapters with two sequences of 24 tokens, eight with one of 41, and five with one of 8.
    batches = [
        [[bench.sequence(numbers, length) for _ in range(num_sequences)] for _ in range(num_adapters)]
        for num_adapters, num_sequences, length in ((3, 2, 24), (8, 1, 41), (5, 1, 8))
    ]
    batch = PackedBatch(batches, bench.device)
    ends = list(accumulate(48 if k < 3 else 41 if k < 11 else 8 for k in range(16)))
    for in_features, out_features in ((hidden, hidden // 4), (hidden, intermediate), (intermediate, hidden)):
        layout = LoraLayout((LoraModule("proj", in_features, out_features),), 32, 64, ("proj",))
        generator = torch.Generator(bench.device).manual_seed(0)

        def draw(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=bench.device).bfloat16()

        states, weights = draw(ends[-1], in_features), draw(ends[-1], out_features)
        module = torch.nn.Linear(in_features, out_features, False, bench.device, torch.bfloat16).requires_grad_(False)
        parameters = LoraParameters(layout, torch.bfloat16, bench.device, len(ends))
        lora_a, lora_b = parameters.weights.matrices()["proj"]
        lora_a.copy_(draw(*lora_a.shape) * in_features**-0.5)
        lora_b.copy_(draw(*lora_b.shape) * 32**-0.5)
        ours = states.clone().requires_grad_()
        is_grouped = has_grouped_products(layout, torch.bfloat16, bench.device)
        loras = parameters.by_module(0, batch.num_adapters, () if is_grouped else batch.blocks)
        with OperationCounter() as counter, lora_added({"proj": module}, loras, batch, layout.scaling):
            output = module(ours[None])[0]
            (output * weights).sum().backward()
        found = [output, ours.grad, *parameters.grads.matrices()["proj"]]

        plain = [value.float().requires_grad_() for value in (states, lora_a, lora_b)]
        base = plain[0] @ module.weight.float().mT
        parts = [
            base[start:end] + layout.scaling * plain[0][start:end] @ plain[1][k].mT @ plain[2][k].mT
            for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]
        expected = [torch.cat(parts), *torch.autograd.grad((torch.cat(parts) * weights.float()).sum(), plain)]
        path = "grouped" if any("grouped_mm" in name for name in counter.counts) else "by block"
        what = f"values and gradients, 16 adapters, {in_features} to {out_features}"
        rows.append(row(what, worst(found, expected), BF16, path))
    return rows


def peft(bench: Bench) -> list[dict]:
    """A bank against one PEFT adapter after another, from the same initial weights, in fp32."""
    model = bench.model("0.5B", torch.float32, num_layers=bench.sizes.check_layers)
    config, updates = lora_config("all-linear"), bench.updates(3, num_steps=5)
    bank = AdapterBank.initialize(model, config, [0, 1, 2])
    initial = bank.weights.clone()
    results = train(bank, updates)
    losses, changes = [], []
    for weights, update in zip(initial, updates, strict=True):
        with peft_adapter(model, config) as adapted:
            set_peft_model_state_dict(adapted, bank.layout.state_dict(weights))
            losses.append(torch.stack(list(peft_steps(adapted, update))).cpu())
            state_dict = {name: value.cpu() for name, value in get_peft_model_state_dict(adapted).items()}
        changes.append(bank.layout.weights_from_state_dict(state_dict, "PEFT").to(bench.device) - weights)
    # The first steps of AdamW follow the sign of a gradient, so that those below the rounding differ by a whole step.
    return [
        row("losses of 3 adapters over 5 steps", worst([torch.tensor(own.losses) for own in results], losses), FP32),
        row("the change of their weights", worst(bank.weights - initial, changes), 0.02),
    ]


def checkpointing(bench: Bench) -> list[dict]:
    """Training with activation checkpointing against training without."""
    rows = []
    for dtype, tolerance in ((torch.float32, 0.02), (torch.bfloat16, 0.1)):
        model = bench.model("0.5B", dtype, num_layers=bench.sizes.check_layers)
        changes = []
        for on in (False, True):
            bank = AdapterBank.initialize(model, lora_config("all-linear"), [0, 1, 2])
            initial = bank.weights.clone()
            train(bank, bench.updates(3, num_steps=3), gradient_checkpointing=on)
            changes.append(bank.weights - initial)
        name = str(dtype).removeprefix("torch.")
        rows.append(row(f"the change of the weights of 3 adapters, {name}", relative(*changes[::-1]), tolerance))
    return rows


def padding(bench: Bench) -> list[dict]:
    """The next token's logits in left-padded batches, for each of torch's attention kernels, against each row alone."""
    model = bench.model("0.5B", num_layers=bench.sizes.check_layers)
    generator = random.Random(0)
    prompts = [list(bench.sequence(generator, length).input_ids) for length in (5, 64, 100, 192)]
    with torch.no_grad():
        alone = [model(torch.tensor([ids], device=bench.device)).logits[0, -1] for ids in prompts]

    def by_decoder() -> torch.Tensor:
        with Decoder(model, 0, [None] * len(prompts)) as decoder:
            # Read all but the last token, then that one with the keys and values of the others.
            decoder.read([ids[:-1] for ids in prompts])
            return decoder.step(torch.tensor([ids[-1] for ids in prompts], device=bench.device))

    def by_model() -> torch.Tensor:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=bench.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=bench.device)
        with torch.no_grad():
            return model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]

    def difference(logits: Callable[[], torch.Tensor]) -> float:
        return worst(logits(), alone)

    return [
        *(_with_kernel(backend, "our decoder", lambda: difference(by_decoder), ours=True) for backend in BACKENDS),
        *(_with_kernel(backend, "the model itself", lambda: difference(by_model), ours=False) for backend in BACKENDS),
    ]


def _with_kernel(backend: SDPBackend, what: str, measure: Callable[[], float], ours: bool) -> dict:
    name = backend.name.removesuffix("_ATTENTION").lower()
    with sdpa_kernel([backend]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that say why there is no kernel
        try:
            return row(f"{what}, {name}", measure(), BF16_MODEL, ours=ours)
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                return {"what": f"{what}, {name}", "verdict": "no such kernel", "note": ""}
            return row(f"{what}, {name}", math.nan, BF16_MODEL, str(error).splitlines()[0], ours=ours)


def lengths(bench: Bench) -> list[dict]:
    """Nothing becomes NaN with masked lengths around 64 mod 128, where cuDNN's backward pass does (pytorch issue 196678)."""
    model = bench.model("0.5B", num_layers=bench.sizes.check_layers)
    sizes = (63, 64, 65, 127, 128, 129, 191, 192, 193, 320, 576)
    bank = AdapterBank.initialize(model, lora_config("all-linear"), [0] * len(sizes))
    results = train(bank, bench.updates(len(sizes), num_steps=2, lengths=sizes))
    bad = sum(result.stopped is not None or not all(map(math.isfinite, result.losses)) for result in results)
    bad += (~bank.weights.isfinite()).any(1).sum().item()
    found = [row(f"adapters with NaN after two steps on {sizes[0]} to {sizes[-1]} tokens", bad, EXACT)]

    def by_model() -> float:
        """Numbers that are not finite in the gradients of a right-padded batch with a mask, as outer fits have it."""
        generator = torch.Generator(bench.device).manual_seed(0)
        own = torch.tensor([64, 192, 320, 576], device=bench.device)
        mask = (torch.arange(576, device=bench.device) < own[:, None]).long()
        shape = (*mask.shape, model.config.hidden_size)
        inputs = torch.randn(shape, generator=generator, device=bench.device).to(model.dtype).requires_grad_()
        hidden = model.base_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        (gradient,) = torch.autograd.grad((hidden * mask[..., None]).float().pow(2).sum(), inputs)
        return (~gradient.isfinite()).sum().item()

    what = "NaN in the model's own backward pass"
    return found + [_with_kernel(backend, what, by_model, ours=False) for backend in BACKENDS]


def greedy(bench: Bench) -> list[dict]:
    """Greedy tokens of a batch with an adapter for each row, in fp32, against the CPU and against each row alone."""
    model = bench.model("0.5B", torch.float32, num_layers=bench.sizes.check_layers)
    first, second, third = random_adapters(bench, model, "all-linear", 3)
    adapters = [first, None, second, third, first, second, None, third]
    prompts, words = bench.prompts(len(adapters)), tokenizer(model)
    length = bench.sizes.new_tokens // 2

    def texts(model: PreTrainedModel, rows: Sequence[int]) -> list[str]:
        generator = TransformersGenerator(model, words, first.base_model_id)
        chosen, own = [prompts[i] for i in rows], [adapters[i] for i in rows]
        return [generation.text for generation in generator.generate(chosen, own, max_new_tokens=length)]

    places = range(len(prompts))
    batch = texts(model, places)
    alone = [text for i in places for text in texts(model, [i])]
    on_cpu = texts(copy.deepcopy(model).to("cpu"), places)
    plain = TransformersGenerator(model, words, first.base_model_id).generate(prompts, max_new_tokens=length)
    changed = sum(text != other.text for text, other in zip(batch, plain, strict=True))
    note = f"{length} tokens a row; the adapters changed {changed} of {len(batch)}"
    same = [row("rows whose text is the same with and without an adapter", 6 - changed, EXACT, note)]
    for name, others in (("each row alone", alone), ("the CPU", on_cpu)):
        differing = sum(text != other for text, other in zip(batch, others, strict=True))
        same.append(row(f"rows of {len(batch)} that differ from {name}", differing, EXACT, note))
    return same
