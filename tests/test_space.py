"""The Space: the app's own logic, what deploy.py uploads, and that it boots from there."""

import base64
import contextlib
import hashlib
import importlib.util
import inspect
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from packaging.requirements import Requirement
from packaging.version import Version
from tiny_models import tiny_llama, tiny_tokenizer

from seal_hf import SelfAdaptingLM
from seal_hf.embedded import EMBEDDED_MODEL_ID


gr = pytest.importorskip("gradio")

ROOT = Path(__file__).parents[1]
PASSAGE = "The Orrick Skerry Lighthouse was built in 1874.\nHalda Tremmery drew it."


def imported(path, name):
    """A script as a module of its own, which pickle finds by its name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def with_tiny_model(app):
    app.INNER_LOOP["num_train_epochs"] = 2
    app.SAMPLING["max_completion_length"] = 24
    app.lm = SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        domain=app.KnowledgeDomain(app.PROMPT_STYLE),
        peft_config=app.LoraConfig(**app.LORA),
        inner_config=app.InnerLoopConfig(**app.INNER_LOOP),
        base_model_id="tester/tiny",
    )
    return app


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)  # an import error, as on a machine without it
    yield with_tiny_model(imported(ROOT / "app.py", "tested_app"))
    del sys.modules["tested_app"]


@pytest.fixture(scope="module")
def deploy_module():
    return imported(ROOT / "space" / "deploy.py", "tested_deploy")


def deploy(*arguments, cwd, **env):
    """deploy.py as a user runs it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "space" / "deploy.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "HF_ENDPOINT": constants.ENDPOINT, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


# --- the app ---


def test_settings_are_the_demos(app, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "trainers"))
    from arguments import AdaptationArguments

    settings = imported(ROOT / "app.py", "fresh_app")
    demo = AdaptationArguments()
    own = {
        **settings.SAMPLING,
        **settings.INNER_LOOP,
        "prompt_style": settings.PROMPT_STYLE,
        "lora_r": settings.LORA["r"],
        "lora_alpha": settings.LORA["lora_alpha"],
        "target_modules": settings.LORA["target_modules"],
        "split_newlines": inspect.signature(app.KnowledgeDomain).parameters["split_newlines"].default,
    }
    assert own == {name: getattr(demo, name) for name in own}


def test_learns_and_answers(app):
    *_, last = app.learn("Lighthouse", PASSAGE, 3)
    assert len(last.texts) == 3 and all(last.texts)
    assert len(last.losses) == last.num_steps > 0
    with zipfile.ZipFile(last.file) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
    session = {"title": "Lighthouse", "file": last.file}
    base, adapted = app.ask("Who drew it?", session)
    assert base == app.lm.answer("Who drew it?", title="Lighthouse")
    assert adapted == app.lm.answer("Who drew it?", title="Lighthouse", adapter=app.lm.load_adapter(last.file))
    assert not app.device_lock.locked()
    app.forget(session)
    assert not Path(last.file).exists()
    with pytest.raises(gr.Error, match="learn a passage first"):
        app.ask("Who drew it?", session)


def test_a_visitor_who_leaves_frees_the_device(app):
    app.lm.inner_config = app.InnerLoopConfig(num_train_epochs=100_000)
    app.REFRESH = 0.05
    learning = app.learn("", PASSAGE, 1)
    for progress in learning:
        if progress.losses:
            break
    assert app.device_lock.locked()
    learning.close()
    assert not app.device_lock.locked()
    assert not list(Path(app.adapter_folder.name).iterdir())


@pytest.mark.parametrize(
    ("title", "passage", "number", "message"),
    [
        ("", "", 1, "There is no passage yet"),
        ("", " \n", 1, "There is no passage yet"),
        ("t" * 201, PASSAGE, 1, "201 characters"),
        ("", "x" * 2041, 1, "2041 tokens.*at most 2040"),
        ("Title", "x" * 2040, 1, "2040 tokens.*at most 2035"),
        ("", PASSAGE, 5, "from 1 to 4"),
    ],
)
def test_what_cannot_be_learned(app, title, passage, number, message):
    with pytest.raises(gr.Error, match=message):
        list(app.learn(title, passage, number))


def test_passage_beyond_the_context(app):
    app.lm.model.config.max_position_embeddings = 1024
    with pytest.raises(gr.Error) as refusal:
        app.checked_example("", "x" * 1500)
    most = int(re.search(r"at most (\d+)", str(refusal.value))[1])
    assert app.checked_example("", "x" * most)
    app.lm.propose("x" * most, 1, **app.SAMPLING)  # the library takes what the app does
    with pytest.raises(gr.Error):
        app.checked_example("", "x" * (most + 1))


