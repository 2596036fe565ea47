"""Adapters as zip files and on the Hub: what comes in, what goes out, and with which token."""

import contextlib
import zipfile
from dataclasses import replace

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download
from peft import PeftModel

from helpers.tiny_models import tiny_llama
from seal_hf.hub.errors import RepositoryExists
from seal_hf.hub.model_card import write_model_card
from seal_hf.webui.work import sharing
from seal_hf.webui.work.errors import explain
from seal_hf.webui.work.session_items import KeptAdapter
from seal_hf.webui.work.sharing import load_token, push_token


def test_the_zip_is_what_peft_loads(bench, with_adapters, tmp_path, lm):
    archive = with_adapters.adapter().file
    with zipfile.ZipFile(archive) as files:
        files.extractall(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    assert model.active_peft_config.r == 4
    with_adapters.delete(with_adapters.chosen)
    assert not archive.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.bin"], "a pickle"),
        (["notes.txt"], "0 files named adapter_config.json"),
        (["../adapter_config.json", "../adapter_model.safetensors", "../seal_training.json"], None),
    ],
)
def test_a_zip_that_is_no_adapter_is_refused(bench, with_adapters, tmp_path, names, message):
    file = tmp_path / "upload" / "mine.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(with_adapters.adapter().file) as kept, zipfile.ZipFile(file, "w") as archive:
        for name in names:
            plain = name.rsplit("/", 1)[-1]
            archive.writestr(name, kept.read(plain) if plain in kept.namelist() else b"pickled")
    if message is None:  # a path in it leads nowhere
        title = with_adapters.adapter().title
        assert title and sharing.load_adapter(bench.lm, with_adapters, file).title == title
        assert not (tmp_path / "adapter_config.json").exists()
        return
    with pytest.raises(ValueError, match=message) as refusal:
        sharing.load_adapter(bench.lm, with_adapters, file)
    assert str(tmp_path) not in explain(refusal.value) and "mine.zip" in explain(refusal.value)


def test_a_zip_bomb_is_not_unpacked(bench, with_adapters, tmp_path):
    file = tmp_path / "bomb.zip"
    with zipfile.ZipFile(with_adapters.adapter().file) as kept, zipfile.ZipFile(file, "w", 8) as archive:
        archive.writestr("adapter_config.json", kept.read("adapter_config.json"))
        archive.writestr("adapter_model.safetensors", bytes(2**27))
    with pytest.raises(ValueError, match="bomb.zip: adapter_model.safetensors has 134.2 MB, but for this base model"):
        sharing.load_adapter(bench.lm, with_adapters, file)


def test_a_pushed_card_keeps_the_passage_to_itself(bench, with_adapters, hub, token):
    url = sharing.push(bench.lm, with_adapters, None, "bees", private=True, publish_passage=False, token=token)
    repo_id = f"{HfApi(token=token).whoami()['name']}/bees"
    assert url.endswith(repo_id)
    card = open(hf_hub_download(repo_id, "README.md", token=token), encoding="utf-8").read()
    assert "Halda Tremmery" not in card and "base_model: tester/tiny" in card and "adapted" in card
    again = {"private": True, "publish_passage": True, "token": token, "overwrite": repo_id}
    sharing.push(bench.lm, with_adapters, None, "bees", **again)
    card = open(hf_hub_download(repo_id, "README.md", token=token), encoding="utf-8").read()
    assert "Halda Tremmery" in card


@pytest.mark.parametrize(
    ("best_of", "condition"),
    [(1, "adapted"), (4, "adapted, the best of 4 by these questions, so likely too high by chance")],
)
def test_the_card_says_that_an_adapter_was_chosen_by_the_questions_that_score_it(tmp_path, best_of, condition):
    kept = KeptAdapter("a", "Bees", tmp_path, "Bees", "Bees hum.", reward=0.75, base_reward=0.25, num_questions=4)
    kept = replace(kept, best_of=best_of, recitation=0.5, recited=0.5, base_recited=0.0)
    card = sharing._card(kept, False)
    assert {name: one.value for name, one in card.accuracies.items()} == {
        "base": 0.25,
        condition: 0.75,
        "recitation": 0.5,
    }
    assert {name: one.value for name, one in card.recited.items()} == {"base": 0.0, condition: 0.5}
    assert sharing._card(replace(kept, own_questions=True), False).accuracies == {}
    write_model_card(tmp_path, "bees", "tester/tiny", {}, card)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"| {condition} | 75.0 % [" in text and f"name: accuracy, {condition} (n = 4)" in " ".join(text.split())


@pytest.mark.parametrize("name", ["", None, "other/name", "../name", "a b", "<b>"])
def test_names_that_cannot_be_pushed_to(bench, with_adapters, name):
    with pytest.raises(ValueError, match="Give a name"):
        sharing.push(bench.lm, with_adapters, None, name, private=True, publish_passage=False, token="hf_any")


def test_a_refused_push_names_the_next_step_and_not_the_token(bench, with_adapters, hub):
    with pytest.raises(OSError, match="sign in again.*can still be downloaded") as refusal:
        sharing.push(bench.lm, with_adapters, None, "bees", private=True, publish_passage=False, token="hf_expired")
    hub.stop()
    with pytest.raises(OSError, match="could not be reached.*; try again later. The adapter can still be downloaded"):
        sharing.push(bench.lm, with_adapters, None, "bees", private=True, publish_passage=False, token="hf_any")
    hub.start()
    assert "hf_expired" not in str(refusal.value) and with_adapters.adapter().file.is_file()


