"""SEALConfig: the paper's values, refusals that name the field, and the command line."""

import ast
import dataclasses
import math
import re

import pytest
import torch
from peft import LoraConfig
from trl import SFTConfig, TrlParser

from seal_hf import SEALConfig
from seal_hf.generation.vllm_engine import VLLMColocateConfig
from seal_hf.generation.vllm_options import vllm_arguments
from seal_hf.inner_loop.update import InnerLoopConfig


# SEAL, section 4.2 and appendix B; what the paper does not say is this project's choice.
DEFAULTS = {
    "num_generations": 5,
    "num_drafts": 1,
    "num_eval_drafts": None,
    "temperature": 1.0,
    "top_p": 0.95,
    "max_completion_length": 2048,  # not the paper's 8192: see the field
    "use_vllm": False,
    "vllm_mode": "server",
    "vllm_server_base_url": "http://127.0.0.1:8000",
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_enable_sleep_mode": False,
    "inner_learning_rate": 1e-3,
    "inner_num_train_epochs": 10,
    "inner_batch_size": 1,
    "inner_lora_r": 32,
    "inner_lora_alpha": 64,
    "inner_target_modules": None,
    "inner_max_length": 2048,
    "inner_add_eos_token": True,
    "inner_lr_scheduler_type": "linear",
    "inner_warmup_steps": 0,
    "inner_max_grad_norm": 1.0,
    "inner_gradient_checkpointing": False,
    "chat_template_kwargs": None,
    "student": "policy",
    "adapters_per_bank": None,
    "num_repeats": 3,
    "max_answer_length": 64,
    "num_eval_generations": 1,
    "reward_funcs": ["accuracy"],
    "reward_weights": None,
    "num_instructions_shown": 4,
    "keep_best": 1,
    "min_reward": None,
    "drop_zero_std": False,
    "num_rounds": 2,
    "examples_per_round": None,
    "sft_on": "round",
    "sft_batch_size": 10,
    "separate_sft": False,
    "shard_base": False,
    "learning_rate": 3e-4,
    "num_train_epochs": 2.0,
    "max_length": 2048,
    "logging_steps": 1,
    "ddp_timeout": 21600,
    "restore_callback_states_from_checkpoint": True,
}


@pytest.fixture
def config(tmp_path):
    return lambda **options: SEALConfig(str(tmp_path), **{"bf16": False, **options})


@pytest.fixture
def parse(tmp_path):
    def parse(*arguments):
        parser = TrlParser((SEALConfig,))
        (parsed,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), "--bf16", "false", *arguments])
        return parsed

    return parse


def test_defaults_are_the_papers(tmp_path):
    config = SEALConfig(str(tmp_path))
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert set(SEALConfig.__annotations__) == set(DEFAULTS)


def test_a_vllm_server_is_an_option(parse):
    parsed = parse("--use_vllm", "--vllm_server_base_url", "http://server:9000")
    assert vllm_arguments(parsed) == {"vllm_server_base_url": "http://server:9000"}
    assert vllm_arguments(parse()) == {}


def test_an_engine_of_vllm_is_an_option(parse):
    options = ("--vllm_mode", "colocate", "--vllm_gpu_memory_utilization", "0.5", "--vllm_enable_sleep_mode")
    assert vllm_arguments(parse("--use_vllm", *options)) == {"vllm_colocate": VLLMColocateConfig(0.5, True)}
    assert vllm_arguments(parse(*options)) == {}


