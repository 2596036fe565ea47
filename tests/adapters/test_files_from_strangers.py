"""Adapters that somebody made to take memory, disk, time or sense: each is refused by name before it gets any of them."""

import json
import struct
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.adapters import BASE_ID, random_adapter
from helpers.hub_server import Repo
from helpers.tiny_models import tiny_llama
from seal_hf.adapters.adapter import Adapter
from seal_hf.adapters.files import LARGEST_TEXT, MAX_RANK, TRAINING_NAME
from seal_hf.adapters.sources import CONFIG_NAME, WEIGHTS_NAME


KEY = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
REPO = "tester/adapter"


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def saved(tmp_path):
    return random_adapter().save_pretrained(tmp_path / "adapter")


def zipped(folder, archive, method=zipfile.ZIP_DEFLATED, **others):
    """The folder as a zip file; `others` are in place of its files, or beside them."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, content in {**files, **{name.replace("__", "."): content for name, content in others.items()}}.items():
        with zipfile.ZipFile(archive, "a", method) as target:
            target.writestr(name, content)
    return archive


def edit_config(folder, **fields):
    file = folder / CONFIG_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def safetensors_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def refusal_of(source, model, match):
    """The message; nothing near the size of a bomb was in memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as raised:
            Adapter.from_pretrained(source, model, BASE_ID)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    return str(raised.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, TRAINING_NAME])
def test_only_stored_and_deflated_files_are_unpacked(saved, model, tmp_path, method, name):
    archive, bomb = tmp_path / "bomb.zip", bytes(2**26)
    files = {file.name: file.read_bytes() for file in saved.iterdir()} | {name: bomb}
    with zipfile.ZipFile(archive, "w") as target:
        for own, content in files.items():
            target.writestr(own, content, method if own == name else zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 100_000
    refusal_of(archive, model, f"bomb.zip: {name} is packed by the method {method}; only stored and deflated")


def test_a_large_file_of_zeros_is_not_unpacked(saved, model, tmp_path):
    junk = {"adapter_model__safetensors": bytes(2**26), "optimizer__pt": bytes(2**24)}
    archive = zipped(saved, tmp_path / "bomb.zip", **junk)
    refusal_of(
        archive,
        model,
        r"bomb.zip: adapter_model.safetensors has 67.1 MB, but for this base model and .* at most 0.1 MB",
    )


def test_what_lies_beside_an_adapter_does_not_matter(saved, model, tmp_path):
    archive = zipped(saved, tmp_path / "full.zip", optimizer__pt=bytes(2**24), other__txt=b"x")
    assert torch.equal(Adapter.from_pretrained(archive, model, BASE_ID).weights, random_adapter().weights)


@pytest.mark.parametrize("name", [CONFIG_NAME, TRAINING_NAME])
def test_texts_are_short(saved, model, name):
    (saved / name).write_bytes(b" " * LARGEST_TEXT + b"{}")
    refusal_of(saved, model, f"{name} has 1.0 MB, but")
    (saved / name).write_text('{"a": ' + "[" * 100_000)
    refusal_of(saved, model, f"{name} is nested too deeply")


def test_an_archive_of_very_many_files_is_not_listed(saved, model, tmp_path):
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for number in range(12_000):
            files.writestr(f"{number:060}", b"")
    with pytest.raises(ValueError, match="many.zip is damaged .*too many files"):
        Adapter.from_pretrained(archive, model, BASE_ID)


@pytest.mark.parametrize("r", [0, -1, MAX_RANK + 1, 10**400, 4.5, "4", True, None], ids=lambda value: repr(value)[:8])
def test_a_rank_is_a_whole_number_within_bounds(saved, model, r):
    edit_config(saved, r=r)
    refusal_of(saved, model, "the LoRA rank r=.* must be a whole number from 1 to 1024")


@pytest.mark.parametrize(
    "alpha",
    [1e308, 10**400, float("nan"), float("inf"), -float("inf"), "8", True, [8]],
    ids=lambda value: repr(value)[:8],
)
def test_lora_alpha_is_a_number_within_bounds(saved, model, alpha):
    edit_config(saved, lora_alpha=alpha)
    refusal_of(saved, model, "lora_alpha=.* must be a number within ±1,000,000")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(saved, model, value, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(saved / WEIGHTS_NAME).items()}
    tensors[KEY][1, 2] = value
    save_file(tensors, saved / WEIGHTS_NAME)
    refusal_of(saved, model, f"{KEY} holds numbers that are not finite")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.complex64, "C64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float64, "F64"),
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
    ],
)
def test_weights_of_other_types_are_named(saved, model, dtype, name):
    tensors = load_file(saved / WEIGHTS_NAME)
    save_file({**tensors, KEY: tensors[KEY].to(dtype)}, saved / WEIGHTS_NAME)
    refusal_of(saved, model, f"{KEY} is of the type {name}; only F32, F16, BF16 are read")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(saved, model, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(saved / WEIGHTS_NAME).items()}
    save_file(tensors, saved / WEIGHTS_NAME)
    loaded = Adapter.from_pretrained(saved, model, BASE_ID)
    assert torch.equal(loaded.weights, random_adapter().weights.to(dtype).float())


def test_a_header_of_very_many_tensors_is_not_read(saved, model):
    many = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(50_000)}
    (saved / WEIGHTS_NAME).write_bytes(safetensors_of(many))
    refusal_of(saved, model, "adapter_model.safetensors has .* MB, but for this base model")
    (saved / WEIGHTS_NAME).write_bytes(safetensors_of(b" " * 71_000))
    refusal_of(saved, model, "its header has 71,000 bytes, more than the")


