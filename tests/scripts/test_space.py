"""The Space: what deploy.py uploads, and that the app boots from there."""

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.app_calls import signed_in
from helpers.folders import ROOT
from helpers.tiny_models import save_tiny_model
from helpers.web_page import PASSAGE, QUESTIONS
from seal_hf.models.embedded import EMBEDDED, EMBEDDED_MODELS, EMBEDDED_TINY


def imported(path, name):
    """A script as a module of its own, which pickle finds by its name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def deploy_module():
    return imported(ROOT / "space" / "deploy.py", "tested_deploy")


@pytest.fixture
def deploy(deploy_module, monkeypatch, capsys, tmp_path):
    """deploy.py in this process, which saves the time of its imports."""

    def deploy(*arguments, token):
        monkeypatch.setattr(sys, "argv", ["deploy.py", *arguments])
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.chdir(tmp_path)
        error = None
        try:
            deploy_module.main()
        except SystemExit as exit:
            error = exit.code
        return SimpleNamespace(output=capsys.readouterr().out, error=error)

    return deploy


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


# --- deploy.py ---


def test_requirements_are_in_step():
    requirements = {
        requirement.name: requirement
        for line in (ROOT / "space" / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
        for requirement in [Requirement(line)]
    }
    constraints = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in map(Requirement, project["dependencies"] + project["optional-dependencies"]["app"]):
        own = requirements[needed.name]
        assert needed.extras <= own.extras
        if needed.name == "torch":
            # ZeroGPU brings one of these, and it must not be replaced.
            assert all(own.specifier.contains(version) for version in ("2.8.0", "2.11.0", constraints["torch"]))
        else:
            assert str(own.specifier) == f"=={constraints[needed.name]}"
            assert needed.specifier.contains(constraints[needed.name])
    assert "spaces" in requirements and "oauth" in requirements["gradio"].extras
    card = front_matter((ROOT / "space" / "README.md").read_text(encoding="utf-8"))
    assert Version(card["sdk_version"]) == Version(constraints["gradio"])


def test_card(deploy_module):
    text = (ROOT / "space" / "README.md").read_text(encoding="utf-8")
    card = front_matter(text)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["python_version"] == "3.12"
    assert card["hf_oauth"] is True and card["hf_oauth_scopes"] == ["contribute-repos"]
    default = EMBEDDED_MODELS[EMBEDDED].model_id
    assert card["models"] == [default] and card["preload_from_hub"][0].split()[0] == default
    assert len(card["short_description"]) <= 60
    other = front_matter(deploy_module.with_model(text, "Qwen/Qwen2.5-1.5B-Instruct"))
    assert other["models"] == other["preload_from_hub"] == ["Qwen/Qwen2.5-1.5B-Instruct"]
    for name in (EMBEDDED, EMBEDDED_TINY):
        without = front_matter(deploy_module.with_model(text, name))
        assert "preload_from_hub" not in without and without["models"] == [EMBEDDED_MODELS[name].model_id]
    assert {**other, "models": 0, "preload_from_hub": 0} == {**card, "models": 0, "preload_from_hub": 0}


def test_dry_run_lists_the_files(deploy):
    result = deploy("--repo_id", "user/seal", "--dry_run", token="")  # no Hub is running
    files = result.output.split()
    assert result.error is None
    assert {"app.py", "LICENSE", "README.md", "requirements.txt", "seal_hf/__init__.py"} <= set(files)
    assert {
        f"seal_hf/domains/knowledge/{name}" for name in ("prompts/rewrite.txt", "data/demo_passages.jsonl")
    } <= set(files)
    assert not [file for file in files if "__pycache__" in file or file.startswith(("tests", "trainers"))]


def test_deploys_and_redeploys(hub, deploy, token, tmp_path):
    repo_id = f"{HfApi(token=token).whoami()['name']}/seal-space"
    result = deploy("--repo_id", repo_id, "--private", "--token", token, token="")
    assert result.error is None
    assert result.output.strip() == f"{constants.ENDPOINT}/spaces/{repo_id}"
    api = HfApi(token=token)
    files = set(api.list_repo_files(repo_id, repo_type="space"))
    assert api.space_info(repo_id).private
    assert {"app.py", "LICENSE", "README.md", "requirements.txt", "seal_hf/__init__.py"} <= files
    folder = Path(snapshot_download(repo_id, repo_type="space", token=token, cache_dir=tmp_path / "cache"))
    assert not [file for file in folder.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
    assert (folder / "app.py").read_bytes() == (ROOT / "app.py").read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    checked = httpx2.post(f"{constants.ENDPOINT}/api/validate-yaml", json={"content": card, "repoType": "space"})
    assert checked.status_code == 200 and checked.json()["errors"] == []

    api.upload_file(path_or_fileobj=b"old", path_in_repo="seal_hf/gone.py", repo_id=repo_id, repo_type="space")
    assert deploy("--repo_id", repo_id, token=token).error is None
    assert set(api.list_repo_files(repo_id, repo_type="space")) == files
    assert hf_hub_download(repo_id, "app.py", repo_type="space", token=token, cache_dir=tmp_path / "cache")


def test_model_and_hardware(hub, token, deploy_module, monkeypatch):
    asked = []
    monkeypatch.setattr(HfApi, "add_space_variable", lambda self, *args: asked.append(args))
    monkeypatch.setattr(HfApi, "request_space_hardware", lambda self, *args: asked.append(args))
    repo_id = f"{HfApi(token=token).whoami()['name']}/other-model"
    args = SimpleNamespace(repo_id=repo_id, private=False, token=token, dry_run=False)
    deploy_module.deploy(SimpleNamespace(**vars(args), model=None, hardware=None))
    assert asked == []
    deploy_module.deploy(SimpleNamespace(**vars(args), model="Qwen/Qwen2.5-1.5B-Instruct", hardware="zero-a10g"))
    assert asked == [(repo_id, "SEAL_MODEL", "Qwen/Qwen2.5-1.5B-Instruct"), (repo_id, "zero-a10g")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repo_id", "a/b/c"], "a/b/c"),
        (["--repo_id", "stranger/seal"], "the Hub answered 403"),
        (["--repo_id", "tester/seal", "--token", "hf_wrongtoken"], "the Hub answered 401"),
        (["--repo_id", "tester/seal", "--model", "/no/such/model"], "--model /no/such/model is not a Hub id"),
    ],
)
def test_refusals_are_one_sentence(hub, deploy, token, options, message):
    error = deploy(*options, token=token).error
    assert error.startswith("error: ") and message in error
    assert "Everything is still in" not in error and "\n" not in error
    assert "hf_wrongtoken" not in error


# --- the Space boots ---


@pytest.mark.slow
def test_the_space_boots_from_what_was_deployed(hub, token, tmp_path):
    pytest.importorskip("authlib")
    from gradio_client import Client

    api = HfApi(token=token)
    user = api.whoami()["name"]
    command = [sys.executable, str(ROOT / "space" / "deploy.py"), "--repo_id", f"{user}/booted"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "HF_TOKEN": token}, check=True, timeout=120)
    folder = tmp_path / "space"
    snapshot_download(f"{user}/booted", repo_type="space", token=token, local_dir=folder)
    model = tmp_path / "model"
    save_tiny_model(model)
    api.create_repo(f"{user}/tiny-model")
    api.upload_folder(repo_id=f"{user}/tiny-model", folder_path=model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    env |= {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "GRADIO_SERVER_PORT": str(port),
        "SPACE_ID": f"{user}/booted",
        "SPACE_HOST": f"{user}-booted.hf.space",
        "SYSTEM": "spaces",
        "OAUTH_CLIENT_ID": "client",
        "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile contribute-repos",
        "OPENID_PROVIDER_URL": constants.ENDPOINT,
        "SEAL_MODEL": f"{user}/tiny-model",
        "OMP_NUM_THREADS": "1",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/config", timeout=5).status_code == 200:
                    break
            assert child.poll() is None, log.read_text()
            time.sleep(0.2)
        assert f"served by {folder / 'seal_hf'}" in log.read_text()
        components = httpx2.get(f"{url}/config").json()["components"]
        buttons = {component["props"].get("value") for component in components if component["type"] == "button"}
        assert {"Sign in with Hugging Face", "Duplicate Space"} <= buttons
        assert any(component["props"].get("elem_id") == "push" for component in components)

        stranger = Client(url, verbose=False)
        session = stranger.predict("Lighthouse", PASSAGE, 2, api_name="/propose")["session"]
        stranger.predict(session, [], QUESTIONS, api_name="/adapt")
        answers = stranger.predict(session, "Who drew it?", api_name="/ask")
        assert set(answers) == {"base", "adapted"}
        with pytest.raises(Exception, match="not signed in"):
            stranger.predict(session, "", "booted-adapter", True, api_name="/push_adapter")
        # Another visitor has no adapter until they learn one, and pushes it into their own account.
        visitor = Client(url, verbose=False, headers={"Cookie": signed_in(token, "secret", user)})
        with pytest.raises(Exception, match="learn a passage first"):
            visitor.predict("", "Who drew it?", api_name="/ask")
        own = visitor.predict("Lighthouse", PASSAGE, 1, api_name="/propose")["session"]
        visitor.predict(own, [], QUESTIONS, api_name="/adapt")
        url_of_push = visitor.predict(own, "", "booted-adapter", True, api_name="/push_adapter")
        assert url_of_push.endswith(f"{user}/booted-adapter")
        assert api.model_info(f"{user}/booted-adapter").private
    finally:
        child.terminate()
        child.wait(20)
    assert token not in log.read_text()
