"""
Whose token is used. The user of this machine has one, and so has a visitor of a Space who has signed in; pages of other
sites, visitors behind a proxy and strangers try to use it.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi

from helpers.web_page import PASSAGE


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OWN_HOST = "tester-seal.hf.space"


def with_adapter(app, learned_session):
    """Id of a session of this app that has an adapter."""
    session = app.workbench.sessions.open()
    session.keep(learned_session.adapter(), choose=True)
    return session.id


def origin_of(url):
    return url.rstrip("/")


@pytest.fixture(scope="module")
def session(app, learned_session):
    return with_adapter(app, learned_session)


@pytest.fixture(scope="module")
def ipv6_app(serve):
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no address ::1")
    return serve(host="::1")


@pytest.fixture
def account(hub, token, monkeypatch, app, called, session):
    """The user of this machine is logged in, and has the private repository `tester/mine` with an adapter."""
    monkeypatch.setenv("HF_TOKEN", token)
    called(app.url, "push_adapter", [session, "", "mine", True, ""])
    return HfApi(token=token)


def repositories(account):
    return {model.id: model.sha for model in account.list_models(author="tester", full=True)}


def attempts(url, called, refused, session, **headers):
    """What is said to a caller who loads a private repository, makes one, and overwrites one."""
    said = []
    for name, data in (
        ("load_adapter", ["", "tester/mine", None]),
        ("push_adapter", [session, "", "stolen", False, ""]),
        ("push_adapter", [session, "", "mine", True, "tester/mine"]),
    ):
        with pytest.raises(refused) as refusal:
            called(url, name, data, **headers)
        said.append(str(refusal.value))
    return said


# --- a page of another site, on the user's own machine ---


def test_a_page_of_another_site_or_port_gets_nothing(app, called, refused, account, session):
    port = int(app.url.rstrip("/").rpartition(":")[2])
    local = (
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port}.example",
    )
    before = repositories(account)
    for origin in ("http://evil.example", "null", *local):
        said = attempts(app.url, called, refused, session, origin=origin)
        assert all(one.startswith("403 ") and "a page of another site" in one for one in said)
    load, push, overwrite = attempts(app.url, called, refused, session, origin=f"https://127.0.0.1:{port}")
    assert "no repository tester/mine" in load and "Only the app's own page" in push and push == overwrite
    assert repositories(account) == before


def test_a_page_of_another_site_starts_no_work_and_uploads_nothing(app, called, pressed, refused):
    evil = {"origin": "http://evil.example"}
    with pytest.raises(refused, match="403 "):
        called(app.url, "propose", ["", PASSAGE, 1, "", 0, ""], **evil)
    assert "a page of another site" in pressed(app, "on_write", ["", "", PASSAGE, []], **evil)["error"]
    for path in ("upload", "cancel", "reset", "component_server", "queue/join", "run/predict"):
        answer = httpx2.post(f"{app.url}gradio_api/{path}", files={"files": b"x"}, headers=evil)
        assert answer.status_code == 403 and "open the app itself" in answer.json()["detail"]


def test_an_app_at_an_ipv6_address_is_local_and_lets_no_other_page_in(
    ipv6_app, called, refused, account, learned_session
):
    """Gradio lets every origin in where the host is [::1]."""
    session, own = with_adapter(ipv6_app, learned_session), origin_of(ipv6_app.url)
    assert own.startswith("http://[::1]:")
    before = repositories(account)
    for origin in ("http://evil.example", own.replace("[::1]", "127.0.0.1")):
        said = attempts(ipv6_app.url, called, refused, session, origin=origin)
        assert all(one.startswith("403 ") for one in said)
    assert repositories(account) == before
    loaded = called(ipv6_app.url, "load_adapter", ["", "tester/mine", None], origin=own)[0]
    assert loaded["adapter"]["name"] == "tester/mine"


def test_who_comes_through_a_proxy_gets_nothing(app, called, refused, account, session):
    before = repositories(account)
    proxies = [{"x-forwarded-for": "10.0.0.5"}, {"x-forwarded-host": "127.0.0.1"}, {"via": "1.1 a"}]
    # The address of this site was changed to 127.0.0.1 after its page was loaded, so that origin and host agree.
    rebound = {"host": "evil.example:7860", "origin": "http://evil.example:7860"}
    for headers in (*proxies, rebound):
        load, push, overwrite = attempts(app.url, called, refused, session, **headers)
        assert "no repository tester/mine" in load
        assert "no proxy, can push with this machine's token" in push and push == overwrite
    # A proxy that changes the host and says nothing is given away by its pages.
    host = app.url.split("/")[2]
    said = attempts(app.url, called, refused, session, host=host, origin="https://seal.example")
    assert all("let the proxy pass the Host header on" in one for one in said)
    assert repositories(account) == before


def test_the_own_page_and_programs_use_the_token(app, called, account, session):
    for headers in ({}, {"origin": origin_of(app.url)}):
        assert (
            called(app.url, "load_adapter", ["", "tester/mine", None], **headers)[0]["adapter"]["name"]
            == "tester/mine"
        )
    address = called(app.url, "push_adapter", [session, "", "new", True, ""], origin=origin_of(app.url))[0]
    assert address.endswith("tester/new") and account.model_info("tester/new").private


# --- sessions and repositories ---


def test_a_session_is_never_of_the_callers_choice(app, called, session):
    name, _, signature = session.partition(".")
    for chosen in ("A" * 32, f"{'A' * len(name)}.{signature}", f"{name}.{'A' * len(signature)}"):
        answer = called(app.url, "propose", ["", PASSAGE, 1, "", 0, chosen])[0]
        assert answer["session"] != chosen
    assert called(app.url, "propose", ["", PASSAGE, 1, "", 0, session])[0]["session"] == session


def test_no_key_that_the_page_sends_signs_a_session(app, called, session):
    config = json.loads(httpx2.get(f"{app.url}config").text)
    keys = [part["props"]["secret"] for part in config["components"] if part["props"].get("secret")]
    assert keys
    name = "A" * len(session.partition(".")[0])
    for key in keys:
        signature = base64.urlsafe_b64encode(hmac.digest(key.encode(), name.encode(), hashlib.sha256)).decode()
        forged = f"{name}.{signature[: len(session.partition('.')[2])]}"
        assert called(app.url, "propose", ["", PASSAGE, 1, "", 0, forged])[0]["session"] != forged


def test_nothing_is_overwritten_unless_it_is_named(app, called, refused, account, session):
    before = repositories(account)
    for overwrite in ("", "mine", "tester/other"):
        with pytest.raises(refused, match="tester/mine exists already.*overwrite=tester/mine"):
            called(app.url, "push_adapter", [session, "", "mine", True, overwrite])
    assert repositories(account) == before
    assert called(app.url, "push_adapter", [session, "", "mine", True, "tester/mine"])[0].endswith("tester/mine")


def test_the_page_asks_for_the_full_name_before_it_overwrites(app, pressed, account, session, learned_session):
    number = next(
        key
        for key, one in app.page.fns.items()
        if one.name == "on_show" and one.fn.__module__.endswith("adapters_tab")
    )
    adapter = learned_session.adapter().id
    assert "1 adapter" in json.dumps(pressed(app, number, [session], page="page"))
    before = repositories(account)
    for typed in ("", "mine"):
        shown = pressed(app, "on_push", [session, adapter, "mine", True, True, typed], page="page")["data"]
        assert "exists already" in shown[0] and shown[1]["visible"] and "tester/mine" in shown[1]["label"]
    assert repositories(account) == before
    shown = pressed(app, "on_push", [session, adapter, "mine", True, True, "tester/mine"], page="page")["data"]
    assert shown[0].startswith("Pushed: ") and not shown[1]["visible"] and shown[1]["value"] == ""
    assert repositories(account) != before  # the passage is in the card now


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "theme.css"])
def test_no_other_site_shows_the_page_in_a_frame(app, path):
    assert httpx2.get(app.url + path).headers["content-security-policy"] == "frame-ancestors 'self'"


# --- a Space ---


@pytest.fixture(scope="module")
def space(serve):
    """The page as a Space serves it, to visitors who sign in."""
    pytest.importorskip("authlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACE_HOST", OWN_HOST)
        patch.setenv("HF_TOKEN", "hf_ownersecret")
        patch.setattr("gradio.oauth.get_space", lambda: "tester/seal")
        for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
            patch.setattr(f"gradio.oauth.{name}", name.lower())
        yield serve(on_space=True)


def signed_in(token, secret="oauth_client_secret"):
    """The cookie of a visitor who has signed in."""
    from itsdangerous import TimestampSigner

    user = {"preferred_username": "tester", "name": "tester"}
    info = {"access_token": token, "scope": "contribute-repos", "expires_at": int(time.time()) + 600, "userinfo": user}
    content = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    return f"session={TimestampSigner(hashlib.sha256(f'{secret}-v4'.encode()).hexdigest()).sign(content).decode()}"


def loaded_from_hub(app, pressed, **headers):
    """The status that the page shows after it was asked to load `tester/mine`."""
    return json.dumps(pressed(app, "on_load_by_visitor", ["", "tester/mine"], **headers))


@pytest.fixture
def visitor(hub, token, space, called, learned_session):
    """A visitor of the Space with a private repository: the Hub's client, a session with an adapter, and the cookie."""
    cookie, session = signed_in(token), with_adapter(space, learned_session)
    called(space.url, "push_adapter", [session, "", "mine", True, ""], cookie=cookie)
    return SimpleNamespace(account=HfApi(token=token), session=session, cookie=cookie)


