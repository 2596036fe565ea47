"""How fast is it, and what does it take? Every part returns the raw figures of its rows."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from answers import bank_answers, peft_answers, plain_answers
from gpu_models import BASE_ID, Bench, Skipped, bank_bytes, counted_parameters, random_adapters, tokenizer
from machine import gemm_rates, peak_bytes
from operations import operations_per_adapter_step
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel
from ways import TARGETS, lora_config, peft_adapter, peft_steps

from seal_hf import SelfAdaptingLM
from seal_hf.adapters.bank import AdapterBank, StackedAdapters
from seal_hf.adapters.layout import lora_layout
from seal_hf.inner_loop.training import InnerStep, train


# Steps whose launches are counted.
COUNTED_STEPS = 3
# Adapters that answer one after another with PEFT; the time of all is projected.
PEFT_ANSWERED = 2
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # and their variants, which begin alike
# The profiler itself ends with a cudaDeviceSynchronize, so that these are not counted.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")


class StepClock:
    """
    When each step ended, with the device done; called after every step.

    Attributes:
        ends (`list[float]`):
            The time at which the clock was made, and the end of each step.
    """

    def __init__(self, bench: Bench):
        self.bench, self.ends = bench, []
        self()

    def __call__(self, step: InnerStep | None = None) -> None:
        self.bench.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Median time of a step after those that warm up."""
        steps = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(steps[self.bench.sizes.warm_up :])


def gemm(bench: Bench) -> list[dict]:
    """The rate of square products in bf16, in FLOP/s."""
    return [
        {"size": size, "rate": statistics.median(gemm_rates((size,) * 3, 3, device=bench.device))}
        for size in bench.sizes.gemm
    ]


def training(bench: Bench, name: str, quantized: bool = False) -> list[dict]:
    """Tokens per second of banks of every size, and of PEFT one adapter after another."""
    model, rows = bench.model(name, quantized=quantized), []
    num_steps = bench.sizes.warm_up + bench.sizes.timed
    for target in TARGETS:
        config = lora_config(TARGETS[target])
        with peft_adapter(model, config) as adapted:
            clock, update = StepClock(bench), bench.updates(1, num_steps)[0]
            for _ in peft_steps(adapted, update):
                clock()
        peft = len(update.sequences[0].input_ids) / clock.seconds()
        for size in bench.sizes.banks:
            row = {"model": name, "nf4": quantized, "adapted": target, "adapters": size, "peft": peft}
            row |= {"parameters": counted_parameters(model)} | _or_reason(bench, _bank_speed, model, target, size)
            rows.append(row)
    return rows


def _bank_speed(bench: Bench, model: PreTrainedModel, target: str, num_adapters: int) -> dict[str, float]:
    updates = bench.updates(num_adapters, bench.sizes.warm_up + bench.sizes.timed)
    lengths = [len(update.sequences[0].input_ids) for update in updates]
    bank, clock = _bank(bench, model, target, lengths), StepClock(bench)
    train(bank, updates, on_step=clock)
    return {"step_seconds": clock.seconds(), "tokens": sum(lengths), "bank": sum(lengths) / clock.seconds()}


def _bank(bench: Bench, model: PreTrainedModel, target: str, lengths: list[int]) -> AdapterBank:
    """A bank for sequences of these lengths. What its initialization takes is measured by [`host`]."""
    layout = lora_layout(model, lora_config(TARGETS[target]))
    bench.require(bank_bytes(model, layout, lengths), f"a bank of {len(lengths)} adapters")
    return AdapterBank(model, layout, layout.initial_weights(0).to(bench.device).repeat(len(lengths), 1))


def _or_reason(bench: Bench, measure: Callable[..., dict], *args) -> dict:
    """What is measured, or under `"skipped"` why it is not: no time, or no memory."""
    if bench.out_of_time:
        return {"skipped": "out of time"}
    try:
        return measure(bench, *args)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except torch.OutOfMemoryError:
        return {"skipped": "out of memory"}
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def launches(bench: Bench, name: str) -> list[dict]:
    """Of one step: operations by dispatch, and on CUDA kernel launches, copies, and how often the host waits."""
    model, rows = bench.model(name), []
    for target in TARGETS:
        for size in (1, bench.sizes.adapters):
            row = {"model": name, "adapted": target, "adapters": size}
            rows.append(row | _or_reason(bench, _launches, model, target, size))
    return rows


def _launches(bench: Bench, model: PreTrainedModel, target: str, num_adapters: int) -> dict[str, float]:
    first, last = bench.sizes.warm_up, bench.sizes.warm_up + COUNTED_STEPS
    updates = bench.updates(num_adapters, last)
    bank = _bank(bench, model, target, [len(update.sequences[0].input_ids) for update in updates])
    on_cuda = bench.device.type == "cuda"
    profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_cuda], acc_events=True)

    def on_step(step: InnerStep) -> None:
        if step.step == first:
            bench.synchronize()
            profiler.start()
        if step.step == last:
            profiler.stop()

    train(bank, updates, on_step=on_step)
    counts = {event.key: event.count for event in profiler.key_averages()}

    def per_step(*beginnings: str) -> float:
        return sum(count for name, count in counts.items() if name.startswith(beginnings)) / COUNTED_STEPS

    operations = operations_per_adapter_step(model, updates, lora_config(TARGETS[target]), num_steps=COUNTED_STEPS - 1)
    found = {"operations": operations["without_views"] * num_adapters}
    if on_cuda:
        found |= {"launches": per_step(*LAUNCHES), "copies": per_step("cudaMemcpy"), "waits": per_step(*WAITS)}
    return found


