import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from helpers.adapters import BASE_ID, random_adapter
from helpers.tiny_models import VOCAB_SIZE, tiny_llama, tiny_policy_model
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.bank import StackedAdapters
from seal_hf.adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from seal_hf.models.architecture import linear_modules


OVERLAPPING = ["q_proj", "up_proj", "down_proj"]  # the policy has q_proj, v_proj and up_proj
APART = ["k_proj", "o_proj"]


def token_ids() -> torch.Tensor:
    return torch.randint(4, VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def attached_logits(model, adapter: Adapter) -> torch.Tensor:
    with StackedAdapters.of(model, [adapter]).attach([0, 0]):
        return model(token_ids()).logits


@torch.no_grad()
def peft_logits(folder: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()(token_ids()).logits


def edit_config(folder: Path, **fields) -> None:
    file = folder / CONFIG_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def zip_folder(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as files:
        for file in sorted(folder.iterdir()):
            files.write(file, prefix + file.name)
    return archive


@pytest.fixture
def saved(tmp_path) -> Path:
    return random_adapter().save_pretrained(tmp_path / "adapter")


_LOAD_AND_RUN = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, inputs, outputs = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    torch.save(model(torch.load(inputs)).logits, outputs)
assert "seal_hf" not in sys.modules
"""


@pytest.mark.slow
def test_exported_adapter_in_a_fresh_process(tmp_path):
    policy_model = tiny_policy_model()
    policy = Adapter.from_peft_model(policy_model, BASE_ID)
    adapter = random_adapter(policy_model, policy=policy, target_modules=OVERLAPPING)
    tiny_llama().save_pretrained(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    torch.save(token_ids(), tmp_path / "inputs.pt")
    paths = [str(tmp_path / name) for name in ("base", "adapter", "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", _LOAD_AND_RUN, *paths], check=True, timeout=120)
    expected = attached_logits(policy_model, adapter)
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.0\..*_proj"},
        {"use_rslora": True},
        {"lora_alpha": 7, "r": 3},
    ],
    ids=["attention", "all-linear", "one-layer", "regex", "rslora", "uneven-scaling"],
)
def test_round_trip(tmp_path, options):
    adapter, model = random_adapter(**options), tiny_llama()
    folder = adapter.save_pretrained(tmp_path / "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]
    torch.testing.assert_close(peft_logits(folder), attached_logits(model, adapter), rtol=0, atol=1e-5)
    archives = [zip_folder(folder, tmp_path / "flat.zip"), zip_folder(folder, tmp_path / "top.zip", "my adapter/")]
    for path in (folder, str(folder), *archives):
        loaded = Adapter.from_pretrained(path, model, BASE_ID)
        assert torch.equal(loaded.weights, adapter.weights)
        assert loaded.layout == adapter.layout
        assert (loaded.base_model_id, loaded.policy) == (BASE_ID, None)


def test_saved_by_peft(tmp_path):
    model = tiny_policy_model(
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, init_lora_weights="gaussian")
    )
    model.peft_config["default"].base_model_name_or_path = BASE_ID
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)  # else PEFT asks the Hub
    adapter = Adapter.from_pretrained(tmp_path, tiny_llama(), BASE_ID)
    with torch.no_grad():
        torch.testing.assert_close(
            attached_logits(tiny_llama(), adapter), model(token_ids()).logits, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("target_modules", [OVERLAPPING, APART, "all-linear"], ids=["overlap", "apart", "all"])
@pytest.mark.parametrize(
    ("options", "lora_alpha"),
    [({"lora_alpha": 8}, 14.0), ({"lora_alpha": 3}, 7.0), ({"lora_alpha": 8, "use_rslora": True}, 7.0)],
    ids=["equal-scaling", "other-scaling", "rslora"],
)
def test_policy_and_inner_adapter_as_one(tmp_path, target_modules, options, lora_alpha):
    policy_model = tiny_policy_model()  # rank 3, scaling 2
    policy = Adapter.from_peft_model(policy_model, BASE_ID)
    inner = random_adapter(policy_model, policy=policy, target_modules=target_modules, **options)
    expected = attached_logits(policy_model, inner)
    folder = inner.save_pretrained(tmp_path)
    torch.testing.assert_close(peft_logits(folder), expected, rtol=0, atol=1e-5)

    fields = json.loads((folder / CONFIG_NAME).read_text())
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (7, lora_alpha, BASE_ID)
    both = {module.name for adapter in (policy, inner) for module in adapter.layout.modules}
    tensors = load_file(folder / WEIGHTS_NAME)
    assert len(tensors) == 2 * len(both)
    loaded = Adapter.from_pretrained(folder, tiny_llama(), BASE_ID)
    torch.testing.assert_close(attached_logits(tiny_llama(), loaded), expected, rtol=0, atol=1e-5)
    assert {module.name for module in loaded.layout.modules} == both

    with torch.no_grad():
        assert (expected - policy_model(token_ids()).logits).abs().max() > 0.01
        assert (expected - attached_logits(tiny_llama(), inner)).abs().max() > 0.01


def test_policy_from_peft_model():
    policy_model = tiny_policy_model()
    policy = Adapter.from_peft_model(policy_model, BASE_ID)
    with torch.no_grad():
        expected = policy_model(token_ids()).logits
    torch.testing.assert_close(attached_logits(tiny_llama(), policy), expected, rtol=0, atol=1e-5)
    assert policy.on_base() is policy


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors.pop("base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight")
    save_file(tensors, folder / WEIGHTS_NAME)


def _pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_NAME), folder / "adapter_model.bin")
    (folder / WEIGHTS_NAME).unlink()


def _save_embedding(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME) | {"base_model.model.model.embed_tokens.weight": torch.zeros(3, 2)}
    save_file(tensors, folder / WEIGHTS_NAME)


def _truncate(folder: Path) -> None:
    file = folder / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda folder: edit_config(folder, base_model_name_or_path="someone/else"),
            ValueError,
            "adapts someone/else, but the loaded base model is tests/tiny-llama; load someone/else",
        ),
        (lambda folder: edit_config(folder, r=8), ValueError, "has rank 4, but its adapter_config.json says r=8; set r"),
        (_drop_tensor, ValueError, "lacks the tensor .*layers.1.self_attn.v_proj.lora_A.weight"),
        (lambda folder: edit_config(folder, target_modules=["q_proj"]), ValueError, "holds 4 LoRA matrices .* adapter_config.json does not name .*correct its target_modules"),
        (_save_embedding, ValueError, "holds 1 tensors that are no LoRA matrices .*embed_tokens.weight; .*save_embedding_layers=False"),
        (lambda folder: edit_config(folder, target_modules=["c_attn"]), ValueError, "match no linear module"),
        (_pickle_instead, ValueError, "holds adapter_model.bin, a pickle, .* safetensors"),
        (_truncate, ValueError, "adapter_model.safetensors is not a safetensors file"),
        (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b""), ValueError, "is not a safetensors file"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), FileNotFoundError, f"has no {WEIGHTS_NAME}"),
        (lambda folder: (folder / CONFIG_NAME).unlink(), FileNotFoundError, f"has no {CONFIG_NAME}"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{r: 4"), ValueError, f"{CONFIG_NAME} is not valid JSON"),
        (
            lambda folder: (folder / CONFIG_NAME).write_bytes(b"\xff\xfe"),
            ValueError,
            f"{CONFIG_NAME} is not valid JSON",
        ),
        (lambda folder: (folder / CONFIG_NAME).write_text("[]"), ValueError, f"{CONFIG_NAME} is not a JSON object"),
        (lambda folder: edit_config(folder, peft_type="IA3"), ValueError, "is a IA3 adapter; only LoRA"),
        (lambda folder: edit_config(folder, use_dora=True), ValueError, r"LoraConfig\(use_dora=True\) is not supported, since adapters are plain LoRA here; train with"),
        (lambda folder: edit_config(folder, rank_pattern=[4]), ValueError, r"rank_pattern=\[4\] gives no number"),
        (lambda folder: edit_config(folder, alpha_pattern={"q_proj": "4"}), ValueError, "alpha_pattern=.* gives no number"),
    ],
    ids=[
        "other-base",
        "other-shapes",
        "missing-tensor",
        "left-over-matrices",
        "embedding",
        "other-modules",
        "pickle",
        "truncated",
        "empty-weights",
        "no-weights",
        "no-config",
        "invalid-json",
        "not-text",
        "not-an-object",
        "not-lora",
        "dora",
        "list-for-pattern",
        "text-for-number",
    ],
)  # fmt: skip
def test_adapter_that_does_not_fit(saved, tmp_path, damage, error, message):
    damage(saved)
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(error, match=message) as raised:
        Adapter.from_pretrained(saved, model, BASE_ID)
    assert str(saved) in str(raised.value)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if (saved / CONFIG_NAME).exists():
        with pytest.raises(error, match=message):
            Adapter.from_pretrained(zip_folder(saved, tmp_path / "damaged.zip"), model, BASE_ID)


def test_base_of_other_sizes(saved):
    with pytest.raises(ValueError, match=r"has shape \(4, 32\), but this base model needs \(4, 64\); load the base"):
        Adapter.from_pretrained(saved, tiny_llama(hidden_size=64), BASE_ID)


def test_pickle_is_never_opened(saved):
    class Trap:
        def __reduce__(self):
            return (open, (str(saved / "opened"), "w"))

    torch.save(Trap(), saved / "adapter_model.bin")
    assert Adapter.from_pretrained(saved, tiny_llama(), BASE_ID).weights.numel() > 0  # safetensors lie beside it
    (saved / WEIGHTS_NAME).unlink()
    with pytest.raises(ValueError, match="a pickle"):
        Adapter.from_pretrained(saved, tiny_llama(), BASE_ID)
    assert not (saved / "opened").exists()


def test_model_with_a_policy_adapter_is_refused(saved):
    with pytest.raises(ValueError, match="this model carries a policy adapter; load the base"):
        Adapter.from_pretrained(saved, tiny_policy_model(), BASE_ID)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no adapter at .*nowhere"):
        Adapter.from_pretrained(tmp_path / "nowhere", tiny_llama(), BASE_ID)


def test_file_that_is_no_zip(saved):
    with pytest.raises(ValueError, match="neither a folder nor a zip file"):
        Adapter.from_pretrained(saved / WEIGHTS_NAME, tiny_llama(), BASE_ID)


@pytest.mark.parametrize("prefixes", [(), ("a/", "b/")], ids=["none", "two"])
def test_zip_with_another_number_of_adapters(saved, tmp_path, prefixes):
    archive = tmp_path / "adapters.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("readme.txt", "adapters")
        for prefix in prefixes:
            files.write(saved / CONFIG_NAME, prefix + CONFIG_NAME)
    with pytest.raises(ValueError, match=f"holds {len(prefixes)} files named {CONFIG_NAME}"):
        Adapter.from_pretrained(archive, tiny_llama(), BASE_ID)


@pytest.mark.parametrize(
    "name",
    ["../escaped.txt", "/{tmp}/escaped.txt", "sub/../../escaped.txt", "..\\escaped.txt", "..", "sub/escaped.txt"],
)
@pytest.mark.parametrize("prefix", ["", "top/"])
def test_paths_in_a_zip_are_not_followed(saved, tmp_path, monkeypatch, name, prefix):
    scratch = tmp_path / "scratch" / "deep"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    archive = zip_folder(saved, tmp_path / "adapter.zip", prefix)
    with zipfile.ZipFile(archive, "a") as files:
        files.writestr(prefix + name.format(tmp=tmp_path), "escaped")
        files.writestr(name.format(tmp=tmp_path) if prefix else "other.txt", "escaped")
    loaded = Adapter.from_pretrained(archive, tiny_llama(), BASE_ID)
    assert torch.equal(loaded.weights, random_adapter().weights)
    assert not list(tmp_path.rglob("*escaped*"))
    assert list(scratch.rglob("*")) == []


def test_config_in_a_zip_outside_of_its_folder(saved, tmp_path):
    archive = zip_folder(saved, tmp_path / "adapter.zip", "../")
    loaded = Adapter.from_pretrained(archive, tiny_llama(), BASE_ID)
    assert torch.equal(loaded.weights, random_adapter().weights)
    assert not (tmp_path / CONFIG_NAME).exists() and not (tmp_path.parent / CONFIG_NAME).exists()


def test_damaged_zip(saved, tmp_path):
    archive = zip_folder(saved, tmp_path / "adapter.zip")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF  # inside the weights: the check sum no longer fits
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="adapter.zip is damaged"):
        Adapter.from_pretrained(archive, tiny_llama(), BASE_ID)


PATTERNS = [
    r"(([a-z_.0-9])+)+Z",
    r".*.*.*.*.*.*.*q_proj",
    "(a?)" * 27 + "[a-z]*",
    ".*q_proj",
    "q_proj",
    ["q_proj", "(a|b)+"],
    [["q_proj"]],
    [""],
    {"q_proj": 1},
    7,
    True,
]


@pytest.mark.parametrize("option", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_is_taken_from_a_file(saved, option, pattern):
    edit_config(saved, **{option: pattern})
    with pytest.raises(ValueError, match=f"{option}=.* is no list of plain names .*; name the modules in a list"):
        Adapter.from_pretrained(saved, tiny_llama(), BASE_ID)


def test_all_linear_is_no_pattern(tmp_path):
    adapter = random_adapter(target_modules="all-linear")
    folder = adapter.save_pretrained(tmp_path / "adapter")
    edit_config(folder, target_modules="all-linear")
    loaded = Adapter.from_pretrained(folder, tiny_llama(), BASE_ID)
    assert torch.equal(loaded.weights, adapter.weights)


def test_names_that_are_no_modules_cost_no_time(saved):
    """PEFT would compare each of a large model's modules with each name."""
    edit_config(saved, target_modules=["q_proj", "v_proj", *(f"x{number}" for number in range(50_000))])
    compared = []

    class Name(str):
        def endswith(self, *arguments):
            compared.append(arguments)
            return super().endswith(*arguments)

    model = tiny_llama()
    with pytest.MonkeyPatch.context() as patch:
        found = {Name(name): module for name, module in linear_modules(model).items()}
        patch.setattr("seal_hf.adapters.layout.linear_modules", lambda model: found)
        loaded = Adapter.from_pretrained(saved, model, BASE_ID)
    assert len(compared) < 100 and torch.equal(loaded.weights, random_adapter().weights)


@pytest.mark.parametrize(
    "losses",
    ["x", {"a": 1}, [None], 3, [True], [10**400], [math.nan], [1.0, math.inf], [-1e10], [0] * 100_001],
    ids=lambda value: repr(value)[:20],
)
def test_losses_that_are_no_numbers(tmp_path, losses):
    folder = random_adapter(tiny_llama()).save_pretrained(tmp_path / "adapter")
    (folder / "seal_training.json").write_text(json.dumps({"losses": losses}))
    with pytest.raises(
        ValueError, match="seal_training.json is damaged .its losses are no list of .* finite numbers.; remove it"
    ):
        Adapter.from_pretrained(folder, tiny_llama(), BASE_ID)


def test_layers_are_named_plainly(tmp_path):
    folder = random_adapter(tiny_llama()).save_pretrained(tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["layers_to_transform"] = [0, 1]
    for pattern in ("layers", ["h", "layers"]):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "layers_pattern": pattern}))
        Adapter.from_pretrained(folder, tiny_llama(), BASE_ID)
    for pattern in ("([a-z_.0-9]+)+!", ["layers", "(a|a)+"], [1], {"a": 1}):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "layers_pattern": pattern}))
        with pytest.raises(ValueError, match="layers_pattern=.* is no plain name of a module; name the modules"):
            Adapter.from_pretrained(folder, tiny_llama(), BASE_ID)
