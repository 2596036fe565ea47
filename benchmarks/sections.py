"""The parts of the benchmark: each returns the raw figures of its rows."""

import time
from collections.abc import Sequence
from dataclasses import replace

from answers import Answered, bank_answers, peft_answers, share_equal
from inputs import Work, first_epochs, load_work, num_tokens, tokens_per_sequence, updates_of
from memory import peak_in_own_process
from operations import operations_per_adapter_step
from processes import in_processes
from reference_way import reference_step_seconds
from settings import Settings
from ways import (
    TARGETS,
    BankSpeed,
    Speed,
    bank_speed,
    lora_config,
    peft_speed,
)

from seal_hf import Adapter, InnerLoopConfig, SelfAdaptingLM
from seal_hf.adapters.bank import AdapterBank
from seal_hf.domains import load_demo_passages
from seal_hf.rollout.bank_schedule import adapters_per_bank, compose_banks, work_of


# A rank whose adapters take next to no memory: what a bank still grows by are activations.
SMALL_RANK = 1


def reference(lm: SelfAdaptingLM, work: Sequence[Work], target: str, num_steps: int) -> list[float]:
    """Seconds of the steps of the reference way on the first self-edit."""
    update = updates_of(work[:1], lm.processing_class)[0]
    pad_id = lm.processing_class.pad_token_id
    return reference_step_seconds(lm.model, pad_id, update, lora_config(TARGETS[target]), num_steps)


