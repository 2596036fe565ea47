"""Two processes come to what one comes to, whichever of them begins, and lose nothing when one dies."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import outer_loop
import pytest
import torch
from outer_loop import child_environment, in_child, noted, noted_trials, results, run, unscored
from safetensors.torch import load


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


def launch(launcher, output_dir, *options):
    return subprocess.run(
        [sys.executable, "-m", *launcher, outer_loop.__file__, "--output_dir", str(output_dir), *map(str, options)],
        capture_output=True,
        text=True,
        env=child_environment(),
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """An unbroken run of one process."""
    folder = tmp_path_factory.mktemp("single")
    assert in_child(folder / "log", run, folder / "run", record=folder / "record") == 0, (folder / "log").read_text()
    return SimpleNamespace(results=results(folder / "run"), trials=noted_trials(folder / "record"))


def assert_same_results(output_dir, expected):
    """All texts, rewards and choices are equal; losses and weights are up to the order in which DDP adds gradients up."""
    found = results(output_dir)
    assert found.keys() == expected.keys()
    for name in expected:
        if name.endswith(".safetensors"):
            torch.testing.assert_close(load(found[name]), load(expected[name]), atol=1e-6, rtol=0)
        else:
            assert_close(found[name], expected[name], name)


def assert_close(found, expected, place):
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name in expected:
            if name == "reward":
                assert found[name] == expected[name], place
            assert_close(found[name], expected[name], f"{place}, {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{place}, {number}")
    else:
        assert found == expected, place


def assert_shared(record):
    """Two processes took part, each with at least one bank, and none did what another did."""
    assert {line["world_size"] for line in noted(record)} == {2}
    assert all(noted(record, "finished", rank=rank) for rank in range(2))
    assert len(set(noted_trials(record))) == len(noted_trials(record))


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(single, tmp_path):
    output_dir, record = tmp_path / "run", tmp_path / "record"
    done = launch(TORCHRUN, output_dir, "--record", record)
    assert done.returncode == 0, done.stderr
    # A thread of gloo's that outlives the interpreter may abort a run that went well.
    assert done.stdout.count("exit with") == 2 and "gloo" not in done.stdout
    assert_shared(record)
    assert sorted(noted_trials(record)) == sorted(single.trials)
    assert_same_results(output_dir, single.results)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(single, tmp_path):
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    # In the middle of the first round's banks.
    assert in_child(log, run, output_dir, die_after_banks=5) == -signal.SIGKILL, log.read_text()
    missing = unscored(output_dir, single.trials)
    assert 0 < len(missing) < len(single.trials)
    done = launch(ACCELERATE, output_dir, "--resume", "--record", record)
    assert done.returncode == 0, done.stderr
    assert_shared(record)
    assert sorted(noted_trials(record)) == sorted(missing)
    assert_same_results(output_dir, single.results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "option"), [(0, "--die_after_banks"), (1, "--die_after_steps")], ids=["in a bank", "in the outer SFT"]
)
def test_when_one_process_dies_all_end_and_one_goes_on(single, tmp_path, rank, option):
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    ended = launch(TORCHRUN, output_dir, "--record", record, "--die_rank", rank, option, 1)
    assert ended.returncode != 0
    assert f"Every bank that was scored is in {output_dir}" in ended.stderr
    assert "start the run again with resume_from_checkpoint=True" in ended.stderr
    assert noted(record, "finished", rank=rank)
    assert not unscored(output_dir, noted_trials(record, "finished"))

    missing = unscored(output_dir, single.trials)
    assert in_child(log, run, output_dir, resume=True, record=tmp_path / "resumed") == 0, log.read_text()
    assert sorted(noted_trials(tmp_path / "resumed")) == sorted(missing)
    assert_same_results(output_dir, single.results)
