"""Requests of strangers to a started app, what they do there, and what it has made of the Hub."""

import json

from helpers.app_calls import called, handlers, pressed, signed_in, uploaded
from helpers.hub_server import OTHER
from helpers.started_app import SHARE_LINK, SPACE_SECRET


STRANGERS = {
    "another site": lambda app: {"origin": "http://evil.example"},
    "another local port": lambda app: {"origin": f"http://{app.configuration.address}:{app.port + 1}"},
    "no port": lambda app: {"origin": f"http://{app.configuration.address}"},
    "a longer name": lambda app: {"origin": f"{app.own_origin}.example"},
    "null": lambda app: {"origin": "null"},
    "another scheme": lambda app: {"origin": app.own_origin.replace(*("s:", ":") if app.configuration.is_space else ("http:", "https:"))},
    "a proxy that names its visitor": lambda app: {"x-forwarded-for": "10.0.0.5"},
    "a proxy that names this machine": lambda app: {"x-forwarded-host": f"127.0.0.1:{app.port}", "x-forwarded-proto": "http"},
    "a proxy of the standard": lambda app: {"forwarded": "for=10.0.0.5;host=127.0.0.1"},
    "a proxy that names itself": lambda app: {"via": "1.1 a"},
    "a name that leads here": lambda app: {"host": f"evil.example:{app.port}", "origin": f"http://evil.example:{app.port}"},
    "the share link": lambda app: {"host": SHARE_LINK.split("/")[2], "origin": SHARE_LINK, "x-forwarded-for": "10.0.0.5"},
    "a foreign page with a visitor's cookie": lambda app: {"origin": "https://evil.example", "cookie": signed_in(OTHER.token, SPACE_SECRET)},
    "a forged cookie": lambda app: {"cookie": signed_in(OTHER.token, ""), "via": "1.1 a"},
}  # fmt: skip


def state(hub):
    """The last commit of each repository."""
    return {repo.id: dict(repo.branches) for repo in hub.repos.values()}


def tokens(hub):
    """The tokens that have reached the Hub since it was asked for the last time."""
    used = {record.authorization for record in hub.log}
    hub.log.clear()
    return {one and one.removeprefix("Bearer ") for one in used}


def loaded(app, zipped, session=""):
    """What `load_adapter` returns for an uploaded file."""
    return called(app.url, "load_adapter", [session, "", uploaded(app.url, "mine.zip", zipped)])[0]


def pressed_on_page(app, name, data, page=None, **headers):
    handler = handlers(app.url)[name]
    answer = pressed(app.url, handler["id"], data, is_queued=handler["queue"], page=page, **headers)
    return json.dumps(answer, ensure_ascii=False)


def loaded_on_page(app, session, repo_id, page=None, **headers):
    """What the page shows after it was asked to load a repository."""
    name = "on_load_by_visitor" if app.configuration.is_space else "on_load_locally"
    return pressed_on_page(app, name, [session, repo_id], page, **headers)