def test_a_page_of_another_site_does_nothing_with_a_visitors_cookie(space, called, pressed, refused, visitor):
    before = repositories(visitor.account)
    for origin in ("https://evil.example", f"http://{OWN_HOST}", "https://huggingface.co", "null"):
        forged = {"origin": origin, "cookie": visitor.cookie}
        said = attempts(space.url, called, refused, visitor.session, **forged)
        assert all(one.startswith("403 ") for one in said)
        assert "a page of another site" in loaded_from_hub(space, pressed, **forged)
        # Nor is it told who the visitor is.
        assert "a page of another site" in str(pressed(space, "_check_login_status", [], **forged))
    assert repositories(visitor.account) == before


def test_the_spaces_own_page_acts_for_its_visitor(space, called, pressed, visitor):
    own = {"origin": f"https://{OWN_HOST}", "cookie": visitor.cookie, "x-forwarded-for": "10.0.0.5"}
    assert "Loaded tester/mine" in loaded_from_hub(space, pressed, **own)
    address = called(space.url, "push_adapter", [visitor.session, "", "new", True, ""], **own)[0]
    assert address.endswith("tester/new")


def test_a_forged_cookie_is_no_sign_in(space, called, pressed, refused, visitor, token):
    before = repositories(visitor.account)
    for cookie in (signed_in(token, "guessed"), signed_in(token, ""), visitor.cookie[:-2]):
        with pytest.raises(refused, match="You are not signed in"):
            called(space.url, "push_adapter", [visitor.session, "", "new", True, ""], cookie=cookie)
        assert "Loaded" not in loaded_from_hub(space, pressed, cookie=cookie)
    assert repositories(visitor.account) == before


