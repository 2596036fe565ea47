"""Banks that the memory does not hold: trained in halves, to the same adapters, with their memory given back before."""

import gc
import logging
import threading
import weakref

import pytest
import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama
from seal_hf.adapters.bank import AdapterBank
from seal_hf.inner_loop.forward import TrainingForward
from seal_hf.inner_loop.training import train
from seal_hf.inner_loop.update import InnerLoopConfig, InnerUpdate, TrainingSequence
from seal_hf.inner_loop.within_memory import train_within_memory
from seal_hf.models.memory import activation_bytes_per_token


CONFIG = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
# 4, 3, 5, 2 and 4 steps.
UPDATES = [
    InnerUpdate(
        tuple(TrainingSequence(tuple(range(5, 5 + length + i))) for length in (9, 4)[: 1 + i % 2]),
        InnerLoopConfig(num_train_epochs=epochs, learning_rate=1e-2),
    )
    for i, epochs in enumerate((4, 2, 5, 1, 4))
]
NUM_STEPS = [update.num_steps for update in UPDATES]


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def whole(model):
    return train_within_memory(model, CONFIG, UPDATES, seed=3)


@pytest.fixture
def memory_for(monkeypatch):
    """Passes of more adapters than `number` fail from the step `first` of their bank on."""

    def memory_for(number, first=0):
        initialize, backward, passes = AdapterBank.initialize, TrainingForward.backward, []

        def initialize_and_count(*args):
            passes.clear()
            return initialize(*args)

        def fail(self, parameters, batches, **options):
            losses = backward(self, parameters, batches, **options)
            passes.append(losses)
            if len(passes) > first and len(losses) > number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nSee the manual.")
            return losses

        monkeypatch.setattr(AdapterBank, "initialize", initialize_and_count)
        monkeypatch.setattr(TrainingForward, "backward", fail)

    return memory_for


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.layout == other.layout
        torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)
        assert one.result.losses == pytest.approx(other.result.losses, rel=1e-5)
        assert one.result.num_tokens == other.result.num_tokens and one.result.stopped is None


def test_what_fits_is_one_bank(model, whole):
    assert len({adapter.weights.untyped_storage().data_ptr() for adapter in whole}) == 1
    assert [len(adapter.result.losses) for adapter in whole] == NUM_STEPS == [4, 4, 5, 2, 4]


@pytest.mark.parametrize("first", [0, 1], ids=["in the first step", "in a later one"])
def test_halves_come_to_the_same_adapters(model, whole, memory_for, caplog, first):
    memory_for(2, first)
    with caplog.at_level(logging.WARNING):
        found = train_within_memory(model, CONFIG, UPDATES, seed=3)
    assert_same(found, whole)
    # 5 = 2 + (1 + 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"A bank of {size} adapters is too large for the memory; it is trained in halves." for size in (5, 3)
    ]


def test_steps_are_counted_over_all_parts(model, memory_for):
    memory_for(3, first=2)
    steps = []
    found = train_within_memory(model, CONFIG, UPDATES, seed=3, on_step=steps.append)
    # Two steps of all five are lost; then the first two adapters have four steps, the other three five.
    assert [(step.step, step.num_steps) for step in steps] == [
        *((number, 5) for number in (1, 2)),
        *((number, 9) for number in range(1, 10)),
    ]
    done = steps[2:]
    assert [sorted(step.losses) for step in done] == [[0, 1]] * 4 + [[2, 3, 4]] * 2 + [[2, 4]] * 2 + [[2]]
    for adapter, one in enumerate(found):
        assert [step.losses[adapter] for step in done if adapter in step.losses] == one.result.losses
    tokens = [step.num_tokens for step in done]
    assert tokens == sorted(tokens) and tokens[-1] == sum(one.result.num_tokens for one in found)
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_memory_is_given_back_before_the_next_try(model, memory_for, monkeypatch):
    memory_for(3, first=1)
    initialize, lost, alive = AdapterBank.initialize, [], []

    def watched(*args):
        gc.disable()  # whether it is a matter of luck
        alive.append([one() is not None for one in lost])
        bank = initialize(*args)
        lost.append(weakref.ref(bank.weights))
        return bank

    backward = TrainingForward.backward

    def leave_tensors(self, parameters, batches, **options):
        activations = torch.zeros(3)  # as a frame of a failed step holds them
        lost.append(weakref.ref(activations))
        return backward(self, parameters, batches, **options)

    monkeypatch.setattr(AdapterBank, "initialize", watched)
    monkeypatch.setattr(TrainingForward, "backward", leave_tensors)
    try:
        train_within_memory(model, CONFIG, UPDATES, seed=3)
    finally:
        gc.enable()
    # Of the bank that failed, and of the half that is done.
    assert [len(own) for own in alive] == [0, 3, 8] and not any(alive[1] + alive[2])