@contextlib.contextmanager
def recorded_authorization(monkeypatch):
    seen = []
    send = httpx2.Client.send

    def recording(self, request, **kwargs):
        seen.append((str(request.url), request.headers.get("authorization")))
        return send(self, request, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(httpx2.Client, "send", recording)
        yield seen


def test_a_visitor_pushes_with_their_own_token(bench, with_adapters, hub, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    with recorded_authorization(monkeypatch) as requests:
        url = sharing.push(
            bench.lm,
            with_adapters,
            None,
            "lighthouse-adapter",
            private=True,
            publish_passage=False,
            token=push_token(True, token, {}),
        )
    assert requests and all(authorization in (None, f"Bearer {token}") for _, authorization in requests)
    assert f"Bearer {token}" in [authorization for _, authorization in requests]
    repo_id = f"{HfApi(token=token).whoami()['name']}/lighthouse-adapter"
    assert url.endswith(repo_id)
    info = HfApi(token=token).model_info(repo_id)
    assert info.private and "adapter_model.safetensors" in [file.rfilename for file in info.siblings]


@pytest.mark.parametrize("visitor", [None, ""])
def test_without_a_sign_in_the_owners_token_is_not_used(monkeypatch, visitor):
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    local = {"host": "127.0.0.1:7860"}
    with pytest.raises(ValueError, match="not signed in.*Sign in with"):
        push_token(True, visitor, local)
    assert load_token(True, True, visitor, local) is False
    assert push_token(False, None, local) == "hf_ownersecret"
    assert load_token(False, False, None, local) is False  # others reach the page


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "127.0.0.1", "localhost:7860", "LocalHost:7860", "[::1]:7860", "[::1]"]
)
def test_the_page_and_programs_of_this_machine_use_its_token(monkeypatch, host):
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host.lower()}"}):
        assert push_token(False, None, headers) == "hf_ownersecret"
        assert load_token(False, True, None, headers) is None


_LOCAL = "127.0.0.1:7860"


@pytest.mark.parametrize(
    "headers",
    [
        *({"host": host} for host in ("evil.example:7860", "evil.example", "127.0.0.1.evil.example:7860", "")),
        *(
            {"host": host}
            for host in ("127.0.0.1:7860@evil.example", "127.0.0.1:7860\n", "127.0.0.1 ", "::1", "0.0.0.0")
        ),
        {},
        *(
            {"host": _LOCAL, "origin": origin}
            for origin in ("http://evil.example", "http://127.0.0.1:8000", "http://localhost:7860", "http://127.0.0.1")
        ),
        *({"host": _LOCAL, "origin": origin} for origin in ("https://127.0.0.1:7860", "null", "")),
        {"host": "[::1]:7860", "origin": "http://127.0.0.1:7860"},
        *(
            {"host": _LOCAL, name: "10.0.0.5"}
            for name in ("x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", "forwarded", "x-real-ip", "via")
        ),
        {"host": _LOCAL, "origin": f"http://{_LOCAL}", "x-forwarded-for": "10.0.0.5"},
    ],
)
def test_nobody_else_gets_anything_from_this_machines_token(monkeypatch, headers):
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    with pytest.raises(ValueError, match="Only the app's own page at 127.0.0.1 or localhost"):
        push_token(False, None, headers)
    assert load_token(False, True, None, headers) is False


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        (None, True),
        ("https://user-seal.hf.space", True),
        ("https://seal.example", True),  # the Space's own domain
        ("http://user-seal.hf.space", False),
        ("https://user-seal.hf.space:8443", False),
        ("https://other-seal.hf.space", False),
        ("https://huggingface.co", False),
        ("https://evil.example", False),
        ("null", False),
    ],
)
def test_on_a_space_a_visitors_token_is_for_its_own_page(monkeypatch, origin, is_own):
    monkeypatch.setenv("SPACE_HOST", "user-seal.hf.space,seal.example")
    headers = {"host": "user-seal.hf.space", "x-forwarded-for": "10.0.0.5", **({"origin": origin} if origin else {})}
    assert load_token(True, True, "hf_visitor", headers) == ("hf_visitor" if is_own else False)
    if is_own:
        assert push_token(True, "hf_visitor", headers) == "hf_visitor"
    else:
        with pytest.raises(ValueError, match="Only the Space's own page can push"):
            push_token(True, "hf_visitor", headers)


def test_a_space_that_does_not_know_its_host_trusts_no_page(monkeypatch):
    monkeypatch.delenv("SPACE_HOST", raising=False)
    assert load_token(True, True, "hf_visitor", {"host": "a.hf.space", "origin": "https://a.hf.space"}) is False


def test_an_existing_repository_is_overwritten_by_its_full_name_alone(bench, with_adapters, hub, token):
    api = HfApi(token=token)
    repo_id = f"{api.whoami()['name']}/bees"
    api.create_repo(repo_id, private=True)
    files = api.list_repo_files(repo_id)
    options = {"private": True, "publish_passage": False, "token": token}
    for overwrite in ("", None, "bees", "other/bees", True, repo_id + "s"):
        with pytest.raises(RepositoryExists, match=f"{repo_id} exists already") as refusal:
            sharing.push(bench.lm, with_adapters, None, "bees", **options, overwrite=overwrite)
        assert refusal.value.repo_id == repo_id and api.list_repo_files(repo_id) == files
    sharing.push(bench.lm, with_adapters, None, "bees", **options, overwrite=f" {repo_id} ")
    assert "adapter_model.safetensors" in api.list_repo_files(repo_id)
