"""Two processes come to what one comes to, whichever of them begins, and lose nothing when one dies."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from helpers.outer_loop import in_child, noted, noted_trials, results, run, unscored
from helpers.processes import ACCELERATE, TORCHRUN, assert_same_results, assert_shared, launch
from seal_hf.rollout.processes import Processes


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """An unbroken run of one process."""
    folder = tmp_path_factory.mktemp("single")
    assert in_child(folder / "log", run, folder / "run", record=folder / "record") == 0, (folder / "log").read_text()
    return SimpleNamespace(results=results(folder / "run"), trials=noted_trials(folder / "record"))


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
def test_two_processes_draw_the_same_examples_for_a_round(tmp_path):
    options = {"num_train": 5, "num_eval": 0, "num_repeats": 1, "examples_per_round": 2}
    assert in_child(tmp_path / "log", run, tmp_path / "one", options=options) == 0, (tmp_path / "log").read_text()
    done = launch(TORCHRUN, tmp_path / "two", "--options", json.dumps(options))
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "two", results(tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_carry_out_what_self_edits_ask(tmp_path):
    # Two batches of generation in the round.
    options = {
        "with_tool": True,
        "num_train": 5,
        "num_eval": 1,
        "num_generations": 20,
        "num_repeats": 1,
        "num_rounds": 1,
    }
    assert in_child(tmp_path / "log", run, tmp_path / "one", options=options) == 0, (tmp_path / "log").read_text()
    done = launch(TORCHRUN, tmp_path / "two", "--options", json.dumps(options))
    assert done.returncode == 0, done.stderr
    expected = results(tmp_path / "one")
    with_tool = [one["tool_examples"] is not None for one in expected["proposals/round_000.jsonl"]]
    assert any(with_tool[:60]) and any(with_tool[60:])
    assert_same_results(tmp_path / "two", expected)


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


def lose_another_process(output_dir):
    processes = Processes(output_dir)
    processes.count = 2
    try:
        with processes.explaining_termination():
            raise RuntimeError("Connection closed by peer")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's, before the error is printed


def test_a_signal_that_overtakes_the_error_does_not_silence_it(tmp_path):
    log = tmp_path / "log"
    assert in_child(log, lose_another_process, tmp_path / "run") == 1
    assert f"Every bank that was scored is in {tmp_path / 'run'}; start the run again" in log.read_text()


@pytest.mark.slow
def test_two_processes_give_the_same_rewards_without_labels(tmp_path):
    # Two batches of examples, of which each process makes one.
    options = {
        "num_train": 17,
        "num_eval": 0,
        "num_generations": 1,
        "num_repeats": 1,
        "num_rounds": 1,
        "reward_funcs": ["accuracy", "rubric", "self_consistency"],
        "reward_weights": [1, 0, 1],
    }
    assert in_child(tmp_path / "log", run, tmp_path / "one", options=options) == 0, (tmp_path / "log").read_text()
    done = launch(TORCHRUN, tmp_path / "two", "--options", json.dumps(options))
    assert done.returncode == 0, done.stderr
    expected = results(tmp_path / "one")
    assert len(expected["reward_questions/round_000.jsonl"]) == len(expected["rubric/round_000.jsonl"]) > 15
    assert_same_results(tmp_path / "two", expected)