def training(
    lm: SelfAdaptingLM, work: Sequence[Work], target: str, settings: Settings
) -> tuple[dict[str, object], list[Adapter]]:
    """Tokens per second of PEFT and of a bank in turns, after a few steps of each that are not counted."""
    config = lora_config(TARGETS[target])
    updates = updates_of(work, lm.processing_class)
    turn = [first_epochs(update, settings.turn_epochs) for update in updates]
    # Spread over the bank's own updates, so that both see sequences of the same lengths.
    slice_ = turn[:: len(turn) // settings.peft_updates][: settings.peft_updates]
    warm_up = [replace(update, sequences=update.sequences[-1:]) for update in turn]
    peft_speed(lm.model, slice_[:1], config)
    bank_speed(lm.model, warm_up, config)
    peft: list[Speed] = []
    ours: list[BankSpeed] = []
    for _ in range(settings.repetitions):
        peft.append(peft_speed(lm.model, slice_, config))
        speed, bank = bank_speed(lm.model, turn, config)
        ours.append(speed)
    row = {
        "target_modules": target,
        "adapters": len(work),
        "parameters_per_adapter": bank.layout.num_parameters,
        "tokens_per_sequence": tokens_per_sequence(updates),
        "peft_tokens_per_second": [speed.tokens_per_second for speed in peft],
        "bank_tokens_per_second": [speed.whole.tokens_per_second for speed in ours],
        "full_step_tokens_per_second": [speed.full_steps.tokens_per_second for speed in ours],
    }
    return row, _adapters_of(bank, lm)


def _adapters_of(bank: AdapterBank, lm: SelfAdaptingLM) -> list[Adapter]:
    return [Adapter(bank.layout, weights.clone(), lm.base_model_id) for weights in bank.weights]


def operations(lm: SelfAdaptingLM, work: Sequence[Work], target: str) -> dict[str, object]:
    """Operations per adapter step of one adapter and of 16."""
    config = lora_config(TARGETS[target])
    updates = [first_epochs(update, 1) for update in updates_of(work[:16], lm.processing_class)]
    return {
        "target_modules": target,
        "one": operations_per_adapter_step(lm.model, updates[:1], config, num_steps=3),
        "sixteen": operations_per_adapter_step(lm.model, updates, config, num_steps=3),
    }


def answers(
    lm: SelfAdaptingLM, work: Sequence[Work], adapters: Sequence[Adapter], target: str, settings: Settings
) -> dict[str, object]:
    """Seconds of all adapters' answers in common batches, and of a slice of them with PEFT, in turns."""
    prompts = [item.prompts for item in work[: len(adapters)]]
    places = range(len(adapters))[:: len(adapters) // settings.peft_answer_adapters]
    places = places[: settings.peft_answer_adapters]
    config, length = lora_config(TARGETS[target]), settings.max_answer_length

    def by_peft(chosen: Sequence[int]) -> Answered:
        return peft_answers(lm, [adapters[i] for i in chosen], [prompts[i] for i in chosen], config, length)

    by_peft(places[:1])
    bank_answers(lm, adapters[:2], prompts[:2], length)
    peft, ours = [], []
    for _ in range(settings.answer_repetitions):
        peft.append(by_peft(places))
        ours.append(bank_answers(lm, adapters, prompts, length))
    # How much of the difference is rounding in batches of other sizes: PEFT against itself, a question at a time.
    few = places[:2]
    questions = [[prompt] for i in few for prompt in prompts[i]]
    owners = [adapters[i] for i in few for _ in prompts[i]]
    alone = peft_answers(lm, owners, questions, config, length)
    return {
        "target_modules": target,
        "adapters": len(adapters),
        "questions": sum(map(len, prompts)),
        "peft_adapters": len(places),
        "peft_seconds": [run.seconds for run in peft],
        "bank_seconds": [run.seconds for run in ours],
        "equal_answers": share_equal(peft[-1].answers, [ours[-1].answers[i] for i in places]),
        "peft_equal_answers": share_equal(alone.answers, [[text] for own in peft[-1].answers[:2] for text in own]),
        "answers": ours[-1].answers,
    }


def expectation_step(lm: SelfAdaptingLM, work: Sequence[Work], settings: Settings) -> dict[str, object]:
    """
    A part of one of the three equal repeats of an expectation step with the paper's settings: some epochs of training, and
    all answers with their grading.

    The banks are those that the trainer would choose. Writing the self-edits, which both ways do once, is left out.
    """
    passages = load_demo_passages("train")
    updates = updates_of(work, lm.processing_class)
    layout = AdapterBank.initialize(lm.model, lm.peft_config, [0]).layout
    sizes = [work_of(update) for update in updates]
    banks = compose_banks(sizes, 1, adapters_per_bank(lm.model, layout, sizes))
    config = replace(lm.inner_config, num_train_epochs=settings.step_epochs)
    lm = SelfAdaptingLM(lm.model, lm.processing_class, inner_config=config, base_model_id=lm.base_model_id)
    training_seconds = answer_seconds = 0.0
    verdicts = []
    for bank in sorted({bank for (bank,) in banks}):
        own = [item for item, (place,) in zip(work, banks, strict=True) if place == bank]
        start = time.perf_counter()
        adapters = lm.adapt([item.self_edit for item in own])
        trained = time.perf_counter()
        answered = bank_answers(lm, adapters, [item.prompts for item in own], settings.max_answer_length)
        verdicts += lm.domain.grade([passages[item.passage] for item in own], answered.answers)
        training_seconds += trained - start
        answer_seconds += time.perf_counter() - trained
    return {
        "adapters": len(work),
        "banks": len({bank for (bank,) in banks}),
        "repeats": 3,
        "epochs": InnerLoopConfig().num_train_epochs,
        "epochs_run": settings.step_epochs,
        "steps": sum(update.num_steps for update in updates),
        "tokens": sum(map(num_tokens, updates)),
        "training_seconds": training_seconds,
        "answer_seconds": answer_seconds,
        "mean_reward": sum(map(sum, verdicts)) / sum(map(len, verdicts)),
    }


def memory(target: str, num_adapters: Sequence[int]) -> dict[str, object]:
    """Peak memory of banks of each size, and of the two largest again with a small rank."""
    full = [peak_in_own_process(count, target, r=32) for count in num_adapters]
    small = [peak_in_own_process(count, target, r=SMALL_RANK) for count in num_adapters[-2:]]
    return {
        "target_modules": target,
        "adapters": list(num_adapters),
        "parameters_per_adapter": full[0]["num_parameters"],
        "loaded_bytes": full[0]["loaded_bytes"],
        "peak_bytes": [run["peak_bytes"] for run in full],
        "small_rank_parameters": small[0]["num_parameters"],
        "small_rank_peak_bytes": [run["peak_bytes"] for run in small],
    }


def processes(num_passages: int, model: str = "embedded-tiny") -> list[dict[str, object]]:
    """
    The same expectation step by one process with one thread, and by two.

    Raises:
        ValueError: They came to other rewards, so that the work was not the same.
    """
    one, two = (in_processes(count, num_passages, model) for count in (1, 2))
    if one["rewards"] != two["rewards"]:
        raise ValueError("Two processes come to other rewards than one does; their times cannot be compared.")
    return [one, two]


def quantized(num_adapters: int = 16) -> dict[str, object]:
    """Tokens per second of PEFT and of a bank on an NF4 base, one epoch each after a short warm-up."""
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny", load_in_4bit=True)
    updates = updates_of(load_work(lm.domain)[:num_adapters], lm.processing_class)
    turn = [first_epochs(update, 1) for update in updates]
    config = lora_config(TARGETS["q,v"])
    peft_speed(lm.model, turn[:1], config)
    peft = peft_speed(lm.model, turn[1:4], config)
    ours, _ = bank_speed(lm.model, turn, config)
    return {
        "target_modules": "q,v",
        "adapters": num_adapters,
        "peft_tokens_per_second": [peft.tokens_per_second],
        "bank_tokens_per_second": [ours.whole.tokens_per_second],
    }
