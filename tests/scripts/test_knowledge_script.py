"""trainers/knowledge.py as a user runs it, on a tiny model in a folder."""

import hashlib
import importlib
import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from trl import TrlParser, get_peft_config, get_quantization_config

from helpers.folders import TRAINERS
from helpers.hub_server import Repo
from helpers.reported_runs import read_table
from helpers.scripts import run_main
from helpers.tiny_models import save_tiny_model
from seal_hf import SEALConfig
from seal_hf.domains import shuffle_passages
from trainers.outer_loop import PolicyModelConfig


CONFIGS = sorted(path for path in (TRAINERS / "configs").glob("*.yaml") if not path.stem.startswith("arc-"))


def run_script(*arguments):
    command = [sys.executable, str(TRAINERS / "knowledge.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration file like those that ship, for a tiny model and three passages."""
    folder = tmp_path_factory.mktemp("script")
    save_tiny_model(folder / "model")
    passages = [
        {"title": name, "context": f"{name} keeps bees.", "questions": [{"question": "Who?", "answer": name}]}
        for name in ("Ann\u2028", "Bob", "Cleo")
    ]
    (folder / "train.json").write_text(json.dumps(passages))
    (folder / "test.json").write_text(json.dumps(passages[1:]))
    options = {
        "model_name_or_path": str(folder / "model"),
        "dtype": "float32",
        "output_dir": str(folder / "run"),
        "dataset_name": str(folder / "train.json"),
        "eval_dataset_name": str(folder / "test.json"),
        "num_train_passages": 2,
        "num_eval_passages": 1,
        "prompt_style": "rewrite",
        "num_generations": 3,
        "max_completion_length": 12,
        "max_answer_length": 6,
        "inner_num_train_epochs": 2,
        "inner_lora_r": 2,
        "num_repeats": 1,
        "min_reward": 0.0,  # a random model earns nothing
        "num_rounds": 1,
        "examples_per_round": 0,
        "sft_batch_size": 2,
        "gradient_checkpointing": False,
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return folder / "config.yaml"


def test_options_of_a_policy_adapter_that_is_not_used_are_refused():
    with pytest.raises(ValueError, match="--lora_r 4 counts with --use_peft alone"):
        knowledge_options("--lora_r", "4")
    assert knowledge_options("--lora_r", "4", "--use_peft").lora_r == 4
    assert knowledge_options("--lora_r", "64").lora_r == 64  # what it is anyway


def knowledge_options(*arguments):
    return TrlParser(PolicyModelConfig).parse_args_and_config(list(arguments))[0]


@pytest.fixture(scope="module")
def done(config):
    return run_script("--config", config, "--num_generations", 2)


@pytest.mark.slow
def test_script_trains(done, config):
    assert done.returncode == 0, done.stderr
    folder = config.parent / "run"
    # The command line goes before the file.
    assert json.loads((folder / "run.json").read_text())["settings"]["num_generations"] == 2
    assert len((folder / "journal" / "round_000.jsonl").read_text(encoding="utf-8").split("\n")) == 2 * 2 + 1
    rows = read_table(done.stdout, "condition")
    assert list(rows[0])[:4] == ["condition", "accuracy", "per question", "strict"]
    measured = [f"{name} {when} round 1" for when in ("before", "after") for name in ("passage only", "self-edits")]
    assert [row["condition"] for row in rows] == [
        *("base", "recitation, base", "passage in context"),
        *(row for name in measured for row in (name, f"recitation, {name}")),
    ]
    assert "| 1     |        2 |          4 |" in done.stdout
    assert done.stdout.split("\n\n")[-1] == f"The policy adapter, the journal and rewards.png are in {folder}.\n"

    assert (folder / "rewards.png").read_bytes().startswith(b"\x89PNG")
    weights = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}
    assert all(4 in weight.shape for weight in weights.values())
    assert any(torch.any(weight != 0) for name, weight in weights.items() if "lora_B" in name)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_script_resumes(done, config):
    assert done.returncode == 0, done.stderr
    folder = config.parent / "run"
    records = [path for path in folder.rglob("*") if path.suffix in (".jsonl", ".png") or "policy" in path.parts]
    before = {path: path.stat().st_mtime_ns for path in records}
    again = run_script("--config", config, "--num_generations", 2, "--resume_from_checkpoint", "true")
    assert again.returncode == 0, again.stderr
    end = done.stdout.index("| round")
    assert again.stdout.endswith(done.stdout[end:])
    assert {path: path.stat().st_mtime_ns for path in records} == before


def row_of(lines, name):
    """The cells of a plan's row."""
    (row,) = [line for line in lines if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in row.split("|")[1:-1]]


@pytest.mark.slow
def test_script_prints_its_plan(config, tmp_path):
    planned = run_main(
        TRAINERS / "knowledge.py", "--config", config, "--output_dir", tmp_path / "run", "--num_rounds", 3, "--dry_run"
    )
    assert planned.returncode == 0, planned.stderr
    lines = planned.stdout.splitlines()
    assert "rounds: 3, examples: 2, evaluated on: 1, processes: 1; left to be done:" in lines
    assert [row_of(lines, name)[:4] for name in ("round 3", "evaluations", "all")] == [
        ["round 3", "6", "6", "~6"],
        ["evaluations", "4", "8", "~2"],
        ["all", "22", "26", "~6"],
    ]
    assert row_of(lines, "all")[-1] == "6"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_script_needs_no_questions_where_no_reward_looks_at_labels(config, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"title": "{name}", "context": "{name} keeps bees."}}\n' for name in ("Ann", "Bob")))
    script = [TRAINERS / "knowledge.py", "--config", config, "--output_dir", tmp_path / "run", "--dataset_name", texts]
    planned = run_main(*script, "--dry_run", "--reward_funcs", "rubric")
    assert planned.returncode == 0, planned.stderr
    assert row_of(planned.stdout.splitlines(), "round 1")[:3] == ["round 1", "6", "0"]
    asking = texts.with_name("asking.jsonl")
    asking.write_text(texts.read_text().replace('bees."}', 'bees.", "questions": [{"question": "Who keeps bees?"}]}'))
    planned = run_main(*script[:-1], asking, "--dry_run", "--reward_funcs", "self_consistency")
    assert planned.returncode == 0, planned.stderr
    assert row_of(planned.stdout.splitlines(), "round 1")[:3] == ["round 1", "6", "6"]
    labelled = run_main(*script, "--dry_run", "--reward_funcs", "rubric", "accuracy", "--reward_weights", 1, 0)
    assert labelled.returncode == 1 and "line 1: no questions" in labelled.stderr
    unknown = run_main(*script, "--dry_run", "--reward_funcs", "rubrics")
    assert unknown.returncode == 1 and "reward_funcs=['rubrics'] must be one or more of" in unknown.stderr


@pytest.mark.slow
def test_script_goes_on_with_a_run_from_the_hub(done, config, hub, token, tmp_path, monkeypatch):
    assert done.returncode == 0, done.stderr
    here = config.parent / "run"
    pushed = {f"last-checkpoint/{path.relative_to(here).as_posix()}": path for path in here.rglob("*.*")}
    repo_id = "tester/bees"
    hub.add_repo(Repo(repo_id, private=True), {name: path.read_bytes() for name, path in pushed.items()})
    monkeypatch.setenv("HF_TOKEN", token)
    there = tmp_path / "there"
    options = ["--output_dir", there, "--num_generations", 2, "--num_rounds", 2, "--hub_model_id", repo_id]
    options += ["--push_to_hub", "--hub_strategy", "checkpoint", "--resume_from_checkpoint", "last-checkpoint"]
    again = run_script("--config", config, *options)
    assert again.returncode == 0, again.stderr
    assert f"The run of {repo_id} at " in again.stderr and f"is now in {there}." in again.stderr
    assert "| self-edits after round 2 " in again.stdout
    journals = [folder / "journal" / "round_000.jsonl" for folder in (here, there)]
    assert journals[0].read_bytes() == journals[1].read_bytes()
    assert hub.repo(repo_id).private
    assert hub.files(repo_id)["last-checkpoint/journal/round_001.jsonl"]
    assert hub.files(repo_id)["adapter_model.safetensors"] == (there / "adapter_model.safetensors").read_bytes()
    assert token not in again.stdout + again.stderr


def test_dry_run_asks_nothing_of_the_hub(knowledge, config, hub, tmp_path, capsys):
    hub.stop()
    pushing = ["--push_to_hub", "--hub_model_id", "tester/bees", "--hub_token", "hf_NeverSent"]
    options = ["--output_dir", tmp_path / "run", *pushing, "--hub_strategy", "checkpoint", "--dry_run"]
    knowledge.main(*parse(knowledge, "--config", config, *options))
    assert "rounds: 1, examples: 2, evaluated on: 1, processes: 1" in capsys.readouterr().out
    hub.start()
    knowledge.main(*parse(knowledge, "--config", config, *options))
    assert hub.log == [] and hub.repos == {}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_wrong_setting_is_one_sentence(config, tmp_path):
    failed = run_main(
        TRAINERS / "knowledge.py", "--config", config, "--output_dir", tmp_path / "run", "--keep_best", 0
    )
    assert failed.returncode == 1
    assert (
        failed.stderr.strip().splitlines()[-1] == "error: keep_best=0 must be a whole number of at least 1, or None."
    )
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def knowledge():
    return importlib.import_module("trainers.knowledge")


def parse(knowledge, *arguments):
    parser = TrlParser((knowledge.KnowledgeArguments, SEALConfig, knowledge.PolicyModelConfig))
    return parser.parse_args_and_config(list(map(str, arguments)))


def test_configurations_ship():
    assert {path.stem for path in CONFIGS} >= {"small", "results"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_parses(path, knowledge):
    options = yaml.safe_load(path.read_text())
    parsed = {}
    for part in parse(knowledge, "--config", path):
        parsed |= vars(part)
    assert {name: parsed[name] for name in options} == options


def test_configuration_in_4_bits(knowledge):
    _, args, model = parse(knowledge, "--config", TRAINERS / "configs" / "qwen2.5-7b.yaml")
    assert (args.num_generations, args.num_repeats, args.num_rounds, args.keep_best) == (5, 3, 2, 1)
    quantization = get_quantization_config(model)
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    assert get_peft_config(model) is None  # the trainer's own default: rank 64 on all linear layers


def test_paper_configuration_is_the_paper_s(knowledge, tmp_path, monkeypatch):
    config = TRAINERS / "configs" / "paper.yaml"
    _, args, model = parse(knowledge, "--config", config)
    assert (args.num_generations, args.temperature, args.top_p, args.max_completion_length) == (5, 1.0, 0.95, 8192)
    inner, shape = args.inner_config(), args.inner_peft_config()
    assert (inner.learning_rate, inner.num_train_epochs, inner.batch_size, inner.max_length) == (1e-3, 10, 1, 2048)
    assert (inner.lr_scheduler_type, inner.warmup_steps, inner.max_grad_norm) == ("linear", 0.0, 1.0)
    assert (shape.r, shape.lora_alpha, shape.target_modules) == (32, 64, {"q_proj", "v_proj"})
    assert (args.num_repeats, args.num_eval_generations, args.max_answer_length, args.keep_best) == (3, 1, 64, 1)
    assert (args.num_rounds, args.examples_per_round, args.sft_on) == (2, 50, "round")
    assert (args.learning_rate, args.num_train_epochs, args.sft_batch_size) == (3e-4, 2, 10)
    policy = get_peft_config(model)
    assert (policy.r, policy.lora_alpha, policy.lora_dropout, len(policy.target_modules)) == (64, 128, 0.0, 7)
    assert get_quantization_config(model) is None and model.model_name_or_path == "Qwen/Qwen2.5-7B"

    def trainer(**options):
        raise _Seen(options)

    rows = [
        {
            "title": f"Bee {number}",
            "context": "Bees hum.",
            "questions": [{"question": "Who?", "answer": "Bees"}],
            "split": "train" if number < 150 else "validation",
        }
        for number in range(400)
    ]
    data = tmp_path / "squad.json"
    data.write_text(json.dumps(rows))
    monkeypatch.setattr("trainers.outer_loop.SEALTrainer", trainer)
    with pytest.raises(_Seen) as seen:
        knowledge.main(*parse(knowledge, "--config", config, "--dataset_name", data, "--output_dir", tmp_path))
    (options,) = seen.value.args
    assert options["train_dataset"] == shuffle_passages(rows[:150], 42)[:100]
    assert options["eval_dataset"] == shuffle_passages(rows[150:], 42)[:200]
    domain = options["domain"]
    assert (domain.chat, domain.split_newlines, domain.answer_prompt) == (False, True, "paper")
    assert (domain.grader.model, domain.grader.prompt) == ("gpt-4.1", "paper")
    # Of what the paper's code makes of this passage.
    prompt = domain.prompt({"title": "{title}", "context": "{context}"})
    digest = "fb6da5330c54363125b3239eb33eb5c435634f9b5745a5fa5bf1d56a90b9c27b"
    assert hashlib.sha256(prompt.encode()).hexdigest() == digest


class _Seen(Exception):
    pass


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], None), (["true"], True), (["True"], True), (["false"], None), (["outputs/bees"], "outputs/bees")],
    ids=str,
)
def test_resume_option(given, expected, knowledge, config, monkeypatch):
    class Trainer:
        def __init__(self, **options):
            pass

        def train(self, resume_from_checkpoint=None):
            raise _Seen(resume_from_checkpoint)

    monkeypatch.setattr("trainers.outer_loop.SEALTrainer", Trainer)
    options = ["--resume_from_checkpoint", *given] if given else []
    with pytest.raises(_Seen) as seen:
        knowledge.main(*parse(knowledge, "--config", config, *options))
    (resume,) = seen.value.args
    assert (resume or None) == expected


def test_model_options_reach_the_trainer(knowledge, config, monkeypatch):
    def trainer(**options):
        raise _Seen(options)

    monkeypatch.setattr("trainers.outer_loop.SEALTrainer", trainer)
    given = ["--model_revision", "v2", "--split_newlines", "false", "--answer_prompt", "paper"]
    given += ["--answers_questions", "true", "--sets_training", "true"]
    with pytest.raises(_Seen) as seen:
        knowledge.main(*parse(knowledge, "--config", config, *given))
    (options,) = seen.value.args
    assert options["args"].model_init_kwargs == {"dtype": "float32", "revision": "v2"}
    assert options["model"] == str(config.parent / "model")
    assert options["peft_config"].r == 4 and options["quantization_config"] is None
    assert options["domain"].prompt_style == "rewrite" and not options["domain"].split_newlines
    assert options["domain"].answer_prompt == "paper" and options["domain"].answers_questions is True
    assert options["domain"].sets_training is True
    assert [len(options[name]) for name in ("train_dataset", "eval_dataset")] == [2, 1]
