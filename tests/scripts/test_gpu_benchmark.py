"""The GPU benchmark on the CPU: that every part runs and passes, finds what is wrong, and stands alone."""

import json
import subprocess
import sys
from functools import partial
from importlib import import_module

import pytest
import torch

from helpers.folders import BENCHMARKS
from helpers.outer_loop import child_environment


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def checks():
    return import_module("gpu_checks")


@pytest.fixture
def speed():
    return import_module("gpu_speed")


@pytest.fixture
def bench():
    return import_module("gpu_models").Bench(torch.device("cpu"))


@pytest.fixture
def run(tmp_path, capsys):
    """What a run on the CPU comes to: exit code, results, and the text that it prints."""

    def run_parts(*arguments):
        output = tmp_path / "results.json"
        code = import_module("gpu").main(["--device", "cpu", "--output", str(output), *arguments])
        assert output.with_suffix(".md").read_text() == (text := capsys.readouterr().out)
        return code, json.loads(output.read_text()), text

    return run_parts


@pytest.mark.slow
def test_every_part_passes(tmp_path):
    output = tmp_path / "results.json"
    script = f"import sys, gpu; code = gpu.main(['--device', 'cpu', '--output', {str(output)!r}]); "
    script += "print({'trl', 'datasets'} & set(sys.modules)); sys.exit(code)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=BENCHMARKS, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("set()\n")  # needed on no GPU machine
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == list(import_module("gpu").PARTS)
    for name, part in parts.items():
        reasons = ("train() has no activation checkpointing", "bitsandbytes is not installed")
        assert part["status"] == "done" or part["reason"] in reasons, name
        for row in part.get("rows", ()):
            assert row.get("verdict", "pass") in ("pass", "no such kernel") and "skipped" not in row, row
    assert {row["adapted"] for row in parts["training-7B"]["rows"]} == {"q,v", "all-linear"}
    assert all(row["peft"] > 0 and row["bank"] > 0 for row in parts["training-7B"]["rows"])
    assert all(row["answers"] > 0 for row in parts["answers"]["rows"])
    one, several = parts["launches"]["rows"][:2]
    assert 0 < one["operations"] < several["operations"] < 2 * one["operations"]


def test_a_part_that_fails_is_reported_and_the_others_run(run, monkeypatch):
    gpu = import_module("gpu")

    def broken(bench):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu.PARTS, "attention", gpu.Part("check", 1, broken))
    code, results, text = run("--parts", "attention", "grouped", "gemm")
    assert code == 1
    statuses = {name: part["status"] for name, part in results["parts"].items()}
    assert statuses == {"attention": "failed", "grouped": "done", "gemm": "done"}
    assert "in broken\n" in results["parts"]["attention"]["error"]
    assert "Failed: attention." in text and "RuntimeError: no kernel image" in text
    assert "| values and gradients, 16 adapters" in text and "TFLOP/s at 256^3" in text


def test_a_comparison_that_fails_fails_the_run(run, checks, monkeypatch):
    gpu = import_module("gpu")
    rows = [checks.row("one", 0.1, 0.2), checks.row("other", float("nan"), 0.2), checks.row("third", 0.3, 0.2)]
    assert [row["verdict"] for row in rows] == ["pass", "FAIL", "FAIL"]
    monkeypatch.setitem(gpu.PARTS, "attention", gpu.Part("check", 1, lambda bench: rows))
    code, results, text = run("--parts", "attention")
    assert (code, results["parts"]["attention"]["status"]) == (1, "failed")
    assert "| other | nan | 0.2 | FAIL | |" in text

    foreign = [checks.row("torch's", 0.3, 0.2, ours=False)]
    monkeypatch.setitem(gpu.PARTS, "attention", gpu.Part("check", 1, lambda bench: foreign))
    assert run("--parts", "attention")[0] == 0


def test_out_of_time(run):
    code, results, text = run("--parts", "grouped", "gemm", "--budget", "0")
    assert code == 0
    assert {part["status"] for part in results["parts"].values()} == {"skipped"}
    assert "Left out: grouped (out of time; raise --budget); gemm (out of time" in text


def test_a_lost_device_ends_the_run(run, monkeypatch):
    gpu = import_module("gpu")

    def lose(bench):
        def synchronize():
            raise RuntimeError("an illegal memory access was encountered\nmore")

        bench.synchronize = synchronize
        return []

    monkeypatch.setitem(gpu.PARTS, "packed", gpu.Part("check", 1, lose))
    _, results, _ = run("--parts", "packed", "grouped")
    assert results["parts"]["grouped"]["reason"] == (
        "the device was lost: an illegal memory access was encountered; run the others again with --parts"
    )


def test_a_difference_that_is_no_number_is_not_passed_over(checks):
    right, wrong = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert checks.worst([right, 1.5 * right], [right, right]) == pytest.approx(0.5)
    for found in ([right, wrong], [wrong, right]):
        assert checks.row("", checks.worst(found, [right, right]), 1.0)["verdict"] == "FAIL"


def wrong_scale_in_bf16(checks):
    class Wrong(checks.PackedAttention):
        def __call__(self, query, key, value, scale, window):
            return super().__call__(query, key, value, scale * (1.2 if query.dtype == torch.bfloat16 else 1), window)

    return {"PackedAttention": Wrong}


