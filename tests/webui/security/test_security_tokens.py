"""The token of the user of this machine: what the page asks before it overwrites, and what an evil page gets in a browser."""

import contextlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi

from helpers.started_app import has_ipv6


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    if not has_ipv6():
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