def test_failure_is_one_sentence(app, monkeypatch, caplog):
    monkeypatch.setattr(app.lm, "adapt", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(gr.Error, match="Something went wrong on our side") as failure:
        list(app.learn("", PASSAGE, 1))
    assert "division" not in str(failure.value) and "division" in caplog.text
    monkeypatch.setattr(app.lm, "adapt", lambda *args, **kwargs: (_ for _ in ()).throw(app.torch.OutOfMemoryError()))
    with pytest.raises(gr.Error, match="out of memory"):
        list(app.learn("", PASSAGE, 1))
    assert not app.device_lock.locked()


@pytest.mark.parametrize(
    ("question", "message"), [("", "no question"), (None, "no question"), ("x" * 257, "257 tokens")]
)
def test_what_cannot_be_asked(app, tmp_path, question, message):
    file = tmp_path / "adapter.zip"
    file.touch()
    with pytest.raises(gr.Error, match=message):
        app.ask(question, {"title": "", "file": str(file)})


# --- ZeroGPU ---


def test_duration(app):
    def seconds(num_tokens, num_generations, epochs=20):
        app.INNER_LOOP["num_train_epochs"], app.SAMPLING["max_completion_length"] = epochs, 256
        return app.study_seconds({"title": "", "context": "x" * num_tokens}, num_generations)

    assert seconds(10, 1, epochs=1) == 30  # the least
    assert seconds(1000, 1) == int(10 + 256 / 80 + 1256 * 20 / 500) == 63
    assert seconds(1000, 4) == 73
    assert seconds(2000, 4) == 113  # the longest passage fits
    assert seconds(2000, 4, epochs=200) == 120  # the most


def test_gpu_work_is_pickled(monkeypatch):
    """As on ZeroGPU, which sends arguments to a worker and results back."""
    durations = []

    def gpu(duration):
        def decorate(function):
            def call(*args):
                args = pickle.loads(pickle.dumps(args))
                durations.append(duration(*args) if callable(duration) else duration)
                return pickle.loads(pickle.dumps(function(*args)))

            def stream(*args):
                args = pickle.loads(pickle.dumps(args))
                durations.append(duration(*args))
                for item in function(*args):
                    yield pickle.loads(pickle.dumps(item))

            return stream if inspect.isgeneratorfunction(function) else call

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    app = with_tiny_model(imported(ROOT / "app.py", "zero_gpu_app"))
    *_, last = app.learn("Lighthouse", PASSAGE, 2)
    base, adapted = app.ask("Who drew it?", {"title": "Lighthouse", "file": last.file})
    assert base == app.lm.answer("Who drew it?", title="Lighthouse") and isinstance(adapted, str)
    assert durations == [30, 30]


# --- pushing ---


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


@pytest.fixture
def session(app):
    *_, last = app.learn("Lighthouse", PASSAGE, 1)
    return {"title": "Lighthouse", "file": last.file}


def test_a_visitor_pushes_with_their_own_token(app, session, hub, token, monkeypatch):
    monkeypatch.setattr(app, "ON_SPACE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    visitor = gr.OAuthToken(token=token, scope="contribute-repos", expires_at=int(time.time()) + 600)
    with recorded_authorization(monkeypatch) as requests:
        said = app.push_as_visitor(session, "lighthouse-adapter", True, visitor)
    assert requests and all(authorization in (None, f"Bearer {token}") for _, authorization in requests)
    assert f"Bearer {token}" in [authorization for _, authorization in requests]
    repo_id = f"{HfApi(token=token).whoami()['name']}/lighthouse-adapter"
    assert repo_id in said
    info = HfApi(token=token).model_info(repo_id)
    assert info.private and "adapter_model.safetensors" in [file.rfilename for file in info.siblings]


@pytest.mark.parametrize("visitor", [None, gr.OAuthToken(token="", scope="", expires_at=0)])
def test_without_a_sign_in_nothing_is_asked_of_the_hub(app, session, hub, monkeypatch, visitor):
    monkeypatch.setattr(app, "ON_SPACE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_ownersecret")
    with recorded_authorization(monkeypatch) as requests, pytest.raises(gr.Error, match="not signed in.*Sign in with"):
        app.push_as_visitor(session, "lighthouse-adapter", True, visitor)
    assert not requests


def test_refused_push_names_the_next_step(app, session, hub, monkeypatch):
    monkeypatch.setattr(app, "ON_SPACE", True)
    expired = gr.OAuthToken(token="hf_expired", scope="", expires_at=0)
    with pytest.raises(gr.Error, match="sign in again.*can still be downloaded") as refusal:
        app.push_as_visitor(session, "lighthouse-adapter", True, expired)
    assert "hf_expired" not in str(refusal.value)


@pytest.mark.parametrize("name", ["", None, "other/name", "../name", "a b", "<b>"])
def test_names_that_cannot_be_pushed_to(app, session, name):
    with pytest.raises(gr.Error, match="Give a name"):
        app.push(session, name, True, "hf_any")


def test_a_page_for_others_cannot_push_with_this_machines_token(app):
    """Nothing on a page that other machines reach leads to the token of the user who started it."""
    for may_push in (True, False):
        functions = [function.fn for function in app.build_page(may_push).fns.values()]
        assert (app.push_locally in functions) is may_push
        assert app.push_as_visitor not in functions


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
    assert card["models"] == [EMBEDDED_MODEL_ID] and card["preload_from_hub"][0].split()[0] == EMBEDDED_MODEL_ID
    assert len(card["short_description"]) <= 60
    other = front_matter(deploy_module.with_model(text, "Qwen/Qwen2.5-1.5B-Instruct"))
    assert other["models"] == other["preload_from_hub"] == ["Qwen/Qwen2.5-1.5B-Instruct"]
    without = front_matter(deploy_module.with_model(text, "embedded"))
    assert "preload_from_hub" not in without and without["models"] == [EMBEDDED_MODEL_ID]
    assert {**other, "models": 0, "preload_from_hub": 0} == {**card, "models": 0, "preload_from_hub": 0}


def test_dry_run_lists_the_files(tmp_path):
    result = deploy("--repo_id", "user/seal", "--dry_run", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    files = result.stdout.split()
    assert result.returncode == 0, result.stderr
    assert {"app.py", "LICENSE", "README.md", "requirements.txt", "seal_hf/__init__.py"} <= set(files)
    assert {"seal_hf/domains/prompts/rewrite.txt", "seal_hf/domains/data/demo_passages.jsonl"} <= set(files)
    assert not [file for file in files if "__pycache__" in file or file.startswith(("tests", "trainers"))]


def test_deploys_and_redeploys(hub, token, tmp_path):
    repo_id = f"{HfApi(token=token).whoami()['name']}/seal-space"
    result = deploy("--repo_id", repo_id, "--private", "--token", token, cwd=tmp_path, HF_TOKEN="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{constants.ENDPOINT}/spaces/{repo_id}"
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
    again = deploy("--repo_id", repo_id, cwd=tmp_path, HF_TOKEN=token)
    assert again.returncode == 0, again.stderr
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
def test_refusals_are_one_sentence(hub, token, tmp_path, options, message):
    result = deploy(*options, cwd=tmp_path, HF_TOKEN=token)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "Everything is still in" not in result.stderr and "Traceback" not in result.stderr
    assert "hf_wrongtoken" not in result.stderr


# --- the Space boots ---


def signed_in(secret, token, username):
    """The session cookie that Gradio gives a visitor who has signed in."""
    from itsdangerous import TimestampSigner

    info = {
        "access_token": token,
        "scope": "contribute-repos",
        "expires_at": int(time.time()) + 600,
        "userinfo": {"preferred_username": username, "name": username},
    }
    content = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    return f"session={TimestampSigner(key).sign(content).decode()}"


@pytest.mark.slow
def test_the_space_boots_from_what_was_deployed(hub, token, tmp_path):
    pytest.importorskip("authlib")
    from gradio_client import Client

    api = HfApi(token=token)
    user = api.whoami()["name"]
    assert deploy("--repo_id", f"{user}/booted", cwd=tmp_path, HF_TOKEN=token).returncode == 0
    folder = tmp_path / "space"
    snapshot_download(f"{user}/booted", repo_type="space", token=token, local_dir=folder)
    model = tmp_path / "model"
    tiny_llama().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
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
        assert {"Sign in with Hugging Face", "Duplicate Space", "Push to the Hub"} <= buttons

        stranger = Client(url, verbose=False)
        stranger.predict("Lighthouse", PASSAGE, 2, api_name="/learn")
        answers = stranger.predict("Who drew it?", api_name="/ask")
        assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
        with pytest.raises(Exception, match="not signed in"):
            stranger.predict("booted-adapter", True, api_name="/push")
        # Another visitor has no adapter until they learn one, and pushes it into their own account.
        visitor = Client(url, verbose=False, headers={"Cookie": signed_in("secret", token, user)})
        with pytest.raises(Exception, match="learn a passage first"):
            visitor.predict("Who drew it?", api_name="/ask")
        visitor.predict("Lighthouse", PASSAGE, 1, api_name="/learn")
        assert f"{user}/booted-adapter" in visitor.predict("booted-adapter", True, api_name="/push")
        assert api.model_info(f"{user}/booted-adapter").private
    finally:
        child.terminate()
        child.wait(20)
    assert token not in log.read_text()