def test_every_field_is_documented():
    for field in dataclasses.fields(SEALConfig):
        if field.name not in DEFAULTS:
            continue
        assert field.metadata["help"].endswith(".")
        (documented,) = re.findall(rf"^        {field.name} \((.*)\):$", SEALConfig.__doc__, re.MULTILINE)
        shown = re.search(r"defaults to `(.*)`", documented)
        if DEFAULTS[field.name] is None:
            assert shown is None
        else:
            assert ast.literal_eval(shown.group(1)) == DEFAULTS[field.name]


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        *((name, 0, "must be a whole number of at least 1.") for name in ("num_generations", "max_completion_length")),
        *((name, 0, "must be a whole number of at least 1.") for name in ("num_repeats", "max_answer_length")),
        *((name, -1, "must be a whole number of at least 1.") for name in ("num_eval_generations", "num_rounds")),
        *((name, 0, "must be a whole number of at least 1.") for name in ("sft_batch_size", "inner_lora_r")),
        ("adapters_per_bank", 0, "must be a whole number of at least 1, or None."),
        ("keep_best", 0, "must be a whole number of at least 1, or None."),
        ("num_eval_drafts", 0, "must be a whole number of at least 1, or None."),
        ("num_generations", 2.5, "must be a whole number of at least 1."),
        ("keep_best", "2", "must be a whole number of at least 1, or None."),
        ("vllm_mode", "alone", "must be 'server' or 'colocate'."),
        *(("vllm_gpu_memory_utilization", share, "must be above 0 and at most 1.") for share in (0.0, 1.5)),
        ("keep_best", -2, "must be a whole number of at least 1, or None."),
        ("examples_per_round", -1, "must be a whole number of at least 0, or None."),
        ("min_reward", -0.1, "must be a share from 0 to 1, or None."),
        ("min_reward", 1.01, "must be a share from 0 to 1, or None."),
        ("min_reward", math.nan, "must be a share from 0 to 1, or None."),
        ("min_reward", math.inf, "must be a share from 0 to 1, or None."),
        ("sft_on", "both", "must be 'round' or 'all'."),
        ("gradient_accumulation_steps", 2, "set sft_batch_size"),
        ("num_train_epochs", 0, "must be a whole number of at least 1."),
        ("num_train_epochs", 1.5, "must be a whole number of at least 1."),
        ("num_train_epochs", -1.0, "must be a whole number of at least 1."),
        ("max_steps", 3, "set num_rounds and num_train_epochs."),
        ("temperature", 0.0, "must be above 0"),
        ("temperature", -1.0, "must be above 0"),
        ("temperature", math.nan, "must be above 0"),
        ("top_p", 0.0, "must be above 0 and at most 1."),
        ("top_p", 1.1, "must be above 0 and at most 1."),
        ("inner_learning_rate", 0.0, "must be a number above 0"),
        ("inner_learning_rate", math.nan, "must be a number above 0"),
        ("inner_num_train_epochs", 0, "must be a whole number of at least 1."),
        ("inner_batch_size", 0, "must be a whole number of at least 1."),
        ("inner_max_length", 1, "must be a whole number of at least 2."),
        ("inner_lr_scheduler_type", "polynomial", "must be one of linear, cosine, constant."),
        ("inner_warmup_steps", 1.5, "must be a whole number, or a share from 0 to below 1."),
        ("inner_max_grad_norm", -1.0, "must be 0 (no clipping) or more."),
    ],
)
def test_a_value_out_of_range_is_named_with_the_remedy(config, field, value, remedy):
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    message = str(error.value)
    assert message.startswith((f"{field}={value!r} ", f"{field}={value} "))
    assert remedy in message


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_joined_rows_are_refused(config, option):
    with pytest.raises(ValueError, match=f"{option}.* not supported by SEALTrainer; leave them off"):
        config(**{option: True})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_epochs_that_are_no_number_are_named(config, value):
    with pytest.raises(ValueError, match="num_train_epochs="):
        config(num_train_epochs=value)


def test_a_batch_of_no_rows_is_named(config):
    with pytest.raises(ValueError, match="per_device_train_batch_size=0"):
        config(per_device_train_batch_size=0)


@pytest.mark.parametrize(
    "options",
    [
        {"keep_best": None, "adapters_per_bank": 1, "min_reward": 0.0},
        {"min_reward": 1.0, "top_p": 1.0, "temperature": 1e-3, "sft_on": "all"},
        {"num_repeats": 1, "keep_best": None},
        {"num_train_epochs": 1, "inner_max_grad_norm": 0.0, "inner_warmup_steps": 11.0, "inner_max_length": 2},
    ],
)
def test_the_ends_of_the_ranges_are_taken(config, options):
    made = config(**options)
    assert {name: getattr(made, name) for name in options} == options


