"""trainers/configs/slurm/seal.sbatch with stand-ins for SLURM's commands and for accelerate."""

import os
import subprocess

import pytest

from helpers.folders import ROOT, TRAINERS


SCRIPT = TRAINERS / "configs" / "slurm" / "seal.sbatch"
STAND_INS = {
    "scontrol": "echo node7; echo node8",
    # As on both machines of a job, one after the other.
    "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit $?; done',
    "accelerate": 'echo "$@"; case "$*" in *"$FAILS_AT"*) exit 3;; esac',
}


def submitted(folder, fails_at="never"):
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "FAILS_AT": fails_at,
    }
    command = ["bash", str(SCRIPT), "my run.yaml", "outputs/my run", "2"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    done = submitted(tmp_path_factory.mktemp("bin"))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rounds_and_their_sfts_take_turns_on_both_machines(lines):
    modules = [line.partition(" -m ")[2].split()[0] for line in lines]
    turns = ["trainers.knowledge", "trainers.sft"] * 2 + ["trainers.knowledge"]
    assert modules == [module for module in turns for _ in range(2)]
    for number, line in enumerate(lines):
        assert f"--num_machines 2 --num_processes 8 --machine_rank {number % 2} --main_process_ip node7" in line


def test_the_commands_name_the_run(lines):
    run = "--output_dir outputs/my run --num_rounds 2 --separate_sft true --resume_from_checkpoint true"
    assert lines[0].endswith(f"many_gpus.yaml -m trainers.knowledge --config my run.yaml {run}")
    assert lines[2].endswith("fsdp2.yaml -m trainers.sft outputs/my run")
    for line in lines:
        assert (ROOT / line.partition("--config_file ")[2].split()[0]).is_file()


def test_a_failure_ends_the_job(tmp_path):
    ended = submitted(tmp_path, fails_at="trainers.sft")
    assert ended.returncode == 3
    assert ended.stdout.count("trainers.sft") == 1 and ended.stdout.count("trainers.knowledge") == 2
