"""What SEALTrainer takes, and what it says to what it does not take."""

import json
import logging

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from helpers.observing import equal, saved_policy
from helpers.outer_loop import HashGrader, tiny_config, tiny_examples
from helpers.tiny_models import randomize_lora, tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import SEALTrainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.outer_loop import seal_trainer


SHORT = {"num_generations": 2, "num_repeats": 1, "num_rounds": 1}


def trainer_of(output_dir, *, args=None, **options):
    defaults = {
        "model": tiny_llama(),
        "args": tiny_config(output_dir, **SHORT, **(args or {})),
        "domain": KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False),
        "train_dataset": tiny_examples(2),
        "processing_class": tiny_tokenizer(),
    }
    return SEALTrainer(**{**defaults, **options})


def policy_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def one_sentence(raised, *parts):
    """The message is one paragraph and holds all parts, in this order."""
    message = str(raised.value)
    assert "\n" not in message and message.endswith((".", "safe"))
    places = [message.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), message


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal_trainer, "save_plot", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that has come as far as its first proposals, which is what makes it one to be resumed."""
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder).train()
    return folder


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_peft_model_with_peft_config(tmp_path):
    with pytest.raises(ValueError) as raised:
        trainer_of(tmp_path, model=tiny_policy_model(), peft_config=LoraConfig(r=2))
    one_sentence(raised, "Both a PeftModel and peft_config were given", "give the PeftModel alone")


def test_peft_model_is_trained_on(tmp_path):
    model = tiny_policy_model()
    start = policy_of(model)
    trainer = trainer_of(tmp_path, model=model)
    assert trainer.model is model and sum(map(torch.numel, start.values())) > 100
    trainer.train()
    after = policy_of(model)
    assert start.keys() == after.keys()
    assert not any(torch.equal(start[name], after[name]) for name in start)


def test_a_policy_in_bf16_is_trained_in_fp32(tmp_path):
    model = tiny_policy_model(dtype=torch.bfloat16).bfloat16()
    start = policy_of(model)
    assert {value.dtype for value in start.values()} == {torch.bfloat16}
    # Steps that bf16, with its 8 bits, would round away.
    trainer_of(tmp_path, model=model, args={"learning_rate": 1e-6, "bf16": True}).train()
    after = policy_of(model)
    for name, value in after.items():
        assert value.dtype == torch.float32
        assert 0 < (value - start[name].float()).abs().max() < 1e-5
        assert (value.bfloat16() == start[name]).float().mean() > 0.9
    assert {value.dtype for value in saved_policy(tmp_path / "policy" / "round_000").values()} == {torch.float32}
    assert equal(saved_policy(tmp_path / "policy" / "round_000"), after)
    assert all(value.dtype == torch.bfloat16 for name, value in model.named_parameters() if "lora_" not in name)


def test_loaded_peft_model_is_trained_on(tmp_path):
    # PeftModel.from_pretrained freezes the adapter unless it is told otherwise.
    tiny_policy_model().save_pretrained(tmp_path / "policy", save_embedding_layers=False)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "policy")
    start = policy_of(model)
    trainer_of(tmp_path / "run", model=model).train()
    after = policy_of(model)
    assert not any(torch.equal(start[name], after[name]) for name in start)
    assert all(value.requires_grad == ("lora_" in name) for name, value in model.named_parameters())


def test_run_of_another_policy_is_not_gone_on_with(tmp_path):
    model = tiny_policy_model()
    trainer_of(tmp_path, model=model).train()
    other = tiny_policy_model()
    randomize_lora(other, seed=8)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError) as raised:
        trainer_of(tmp_path, model=other).train(resume_from_checkpoint=True)
    one_sentence(raised, "holds a run with other settings: initial_policy (")
    assert snapshot(tmp_path) == before
    trainer_of(tmp_path, model=tiny_policy_model()).train(resume_from_checkpoint=True)


def test_quantization_config_with_a_loaded_model(tmp_path):
    with pytest.raises(ValueError) as raised:
        trainer_of(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    one_sentence(raised, "quantization_config", "loaded already", "give the model's name")


QUESTION = {"question": "b", "answer": "c"}
TWICE = [{**example, "id": "bees"} for example in tiny_examples(2)]


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("dataset", "error", "parts"),
    [
        ([], ValueError, ["is empty", "give at least one example"]),
        (Dataset.from_list(tiny_examples(1)).select([]), ValueError, ["is empty", "give at least one example"]),
        (
            IterableDataset.from_generator(lambda: iter(tiny_examples(2))),
            TypeError,
            ["must be a list or a datasets.Dataset", "not a IterableDataset"],
        ),
        (tiny_examples(1)[0], TypeError, ["must be a list or a datasets.Dataset", "not a dict"]),
        (
            DatasetDict(train=Dataset.from_list(tiny_examples(1))),
            TypeError,
            ["must be a list or a datasets.Dataset", "not a DatasetDict"],
        ),
        ("demo", TypeError, ["must be a list or a datasets.Dataset", "not a str"]),
        (iter(tiny_examples(2)), TypeError, ["must be a list or a datasets.Dataset", "not a list_iterator"]),
        (TWICE, ValueError, ["more than one example with the id 'bees'", "make ids unique"]),
        (["The cats sat still."], TypeError, ["mapping", "str"]),
        ([{**tiny_examples(1)[0], "questions": []}], ValueError, ["example 0", "question"]),
        ([{"context": "The cats sat still."}], ValueError, ["example 0", "has no question"]),
        (
            [{**tiny_examples(1)[0], "questions": [{"question": "Who?"}]}],
            ValueError,
            ["example 0", "no answer to 'Who?'"],
        ),
        (
            Dataset.from_list(
                [{**tiny_examples(1)[0], "questions": [QUESTION, {"question": "Who?", "answer": None}]}]
            ),
            ValueError,
            ["example 0", "no answer to 'Who?'"],
        ),
        ([{**tiny_examples(1)[0], "id": "\ud83d"}], ValueError, ["example 0 has half a character", '"id"']),
        ([{**tiny_examples(1)[0], "title": "\ud83d"}], ValueError, ["example 0 has half a character", '"title"']),
    ],
    ids=(
        "empty no-rows iterable dict dict-of-splits name iterator same-id text no-questions questions-missing no-answer "
        "answer-null half-id half-title"
    ).split(),
)
def test_dataset_of_another_form(name, dataset, error, parts, tmp_path):
    with pytest.raises(error) as raised:
        trainer_of(tmp_path, **{name: dataset})
    one_sentence(raised, name, *parts)


def test_no_training_set(tmp_path):
    with pytest.raises(ValueError) as raised:
        trainer_of(tmp_path, train_dataset=None)
    one_sentence(raised, "train_dataset is required", "give a list or a datasets.Dataset")


def test_evaluate_checks_its_dataset(tmp_path):
    trainer = trainer_of(tmp_path)
    with pytest.raises(TypeError, match="^eval_dataset must be a list"):
        trainer.evaluate(iter(tiny_examples(1)))
    with pytest.raises(ValueError, match="^There is nothing to evaluate on; give eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="exceeds? the model's context"):
        trainer.evaluate([{**tiny_examples(1)[0], "context": "cats " * 1000}])
    assert list(tmp_path.iterdir()) == []


def test_dataset_and_list_are_one_run(run_folder, tmp_path):
    trainer_of(tmp_path, train_dataset=Dataset.from_list(tiny_examples(2))).train()
    for name in ("run.json", "proposals/round_000.jsonl", "selected/round_000.jsonl"):
        assert (tmp_path / name).read_bytes() == (run_folder / name).read_bytes()
    weights = "policy/round_000/adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (run_folder / weights).read_bytes()


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("template", "num_tokens", "option"),
    [
        ("{context}{context}{context}{context}", 200, "max_completion_length=12"),
        ("{context}", 189, "max_answer_length=6"),  # the passage in view: 50 characters and 139 of instructions
    ],
)
def test_example_longer_than_the_context(name, template, num_tokens, option, tmp_path):
    short, long = ({"id": "x" * size, "context": "a" * size, "questions": [QUESTION]} for size in (1, 50))
    with pytest.raises(ValueError) as raised:
        trainer_of(
            tmp_path,
            model=tiny_llama(max_position_embeddings=194),
            domain=KnowledgeDomain(template, chat=False),
            **{"train_dataset": [short], name: [short, long]},
        )
    problem = f"{name}: example {long['id']} has a prompt of {num_tokens} tokens, which with {option} exceeds"
    one_sentence(raised, problem, "the model's context of 194", "shorten or drop the example, or lower max_")
    trainer_of(
        tmp_path,
        model=tiny_llama(max_position_embeddings=212),
        domain=KnowledgeDomain(template, chat=False),
        train_dataset=[short, long],
    )


def test_examples_in_training_and_evaluation_set(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, eval_dataset=tiny_examples(3, first=1))
    (record,) = [record for record in caplog.records if record.name == "seal_hf.rollout.examples"]
    assert record.getMessage().startswith("1 of 3 evaluation examples are in the training set too")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, eval_dataset=tiny_examples(3, first=2))
    assert not [record for record in caplog.records if record.name == "seal_hf.rollout.examples"]


def test_output_dir_below_a_file(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("bees")
    for output_dir in (file, file / "run", file / "run" / "one"):
        with pytest.raises(OSError) as raised:
            trainer_of(output_dir)
        one_sentence(raised, f"output_dir={str(output_dir)!r} cannot be written", str(file), "give another one")
    assert file.read_text() == "bees"


def test_run_with_other_settings_is_left_alone(run_folder):
    before = snapshot(run_folder)
    for changes, named in (
        ({"learning_rate": 0.5}, "learning_rate (0.01 there, 0.5 here)"),
        ({"seed": 4, "temperature": 0.7}, "seed (3 there, 4 here), temperature (1.5 there, 0.7 here)"),
    ):
        trainer = trainer_of(run_folder, args=changes)
        for go_on in (trainer.train, trainer.plan):
            for resume in (None, True):
                with pytest.raises(ValueError) as raised:
                    go_on(resume_from_checkpoint=resume)
                one_sentence(raised, f"{run_folder} holds a run with other settings: {named}; give another output_dir")
    with pytest.raises(ValueError) as raised:
        trainer_of(run_folder, train_dataset=tiny_examples(3)).train(resume_from_checkpoint=True)
    one_sentence(raised, "train_dataset ('2 examples, ", " there, '3 examples, ")
    with pytest.raises(ValueError) as raised:
        trainer_of(run_folder, domain=KnowledgeDomain("{context}", grader=HashGrader(), chat=False)).train(True)
    one_sentence(raised, "domain.prompt_style ('{title}: {context}' there, '{context}' here)")
    assert snapshot(run_folder) == before


def test_run_that_is_there_is_not_begun_again(run_folder):
    before = snapshot(run_folder)
    with pytest.raises(ValueError) as raised:
        trainer_of(run_folder).train()
    one_sentence(
        raised, f"{run_folder} holds a run with these settings", "resume_from_checkpoint=True", "another output_dir"
    )
    assert snapshot(run_folder) == before


def test_resume_from_another_folder(run_folder, tmp_path):
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError) as raised:
        trainer.train(resume_from_checkpoint=str(run_folder))
    one_sentence(raised, f"resume_from_checkpoint={str(run_folder)!r} is not output_dir={str(tmp_path)!r}")
    assert list(tmp_path.iterdir()) == []

    before = snapshot(run_folder)
    output = trainer_of(run_folder).train(resume_from_checkpoint=str(run_folder / "policy" / ".."))
    assert output.metrics["round"] == 1
    assert snapshot(run_folder) == before


def test_resume_where_there_is_no_run(run_folder, tmp_path):
    trainer_of(tmp_path / "new").train(resume_from_checkpoint=True)
    assert snapshot(tmp_path / "new").keys() == {
        tmp_path / "new" / path.relative_to(run_folder) for path in snapshot(run_folder)
    }


def test_inner_target_modules_that_match_nothing(tmp_path):
    with pytest.raises(ValueError) as raised:
        trainer_of(tmp_path, args={"inner_target_modules": ["wings"]})
    one_sentence(raised, "target_modules=['wings'] match no linear module", "this model has down_proj", "v_proj")


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"rank_pattern": {"q_proj": 4}}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_policy_adapter_that_is_not_a_plain_lora(options, tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], **options)
    for given in (
        {"peft_config": peft_config},
        {"model": get_peft_model(tiny_llama(), LoraConfig(**peft_config.to_dict() | {"task_type": "CAUSAL_LM"}))},
    ):
        with pytest.raises(ValueError) as raised:
            trainer_of(tmp_path, **given)
        (option,) = options
        one_sentence(raised, f"LoraConfig({option}=", "is not supported", "train with it left at")


def test_model_by_name(model_folder, tmp_path):
    trainer = SEALTrainer(
        model=str(model_folder),
        args=tiny_config(tmp_path, **SHORT, model_init_kwargs={"dtype": "float32"}),
        domain=KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False),
        train_dataset=tiny_examples(2),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    assert trainer.base_model_id == str(model_folder)
    assert trainer.processing_class("bees").input_ids == tiny_tokenizer()("bees").input_ids
    base = dict(tiny_llama().named_parameters())
    for name, value in trainer.model.named_parameters():
        assert value.dtype == torch.float32
        if "lora_" not in name:
            assert torch.equal(value, base[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model_folder)

    half = SEALTrainer(
        model=str(model_folder),
        args=tiny_config(tmp_path / "half", model_init_kwargs={"dtype": "bfloat16"}),
        train_dataset=tiny_examples(2),
    )
    dtypes = {"lora_" in name: value.dtype for name, value in half.model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_model_that_is_not_there(tmp_path):
    with pytest.raises(OSError) as raised:
        trainer_of(tmp_path / "run", model=str(tmp_path / "nowhere"), processing_class=None)
    assert f"The model {str(tmp_path / 'nowhere')!r}" in str(raised.value)


@pytest.mark.parametrize("given", ["name", "name with a slash", "model"])
def test_defaults(given, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"model": str(model_folder) + ("/" if given == "name with a slash" else "")}
    if given == "model":
        model = tiny_llama()
        model.config.name_or_path = "someone/tiny-llama"
        options = {"model": model, "processing_class": tiny_tokenizer()}
    trainer = SEALTrainer(train_dataset=tiny_examples(2), **options)
    assert trainer.args.output_dir == "tiny-llama-SEAL"
    assert trainer.domain.prompt_style == "implications" and trainer.domain.chat
    policy = trainer.model.active_peft_config
    assert (policy.r, policy.lora_alpha) == (64, 128)
    adapted = {name.split(".")[-4] for name in policy_of(trainer.model)}
    assert adapted == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert trainer.lm.peft_config.r == 32 and trainer.lm.inner_config.num_train_epochs == 10
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
