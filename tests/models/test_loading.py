"""SelfAdaptingLM from and to disk and the Hub, in 4 bits, and the README's lines on the embedded model."""

import json
import os
import shutil
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.zero_gpu import emulated_cuda
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.adapters.bank import StackedAdapters
from seal_hf.domains import load_demo_passages
from seal_hf.models import loading
from seal_hf.models.loading import default_dtype
from seal_hf.rollout.settings import describe
from seal_hf.self_edit import TrainingExample


OPTIONS = {
    "peft_config": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "inner_config": InnerLoopConfig(learning_rate=2e-2, num_train_epochs=8),
}
EDIT = SelfEdit(
    "", "", (TrainingExample("", "Ann keeps bees in Vell."), TrainingExample("Who keeps bees? ", "Ann, at night."))
)
QUESTIONS = ["Who keeps bees?", "Where?", "Moths"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(initializer_range=0.3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lm(folder):
    return SelfAdaptingLM.from_pretrained(folder, dtype="float32", device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def adapter(lm):
    return lm.adapt(EDIT)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_saved_adapter_answers_alike(lm, adapter, tmp_path, packed):
    path = adapter.save_pretrained(tmp_path / "adapter")
    loaded = lm.load_adapter(shutil.make_archive(str(tmp_path / "packed"), "zip", path) if packed else path)
    assert torch.equal(loaded.weights, adapter.weights)
    assert loaded.layout == adapter.layout
    answers = lm.answer(QUESTIONS, adapter=loaded, max_answer_length=24)
    assert answers == lm.answer(QUESTIONS, adapter=adapter, max_answer_length=24)
    assert answers != lm.answer(QUESTIONS, max_answer_length=24)


def test_saved_adapter_names_its_base(lm, adapter, folder, tmp_path):
    adapter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == folder
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    other = SelfAdaptingLM(PeftModel.from_pretrained(base, tmp_path), lm.processing_class)
    prompts = ["Who keeps bees? ", "Ann keeps"]
    assert other.answer_prompts(prompts) == lm.answer_prompts(prompts, [adapter] * 2)


def copied(source: Path, target: Path, **changes: object) -> Path:
    """An adapter's folder with other fields in its configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | changes))
    return target


@pytest.mark.parametrize("form", ["{}/", "{}/.", "relative"])
def test_one_folder_is_one_base(lm, adapter, folder, tmp_path, monkeypatch, caplog, form):
    adapter.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(Path(folder).parent)
    name = f"./{Path(folder).name}" if form == "relative" else form.format(folder)
    other = SelfAdaptingLM(lm.model, lm.processing_class, base_model_id=name)
    loaded = other.load_adapter(tmp_path / "adapter")
    assert other.answer_prompts(["Ann"], [loaded]) == other.answer_prompts(["Ann"], [adapter])
    assert caplog.records == []
    assert describe(other, {}, {})["model"] == describe(lm, {}, {})["model"]


def test_copy_or_mirror_of_a_base_is_taken_with_a_warning(lm, adapter, tmp_path, caplog):
    adapter.save_pretrained(tmp_path)
    other = SelfAdaptingLM(lm.model, lm.processing_class, base_model_id="me/mirror")
    loaded = other.load_adapter(tmp_path)
    assert "it is used on me/mirror, which is made alike" in caplog.text
    assert other.answer_prompts(["Ann"], [loaded]) == lm.answer_prompts(["Ann"], [adapter])


@pytest.mark.parametrize("name", [None, ""])
def test_adapter_that_names_no_base_is_taken_with_a_warning(lm, adapter, tmp_path, caplog, name):
    own = copied(adapter.save_pretrained(tmp_path / "own"), tmp_path / "copy", base_model_name_or_path=name)
    loaded = lm.load_adapter(own)
    assert torch.equal(loaded.weights, adapter.weights)
    assert f"does not name its base model; it is used on {lm.base_model_id}, which is made alike" in caplog.text
    training = json.loads((own / "seal_training.json").read_text())
    (own / "seal_training.json").write_text(json.dumps(training | {"base_fingerprint": "of another"}))
    lm.load_adapter(own)
    assert "whose modules its matrices must fit" in caplog.text


def test_adapter_for_another_base_is_refused_and_told_how_to_go_on(lm, adapter, tmp_path):
    own = copied(adapter.save_pretrained(tmp_path / "own"), tmp_path / "copy", base_model_name_or_path="me/other")
    (own / "seal_training.json").unlink()  # as of other software, which does not say how the base is made
    with pytest.raises(ValueError, match=r"adapts me/other, but .*load the model with base_model_id='me/other'"):
        lm.load_adapter(own)
    other = SelfAdaptingLM(lm.model, lm.processing_class, base_model_id="me/other")
    assert torch.equal(other.load_adapter(own).weights, adapter.weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": "4"}, "r='4' must be a whole number"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"rank_pattern": {"q_proj": 3}}, r"rank_pattern=\{'q_proj': 3\}\) is not supported"),
        ({"rank_pattern": {"layers.0.mlp.up_proj": 3}}, r"rank_pattern=.* is not supported"),
        ({"rank_pattern": {".*proj": 3}}, r"rank_pattern=.* is not supported"),
        ({"target_parameters": ["experts.down_proj"]}, "adapts parameters that are no linear modules"),
    ],
)
def test_odd_configurations_are_refused_by_name(lm, adapter, tmp_path, changes, message):
    own = copied(adapter.save_pretrained(tmp_path / "own"), tmp_path / "copy", **changes)
    with pytest.raises(ValueError, match=message):
        lm.load_adapter(own)


def test_pattern_without_effect_is_taken(lm, adapter, tmp_path):
    r, patterns = (
        adapter.layout.r,
        {"rank_pattern": {"no_such_proj": 99, "proj": 9, "vision.q_proj": 9}, "alpha_pattern": {}},
    )
    patterns["rank_pattern"]["q_proj"] = r
    own = copied(adapter.save_pretrained(tmp_path / "own"), tmp_path / "copy", **patterns)
    assert torch.equal(lm.load_adapter(own).weights, adapter.weights)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (torch.float32, torch.float32)])
def test_dtype(folder, dtype, expected):
    lm = SelfAdaptingLM.from_pretrained(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in lm.model.parameters()} == {expected}
    assert lm.base_model_id == folder
    assert lm.processing_class.chat_template and lm.domain.chat


@pytest.mark.parametrize(("computes_in_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_dtype_by_default_is_one_that_the_processor_computes_in(monkeypatch, folder, computes_in_bf16, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computes_in_bf16)
    lm = SelfAdaptingLM.from_pretrained(folder, device="cpu")
    assert {parameter.dtype for parameter in lm.model.parameters()} == {expected}
    assert default_dtype(torch.device("cuda")) == torch.bfloat16


def test_path_object(folder):
    assert SelfAdaptingLM.from_pretrained(Path(folder), dtype="float32", device="cpu").base_model_id == folder


def test_4_bit(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # Blocks of 64 weights are the quantization's, and rows of whole blocks its CPU kernel's.
    tiny_llama(hidden_size=64, intermediate_size=128, initializer_range=0.3).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm = SelfAdaptingLM.from_pretrained(tmp_path, load_in_4bit=True, dtype="float32", device="cpu", **OPTIONS)
    quantized = [module for module in lm.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(quantized) == 14
    assert all(module.weight.quant_type == "nf4" and module.weight.quant_state.nested for module in quantized)

    base_answers = lm.answer(QUESTIONS, max_answer_length=12)
    adapter = lm.adapt(EDIT)
    losses = adapter.training["losses"]
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    assert lm.answer(QUESTIONS, adapter=adapter, max_answer_length=12) != base_answers
    assert lm.answer(QUESTIONS, max_answer_length=12) == base_answers
    again = lm.adapt(EDIT)
    assert (again.weights - adapter.weights).abs().max() < 1e-4


def test_base_is_quantized_by_default_on_cuda_alone(folder, tmp_path, monkeypatch):
    def by_default(path: str, device: str) -> bool:
        return loading._is_quantized_by_default(path, torch.device(device), {})

    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: True)
    assert by_default(folder, "cuda") and not by_default(folder, "cpu")
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    assert not by_default(str(tmp_path), "cuda")
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    assert not by_default(folder, "cuda")


def test_a_model_is_loaded_on_zerogpu(folder, monkeypatch):
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    expected = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    with emulated_cuda(monkeypatch) as mode:
        model, *_ = loading.load_causal_lm(folder, dtype="float32")
        # What transformers does by default fails there, as in the log of a Space that did not start.
        with pytest.raises((AssertionError, RuntimeError)):
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": torch.device("cuda", 0)})
    moved = [thread for name, thread in mode.redirected if name == "to"]
    assert len(moved) >= len(expected) and set(moved) == {threading.main_thread()}
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


def test_weights_are_loaded_in_threads_elsewhere(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **options: seen.append(os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")),
    )
    loading.load_causal_lm(folder, device="cpu")
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "0")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    loading.load_causal_lm(folder, device="cpu")  # the user's own word counts
    assert seen == [None, "0"] and os.environ["HF_DEACTIVATE_ASYNC_LOAD"] == "0"


@pytest.mark.parametrize(
    ("given", "current", "local_rank", "expected"),
    [
        (None, 0, None, "cuda:0"),
        (None, 3, None, "cuda:3"),  # torch.cuda.set_device, or accelerate's
        ("cuda", 0, "2", "cuda:2"),  # torchrun, before accelerate has chosen
        ("cuda", 3, "0", "cuda:3"),
        ("cuda", 0, "9", "cuda:1"),  # more processes than cards
        ("cuda:1", 3, "2", "cuda:1"),
        (torch.device("cuda"), 2, None, "cuda:2"),
        ("cpu", 3, "2", "cpu"),
    ],
)
def test_a_model_goes_to_the_card_of_its_process(folder, monkeypatch, given, current, local_rank, expected):
    asked = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda path, **options: asked.append(options))
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(loading, "check_fits", lambda *args, **options: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    loading.load_causal_lm(folder, device=given)
    assert asked[0]["device_map"] == {"": torch.device(expected)}


def test_another_accelerator_is_found_and_else_the_cpu(monkeypatch):
    assert not torch.cuda.is_available() and loading._default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert loading._default_device() == torch.device("mps")


def test_4_bit_without_bitsandbytes(folder, monkeypatch):
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r"A quantized model needs bitsandbytes; .*seal-hf\[quantization\]"):
        SelfAdaptingLM.from_pretrained(folder, load_in_4bit=True)


@pytest.mark.parametrize("dtype", ["float33", "nn"])
def test_unknown_dtype(folder, dtype):
    with pytest.raises(ValueError, match=f"dtype='{dtype}' is not one of torch's; use 'bfloat16' or 'float32'"):
        SelfAdaptingLM.from_pretrained(folder, dtype=dtype)


MISSING = {
    "missing folder": "./nowhere",
    "folder without a model": ".",
    "id that is not in the cache": "me/not-downloaded",
    "invalid id": "me/not/an/id",
}


@pytest.mark.parametrize("name", MISSING.values(), ids=MISSING)
def test_unreachable_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match=rf"The model '{name}' \(revision 'main'\) could not be loaded .* use 'embedded'"
    ):
        SelfAdaptingLM.from_pretrained(name)


def test_push_to_hub_refuses_a_local_base(adapter, folder, hub):
    with pytest.raises(ValueError, match=f"The base model {folder} is a local folder, .* pass base_model_id="):
        adapter.push_to_hub("tester/lighthouse")
    assert hub.log == []


@pytest.mark.slow
def test_readme_lines_on_the_embedded_model(embedded_path, tmp_path):
    lm = SelfAdaptingLM.from_pretrained(
        "embedded-tiny", inner_config=InnerLoopConfig(learning_rate=3e-3, num_train_epochs=3)
    )
    assert lm.base_model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert lm.domain.chat
    passage = load_demo_passages("train")[0]
    questions = [row["question"] for row in passage["questions"][:2]]

    edits = lm.propose(passage, num_generations=2, max_completion_length=48)
    assert len({edit.completion for edit in edits}) == 2
    adapter = lm.adapt(edits[0])
    answers = lm.answer(questions, adapter=adapter, title=passage["title"], max_answer_length=12)
    assert answers != lm.answer(questions, title=passage["title"], max_answer_length=12)

    inputs = lm.processing_class(passage["context"], return_tensors="pt")
    labels = inputs["input_ids"]
    with torch.no_grad():
        before = lm.model(**inputs, labels=labels).loss.item()
        with StackedAdapters.of(lm.model, [adapter]).attach([0]):
            after = lm.model(**inputs, labels=labels).loss.item()
    assert after < before - 0.5
    assert lm.model(**inputs, labels=labels).loss.item() == before

    config = json.loads((adapter.save_pretrained(tmp_path) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    loaded = lm.load_adapter(tmp_path)
    assert lm.answer(questions, adapter=loaded, title=passage["title"], max_answer_length=12) == answers
