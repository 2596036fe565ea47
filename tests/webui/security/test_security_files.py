"""Files from strangers: adapters made to take memory, disk or time, or to be more than numbers and names."""

import json
import re
import resource
import zipfile
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file

from helpers.hub_server import Repo
from helpers.web_page import PASSAGE, QUESTIONS, QUICK, tiny_lm, written
from seal_hf.webui.work import quota, sharing


CONFIG, WEIGHTS, TRAINING = "adapter_config.json", "adapter_model.safetensors", "seal_training.json"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The files of an adapter of the tiny model."""
    model = tiny_lm()
    adapter = model.adapt(model.domain.passage_only({"title": "", "context": PASSAGE}))
    folder = adapter.save_pretrained(tmp_path_factory.mktemp("honest") / "adapter")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def with_config(files, **fields):
    return {**files, CONFIG: json.dumps({**json.loads(files[CONFIG]), **fields}).encode()}


def with_tensor(files, folder, change):
    file = folder / WEIGHTS
    file.write_bytes(files[WEIGHTS])
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors[KEY] = change(tensors[KEY])
    save_file(tensors, file)
    return {**files, WEIGHTS: file.read_bytes()}


def zip_of(files, archive, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return archive


def loaded(app, called, archive):
    """What `load_adapter` returns for an uploaded file."""
    with archive.open("rb") as file:
        answer = httpx2.post(f"{app.url}gradio_api/upload", files={"files": (archive.name, file)}, timeout=60)
    uploaded = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": archive.name}
    return called(app.url, "load_adapter", ["", "", uploaded])[0]


def kept_bytes(app):
    return quota.used_bytes(app.workbench.sessions._folder)


def spoiled(tensor, value):
    return torch.full_like(tensor, value)


def header_of(number):
    entries = {f"t{place}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for place in range(number)}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ATTACKS = {
    "bzip2": (lambda files, _: {**files, TRAINING: bytes(2**26)}, "packed by the method 12; only stored and deflated", zipfile.ZIP_BZIP2),
    "lzma": (lambda files, _: {**files, WEIGHTS: bytes(2**26)}, "packed by the method 14; only stored and deflated", zipfile.ZIP_LZMA),
    "zeros": (lambda files, _: {**files, WEIGHTS: bytes(2**26)}, f"{WEIGHTS} has 67.1 MB, but for this base model"),
    "zeros beside junk": (lambda files, _: {**files, WEIGHTS: bytes(2**27), "junk": bytes(2**22)}, f"{WEIGHTS} has 134.2 MB, but"),
    "float8": (lambda files, folder: with_tensor(files, folder, lambda one: one.to(torch.float8_e4m3fn)), "is of the type F8_E4M3"),
    "complex": (lambda files, folder: with_tensor(files, folder, lambda one: one.to(torch.complex64)), "is of the type C64"),
    "NaN": (lambda files, folder: with_tensor(files, folder, lambda one: spoiled(one, float("nan"))), "not finite"),
    "infinite": (lambda files, folder: with_tensor(files, folder, lambda one: spoiled(one, float("inf"))), "not finite"),
    "lora_alpha": (lambda files, _: with_config(files, lora_alpha=1e308), "lora_alpha=1e.308 must be a number within"),
    "rank": (lambda files, _: with_config(files, r=10**9), "rank r=1000000000 must be a whole number from 1 to 1024"),
    "optional groups": (lambda files, _: with_config(files, target_modules="(a?)" * 27 + "[a-z._0-9]*Z"), "no pattern is taken from a file"),
    "nested groups": (lambda files, _: with_config(files, exclude_modules="(([a-z_.0-9])+)+Z"), "no pattern is taken from a file"),
    "many tensors": (lambda files, _: {**files, WEIGHTS: header_of(100_000)}, f"{WEIGHTS} has .* MB, but for this base model"),
    "deep": (lambda files, _: {**files, CONFIG: b"[" * 100_000}, f"{CONFIG} is nested too deeply"),
    "pickle": (lambda files, _: {CONFIG: files[CONFIG], "adapter_model.bin": b"x"}, "a pickle, which can run code"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_uploaded_adapter_is_refused_by_name(app, called, refused, honest, tmp_path, attack):
    make, message, *method = ATTACKS[attack]
    archive = zip_of(make(honest, tmp_path), tmp_path / "evil.zip", *method)
    assert archive.stat().st_size < 3_000_000
    memory, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, kept_bytes(app)
    with pytest.raises(refused, match=message) as refusal:
        loaded(app, called, archive)
    assert "evil.zip" in str(refusal.value) and "/" not in str(refusal.value).split("evil.zip")[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # kilobytes
    assert kept_bytes(app) == before


def test_an_honest_adapter_is_taken_and_its_upload_removed(app, called, honest, tmp_path):
    archive = zip_of({**honest, "optimizer.pt": bytes(2**20)}, tmp_path / "mine.zip")
    found = loaded(app, called, archive)
    session = app.workbench.sessions.open(found["session"])
    assert found["adapter"]["name"] == "mine" and found["adapter"]["bytes"] == session.adapter().num_bytes
    with archive.open("rb") as file:
        path = httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("mine.zip", file)}).json()[0]
    uploaded = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert called(app.url, "load_adapter", [found["session"], "", uploaded])[0]["session"] == found["session"]
    assert httpx2.get(f"{app.url}gradio_api/file={path}").status_code in (403, 404)


def test_what_is_kept_is_kept_once(app, called, honest, tmp_path):
    found = loaded(app, called, zip_of(honest, tmp_path / "mine.zip"))
    called(app.url, "download_adapter", [found["session"], ""])
    folder = app.workbench.sessions.open(found["session"]).folder
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    assert file.stat().st_size == found["adapter"]["bytes"] and set(zipfile.ZipFile(file).namelist()) >= {
        CONFIG,
        WEIGHTS,
    }


def test_huge_numbers_spoil_nobody_elses_answers(app, called, honest, tmp_path):
    files = with_tensor(honest, tmp_path, lambda tensor: spoiled(tensor, 3e38))
    mine = loaded(app, called, zip_of(with_config(files, lora_alpha=1e6), tmp_path / "huge.zip"))["session"]
    other = loaded(app, called, zip_of(honest, tmp_path / "mine.zip"))["session"]
    before = called(app.url, "ask", [other, "Who drew it?", ""])
    called(app.url, "ask", [mine, "Who drew it?", ""])
    assert called(app.url, "ask", [other, "Who drew it?", ""]) == before


def test_a_large_adapter_of_the_hub_is_not_fetched(app, called, refused, honest, hub):
    hub.add_repo(Repo("evil/large"), {**honest, WEIGHTS: bytes(2**23)})
    with pytest.raises(refused, match=f"evil/large@.*: {WEIGHTS} has 8.4 MB, but for this base model"):
        called(app.url, "load_adapter", ["", "evil/large", None])
    assert not hub.requests(WEIGHTS, "GET")


def test_what_strangers_load_from_the_hub_does_not_stay(serve, called, honest, hub):
    public = serve(may_push=False)
    hub.add_repo(Repo("ann/adapter"), honest)
    found = called(public.url, "load_adapter", ["", "ann/adapter", None])[0]
    assert found["adapter"]["name"] == "ann/adapter" and hub.requests(WEIGHTS, "GET")
    assert not (Path(constants.HF_HUB_CACHE) / "models--ann--adapter").exists()


def test_a_session_has_a_limit_of_bytes(app, called, refused, honest, tmp_path, monkeypatch):
    archive = zip_of(honest, tmp_path / "mine.zip")
    monkeypatch.setattr(quota, "FILE_BYTES", 10_000)
    first = loaded(app, called, archive)
    monkeypatch.setattr(quota, "SESSION_BYTES", 4 * first["adapter"]["bytes"])
    session = app.workbench.sessions.open(first["session"])
    for _ in range(5):
        with archive.open("rb") as file:
            path = httpx2.post(f"{app.url}gradio_api/upload", files={"files": ("mine.zip", file)}).json()[0]
        try:
            called(app.url, "load_adapter", [session.id, "", {"path": path, "meta": {"_type": "gradio.FileData"}}])
        except refused as refusal:
            assert "there is room for" in str(refusal)
            break
    else:
        pytest.fail("there was no limit")
    called(app.url, "download_adapter", [session.id, ""])
    assert len(session.adapters) < 5 and quota.used_bytes(session.folder) <= quota.SESSION_BYTES


def test_there_is_a_limit_for_all_sessions(app, called, refused, honest, tmp_path, monkeypatch):
    monkeypatch.setattr(quota, "TOTAL_BYTES", kept_bytes(app))
    with pytest.raises(refused, match="there is room for 0.0 MB"):
        loaded(app, called, zip_of(honest, tmp_path / "mine.zip"))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("SESSION_BYTES", "There is no room for .* is the limit of a visitor: delete some adapters"),
        ("TOTAL_BYTES", "There is no room for .* the adapters of all visitors may have .*: try again later"),
    ],
)
def test_learning_is_refused_before_the_start_where_there_is_no_room(bench, session, monkeypatch, limit, message):
    written(bench, session)
    monkeypatch.setattr(quota, limit, quota.used_bytes(session.folder) + 1_000_000)
    with pytest.raises(ValueError, match=message):
        bench.adapt(session, [0, 1], QUICK, QUESTIONS)
    assert not bench.jobs.active(session.id)


def test_what_is_reserved_is_not_given_twice(session, monkeypatch):
    monkeypatch.setattr(quota, "SESSION_BYTES", quota.used_bytes(session.folder) + 1000)
    with quota.room(session.folder, 600):
        assert quota.free_bytes(session.folder) == 400
        with pytest.raises(ValueError, match="There is no room for"), quota.room(session.folder, 600):
            pass
    assert quota.free_bytes(session.folder) == 1000


def test_markdown_of_a_file_is_text_in_the_card_that_is_pushed(bench, session, honest, hub, token, tmp_path):
    evil = "](x)\n\n# Trusted\n<script>alert(1)</script> ![x](https://evil.example/x.png) `` ` www.evil.example"
    training = {"seed": evil, evil: 1, "note": "https://evil.example", "learning_rate": 0.001, "base_dtype": "float32"}
    archive = zip_of({**honest, TRAINING: json.dumps(training).encode()}, tmp_path / "evil.zip")
    sharing.load_adapter(bench.lm, session, archive)
    sharing.push(bench.lm, session, None, "evil", private=True, publish_passage=False, token=token)
    text = open(hf_hub_download("tester/evil", "README.md", token=token), encoding="utf-8").read()
    assert "\n# Trusted" not in text and "- learning_rate: 0.001\n- base_dtype: float32\n" in text
    shown = re.sub(r"`[^`\n]*`", "", text.split("## Training")[1])
    assert not [part for part in ("script", "evil.example", "](", "#") if part in shown]


def test_an_adapter_of_the_hub_can_be_loaded_by_tools_that_leave_out_the_file(app, called):
    """An MCP tool's arguments are required where the endpoint's description gives no default."""
    described = httpx2.get(f"{app.url}gradio_api/info").json()["named_endpoints"]["/load_adapter"]["parameters"]
    found = {one["parameter_name"]: one["parameter_has_default"] for one in described}
    assert found == {"session": True, "repo_id": True, "file": True}