def test_inner_config_has_every_field(config):
    values = {
        "learning_rate": 5e-4,
        "num_train_epochs": 7,
        "batch_size": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.25,
        "max_grad_norm": 0.5,
        "max_length": 99,
        "add_eos_token": False,
    }
    assert set(values) == {field.name for field in dataclasses.fields(InnerLoopConfig)}
    made = config(**{f"inner_{name}": value for name, value in values.items()}).inner_config()
    assert made == InnerLoopConfig(**values)
    assert config().inner_config() == InnerLoopConfig()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, None),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["all-linear"], "all-linear"),
        ("all-linear", "all-linear"),
    ],
)
def test_inner_peft_config_has_every_field(config, targets, expected):
    made = config(inner_lora_r=5, inner_lora_alpha=7, inner_target_modules=targets).inner_peft_config()
    assert (made.r, made.lora_alpha, made.lora_dropout, made.target_modules) == (5, 7, 0.0, expected)
    plain = LoraConfig(r=5, lora_alpha=7, target_modules=expected)
    assert made.to_dict() == plain.to_dict()


def test_without_an_accelerator_the_cpu_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = SEALConfig(str(tmp_path))
    assert (config.use_cpu, config.bf16, config.device.type) == (True, True, "cpu")
    assert SEALConfig(str(tmp_path), bf16=False).bf16 is False


def test_with_an_accelerator_the_user_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert SEALConfig(str(tmp_path), bf16=False).use_cpu is False
    assert SEALConfig(str(tmp_path), bf16=False, use_cpu=True).use_cpu is True


def test_it_is_an_sft_config(config):
    assert isinstance(config(weight_decay=0.25), SFTConfig)
    assert config(weight_decay=0.25).weight_decay == 0.25


def test_command_line_without_flags_gives_the_defaults(parse):
    parsed = parse()
    assert {name: getattr(parsed, name) for name in DEFAULTS} == DEFAULTS


def test_command_line(parse):
    parsed = parse(
        *("--num_generations", "3", "--temperature", "0.5"),
        *("--inner_learning_rate", "2e-4", "--inner_target_modules", "q_proj", "v_proj"),
        *("--adapters_per_bank", "4", "--keep_best", "2", "--min_reward", "0.5", "--drop_zero_std"),
        *("--sft_on", "all", "--weight_decay", "0.25"),
    )
    changed = {
        "num_generations": 3,
        "temperature": 0.5,
        "inner_learning_rate": 2e-4,
        "inner_target_modules": ["q_proj", "v_proj"],
        "adapters_per_bank": 4,
        "keep_best": 2,
        "min_reward": 0.5,
        "drop_zero_std": True,
        "sft_on": "all",
    }
    assert {name: getattr(parsed, name) for name in DEFAULTS} == DEFAULTS | changed
    assert parsed.weight_decay == 0.25


def test_none_on_the_command_line(parse):
    parsed = parse("--keep_best", "None", "--adapters_per_bank", "None", "--min_reward", "None")
    assert (parsed.keep_best, parsed.adapters_per_bank, parsed.min_reward) == (None, None, None)


def test_yaml_file(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "num_generations: 3\ninner_learning_rate: 2e-4\ninner_target_modules: [q_proj, v_proj]\nkeep_best: null\n"
        "drop_zero_std: true\nsft_on: all\n"
    )
    parsed = parse("--config", str(file), "--num_generations", "4")
    changed = {
        "num_generations": 4,  # the command line has the last word
        "inner_learning_rate": 2e-4,  # YAML reads 2e-4 as text
        "inner_target_modules": ["q_proj", "v_proj"],
        "keep_best": None,
        "drop_zero_std": True,
        "sft_on": "all",
    }
    assert {name: getattr(parsed, name) for name in DEFAULTS} == DEFAULTS | changed


def test_unknown_name_in_a_yaml_file_is_refused(parse, tmp_path):
    (tmp_path / "run.yaml").write_text("num_generation: 3\n")
    with pytest.raises(ValueError, match="num_generation"):
        parse("--config", str(tmp_path / "run.yaml"))


def test_a_bad_value_on_the_command_line_is_named(parse):
    with pytest.raises(ValueError, match="^inner_batch_size=0 must be a whole number of at least 1"):
        parse("--inner_batch_size", "0")


def test_help_names_every_field(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in DEFAULTS if f"--{name} " not in shown and f"--{name}\n" not in shown] == []
