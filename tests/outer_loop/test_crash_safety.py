"""A run is killed at a moment of every kind, goes on, and comes to what it would have come to."""

import errno
import functools
import json
import os
import random
import re
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from helpers.outer_loop import in_child, noted_trials, results, run, unscored
from seal_hf.generation.writing import Writing
from seal_hf.inner_loop.optimizer import BankOptimizer
from seal_hf.outer_loop.seal_trainer import SEALTrainer
from seal_hf.rollout.rollout import Rollout


PHASES = ("proposed", "scored", "selected", "fitted", "evaluated")
KILLED = -signal.SIGKILL


class Moments:
    """
    Notes the moments of a run in this process, as phase and event; at one of them, kills it or finds the disk full.

    Parameters:
        file (`Path`):
            Where the moments are noted.
        output_dir (`Path`):
            The run's.
        kill_at, full_at (`int`, *optional*):
            Number of the moment, from 0.
    """

    def __init__(self, file, output_dir, kill_at=None, full_at=None):
        self.file, self.output_dir, self.kill_at, self.full_at = file.open("w"), output_dir, kill_at, full_at
        self.number, self.phases = 0, []
        for owner, name, phase in (
            (Rollout, "propose", "proposed"),
            (Rollout, "score", "scored"),
            (SEALTrainer, "_select", "selected"),
            (SEALTrainer, "_fit", "fitted"),
            (SEALTrainer, "_evaluate_round", "evaluated"),
        ):
            self._wrap(owner, name, lambda call, *args, phase=phase: self._in_phase(phase, call))
        self._wrap(Rollout, "_run_bank", lambda call, *args: self._around("bank", call))
        self._wrap(Writing, "report", lambda call, *args: self._around("token", call))
        for optimizer in (BankOptimizer, torch.optim.AdamW):  # of the inner updates, and of the outer SFT
            self._wrap(optimizer, "step", lambda call, *args: self._around("optimizer step", call))
        self._wrap(os, "fsync", lambda call, file: self._around("sync", call, file))
        self._wrap(os, "replace", lambda call, old, new: self._around(f"rename to {self._relative(new)}", call))

    def _wrap(self, owner, name, around):
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return around(lambda: function(*args, **kwargs), *args)

        setattr(owner, name, wrapper)

    def _in_phase(self, phase, call):
        self.phases.append(phase)
        try:
            return call()
        finally:
            self.phases.pop()

    def _around(self, event, call, file=None):
        self._pass(f"before {event}", file)
        result = call()
        self._pass(f"after {event}", file)
        return result

    def _pass(self, event, file):
        # What an evaluation proposes and scores is part of the evaluation.
        self.file.write(json.dumps([self.phases[0] if self.phases else "opened", event]) + "\n")
        if self.number == self.kill_at:
            self.file.flush()
            if event == "before sync":
                with suppress(OSError):  # the policy's files are open for reading only
                    os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.number += 1
        if self.number - 1 == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _relative(self, path):
        return os.path.relpath(path, self.output_dir)


def run_with_moments(output_dir, moments, kill_at=None, *, full_at=None, **options):
    moments = Moments(moments, output_dir, kill_at, full_at)
    run(output_dir, **options)
    moments.file.close()


def read_moments(file):
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    output_dir, moments, record, log = (folder / name for name in ("run", "moments", "record", "log"))
    assert in_child(log, run_with_moments, output_dir, moments, record=record) == 0, log.read_text()
    return SimpleNamespace(
        output_dir=output_dir,
        results=results(output_dir),
        moments=read_moments(moments),
        trials=noted_trials(record),
    )


@pytest.mark.slow
def test_the_moments_are_of_every_kind(unbroken):
    events = {event.removeprefix("before ").split(" to ")[0] for _, event in unbroken.moments if "before " in event}
    assert events == {"bank", "token", "optimizer step", "sync", "rename"}
    assert {phase for phase, _ in unbroken.moments} >= set(PHASES)


def in_phase(phase):
    return lambda moment: moment[0] == phase


def at_event(*events):
    return lambda moment: moment[1] in events


# Of the moments that a condition holds for, one is drawn; of those of a phase, two.
KILLS = [
    *((f"{phase} {place}", in_phase(phase), place) for phase in PHASES for place in range(2)),
    ("half a file 0", at_event("before sync"), 0),
    ("half a file 1", at_event("before sync"), 1),
    ("whole file without its name", lambda moment: moment[1].startswith("before rename"), 0),
    ("outer SFT", lambda moment: moment == ("fitted", "after optimizer step"), 0),
    ("policy before its name", at_event("before rename to policy/round_000", "before rename to policy/round_001"), 0),
    ("policy before the state", at_event("after rename to policy/round_000", "after rename to policy/round_001"), 0),
    ("journal before its banks go", lambda moment: moment[1] == "after rename to journal/round_001.jsonl", 0),
    ("any moment", lambda moment: True, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "place"), [kill[1:] for kill in KILLS], ids=[kill[0] for kill in KILLS])