def _entry(**changes):
    return lambda header: header[KEY].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _entry(data_offsets=[0, 512]),  # those of another tensor
        _entry(data_offsets=[10**30, 10**30 + 512]),
        _entry(data_offsets=[512, 0]),
        _entry(data_offsets=[-512, 0]),
        _entry(data_offsets=[0.0, 512.0]),
        _entry(data_offsets=[0]),
        _entry(shape=[True, True]),
        _entry(shape=None),
        _entry(dtype=[]),
        _entry(dtype="F16"),
        lambda header: header.update({KEY: 1}),
    ],
)
def test_a_header_that_lies_is_found(saved, model, change):
    content = (saved / WEIGHTS_NAME).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    (saved / WEIGHTS_NAME).write_bytes(safetensors_of(header, content[8 + length :]))
    refusal_of(saved, model, "is not a safetensors file")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, struct.pack("<Q", 2**63), safetensors_of(b"["), safetensors_of(b"[]"), safetensors_of(b"[" * 50_000)]
)  # fmt: skip
def test_a_file_without_a_header(saved, model, content):
    (saved / WEIGHTS_NAME).write_bytes(content)
    refusal_of(saved, model, "is not a safetensors file")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_that_unpacks_to_less_than_it_says_is_refused(saved, model, tmp_path, method):
    """The rest would be what lay in the server's memory before."""
    content = (saved / WEIGHTS_NAME).read_bytes()
    (saved / WEIGHTS_NAME).write_bytes(content[:-600])
    archive = zipped(saved, tmp_path / "short.zip", method)
    packed = archive.read_bytes()
    with zipfile.ZipFile(archive) as files:
        info = files.getinfo(WEIGHTS_NAME)
        fields = struct.pack("<III", info.CRC, info.compress_size, info.file_size)
    assert packed.count(fields) == 2  # in the file's own header and in the list
    compressed = info.compress_size + 600 * (method == zipfile.ZIP_STORED)
    archive.write_bytes(packed.replace(fields, struct.pack("<III", info.CRC, compressed, len(content))))
    refusal_of(archive, model, "short.zip is damaged|short.zip: .* is not a safetensors file .it is cut short")


def test_bytes_after_the_weights_are_found(saved, model):
    with (saved / WEIGHTS_NAME).open("ab") as file:
        file.write(b"hidden")
    refusal_of(saved, model, "is not a safetensors file .it has .* bytes of weights where its header tells of")


def test_a_value_of_the_file_is_shortened_in_messages(saved, model):
    edit_config(saved, modules_to_save=["x" * 100_000])
    assert len(refusal_of(saved, model, "modules_to_save=")) < 500


def test_a_greatest_size_is_kept_to_before_the_weights_are_opened(saved, model, monkeypatch):
    size = random_adapter().layout.num_bytes
    assert Adapter.from_pretrained(saved, model, BASE_ID, max_bytes=size).layout.num_bytes == size
    monkeypatch.setattr("seal_hf.adapters.adapter.read_weights", lambda *arguments: pytest.fail("read"))
    with pytest.raises(ValueError, match="is an adapter of rank 4 with .* but there is room for"):
        Adapter.from_pretrained(saved, model, BASE_ID, max_bytes=size - 1)


def test_the_size_is_told_before_the_weights_are_opened(saved, model, monkeypatch):
    sizes = []
    loaded = Adapter.from_pretrained(saved, model, BASE_ID, on_size=sizes.append)
    assert sizes == [loaded.layout.num_bytes]
    monkeypatch.setattr("seal_hf.adapters.adapter.read_weights", lambda *arguments: pytest.fail("read"))
    with pytest.raises(KeyError):
        Adapter.from_pretrained(saved, model, BASE_ID, on_size={}.__getitem__)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, TRAINING_NAME])
def test_a_large_file_on_the_hub_is_not_fetched(saved, model, hub, name):
    files = {file.name: file.read_bytes() for file in saved.iterdir()} | {name: bytes(3_000_000)}
    hub.add_repo(Repo(REPO), files)
    refusal_of(REPO, model, f"{REPO}@.*: {name} has 3.0 MB, but")
    assert not hub.requests(name, "GET")


def test_many_files_on_the_hub_are_not_listed(saved, model, hub):
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    hub.add_repo(Repo(REPO), files)
    assert torch.equal(Adapter.from_pretrained(REPO, model, BASE_ID).weights, random_adapter().weights)
    assert not hub.requests("/tree/")


def test_files_of_the_hub_are_put_where_they_are_wanted(saved, model, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.add_repo(Repo(REPO), {file.name: file.read_bytes() for file in saved.iterdir()})
    Adapter.from_pretrained(REPO, model, BASE_ID, cache_dir=tmp_path / "own")
    assert list((tmp_path / "own").rglob(WEIGHTS_NAME)) and not (tmp_path / "cache").exists()


def test_a_stream_is_read_once_and_in_order(saved, model, monkeypatch, tmp_path):
    """Going back in a deflated file means to unpack all before again."""
    monkeypatch.setattr(zipfile.ZipExtFile, "seek", lambda *arguments: pytest.fail("went back"))
    tensors = load_file(saved / WEIGHTS_NAME)
    save_file(dict(reversed(tensors.items())), saved / WEIGHTS_NAME)
    archive = zipped(saved, tmp_path / "adapter.zip")
    assert torch.equal(Adapter.from_pretrained(archive, model, BASE_ID).weights, random_adapter().weights)