def test_hugging_face_alone_shows_the_space_in_a_frame(space):
    policy = httpx2.get(space.url).headers["content-security-policy"]
    assert policy == "frame-ancestors 'self' https://huggingface.co"


# --- in a browser ---


_EVIL = """<!doctype html><title>evil</title><iframe src="{app}"></iframe><script>
(async () => {{
  const found = [];
  for (const url of {urls}) for (const [type, mode] of [["application/json", "cors"], ["text/plain", "no-cors"]]) {{
    for (const [name, data] of {calls}) {{
      try {{
        const answer = await fetch(url + "gradio_api/call/" + name, {{
          method: "POST", mode, headers: {{"Content-Type": type}}, body: JSON.stringify({{data}})}});
        found.push(answer.status || answer.type);
        if (answer.status == 200) await fetch(url + "gradio_api/call/" + name + "/" + (await answer.json()).event_id);
      }} catch (error) {{ found.push("blocked"); }}
    }}
  }}
  document.title = found.join(" ");
}})()
</script>"""


@contextlib.contextmanager
def site(html):
    """A page of another local port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_an_evil_page_in_a_browser(app, ipv6_app, session, learned_session, account):
    """The user of this machine looks at another site while the app runs."""
    from playwright import sync_api

    before = repositories(account)
    own = origin_of(ipv6_app.url)
    urls = [app.url, app.url.replace("127.0.0.1", "localhost"), f"{own}/"]
    sessions = (session, with_adapter(ipv6_app, learned_session))
    calls = [["load_adapter", ["", "tester/mine", None]]]
    calls += [["push_adapter", [name, "", "stolen", False, ""]] for name in sessions]
    with (
        site(_EVIL.format(app=app.url, urls=json.dumps(urls), calls=json.dumps(calls))) as evil,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(evil)
        page.wait_for_function("document.title != 'evil'", timeout=120_000)
        assert set(page.title().split()) <= {"403", "blocked", "opaque"}
        frame = page.frames[1]
        assert frame.url.startswith("chrome-error:") and "Teach" not in frame.content()
        page.goto(own)  # where the app's own page works
        page.wait_for_function("document.querySelector('#write')?.disabled === false", timeout=120_000)
        browser.close()
    assert repositories(account) == before
