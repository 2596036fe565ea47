"""Runs in many processes, what must be equal between two runs, and a wait."""

import json
import os
import socket
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load

from helpers import outer_loop
from helpers.outer_loop import child_environment, new_child, noted, noted_trials, results


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


def wait_for(condition, seconds_between=0.01):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(seconds_between)


def side_by_side(folder, function, *args, count=2):
    """
    Call a function in as many processes of one run, with its rank first.

    Returns:
        `list[tuple]`: of each process its exit code, what the function returned (`None` where it did not), and its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(count):
        environment = {
            **shared,
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count)),
        }
        place = folder / str(rank)
        place.mkdir()
        children.append(new_child(place / "log", _return, place / "returned", environment, function, (rank, *args)))
    for child in children:
        child.join()
    found = []
    for rank, child in enumerate(children):
        returned = folder / str(rank) / "returned"
        value = json.loads(returned.read_text()) if returned.exists() else None
        found.append((child.exitcode, value, (folder / str(rank) / "log").read_text()))
    return found


def _return(file, environment, function, args):
    with mock.patch.dict(os.environ, environment):
        PartialState(cpu=True)
        file.write_text(json.dumps(function(*args)))