def memory(bench: Bench, name: str) -> list[dict]:
    """Peak memory of banks of every size, what an adapter more takes of it, and what it is estimated to take."""
    model, rows = bench.model(name), []
    for target in TARGETS:
        previous = None
        for size in bench.sizes.banks:
            row = {"model": name, "adapted": target, "adapters": size}
            row |= _or_reason(bench, _memory, model, target, size)
            if previous and "peak_bytes" in row:
                row["bytes_per_adapter"] = (row["peak_bytes"] - previous["peak_bytes"]) / (size - previous["adapters"])
            previous = row if "peak_bytes" in row else None
            rows.append(row)
    return rows


def _memory(bench: Bench, model: PreTrainedModel, target: str, num_adapters: int) -> dict[str, float]:
    length = bench.sizes.lengths[0]
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    bank = _bank(bench, model, target, [length] * num_adapters)
    train(bank, bench.updates(num_adapters, num_steps=2, lengths=[length]))
    on_cuda = bench.device.type == "cuda"
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(bench.device) if on_cuda else peak_bytes(),
        "estimated_bytes_per_adapter": bank_bytes(model, bank.layout, [length]),
    }


def host(bench: Bench, name: str) -> list[dict]:
    """Seconds of a bank's training that are not steps, and of its adapters' way to the first token of an answer."""
    model, rows = bench.model(name), []
    for target in TARGETS:
        row = {"model": name, "adapted": target, "adapters": bench.sizes.adapters}
        rows.append(row | _or_reason(bench, _host, model, target))
    return rows


def _host(bench: Bench, model: PreTrainedModel, target: str) -> dict[str, float]:
    count, sizes = bench.sizes.adapters, bench.sizes
    lm = _language_model(model, target)
    updates = bench.updates(count, sizes.warm_up + sizes.timed)
    layout = lora_layout(model, lm.peft_config)
    bench.require(bank_bytes(model, layout, [sizes.lengths[0]] * count), f"a bank of {count} adapters")
    clock = StepClock(bench)
    adapters = lm.adapt(updates, on_step=clock)
    bench.synchronize()
    end = time.perf_counter()
    start, first, *_, last = clock.ends
    stacking = StepClock(bench)
    stacked = StackedAdapters.of(model, adapters)
    stacking()
    del stacked
    prompts = bench.prompts(count)
    lm.generator.generate(prompts, max_new_tokens=2)  # to warm up
    asking = StepClock(bench)
    lm.generator.generate(prompts, adapters, max_new_tokens=1)
    asking()
    lm.generator.generate(prompts, max_new_tokens=1)
    asking()
    return {
        "step": clock.seconds(),
        "before_first_step": first - start - clock.seconds(),
        "after_last_step": end - last,
        "stacking": stacking.ends[1] - stacking.ends[0],
        "first_token": asking.ends[1] - asking.ends[0],
        "first_token_without": asking.ends[2] - asking.ends[1],
    }


def _language_model(model: PreTrainedModel, target: str) -> SelfAdaptingLM:
    config = lora_config(TARGETS[target])
    return SelfAdaptingLM(model, tokenizer(model), peft_config=config, base_model_id=BASE_ID)


def answers(bench: Bench, name: str) -> list[dict]:
    """Greedy answers per second in one batch with an adapter for each row, and in the other ways."""
    model, rows, sizes = bench.model(name), [], bench.sizes
    for target in TARGETS:
        for way, seconds, count in _answer_times(bench, model, target):
            rows.append({"model": name, "adapted": target, "way": way, "rows": count, "seconds": seconds})
            rows[-1] |= {"answers": count / seconds, "tokens": sizes.new_tokens * count / seconds}
            if bench.out_of_time:
                return rows
    return rows


def _answer_times(bench: Bench, model: PreTrainedModel, target: str) -> Iterator[tuple[str, float, int]]:
    """For each way its name, seconds, and how many answers it gave."""
    sizes, lm = bench.sizes, _language_model(model, target)
    own = sizes.rows // sizes.adapters
    adapters, prompts = random_adapters(bench, model, target, sizes.adapters), bench.prompts(own * sizes.adapters)
    groups = [prompts[own * k : own * (k + 1)] for k in range(sizes.adapters)]
    config, few = lora_config(TARGETS[target]), PEFT_ANSWERED
    ways = {
        "an adapter for each row": lambda length: bank_answers(lm, adapters, groups, length),
        "transformers, no adapters": lambda length: plain_answers(lm, prompts, length),
        "PEFT, one adapter after another": lambda length: peft_answers(
            lm, adapters[:few], groups[:few], config, length
        ),
    }
    for way, answer in ways.items():
        answer(sizes.new_tokens)  # to warm up, for every length
        bench.synchronize()
        found = answer(sizes.new_tokens)
        yield way, found.seconds, sum(map(len, found.answers))
