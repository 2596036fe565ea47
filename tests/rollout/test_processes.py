"""What the processes of a run tell each other: over which group, and what is said of errors and of processes that are gone."""

import os
import signal
import time
from datetime import timedelta
from unittest import mock

import pytest
import torch
from torch import distributed

from helpers.processes import side_by_side
from seal_hf.rollout.processes import ProcessEnded, Processes, in_shared_batches


class Unpicklable:
    """Fails while it is pickled, as a tensor on a broken device does."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class TwoArguments(Exception):
    """Cannot be read back: pickle calls it with its text alone."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")


def fail(error):
    raise error


def outcome(function, *args):
    """The name of the error that a call ends in, with its text, or what it returns."""
    try:
        return function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def tell(rank, folder):
    used = []
    all_gather, broadcast = distributed.all_gather_object, distributed.broadcast_object_list

    def noted(function):
        return lambda *args, group=None, **options: used.append(group) or function(*args, group=group, **options)

    with (
        mock.patch.object(distributed, "all_gather_object", noted(all_gather)),
        mock.patch.object(distributed, "broadcast_object_list", noted(broadcast)),
    ):
        first, second = Processes(folder, timeout=77), Processes(folder, timeout=77)
        told = [
            first.gather({"rank": rank, "weights": torch.full((3,), rank).tolist()}),
            second.any(rank == 1),
            first.any(False),
            first.on_main(lambda: os.getpid()) == os.getpid(),
            outcome(first.on_main, fail, torch.OutOfMemoryError("CUDA out of memory.")),
            outcome(first.on_main, fail, TwoArguments("policy", "torn")),
        ]
    (group,) = set(used)
    told += [len(used), group is distributed.group.WORLD, distributed.get_backend(group)]
    return [*told, group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)]


def test_all_are_told_the_same_over_a_gloo_group_of_their_own(tmp_path):
    for rank, (code, told, log) in enumerate(side_by_side(tmp_path, tell, tmp_path)):
        assert code == 0, log
        text = "policy: torn"
        assert told == [
            [{"rank": other, "weights": [other] * 3} for other in range(2)],
            True,
            False,
            rank == 0,
            "OutOfMemoryError: CUDA out of memory.",
            # the first process has the error itself
            f"TwoArguments: {text}" if rank == 0 else f"RuntimeError: TwoArguments: {text}",
            6,
            False,
            "gloo",
            True,
        ]


def share(rank, folder):
    worked, told = [], []

    def work(batch):
        worked.append(list(batch))
        return [item for item in batch for _ in range(item % 3)]

    found = in_shared_batches(Processes(folder), torch.nn.Linear(1, 1), range(7), 2, work, told.append)
    return [found, worked, told]


def test_batches_are_shared_in_turns_and_come_back_in_order(tmp_path):
    found = [1, 2, 2, 4, 5, 5]
    alone = share(0, tmp_path)
    assert alone == [found, [[0, 1], [2, 3], [4, 5], [6]], [2, 2, 2, 1]]
    (code, first, log), (other_code, second, other_log) = side_by_side(tmp_path, share, tmp_path)
    assert code == other_code == 0, log + other_log
    assert first == [found, [[0, 1], [4, 5]], [2, 2]]
    assert second == [found, [[2, 3], [6]], [2, 1]]


def lose_one(rank, folder):
    processes = Processes(folder)
    processes.gather(rank)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    return [outcome(processes.gather, rank), outcome(processes.on_main, os.getpid), time.monotonic() - start]


def test_a_process_that_is_killed_is_noticed_by_those_that_wait(tmp_path):
    found = side_by_side(tmp_path, lose_one, tmp_path, count=3)
    assert found[1][:2] == (-signal.SIGKILL, None)
    for code, told, log in (found[0], found[2]):
        assert code == 0, log
        assert told[:2] == ["ProcessEnded: Another process of this run has ended."] * 2
        assert told[2] < 60  # they would wait for six hours


def wait_in_vain(rank, folder):
    processes = Processes(folder, timeout=0.5)
    processes.gather(rank)
    if rank == 1:
        time.sleep(4)
    return outcome(processes.gather, rank)


def test_a_process_that_does_not_answer(tmp_path):
    (code, told, log), _ = side_by_side(tmp_path, wait_in_vain, tmp_path)
    assert code == 0, log
    assert told == "ProcessEnded: Another process of this run has not answered for 0.5 seconds (ddp_timeout)."


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    torch.AcceleratorError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def fail_in_pickle(rank, folder, errors):
    processes = Processes(folder)
    if rank == 1:
        return outcome(processes.gather, "waits")
    return [outcome(processes.gather, Unpicklable(error)) for error in errors]


def test_errors_of_the_device_keep_their_name(tmp_path):
    (code, told, log), (_, other, other_log) = side_by_side(tmp_path, fail_in_pickle, tmp_path, ERRORS)
    assert code == 0, log
    assert told == [f"{type(error).__name__}: {error}" for error in ERRORS]
    assert other == "ProcessEnded: Another process of this run has ended.", other_log


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:52892"), "has ended"),
        (
            RuntimeError("[/a/gloo/transport/tcp/pair.cc:538] Read error [::1]:1: Connection reset by peer"),
            "has ended",
        ),
        (RuntimeError("Application timeout caused pair closure"), "not answered"),
        (distributed.DistNetworkError("The client socket has failed to connect to any network address"), "has ended"),
        (RuntimeError("[/a/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 9ms for recv"), "not answered"),
        *((error, None) for error in ERRORS),
        (ValueError("gloo/transport"), None),
    ],
    ids=str,
)
def test_which_errors_are_another_process(tmp_path, monkeypatch, error, expected):
    processes = Processes(tmp_path)
    processes.count = 2
    monkeypatch.setattr(Processes, "group", None)
    monkeypatch.setattr(distributed, "all_gather_object", lambda *args, **options: fail(error))
    with pytest.raises(type(error) if expected is None else ProcessEnded) as caught:
        processes.gather(1)
    if expected is None:
        assert caught.value is error
    else:
        assert expected in str(caught.value) and caught.value.__cause__ is error
