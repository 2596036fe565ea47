"""What the attacks share: the app as a stranger reaches it, over HTTP on the loopback address."""

import contextlib

import pytest

from helpers import app_calls
from helpers.web_page import QUICK, served_page
from seal_hf.webui import api
from seal_hf.webui.tabs import shared
from seal_hf.webui.work.limits import SHARED


@pytest.fixture(scope="module")
def serve(lm, tmp_path_factory):
    """
    Starts the page of `app.py` in this process, on a free port and a tiny model: `serve(**options)`, with the options of
    `served_page`. It ends with the module.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(api, "PRESETS", {"Tiny model": QUICK})
        patch.setattr(shared, "_REFRESH", 0.02)  # a page would be updated less often
        yield lambda **options: stack.enter_context(served_page(tmp_path_factory.mktemp("app"), lm, **options))


@pytest.fixture(scope="module")
def app(serve):
    """The default app: `url` (ends with "/"), `workbench`, `page`."""
    return serve()


@pytest.fixture(scope="module")
def public(serve, tmp_path_factory):
    """The app as others reach it, with a script of training runs that only waits."""
    script = tmp_path_factory.mktemp("script") / "wait.py"
    script.write_text("import time\nprint('/home/ann/secret/place.txt is missing', flush=True)\ntime.sleep(60)")
    return serve(limits=SHARED, script=script, may_push=False)


@pytest.fixture(scope="session")
def called():
    """[`app_calls.called`]"""
    return app_calls.called


@pytest.fixture(scope="session")
def pressed():
    """
    Does what the page does for one of its handlers, known by its function's name or by its number in the page:
    `pressed(app, "on_push", [session, ...], **headers)`. Otherwise as [`app_calls.pressed`].
    """

    def pressed(app, name, data, page=None, **headers):
        number, found = next(
            (key, function)
            for key, function in app.page.fns.items()
            if name in (key, getattr(function.fn, "__name__", None))
        )  # fmt: skip
        return app_calls.pressed(app.url, number, data, is_queued=found.queue, page=page, **headers)

    return pressed


@pytest.fixture(scope="session")
def refused():
    """The exception of `called`, for `pytest.raises(refused, match=...)`."""
    return app_calls.Refused