def adapters_that_meet(checks):
    class Wrong(checks.TrainingForward):
        def backward(self, parameters, batches):
            losses = super().backward(parameters, batches)
            last = sum(map(len, batches)) - 1
            for first, other in zip(*map(parameters.grads.segments_of, (0, last)), strict=True):
                first.add_(other, alpha=0.1 if last else 0)
            return losses

    return {"TrainingForward": Wrong}


def wrong_scaling(checks):
    right = checks.lora_added
    return {"lora_added": lambda modules, loras, batch, scaling: right(modules, loras, batch, 1.1 * scaling)}


def rows_that_begin_later(checks):
    class Wrong(checks.Decoder):
        def read(self, prompts):
            return super().read([ids[1:] for ids in prompts])

    return {"Decoder": Wrong}


def adapters_forgotten_alone(checks):
    class Wrong(checks.TransformersGenerator):
        def generate(self, prompts, adapters=None, **options):
            return super().generate(prompts, adapters if len(prompts) > 1 else None, **options)

    return {"TransformersGenerator": Wrong}


def losses_that_are_nan(checks):
    right = checks.train

    def wrong(bank, updates):
        results = right(bank, updates)
        results[3].losses[-1] = float("nan")
        return results

    return {"train": wrong}


@pytest.mark.parametrize(
    ("part", "fault", "num_failed"),
    [
        ("attention", wrong_scale_in_bf16, 6),
        ("grouped", wrong_scaling, 3),
        ("packed", adapters_that_meet, 2),
        ("peft", lambda checks: {"train": partial(checks.train, order_seed=1)}, 2),
        ("padding", rows_that_begin_later, 2),
        ("greedy", adapters_forgotten_alone, 1),
        ("lengths", losses_that_are_nan, 1),
    ],
)
def test_a_check_finds_what_is_wrong(checks, bench, monkeypatch, part, fault, num_failed):
    for name, wrong in fault(checks).items():
        monkeypatch.setattr(checks, name, wrong)
    rows = getattr(checks, part)(bench)
    assert sum(row["verdict"] == "FAIL" for row in rows) == num_failed, rows


def test_what_does_not_fit_is_left_out(speed, bench, monkeypatch):
    models = import_module("gpu_models")
    monkeypatch.setattr(models, "free_memory", lambda device: 10)
    with pytest.raises(models.Skipped, match=r"^0.5B in bf16 needs 0.0 GB, 0.0 are free$"):
        bench.model("0.5B")
    monkeypatch.undo()
    model = bench.model("0.5B")
    layout = models.lora_layout(model, models.lora_config("all-linear"))
    enough_for_one = models.bank_bytes(model, layout, [12])
    monkeypatch.setattr(models, "free_memory", lambda device: enough_for_one)
    one, four = speed.memory(bench, "0.5B")[2:]
    assert one["estimated_bytes_per_adapter"] == enough_for_one and "skipped" not in one
    assert four["skipped"].startswith("a bank of 4 adapters needs")


def test_estimate_of_a_bank(bench):
    models = import_module("gpu_models")
    model = bench.model("0.5B")
    layout = models.lora_layout(model, models.lora_config(["q_proj"]))
    # What two layers keep, of hidden size 64, keys of 32 and an MLP of 96, and what one holds for a moment.
    per_token = 2 * (6 * 64 + 2 * 32 + 4 * 96) + 2 * 64 + 3 * 96
    assert layout.num_parameters == 2 * 32 * (64 + 64)
    assert models.bank_bytes(model, layout, [10, 5]) == 2 * 16 * layout.num_parameters + 15 * per_token * 2
    # Two layers of q and o, k and v with half the heads, and three of the MLP; the output embedding.
    assert models.counted_parameters(model) == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 512


def test_training_table():
    report = import_module("gpu_report")
    row = {"model": "7B", "nf4": False, "adapted": "q,v", "adapters": 16, "parameters": 10, "peft": 100.0}
    row |= {"bank": 250.0, "step_seconds": 0.25, "tokens": 768}
    rates = {2048: 20_000.0, 8192: 40_000.0}
    figures = report.training_figures(row, rates)
    # 4 FLOPs x 10 parameters x 250 tokens
    assert figures == {"over_peft": 2.5, "shares": {2048: 0.5, 8192: 0.25}, "share": 0.25}
    assert report.goals_of(row, figures) == "2 x PEFT: reached, 40 % of GEMM: missed"
    assert report.goals_of({**row, "model": "0.5B"}, figures) == "6 x PEFT: missed"
    assert report.goals_of({**row, "adapters": 4}, figures) == report.goals_of({**row, "nf4": True}, figures) == ""
    assert "share" not in report.training_figures(row, {})

    wide = {key: row[key] for key in ("model", "nf4", "adapted", "parameters", "peft")} | {"adapters": 64}
    rows = [{**row, "adapters": 4, "bank": 230.0}, row, {**wide, "skipped": "a bank of 64 needs too much"}]
    text = report.SECTIONS["training"](rows, rates)
    assert "| 7B | q,v | 16 | 100 | 250 | 2.50 | 250.0 | 768 | 50.0% / 25.0% | 2 x PEFT: reached, 40 %" in text
    assert "| 7B | q,v | 64 | 100 | a bank of 64 needs too much | | | | | |" in text
    assert text.endswith("(90% of the greatest) at: 7B q,v K = 4.")


def test_a_device_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit) as ended:
        import_module("gpu").main([])
    assert ended.value.code == 2
    assert "torch finds none; use --device cpu" in capsys.readouterr().err
