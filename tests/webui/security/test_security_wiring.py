"""What `app.py` makes of its options and of a Space: who may use a token."""

import base64
import hashlib
import importlib.util
import json
import sys
import time

import gradio as gr
import httpx2
import pytest
from huggingface_hub import constants

from helpers.folders import ROOT
from helpers.hub_repos import TESTER, Repo


@pytest.fixture
def wired(monkeypatch, lm, tmp_path):
    """How `app.py` builds and serves its page with these options: the arguments of both."""

    def wired(*options, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("tested_app", ROOT / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = {}
        build_page = module.build_page

        def build(*arguments, **keywords):
            found.update(keywords)
            return build_page(*arguments, **keywords)

        monkeypatch.setattr(module, "load", lambda args: lm)
        monkeypatch.setattr(module, "exit_on_signals", lambda: None)
        monkeypatch.setattr(module, "build_page", build)
        monkeypatch.setattr(gr.Blocks, "launch", lambda self, **keywords: found.update(keywords, page=self))
        monkeypatch.setattr(sys, "argv", ["app.py", "--output_dir", str(tmp_path), *options])
        module.main(module.parse_arguments())
        return found

    return wired


@pytest.mark.parametrize(
    ("options", "may_push"),
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--share"], False),
        (["--host", "0.0.0.0"], False),
        (["--host", "192.168.1.2"], False),
        (["--host", "::"], False),
        (["--host", "127.0.0.1.evil.example"], False),
    ],
)
def test_only_a_page_of_this_machine_alone_may_use_the_token(wired, options, may_push):
    found = wired(*options)
    assert (found["may_push"], found["on_space"]) == (may_push, False)
    names = {function.fn.__name__ for function in found["page"].fns.values() if function.fn}
    assert ("push_adapter" in names) == ("on_push" in names) == may_push
    assert found["server_name"].strip("[]") == (options[1] if "--host" in options else "127.0.0.1")


def forged(secret, token):
    """A cookie like the one that Gradio gives a visitor who has signed in."""
    from itsdangerous import TimestampSigner

    info = {
        "access_token": token,
        "scope": "contribute-repos",
        "expires_at": int(time.time()) + 600,
        "userinfo": {"preferred_username": "tester", "name": "tester"},
    }
    content = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    return f"session={TimestampSigner(key).sign(content).decode()}"


def test_a_space_never_uses_the_token_of_its_owner(process, called, refused, hub):
    """A stranger, also with a cookie that they have signed themselves, asks for what the owner alone may see and do."""
    pytest.importorskip("authlib")
    hub.add_repo(Repo("tester/mine", private=True), {"adapter_config.json": b"{}"})
    space = process(
        SPACE_ID="tester/seal",
        SPACE_HOST="tester-seal.hf.space",
        SYSTEM="spaces",
        HF_TOKEN=TESTER.token,
        OAUTH_CLIENT_ID="client",
        OAUTH_CLIENT_SECRET="the Space's secret",
        OAUTH_SCOPES="openid profile contribute-repos",
        OPENID_PROVIDER_URL=constants.ENDPOINT,
    )
    endpoints = httpx2.get(f"{space.url}gradio_api/info").json()["named_endpoints"]
    num_arguments = len(endpoints["/push_adapter"]["parameters"])
    for headers in ({}, *({"cookie": forged(secret, TESTER.token)} for secret in ("", "client", "a guess"))):
        hub.log.clear()
        with pytest.raises(refused, match="tester/mine"):
            called(space.url, "load_adapter", ["", "tester/mine", None], **headers)
        assert hub.log and all(record.authorization is None for record in hub.log)
        hub.log.clear()
        data = ["", "", "stolen", False, ""][:num_arguments]
        with pytest.raises(refused, match="not signed in"):
            called(space.url, "push_adapter", data, **headers)
        assert hub.log == []
    assert TESTER.token not in space.log.read_text()
