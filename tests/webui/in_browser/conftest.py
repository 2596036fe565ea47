"""The page on a tiny model, as chromium shows it."""

import pytest
from playwright import sync_api

from helpers.browser_page import CHROMIUM, TIMEOUT, loaded
from helpers.web_page import QUICK, served_page
from seal_hf.webui.work import settings


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(lm, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PRESETS, "Tiny model", QUICK)
        with served_page(tmp_path_factory.mktemp("app"), lm) as page:
            yield page


@pytest.fixture
def visit(browser, app):
    """Open the page, each time as another person."""
    contexts = []

    def open_page(url=app.url, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        return loaded(page, url)

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.problems == []
        context.close()
