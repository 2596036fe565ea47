"""The scripts as a user runs them, on a tiny model in a folder."""

import importlib
import json
import subprocess
import sys
from dataclasses import fields

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser

from helpers.folders import ROOT, TRAINERS
from helpers.outer_loop import child_environment
from helpers.processes import TORCHRUN
from helpers.scripts import run_main
from helpers.tiny_models import randomize_lora, save_tiny_model
from seal_hf import Adapter, InnerLoopConfig, SEALConfig
from seal_hf.domains import load_demo_passages, shuffle_passages
from seal_hf.domains.base import SELF_EDITS
from seal_hf.evaluation.conditions import written_in
from seal_hf.records.journal import Journal
from trainers.arguments import load_dataset_argument


NAMES = ("Ann\u2028", "Bob", "Cleo")
PASSAGES = [
    {"title": name, "context": f"{name} keeps bees.", "questions": [{"question": "Who?", "answer": name}]}
    for name in NAMES
]
TINY = ["--dtype", "float32", "--inner_lora_r", "4", "--inner_num_train_epochs", "2", "--max_completion_length", "12"]
TINY += ["--num_generations", "2"]


def run_script(name, *arguments):
    command = [sys.executable, str(TRAINERS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def loaded_script():
    """A script's module in this process, and what parses its options."""

    def load(name):
        module = importlib.import_module(f"trainers.{name}")
        arguments = module.DemoArguments if name == "demo" else module.EvaluationArguments
        return module, lambda *options: HfArgumentParser(arguments).parse_args_into_dataclasses(
            list(map(str, options))
        )[0]

    return load


@pytest.fixture
def evaluation(model, tmp_path):
    """Options of evaluate.py for the tiny model and three passages."""
    dataset = tmp_path / "passages.json"
    dataset.write_text(json.dumps(PASSAGES))
    return [
        *("--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", tmp_path / "results"),
        *("--adapters_per_bank", 3, "--max_answer_length", 8, *TINY),
    ]


@pytest.mark.slow
def test_evaluate(evaluation, loaded_script, tmp_path, capsys):
    folder = tmp_path / "results"
    done = run_script("evaluate.py", *evaluation)
    assert done.returncode == 0, done.stderr
    assert "Evaluation on 3 passages with 3 questions" in done.stdout
    names = ("base", "passage in context", "passage only", "self-edits")
    assert all(f"\n| {name} " in done.stdout for name in names)
    assert "round 1" not in done.stdout  # nothing was trained to write them
    files = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    assert {path.name for path in files} == {"run.json", "round_000.jsonl", "comparison.json"}

    script, parse = loaded_script("evaluate")
    script.main(parse(*evaluation))  # nothing is left to be done
    assert capsys.readouterr().out.split("minutes")[0].rpartition("\n")[0] in done.stdout
    for options, passages, message in (
        (
            ["--inner_learning_rate", 0.5],
            PASSAGES,
            "holds a run with other settings: inner_learning_rate .0.001 there, 0.5",
        ),
        (["--num_passages", 2], PASSAGES, "holds a run with other settings: eval_dataset .'3 examples, "),
        ([], PASSAGES[::-1], "holds a run with other settings: eval_dataset"),
    ):
        (tmp_path / "passages.json").write_text(json.dumps(passages))
        with pytest.raises(ValueError, match=message):
            script.main(parse(*evaluation, *options))
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == files


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, heading", [((), "Evaluation on 3 passages"), (("--dry_run",), "protocol: single_passage")]
)
def test_evaluate_speaks_once_for_all_processes(evaluation, options, heading):
    command = [sys.executable, "-m", *TORCHRUN, str(TRAINERS / "evaluate.py"), *map(str, (*evaluation, *options))]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(heading) == 1


@pytest.mark.parametrize("content", ['{"rows": "of something else"}', "text\n"])
def test_evaluate_keeps_foreign_files(evaluation, loaded_script, tmp_path, content):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text(content)
    script, parse = loaded_script("evaluate")
    with pytest.raises(ValueError, match="run.json is not a run of seal-hf .* give another output_dir"):
        script.main(parse(*evaluation))
    assert (tmp_path / "results" / "run.json").read_text() == content


def test_evaluate_takes_self_edits_from_a_file(evaluation, loaded_script, tmp_path, capsys):
    rows = [
        {"context": one["context"], "completions": [f"{one['title']} has hives.", "Bees hum."]} for one in PASSAGES
    ]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script, parse = loaded_script("evaluate")
    script.main(parse(*evaluation, "--self_edits", tmp_path / "theirs.jsonl"))
    assert "\n| self-edits " in capsys.readouterr().out
    proposals = Journal(tmp_path / "results" / "evaluation").proposals(0)
    written = [(one.prompt, one.completion) for one in proposals if one.condition == SELF_EDITS]
    assert {completion for _, completion in written} == {text for row in rows for text in row["completions"]}
    # Each about its own passage.
    assert all(name.strip() in str(prompt) for prompt, text in written for name in NAMES if name in text)
    with pytest.raises(ValueError, match="no completion about example [0-2] [(]'Cleo'[)], where num_generations=2"):
        (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
        script.main(parse(*evaluation, "--self_edits", tmp_path / "theirs.jsonl"))


def test_evaluate_lets_a_policy_write(evaluation, loaded_script, model, tmp_path):
    carried = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"]),
    )
    randomize_lora(carried, seed=1)
    Adapter.from_peft_model(carried, str(model)).save_pretrained(tmp_path / "policy")
    script, parse = loaded_script("evaluate")

    def written(name, *options):
        folder = tmp_path / name
        script.main(parse(*evaluation, "--output_dir", folder, *options))
        records = Journal(folder / "evaluation").scored(0)
        edits = [one.completion for one in records if one.condition == SELF_EDITS]
        return edits, [one.repeats for one in records if one.condition == "base"]

    alone, learned = written("alone")
    by_policy, of_base = written("base", "--policy", tmp_path / "policy")
    same, of_policy = written("policy", "--policy", tmp_path / "policy", "--student", "policy")
    assert by_policy == same != alone
    assert learned == of_base != of_policy
    with pytest.raises(ValueError, match="student .'base' there, 'policy' here"):
        written("base", "--policy", tmp_path / "policy", "--student", "policy")


def test_evaluate_compares_conditions(evaluation, loaded_script, model, tmp_path, capsys):
    carried = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj"])
    )
    randomize_lora(carried, seed=1)
    policy = Adapter.from_peft_model(carried, str(model)).save_pretrained(tmp_path / "policy")
    rows = [{"context": one["context"], "completion": "Bees hum."} for one in PASSAGES]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script, parse = loaded_script("evaluate")
    options = [
        "--num_passages",
        2,
        "--num_generations",
        1,
        "--inner_num_train_epochs",
        1,
        "--max_completion_length",
        6,
    ]
    compared = ["--compare_styles", "rewrite", "--compare_policies", policy, "--compare_models", model]
    compared += ["--compare_self_edits", tmp_path / "theirs.jsonl", "--skill_vector", policy, policy]
    compared += ["--compare_methods", "retrieval", "routed", "SPA", "Active Reading", "EntiGraph"]
    script.main(parse(*evaluation, *options, *compared, "--query_run", "true"))
    printed = capsys.readouterr().out
    names = ["self-edits, rewrite", f"self-edits by {policy}", f"self-edits by {model}", "skill vector"]
    names += [f"self-edits of {tmp_path / 'theirs.jsonl'}", "self-edits, routed", "retrieval", "SPA", "Active Reading"]
    assert all(f"\n| {name} " in printed and f"| self-edits minus {name} " in printed for name in names)
    assert json.loads((tmp_path / "results" / "query_run.json").read_text())["n_articles"] == 2
    own, routed = (written_in(tmp_path / "results" / name) for name in (".", "conditions/self-edits-routed"))
    assert [one.completion for one in own] == [one.completion for one in routed]
    for wrong, message in (
        (["--compare_methods", "RAG"], "'RAG' is none of 'retrieval', 'routed', 'SPA'"),
        (["--skill_vector", "a", "b", "c"], "--skill_vector takes one or two adapters, not 3"),
        (["--protocol", "all"], "--protocol 'all' must be 'single_passage', "),
        (["--protocol", "continual", "--query_run", "true"], "--query_run holds adapters of one passage"),
        (["--remedies", "routed"], "--remedies belongs to --protocol continual, not to single_passage"),
        (["--full_finetuning", "true"], "--full_finetuning belongs to --protocol continued_pretraining"),
        (["--protocol", "continual", "--compare_methods", "routed"], "give --remedies routed"),
        (
            ["--protocol", "continual", "--skill_vector", "a"],
            "and not with --protocol continual; leave one of the two out",
        ),
        (
            ["--policy", "p", "--compare_policies", "q"],
            "--compare_policies loads adapters of the base model, which carries",
        ),
        (
            ["--policy", "p", "--skill_vector", "q"],
            "--skill_vector loads adapters of the base model, which carries one",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            parse(*evaluation, *wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--compare_styles", "rewrite", "rewrite"], "Two conditions are called 'self-edits, rewrite'"),
        (
            ["--compare_policies", "me/a", "--compare_models", "me-a"],
            "are called 'self-edits by me/a' and 'self-edits by me-a'",
        ),
        (
            ["--protocol", "continual", "--remedies", "replay", "--compare_styles", "replay"],
            "called 'self-edits, replay'",
        ),
        (["--sets_training", "true", "--compare_styles", "questions-by-fact"], "sets_training"),
        (["--compare_styles", "no style"], "no style"),
    ],
)
def test_impossible_conditions_are_refused_before_anything_is_loaded(
    evaluation, loaded_script, tmp_path, monkeypatch, options, message
):
    script, parse = loaded_script("evaluate")
    monkeypatch.setattr(script.EvaluationArguments, "load", lambda *args, **options: pytest.fail("loaded a model"))
    with pytest.raises(ValueError, match=message):
        script.main(parse(*evaluation, *options))
    assert not (tmp_path / "results").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(evaluation, loaded_script, tmp_path, capsys):
    script, parse = loaded_script("evaluate")
    options = ["--protocol", "continual", "--remedies", "replay", "dare_linear", "--dry_run", "true"]
    script.main(parse(*evaluation, *options))
    printed = capsys.readouterr().out
    assert printed.startswith("protocol: continual, examples: 3 with 3 questions, processes: 1; left to be done:\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    found = {row[0]: row[1:3] for row in rows[2:]}
    # Two self-edits about each of three passages; an adapter for each passage, of the passage alone too.
    assert found == {
        "base": ["0", "0"],
        "passage in context": ["0", "0"],
        "passage only": ["0", "3"],
        "self-edits": ["6", "3"],
        "self-edits, replay": ["0", "3"],
        "self-edits, dare_linear": ["0", "3"],
        "all": ["6", "12"],
    }
    assert "minutes by a short probe of this machine" in printed
    assert not (tmp_path / "results").exists()


def test_the_first_passages_are_taken_of_the_shuffled_ones(tmp_path):
    file = tmp_path / "passages.json"
    passages = [{**PASSAGES[0], "title": str(number)} for number in range(20)]
    file.write_text(json.dumps(passages))
    assert load_dataset_argument(str(file), None, 5, -1) == passages[:5]
    assert load_dataset_argument(str(file), None, 5, 42) == shuffle_passages(passages, 42)[:5]
    assert load_dataset_argument("demo", "test", None, 7) == shuffle_passages(load_demo_passages("test"), 7)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("demo.py", ["--passage", "nowhere.txt"], "There is no passage at nowhere.txt"),
        ("evaluate.py", ["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ("evaluate.py", ["--self_edits", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_sentence(script, options, message, tmp_path):
    if script == "evaluate.py":
        options = [*options, "--output_dir", tmp_path / "results"]
    failed = run_main(TRAINERS / script, *options)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("demo", ["--demo_passage", "36"], "--demo_passage 36 must be from 0 to 35"),
        ("demo", ["--inner_learning_rate", "-1"], "inner_learning_rate=-1.0 must be a number above 0"),
        ("demo", ["--prompt_style", "haiku"], "Unknown prompt_style 'haiku'"),
        ("evaluate", ["--num_passages", "0"], "The number of passages, 0, must be at least 1"),
        (
            "evaluate",
            ["--adapters_per_bank", "0"],
            "adapters_per_bank=0 must be a whole number of at least 1, or None",
        ),
    ],
)
def test_options_that_cannot_be_are_named(loaded_script, script, options, message):
    module, parse = loaded_script(script)
    with pytest.raises(ValueError) as raised:
        module.main(parse(*options))
    assert str(raised.value).startswith(message)


def test_the_options_of_the_inner_loop_are_those_of_a_run(loaded_script, model):
    module, parse = loaded_script("evaluate")
    names = {one.name for one in fields(SEALConfig) if one.name.startswith("inner_")}
    assert names <= {one.name for one in fields(module.EvaluationArguments)}
    given = ["--model_name_or_path", model]
    lm = parse(*given).load()
    assert lm.inner_config.add_eos_token and lm.peft_config.target_modules == "all-linear"
    changed = {"lr_scheduler_type": "cosine", "warmup_steps": 0.25, "max_grad_norm": 0.5, "max_length": 99}
    changed |= {"learning_rate": 0.5, "num_train_epochs": 3, "batch_size": 2, "add_eos_token": False}
    options = [text for name, value in changed.items() for text in (f"--inner_{name}", value)]
    shape = ["--inner_lora_r", 5, "--inner_lora_alpha", 7, "--inner_target_modules", "q_proj", "v_proj"]
    lm = parse(*given, *options, *shape, "--inner_gradient_checkpointing", "true").load()
    assert lm.inner_config == InnerLoopConfig(**changed) and lm.inner_gradient_checkpointing
    assert (lm.peft_config.r, lm.peft_config.lora_alpha) == (5, 7)
    assert lm.peft_config.target_modules == {"q_proj", "v_proj"}


def test_the_papers_prompts_are_options(loaded_script, model):
    module, parse = loaded_script("evaluate")
    options = ["--model_name_or_path", model, "--answer_prompt", "paper"]
    judge = ["--judge_model", "gpt-4.1", "--judge_base_url", "http://localhost:1/v1", "--judge_prompt", "paper"]
    args = parse(*options, *judge)
    lm = args.load(args.judge_grader())
    assert lm.domain.answer_prompt == lm.domain.grader.prompt == "paper"
    args = parse("--model_name_or_path", model)
    lm = args.load(args.judge_grader())
    assert lm.domain.answer_prompt == "default"
    with pytest.raises(ValueError, match="--judge_prompt paper is for a judge; name one with --judge_model"):
        module.main(parse("--judge_prompt", "paper"))


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--model_name_or_path", "/no/such/folder"], ["'/no/such/folder'", "--model_name_or_path embedded"]),
        (["--port", "70000"], ["--port 70000 must be from 1 to 65535"]),
    ],
)
def test_the_app_says_what_is_wrong_and_what_works(options, messages):
    pytest.importorskip("gradio")
    result = run_main(ROOT / "app.py", *options)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert all(message in result.stderr for message in messages)