def test_finished_parts_leave_the_device(model, memory_for):
    memory_for(2)
    found = train_within_memory(model, CONFIG, UPDATES)
    sizes = [one.weights.untyped_storage().nbytes() // one.weights.nbytes for one in found]
    assert sizes == [1, 1, 1, 2, 2]  # the last bank stays


def test_a_stop_ends_all_parts(model, memory_for):
    memory_for(3)
    stop = threading.Event()
    found = train_within_memory(model, CONFIG, UPDATES, on_step=lambda step: step.step == 2 and stop.set(), stop=stop)
    assert [one.result.stopped for one in found] == ["stop"] * 5
    assert [len(one.result.losses) for one in found] == [2, 2, 0, 0, 0]


def test_an_adapter_that_does_not_fit_alone(model, memory_for):
    memory_for(0)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_within_memory(model, CONFIG, UPDATES[2:])
    assert str(caught.value) == (
        "One adapter of rank 2, with 11 tokens in a step, does not fit into the free memory of cpu: set "
        "inner_gradient_checkpointing=True, shorten its sequences (InnerLoopConfig(max_length=...)), lower batch_size=1 or the rank, or load the model with load_in_4bit=True. The "
        "cause was: CUDA out of memory. Tried to allocate 3 GiB."
    )
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_checkpointing_comes_to_the_same_adapters(model, whole, memory_for):
    memory_for(3)
    assert_same(train_within_memory(model, CONFIG, UPDATES, seed=3, gradient_checkpointing=True), whole)
    memory_for(0)
    with pytest.raises(torch.OutOfMemoryError, match="free memory of cpu: shorten its sequences"):  # it is on already
        train_within_memory(model, CONFIG, UPDATES, gradient_checkpointing=True)


def test_other_errors_are_not_taken_for_it(model, monkeypatch):
    def fail(self, parameters, batches, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(TrainingForward, "backward", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        train_within_memory(model, CONFIG, UPDATES)


def test_a_step_that_outgrows_the_memory_is_checkpointed(model, whole, monkeypatch, caplog):
    seen = []

    def noted(*args, gradient_checkpointing, **options):
        seen.append(gradient_checkpointing)
        return train(*args, gradient_checkpointing=gradient_checkpointing, **options)

    monkeypatch.setattr("seal_hf.inner_loop.within_memory.train", noted)
    num_tokens = 13  # of the longest sequence; there is one a step
    needed = num_tokens * activation_bytes_per_token(model, length=num_tokens)
    for factor in (1.3, 1.2):
        monkeypatch.setattr("seal_hf.inner_loop.within_memory.free_memory", lambda device, f=factor: int(f * needed))
        assert_same(train_within_memory(model, CONFIG, UPDATES, seed=3), whole)
    # Four fifths of what is free may be taken.
    assert seen == [False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "A step of one adapter has 13 tokens, whose activations do not fit into the free memory: they are computed again in the "
        "backward pass, which takes about a third more time."
    ]