def test_a_killed_run_goes_on(unbroken, tmp_path, request, condition, place):
    matching = [number for number, moment in enumerate(unbroken.moments) if condition(moment)]
    # The test's own draws, whichever tests are run.
    draws = random.Random(re.sub(r" \d]", "]", request.node.name))
    number = draws.sample(matching, min(2, len(matching)))[place]
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    killed = in_child(log, run_with_moments, output_dir, tmp_path / "moments", number)
    assert killed == KILLED, log.read_text()
    assert read_moments(tmp_path / "moments") == unbroken.moments[: number + 1]

    missing, kept = unscored(output_dir, unbroken.trials), times_of_results(output_dir)
    assert in_child(log, run, output_dir, resume=True, record=record) == 0, log.read_text()
    assert noted_trials(record) == missing
    assert times_of_results(output_dir).items() >= kept.items()
    assert results(output_dir) == unbroken.results


def times_of_results(output_dir):
    """When each finished file was written, except for those that are drawn up anew with every round."""
    return {
        name: (output_dir / name).stat().st_mtime_ns
        for name in results(output_dir)
        if "/" in name and not name.startswith("self_edits/") and ".partial" not in name
    }


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(unbroken, tmp_path):
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    draws, num_lives, code = random.Random(5), 0, KILLED
    while code == KILLED:
        # More moments than the longest piece of work has that cannot be resumed, a fit.
        kill_at = draws.randrange(50, 200)
        code = in_child(log, run_with_moments, output_dir, tmp_path / "moments", kill_at, resume=True, record=record)
        num_lives += 1
        assert num_lives < 30
    assert code == 0, log.read_text()
    assert num_lives >= 5
    finished = noted_trials(record, "finished")
    assert len(set(finished)) == len(finished) >= 0.9 * len(unbroken.trials)
    assert results(output_dir) == unbroken.results


@pytest.mark.slow
def test_leftovers_of_unfinished_writes_do_no_harm(unbroken, tmp_path):
    output_dir = tmp_path / "run"
    for name in unbroken.results:
        leftover = output_dir / f"{name}.partial"
        if name.startswith("policy/"):
            leftover = output_dir / name.replace("/", ".partial/").replace("policy.partial", "policy")
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_bytes(b'{"schema_version": 1, "rou')
    bank = output_dir / "journal" / "round_000" / "bank_0000.jsonl.partial"
    bank.parent.mkdir(parents=True)
    bank.write_text("{")
    assert in_child(tmp_path / "log", run, output_dir) == 0, (tmp_path / "log").read_text()
    assert results(output_dir) == unbroken.results


@pytest.mark.slow
def test_a_bank_that_lost_its_last_line_is_run_again(unbroken, tmp_path):
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    # All banks are there, their journal is not.
    number = unbroken.moments.index(("scored", "before rename to journal/round_000.jsonl"))
    assert in_child(log, run_with_moments, output_dir, tmp_path / "moments", number) == KILLED
    bank = output_dir / "journal" / "round_000" / "bank_0001.jsonl"
    content = bank.read_bytes()
    bank.write_bytes(content[: content.rindex(b"}")])
    assert in_child(log, run, output_dir, resume=True, record=record) == 0, log.read_text()
    begun = [trial for trial in noted_trials(record) if trial[:2] == ("training", 0)]
    assert len(begun) == 2  # the bank's two adapters, and no other bank
    assert results(output_dir) == unbroken.results


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "proposals/round_000.jsonl",
        "journal/round_000/bank_0002.jsonl",
        "self_edits/round_000.parquet",
        "policy/round_000",
        "trainer_state.json",
    ],
)
def test_a_full_disk_is_named_and_the_run_goes_on(unbroken, tmp_path, name):
    output_dir, log = tmp_path / "run", tmp_path / "log"
    events = [event for _, event in unbroken.moments]
    renamed = events.index(f"before rename to {name}")
    full_at = max(number for number in range(renamed) if events[number] == "before sync")
    assert in_child(log, run_with_moments, output_dir, tmp_path / "moments", full_at=full_at) == 1
    assert f"OSError: [Errno {errno.ENOSPC}] {output_dir / name}" in log.read_text()
    assert "could not be written (No space left on device); make room or give another output_dir" in log.read_text()
    missing, kept = unscored(output_dir, unbroken.trials), times_of_results(output_dir)
    assert in_child(log, run, output_dir, resume=True, record=tmp_path / "record") == 0, log.read_text()
    assert noted_trials(tmp_path / "record") == missing
    assert times_of_results(output_dir).items() >= kept.items()
    assert results(output_dir) == unbroken.results
