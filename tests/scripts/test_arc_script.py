"""trainers/arc.py as a user runs it, on a tiny model in a folder."""

import importlib
import json
import re

import pytest
import yaml
from trl import TrlParser

from helpers.folders import TRAINERS
from helpers.scripts import run_main
from helpers.tiny_models import save_tiny_model
from seal_hf import SEALConfig
from seal_hf.domains.arc.generated import generate_tasks


CONFIGS = sorted((TRAINERS / "configs").glob("arc-*.yaml"))
QUICK = {
    "dtype": "float32",
    "num_train_tasks": 2,
    "num_eval_tasks": 1,
    "num_generations": 2,
    "max_completion_length": 8,
    "max_training_tasks": 2,
    "inner_lora_r": 2,
    "inner_max_length": 4096,
    "max_length": 4096,
    "num_repeats": 1,
    "num_rounds": 1,
    "min_reward": 1.0,
    "gradient_checkpointing": "false",
    "bf16": "false",
    "report_to": "none",
}


@pytest.fixture(scope="module")
def arc():
    return importlib.import_module("trainers.arc")


def parse(arc, *arguments):
    parser = TrlParser((arc.ArcArguments, SEALConfig, arc.PolicyModelConfig))
    return parser.parse_args_and_config(list(map(str, arguments)))


def options(**changes):
    return [part for name, value in {**QUICK, **changes}.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("arc") / "model")


def test_a_run_on_generated_tasks(model, tmp_path):
    own = options(model_name_or_path=model, output_dir=tmp_path / "run")
    result = run_main(TRAINERS / "arc.py", *own)
    assert result.returncode == 0, result.stderr
    # A random model writes no JSON: what is malformed earns what the model without an adapter does.
    # Round, tasks, self-edits, well-formed, kept.
    assert re.search(r"\| 1 +\| +2 \| +4 \| +0 \| +0 \|", result.stdout)
    for row in ("base", "all tools before round 1", "self-edits before round 1", "self-edits after round 1"):
        assert f"| {row} " in result.stdout
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal" / "round_000.jsonl").open(encoding="utf-8")]
    assert len(journal) == 4 and not any(one["well_formed"] for one in journal)
    evaluated = [
        json.loads(line)
        for line in (tmp_path / "run" / "evaluation" / "journal" / "round_000.jsonl").open(encoding="utf-8")
    ]
    (by_hand,) = [one for one in evaluated if one["condition"] == "all tools"]
    assert by_hand["well_formed"] and len(by_hand["repeats"][0]["verdicts"]) == 1


def test_a_plan(model, tmp_path):
    own = options(model_name_or_path=model, output_dir=tmp_path / "run", dry_run="true")
    result = run_main(TRAINERS / "arc.py", *own)
    assert result.returncode == 0, result.stderr
    assert "rounds: 1, examples: 2" in result.stdout and not (tmp_path / "run" / "journal").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_parse(path, arc):
    given = yaml.safe_load(path.read_text())
    parsed = {}
    for part in parse(arc, "--config", path):
        parsed |= vars(part)
    assert {name: parsed[name] for name in given} == given
    assert {one.stem for one in CONFIGS} == {"arc-paper", "arc-small"}


def test_the_papers_tasks(arc):
    own, *_ = parse(arc, "--config", TRAINERS / "configs" / "arc-paper.yaml")
    tasks = arc.load(own.dataset_name, "train", None, None, own.task_ids, own.rules, 0)
    assert [task["id"] for task in tasks] == own.task_ids and len(tasks) == 11
    assert len(arc.load(own.dataset_name, "evaluation", None, None, own.eval_task_ids, own.rules, 0)) == 8


def test_tasks_of_a_file(arc, tmp_path):
    file = tmp_path / "tasks.json"
    file.write_text(
        json.dumps({task["id"]: {key: task[key] for key in ("train", "test")} for task in generate_tasks(5)})
    )
    ids = [task["id"] for task in generate_tasks(5)]
    assert [task["id"] for task in arc.load(str(file), "train", None, 3, [], [], 0)] == ids[:3]
    assert [task["id"] for task in arc.load(str(file), "train", None, None, ids[:2], [], 0)] == ids[:2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_tasks": 0}, "The number of tasks, 0, must be at least 1"),
        ({"dataset_name": "nowhere.json"}, "There is no file nowhere.json; give 'arc-agi-1', 'arc-agi-2' or the path"),
        ({"dataset_name": "arc-agi-1", "task_ids": "00000000"}, "arc-agi-1 has no task 00000000; its tasks are"),
        ({"rules": "spin"}, "There is no rule 'spin'; choose from recolour, flip"),
        ({"max_training_tasks": 0}, "max_tasks=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(model, tmp_path, changes, message):
    own = options(model_name_or_path=model, output_dir=tmp_path / "run", **changes)
    result = run_main(TRAINERS / "arc.py", *own)
    assert result.returncode == 1 and message in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and not (tmp_path / "run").exists()


def test_generated_tasks_need_a_number_and_no_ids(arc):
    with pytest.raises(ValueError, match="are not chosen by their ids, as in flip-0-0; give a number and --rules"):
        arc.load("generated", "train", None, 3, ["flip-0-0"], ["flip"], 0)
    with pytest.raises(ValueError, match="There is no end of generated tasks; give --num_train_tasks"):
        arc.load("generated", "train", None, None, [], ["flip"], 0)
