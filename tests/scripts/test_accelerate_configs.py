"""The configs of accelerate that ship: accelerate reads them, and they start as many processes as they say."""

import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from helpers.folders import TRAINERS


FOLDER = TRAINERS / "configs" / "accelerate"
# How each starts: with which of accelerate's launchers, on how many machines, and with how many processes in all.
CONFIGS = {
    "cpu": ("multi_gpu", 1, 2),
    "one_gpu": (None, 1, 1),
    "many_gpus": ("multi_gpu", 1, 8),
    "multi_node": ("multi_gpu", 2, 16),
    "fsdp2": ("use_fsdp", 1, 8),
    "zero3": ("use_deepspeed", 1, 8),
}


def test_every_config_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_it(name):
    path = str(FOLDER / f"{name}.yaml")
    load_config_from_file(path)  # raises for unknown keys
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", path, "script.py"]))
    launchers = [launcher for launcher in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(args, launcher)]
    assert (launchers, args.num_machines, args.num_processes) == (
        [launcher for launcher in [CONFIGS[name][0]] if launcher],
        *CONFIGS[name][1:],
    )
    assert not args.use_cpu and args.mixed_precision == "no"
    if name == "fsdp2":
        assert (args.fsdp_version, args.fsdp_reshard_after_forward, args.fsdp_cpu_ram_efficient_loading) == (
            2,
            True,
            True,
        )
    if name == "zero3":
        assert (args.zero_stage, args.zero3_init_flag) == (3, True)


@pytest.mark.slow
def test_the_one_for_the_cpu_starts_two_processes():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu.yaml")]
    started = subprocess.run([*command, "--no_python", "env"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    lines = started.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("RANK=")) == ["RANK=0", "RANK=1"]
    assert lines.count("WORLD_SIZE=2") == 2
