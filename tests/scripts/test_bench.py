"""The benchmark's counting and arithmetic, on tiny models and given figures."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig

from helpers.folders import BENCHMARKS
from helpers.outer_loop import HashGrader
from helpers.tiny_models import PAD_ID, tiny_llama, tiny_tokenizer
from seal_hf import Adapter, InnerLoopConfig, SelfAdaptingLM
from seal_hf.adapters.bank import AdapterBank
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.inner_loop.update import InnerUpdate, TrainingSequence
from seal_hf.records.journal import Journal


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def model():
    return tiny_llama()


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_finds_what_it_imports(name):
    assert importlib.import_module(name).__doc__


def update_of(*lengths, epochs=1):
    """An update with a sequence of each length."""
    sequences = tuple(TrainingSequence(tuple(5 + i % 90 for i in range(length))) for length in lengths)
    return InnerUpdate(sequences, InnerLoopConfig(num_train_epochs=epochs))


def figures(**changes):
    """Raw figures of a run, easy to reckon with."""
    training = {
        "target_modules": "q,v",
        "adapters": 16,
        "parameters_per_adapter": 1000,
        "tokens_per_sequence": 50.0,
        "reference_step_seconds": [4.0, 5.0, 9.0],
        "peft_tokens_per_second": [90.0, 100.0, 400.0],
        "bank_tokens_per_second": [150.0, 250.0, 300.0],
        "full_step_tokens_per_second": [500.0],
    }
    answers = {
        "target_modules": "q,v",
        "adapters": 40,
        "questions": 200,
        "peft_adapters": 8,
        "peft_seconds": [9.0, 10.0, 30.0],
        "bank_seconds": [5.0, 10.0],
        "equal_answers": 0.9,
        "peft_equal_answers": 0.8,
    }
    memory = {
        "target_modules": "q,v",
        "adapters": [1, 8, 32],
        "parameters_per_adapter": 1100,
        "loaded_bytes": 10_000,
        "peak_bytes": [20_000, 100_000, 820_000],
        "small_rank_parameters": 100,
        "small_rank_peak_bytes": [50_000, 290_000],
    }
    arc = {
        "task": "small",
        "training_tasks": 24,
        "longest_sequence": 320,
        "training_tokens": 12_000,
        "training_seconds": 40.4,
        "predictions": 14,
        "prediction_tokens": 3_000,
        "prediction_seconds": 9.6,
        "loaded_bytes": 500e6,
        "peak_bytes": 2_100e6,
    }
    step = {
        "adapters": 40,
        "banks": 2,
        "repeats": 3,
        "steps": 1000,
        "tokens": 50_000,
        "epochs": 10,
        "epochs_run": 4,
        "training_seconds": 36.0,
        "answer_seconds": 10.0,
        "mean_reward": 0.5,
    }
    operations = {"all": 160.0, "without_views": 80.0}
    return {
        "command": "python benchmarks/bench.py",
        "date": "2026-01-01",
        "quick": False,
        "seconds": 120.0,
        "machine": {
            **{"processor": "P", "cores": 2, "threads": 2, "memory_bytes": 24e9, "system": "S", "python": "3.12"},
        },
        "versions": {"torch": "2.13", "bitsandbytes": None},
        "num_parameters": 10,
        "inputs": {"self_edits": 40, "lines": 9, "tokens_per_line": 40.0, "tokens_per_passage": 130.0}
        | {"tokens_per_sequence": 50.0},
        "gemm": {"square": [1e4, 2e4, 5e4], "model": [1e4], "square_shape": [8] * 3, "model_shape": [7, 8, 9]},
        "training": [training],
        "answers": [answers],
        "processes": [
            {"processes": 1, "banks": 4, "tokens": 900, "writing_seconds": 20.0, "seconds": 100.0},
            {"processes": 2, "banks": 4, "tokens": 900, "writing_seconds": 10.0, "seconds": 50.0},
        ],
        "operations": [{"target_modules": "q,v", "one": operations, "sixteen": {"all": 16.0, "without_views": 8.0}}],
        "memory": [memory],
        "arc": [arc],
        "step": step,
        **changes,
    }


def test_training_arithmetic():
    from report import training_figures

    results = figures()
    assert training_figures(results["training"][0], results) == {
        "reference": 10.0,  # 50 tokens in the median step of 5 s
        "peft": 100.0,
        "bank": 250.0,
        "full_step": 500.0,
        "over_reference": 25.0,
        "over_peft": 2.5,
        "utilization": 0.5,  # 4 FLOPs x 10 parameters x 250 tokens of 20000
        "full_step_utilization": 1.0,
    }


def test_memory_arithmetic():
    from report import memory_figures

    # 24 adapters more take 720 kB, of which 240 kB also come with rank 1; 1000 parameters more each.
    assert memory_figures(figures()["memory"][0]) == {"bytes_per_adapter": 30_000.0, "bytes_per_parameter": 20.0}


def test_answers_and_step_are_projected():
    from report import answer_figures, step_figures

    results = figures()
    assert answer_figures(results["answers"][0]) == {"bank": 7.5, "peft": 50.0, "over_peft": 50 / 7.5}
    assert step_figures(results) == {
        "bank": 300.0,
        "reference": 3 * (1000 * 5 + 50),
        "over_reference": 3 * 5050 / 300,
    }


def test_table():
    from report import table

    text = table(figures())
    assert "| q,v | 16 | 10.0 | 100 [90, 400] | 250 [150, 300] | 25 | 2.50 | 50.0% | 500 | 100.0% |" in text
    assert "| q,v | 40 | 200 | 50 (from 8) | 7.5 [5.0, 10.0] | 6.67 | 90% | 80% |" in text
    assert "| q,v | 160 | 16 | 1/10.0 | 80 | 8 | 1/10.0 |" in text
    assert "| q,v | 0 | 0 | 1 | 0.0 | 0.0 | 20.0 |" in text
    assert "| small | 24 (320) | 12,000 | 40 | 14 | 3,000 | 10 | 2100 (500) |" in text
    assert "50 times as long" in text
    assert "| 1 | 4 | 900 | 20 | 100 | 1.00 | 1.00 |" in text and "| 2 | 4 | 900 | 10 | 50 | 2.00 | 2.00 |" in text
    assert "left out (bitsandbytes is not installed)" in text

    quantized = {"target_modules": "q,v", "adapters": 16, "peft_tokens_per_second": [10.0]}
    quick = figures(quick=True, memory=[], arc=[], quantized={**quantized, "bank_tokens_per_second": [30.0]})
    del quick["step"], quick["processes"]
    assert "| q,v, NF4 base | 16 | | 10 | 30 | | 3.00 | | | |" in table(quick)
    assert "step were left out (`--quick`)" in table(quick) and "One process and two were not" in table(quick)
    assert "ARC task" not in table(quick)


def test_a_step_counts_what_was_done_and_is_not_read_from_the_disk(tmp_path):
    from processes import NUM_GENERATIONS, step

    domain = KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False)
    lm = SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=domain,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        inner_config=InnerLoopConfig(num_train_epochs=1),
        base_model_id="tests/tiny",
    )
    figures = step(lm, 1, tmp_path)
    assert (figures["processes"], figures["banks"], len(figures["rewards"])) == (1, 1, NUM_GENERATIONS)
    assert figures["tokens"] == sum(edit.tokens for edit in Journal(tmp_path).scored(0)) > 0
    assert 0 < figures["writing_seconds"] < figures["seconds"]
    with pytest.raises(ValueError, match="holds a step that was done before; name another folder"):
        step(lm, 1, tmp_path)


def test_processes_that_come_to_other_rewards_are_not_compared(monkeypatch):
    import sections

    rewards = {1: [0.0, 1.0], 2: [0.0, 0.0]}
    monkeypatch.setattr(sections, "in_processes", lambda count, *args: {"rewards": rewards[count]})
    with pytest.raises(ValueError, match="Two processes come to other rewards than one does"):
        sections.processes(2)


def test_quick_leaves_full_results_alone(tmp_path):
    from bench import write_results

    full = write_results(figures(), tmp_path, quick=False)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(written) == {"results.json", "README.md"}
    assert "2.50" in written["README.md"].decode()
    assert "{table}" not in written["README.md"].decode()

    quick = write_results(figures(quick=True, seconds=1.0), tmp_path, quick=True)
    assert quick != full
    assert json.loads(quick.read_text())["seconds"] == 1.0
    for name, content in written.items():
        assert (tmp_path / name).read_bytes() == content


def test_tokens_are_those_of_the_text(model):
    from inputs import num_tokens, tokens_per_sequence
    from ways import bank_speed, lora_config, peft_speed

    # The bank pads these to a common length, in three steps of both adapters and one of the second alone.
    updates = [update_of(3, 20, 7), update_of(30, 4, 5, 6)]
    assert [num_tokens(update) for update in updates] == [30, 45]
    assert tokens_per_sequence(updates) == 75 / 7
    config = lora_config(["q_proj", "v_proj"], r=4)
    speed, bank = bank_speed(model, updates, config)
    assert speed.whole.tokens == 75
    assert len(bank) == 2
    assert peft_speed(model, updates, config).tokens == 75


def test_full_steps_leave_out_the_first_and_the_tail(model):
    from ways import bank_speed, lora_config

    updates = [update_of(6, 6, 6), *(update_of(6, 6) for _ in range(7))]
    speed, _ = bank_speed(model, updates, lora_config("all-linear", r=4))
    assert speed.whole.tokens == 17 * 6
    assert speed.full_steps.tokens == 8 * 6  # the second step


def test_reference_pads_every_sequence(model):
    from reference_way import reference_step_seconds
    from ways import lora_config

    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"], kwargs["labels"])), with_kwargs=True
    )
    update = update_of(3, 20, 7)
    seconds = reference_step_seconds(model, PAD_ID, update, lora_config(["q_proj"], r=4), num_steps=2, length=64)
    assert len(seconds) == 2
    assert [ids.shape for ids, _ in seen] == [(1, 64)] * 3
    assert {int((labels != -100).sum()) for _, labels in seen} == {3, 7, 20}


def test_peft_leaves_the_model_as_it_was(model):
    from ways import lora_config, peft_speed

    before = {name: value.clone() for name, value in model.state_dict().items()}
    peft_speed(model, [update_of(5, 6)] * 2, lora_config("all-linear", r=4))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not model.training
    assert not hasattr(model, "peft_config")


def test_counter_sees_backward_and_optimizer():
    from operations import OperationCounter

    parameter = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    with OperationCounter() as counter:
        loss = (torch.ones(2, 3) @ parameter).sum()
    forward = counter.total
    assert counter.counts["mm"] == 1
    with counter:
        loss.backward()
    assert counter.counts["mm"] == 2  # the gradient of the parameter
    assert counter.total > forward
    with counter:
        optimizer.step()
    assert counter.counts["_fused_adamw_"] == 1

    views = counter.num_views
    with counter:
        parameter.detach().view(4, 3)
    assert counter.num_views == views + 2


def test_operations_are_shared_by_the_adapters(model):
    from operations import operations_per_adapter_step
    from ways import lora_config

    config = lora_config(["q_proj", "v_proj"], r=4)
    updates = [update_of(6, 6, 6, 6)] * 4
    one, four = (operations_per_adapter_step(model, updates[:k], config, num_steps=2) for k in (1, 4))
    assert 0 < four["all"] < one["all"] / 2
    assert 0 < one["without_views"] < one["all"]


def test_peak_memory_is_that_of_the_process_alone():
    from machine import peak_bytes

    own = peak_bytes()
    command = [sys.executable, "-c", "from machine import peak_bytes; print(peak_bytes())"]
    child = subprocess.run(command, cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True, check=True)
    assert 10e6 < int(child.stdout) < own  # it has loaded torch alone


def test_answers_are_those_of_peft(model):
    from answers import bank_answers, peft_answers, share_equal
    from ways import lora_config

    lm = SelfAdaptingLM(model, tiny_tokenizer(), domain=KnowledgeDomain(), base_model_id="tiny")
    config = lora_config(["q_proj", "v_proj"], r=4)
    bank = AdapterBank.initialize(model, config, [0, 1, 2])
    bank.weights.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    adapters = [Adapter(bank.layout, weights.clone(), "tiny") for weights in bank.weights]
    prompts = [["Who keeps bees?", "Why?"], ["Where is Vell?", "Who?"], ["When was it?"]]
    one_by_one = peft_answers(lm, adapters, prompts, config, max_answer_length=6)
    together = bank_answers(lm, adapters, prompts, max_answer_length=6)
    assert together.answers == one_by_one.answers
    assert share_equal(together.answers, one_by_one.answers) == 1
    assert len({answer for own in together.answers for answer in own}) > 1


def test_answers_section_takes_a_slice_for_peft(model):
    import sections
    from inputs import Work
    from settings import Settings
    from ways import TARGETS, lora_config

    lm = SelfAdaptingLM(model, tiny_tokenizer(), domain=KnowledgeDomain(), base_model_id="tiny")
    bank = AdapterBank.initialize(model, lora_config(TARGETS["q,v"]), [0] * 6)
    adapters = [Adapter(bank.layout, weights.clone(), "tiny") for weights in bank.weights]
    work = [Work(place, 0, None, (f"Who is {place}?", "Why?")) for place in range(6)]
    settings = Settings(answer_repetitions=2, peft_answer_adapters=3, max_answer_length=4)
    row = sections.answers(lm, work, adapters, "q,v", settings)
    assert (row["adapters"], row["questions"], row["peft_adapters"]) == (6, 12, 3)
    assert len(row["peft_seconds"]) == len(row["bank_seconds"]) == 2
    assert row["equal_answers"] == row["peft_equal_answers"] == 1


def test_shipped_self_edits():
    from inputs import describe, even_bank, load_work, updates_of

    tokenizer = tiny_tokenizer()
    work = load_work(KnowledgeDomain(chat=False))
    assert [(item.edit, item.passage) for item in work] == [(edit, place) for edit in range(5) for place in range(8)]
    passages = load_demo_passages("train")
    for item in work:
        assert len(item.self_edit.examples) >= 4  # three lines and the passage
        assert item.self_edit.examples[-1].completion.endswith(passages[item.passage]["context"].strip())
        assert len(item.prompts) == 5
    assert describe(updates_of(work, tokenizer))["self_edits"] == 40
    chosen = even_bank(work, tokenizer, 16)
    assert len({(item.edit, item.passage) for item in chosen}) == 16
    steps = [update.num_steps for update in updates_of(chosen, tokenizer)]
    assert max(steps) <= 90


def test_an_arc_task_is_learned_and_predicted(model):
    from arc_task import arc_lm, measure, task_of

    lm = arc_lm(SelfAdaptingLM(model, tiny_tokenizer(), base_model_id="tiny"), "small")
    lm.domain.max_tasks = 3
    row = measure(lm, task_of("small"), 5)
    edit = lm.domain.all_tools(task_of("small"))
    # A token for each character, the role of a message and the end.
    sizes = [len("[user] \n[assistant] " + one.prompt[0]["content"] + one.completion) + 1 for one in edit.examples]
    assert (row["training_tasks"], row["longest_sequence"], row["training_tokens"]) == (3, max(sizes), 2 * sum(sizes))
    prompts = lm.domain.questions(task_of("small"))[:5]
    assert row["predictions"] == len(prompts) == 5
    assert row["prediction_tokens"] == sum(len("[user] \n[assistant] " + one[0]["content"]) for one in prompts)
    large = arc_lm(lm, "large").domain.all_tools(task_of("large")).examples
    assert all(7_500 < len(one.prompt[0]["content"] + one.completion) < 8_192 for one in large) and len(large) == 2
