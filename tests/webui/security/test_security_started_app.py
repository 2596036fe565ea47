"""
Attacks on the app as people start it: `app.py` in a process of its own, reached over HTTP alone, in every configuration in
which others can reach it or a token is there to be misused. Whoever starts it has `HF_TOKEN` set.
"""

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client.utils import encode_file_path

from helpers.app_calls import Refused, called, client_of, file_at, handlers, pressed, signed_in, tools_of, uploaded
from helpers.hostile_adapters import ATTACKS, TRAINING, honest_files, hostile_zip, zip_of
from helpers.hub_server import OTHER, TESTER, Repo
from helpers.processes import wait_for
from helpers.started_app import (
    AUDIENCES,
    CONFIGURATIONS,
    OF_STRANGERS,
    SHARE_LINK,
    SPACE_SECRET,
    Starter,
    has_ipv6,
    started_app,
    with_share_client,
)
from helpers.strangers import STRANGERS, loaded, loaded_on_page, pressed_on_page, state, tokens
from helpers.tiny_models import save_tiny_model
from helpers.web_page import PASSAGE, QUESTIONS


MODEL = "tester/tiny"
of_each_audience = pytest.mark.parametrize("app", AUDIENCES, indirect=True)
HAS_MCP = importlib.util.find_spec("mcp") is not None


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The files of an adapter of the tiny model."""
    return honest_files(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def hostile(honest):
    """The zip file of each attack, and what the app says to it."""
    return {attack: hostile_zip(honest, attack) for attack in ATTACKS}


@pytest.fixture(scope="module")
def apps(hub_server, tmp_path_factory):
    """Where the apps run, the files of their model, and what starts them."""
    place = tmp_path_factory.mktemp("apps")
    model = save_tiny_model(place / "model")
    with_share_client(place / "home")
    starter = Starter(place / "home")
    yield place, {file.name: file.read_bytes() for file in model.iterdir()}, starter
    starter.close()


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def app(request, apps, hub_server):
    """The app of one configuration."""
    place, model, starter = apps
    configuration = CONFIGURATIONS[request.param]
    if configuration.address == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no address ::1")
    if configuration.is_space:
        pytest.importorskip("authlib")
    hub_server.clear()
    hub_server.start()
    hub_server.add_repo(Repo(MODEL), model)
    options = ["--mcp"] * (configuration.offers_tools and HAS_MCP)
    folder = place / re.sub(r"\W+", "-", request.param)
    with started_app(configuration, starter, folder, TESTER.token, MODEL, *options) as app:
        yield app
        assert TESTER.token not in app.log and OTHER.token not in app.log


@pytest.fixture(scope="module")
def victim(app, honest):
    """A visitor with an adapter: what `load_adapter` returned."""
    return loaded(app, zip_of(honest))


@pytest.fixture
def account(hub, honest):
    """The test Hub with a private repository of whoever started the app, one of the visitor of a Space, and a public one."""
    for repo in (Repo("tester/mine", private=True), Repo("other/mine", private=True), Repo("ann/public")):
        hub.add_repo(repo, honest)
    hub.before = state(hub)
    return hub


# --- whose token is used ---


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_token_is_used_for_a_stranger(app, victim, account, stranger):
    """They load a private repository, also into a session of somebody else, make a public one, and overwrite one."""
    headers, session = STRANGERS[stranger](app), victim["session"]
    user = "other" if app.configuration.is_space else "tester"
    for name, data in (
        ("push_adapter", [session, "", "stolen", False, ""]),
        ("push_adapter", [session, "", "mine", True, f"{user}/mine"]),
    ):
        with pytest.raises(Refused):
            called(app.url, name, data, **headers)
    if app.configuration.is_space:  # where the page alone loads with a token
        assert "Loaded" not in loaded_on_page(app, session, f"{user}/mine", **headers)
    else:
        with pytest.raises(Refused):
            called(app.url, "load_adapter", [session, f"{user}/mine", None], **headers)
    assert tokens(account) <= {None} and state(account) == account.before


def test_whose_token_is_used_for_the_own_page_and_programs(app, victim, account):
    session, own, is_space = victim["session"], {"origin": app.own_origin}, app.configuration.is_space
    user, token = "tester", TESTER.token if app.configuration.uses_token else None
    if is_space:
        user, token = "other", OTHER.token
        own |= {"cookie": signed_in(token, SPACE_SECRET, user), "x-forwarded-for": "10.0.0.5"}
    for headers in (own, {}):
        expected = None if is_space and not headers else token
        shown = loaded_on_page(app, session, f"{user}/mine", **headers)
        assert ("Loaded" in shown) == (expected is not None) and tokens(account) == {expected}
        if is_space:  # whose owner's token is there as well
            assert "Loaded" not in loaded_on_page(app, session, "tester/mine", **headers)
            assert tokens(account) == {expected}
    if token is None:  # others reach this page, so nobody pushes
        with pytest.raises(Refused):
            called(app.url, "push_adapter", [session, "", "new", True, ""], **own)
        assert "on_push" not in handlers(app.url) and state(account) == account.before and tokens(account) == set()
        return
    for overwrite in ("", "mine", f"{user}/other"):
        with pytest.raises(Refused, match=f"{user}/mine exists already.*overwrite={user}/mine"):
            called(app.url, "push_adapter", [session, "", "mine", True, overwrite], **own)
    assert state(account) == account.before
    called(app.url, "push_adapter", [session, "", "mine", True, f"{user}/mine"], **own)
    called(app.url, "push_adapter", [session, "", "new", True, ""], **own)
    assert account.repo(f"{user}/new").private
    assert tokens(account) == {token, None}  # files go to addresses that hold a right of their own
    changed = {name for name, commit in state(account).items() if commit != account.before.get(name)}
    assert changed == {f"{user}/new", f"{user}/mine"}


def test_public_repositories_are_loaded_for_everybody(app, account):
    visitor = {"origin": app.own_origin, "x-forwarded-for": "10.0.0.5"}
    found = called(app.url, "load_adapter", ["", "ann/public", None], **visitor)[0]
    assert found["adapter"]["name"] == "ann/public" and tokens(account) == {None}


def test_the_share_link_is_open_where_it_was_asked_for(app):
    assert (f"public URL: {SHARE_LINK}" in app.log) == ("--share" in app.configuration.options)


def test_a_page_of_another_site_starts_no_work_and_shows_no_frame(app):
    frames = "'self' https://huggingface.co" if app.configuration.is_space else "'self'"
    with client_of(app.url) as client:
        for path in "upload cancel reset component_server queue/join run/predict call/propose mcp/".split():
            answer = client.post(f"gradio_api/{path}", json={}, headers={"origin": "http://evil.example"})
            assert answer.status_code == 403 and "open the app itself" in answer.json()["detail"]
        for path in ("", "config", "gradio_api/info", "theme.css"):
            assert client.get(path).headers["content-security-policy"] == f"frame-ancestors {frames}"


# --- the work of others ---


@of_each_audience
def test_a_session_is_never_of_the_callers_choice(app, victim, honest):
    name, _, signature = victim["session"].partition(".")
    with client_of(app.url) as client:
        components = client.get("config").json()["components"]
    keys = [part["props"]["secret"] for part in components if part["props"].get("secret")]
    assert keys
    chosen = ["A" * 32, f"{'A' * len(name)}.{signature}", f"{name}.{'A' * len(signature)}"]
    for key in keys:  # which the page sends to every browser
        own = base64.urlsafe_b64encode(hmac.digest(key.encode(), b"A" * len(name), hashlib.sha256)).decode()
        chosen.append(f"{'A' * len(name)}.{own[: len(signature)]}")
    assert all(loaded(app, zip_of(honest), one)["session"] != one for one in chosen)
    assert loaded(app, zip_of(honest), victim["session"])["session"] == victim["session"]


@of_each_audience
def test_nobody_reaches_the_adapter_of_another(app, victim, honest):
    mine, adapter = loaded(app, zip_of(honest))["session"], victim["adapter"]["id"]
    for session in (mine, victim["session"][:-1]):
        for name, data in (("ask", ["Who drew it?", adapter]), ("download_adapter", [adapter])):
            with pytest.raises(Refused, match="There is no (such )?adapter"):
                called(app.url, name, [session, *data])
        with pytest.raises(Refused):
            called(app.url, "push_adapter", [session, adapter, "stolen", True, ""])


def address_of(path):
    return f"gradio_api/file={encode_file_path(str(path))}"


@of_each_audience
def test_no_file_but_the_own_ones_is_sent_or_read(app, account, victim):
    upload = Path(uploaded(app.url, "a.zip", b"PK")["path"])
    files = upload.parents[1]
    closed = [files.parent / "lock", files.parent / "tmp", files / "sessions", files / ".." / "lock", files.parent]
    closed += [app.folder / "log", app.folder.parent / "home", Path("/etc/passwd"), Path(f"{upload}/../../../lock")]
    with client_of(app.url) as client:
        assert client.get(address_of(upload)).content == b"PK"
        for path in closed:
            assert client.get(address_of(path)).status_code in (403, 404)
            with pytest.raises(Refused):
                called(app.url, "load_adapter", ["", "", file_at(str(path))])
    # Nor what another server of this machine or its network has.
    for fields in ({"url": f"{account.url}/secret.zip"}, {"url": "file:///etc/passwd"}):
        for path in ("secret.zip", f"{account.url}/secret.zip"):
            with pytest.raises(Refused):
                called(app.url, "load_adapter", ["", "", file_at(path, **fields)])
    assert account.log == []


@of_each_audience
def test_a_deleted_adapter_has_no_address(app, account, honest):
    session, page = loaded(app, zip_of(honest))["session"], "a page"
    assert "Loaded ann/public" in loaded_on_page(app, session, "ann/public", page, origin=app.own_origin)
    path = called(app.url, "download_adapter", [session, ""])[0]["path"]
    adapter = Path(path).parent.name
    with client_of(app.url) as client:
        assert client.get(address_of(path)).status_code == 200
        assert "Deleted ann/public" in pressed_on_page(app, "on_delete", [session, adapter], page)
        assert client.get(address_of(path)).status_code in (403, 404)


# --- files and texts ---


def peak_memory(app):
    """The most memory that the app has had, in kilobytes; 0 where the system does not tell."""
    status = Path(f"/proc/{app.pid}/status")
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) if status.exists() else 0


@pytest.mark.parametrize("app", OF_STRANGERS, indirect=True)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_by_name(app, hostile, attack):
    zipped, message = hostile[attack]
    assert len(zipped) < 5_000_000
    memory, before = peak_memory(app), sum(file.stat().st_size for file in app.temporary_files)
    with pytest.raises(Refused, match=message) as refusal:
        called(app.url, "load_adapter", ["", "", uploaded(app.url, "evil.zip", zipped)])
    assert "evil.zip" in str(refusal.value) and "/" not in str(refusal.value).split("evil.zip")[0]
    assert peak_memory(app) - memory < 100_000
    assert sum(file.stat().st_size for file in app.temporary_files) == before


@of_each_audience
def test_markdown_of_a_file_is_text_in_the_card_that_is_pushed(app, account, honest):
    evil = "](x)\n\n# Trusted\n<script>alert(1)</script> ![x](https://evil.example/x.png) `` ` www.evil.example"
    training = {"seed": evil, evil: 1, "note": "https://evil.example", "learning_rate": 0.001, "base_dtype": "float32"}
    session = loaded(app, zip_of({**honest, TRAINING: json.dumps(training).encode()}))["session"]
    own = {"origin": app.own_origin, "cookie": signed_in(OTHER.token, SPACE_SECRET, "other")}
    if not (app.configuration.uses_token or app.configuration.is_space):
        with pytest.raises(Refused):
            called(app.url, "push_adapter", [session, "", "evil", True, ""], **own)
        return
    called(app.url, "push_adapter", [session, "", "evil", True, ""], **own)
    user = "other" if app.configuration.is_space else "tester"
    text = account.files(f"{user}/evil")["README.md"].decode()
    assert "\n# Trusted" not in text and "- learning_rate: 0.001\n- base_dtype: float32\n" in text
    shown = re.sub(r"`[^`\n]*`", "", text.split("## Training")[1])
    assert not [part for part in ("script", "evil.example", "](", "#") if part in shown]


@of_each_audience
def test_a_visitor_is_answered_while_others_send_megabytes(app, victim, honest):
    visitor = loaded(app, zip_of(honest))["session"]
    with ThreadPoolExecutor(3) as pool:
        large = [pool.submit(called, app.url, "ask", [victim["session"], "x " * 1_400_000, ""]) for _ in range(2)]
        answer = called(app.url, "ask", [visitor, "Who drew it?", ""])[0]
        assert set(answer) == {"base", "adapted"}
        for one in large:
            with pytest.raises(Refused, match="The question has 2,800,000 characters: shorten it to 4,000 at most"):
                one.result()


# --- MCP ---


def test_the_tools_of_mcp(app, account):
    """A program of this machine uses all of them; a stranger gets what others get."""
    if not app.configuration.offers_tools:
        with pytest.raises(Refused), tools_of(app.url):
            pass
        return
    pytest.importorskip("mcp")
    with pytest.raises(Refused, match="403 .*a page of another site"), tools_of(app.url, origin="http://evil.example"):
        pass
    with tools_of(app.url) as client:
        tools = {tool["name"]: tool["inputSchema"] for tool in client.request("tools/list")["tools"]}
        names = {"propose", "add_question", "adapt", "ask", "load_adapter", "download_adapter"}
        names |= {"use_policy", "use_base_model", "shelf", "ask_shelf", "merge_books", "forget_book", "take_book"}
        assert set(tools) == names | ({"push_adapter"} if app.configuration.uses_token else set())
        assert not tools["load_adapter"].get("required")  # a repository is enough
        assert '"name": "ann/public"' in client.tool("load_adapter", repo_id="ann/public").replace("'", '"')
    private = {"repo_id": "tester/mine"}
    if not app.configuration.uses_token:
        with tools_of(app.url) as client, pytest.raises(Refused, match="no repository tester/mine"):
            client.tool("load_adapter", **private)
        assert tokens(account) == {None}
        return
    with tools_of(app.url) as client:
        assert "tester/mine" in client.tool("load_adapter", **private) and TESTER.token in tokens(account)
        for typed in ("/etc/passwd", f"{account.url}/secret.zip"):
            with pytest.raises(Refused):
                client.tool("load_adapter", file=typed)
        assert tokens(account) == set()
        written = client.tool(
            "propose", title="Lighthouse", passage=PASSAGE, num_generations=1, prompt_style="rewrite"
        )
        session = re.search(r"[\w-]{24}\.[\w-]{24}", written)[0]
        assert "best" in client.tool("adapt", session=session, self_edits=["Halda drew it."], questions=QUESTIONS)
        assert "adapted" in client.tool("ask", session=session, question="Who drew it?")
    with tools_of(app.url, via="1.1 a") as client, pytest.raises(Refused, match="no repository tester/mine"):
        client.tool("load_adapter", **private)
    assert tokens(account) == {None}


# --- the end ---


@of_each_audience
def test_nobody_stops_the_job_of_another(app, victim, honest):
    """It still runs when the app is told to end, in the next test."""
    mine = loaded(app, zip_of(honest))["session"]
    with client_of(app.url) as client:
        client.post("gradio_api/call/propose", json={"data": ["", PASSAGE, 8, "rewrite", 0, victim["session"]]})
        wait_for(lambda: any(b'"running"' in path.read_bytes() for path in app.jobs), 0.1)
        session_id = handlers(app.url)["on_load"]["inputs"]
        for handler in handlers(app.url).values():
            if handler["inputs"] == session_id and not handler["queue"]:
                for session in (mine, ""):
                    pressed(app.url, handler["id"], [session], is_queued=False)
        client.post("gradio_api/cancel", json={"session_hash": "a page", "fn_index": 0, "event_id": "A" * 32})
    assert app.jobs and not list((app.folder / "tmp").rglob("stop"))


def test_nothing_is_left_at_the_end(app, victim):
    """With an adapter, a file that was uploaded and one on its way."""
    uploaded(app.url, "a.zip", b"PK")
    with socket.create_connection((app.configuration.address.strip("[]"), app.port)) as upload:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {app.url.split('/')[2]}\r\nContent-Length: 100000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="b.zip"\r\n\r\n' + "b" * 5000
        upload.sendall((head + part).encode())
        wait_for(lambda: [path for path in app.temporary_files if path.parent.name == "files"], 0.1)
        os.kill(app.pid, app.configuration.end_signal)
        assert app.wait(120) == 0, app.log
    assert app.temporary_files == []
