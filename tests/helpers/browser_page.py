"""What a person does on the page, in chromium."""

import re
import shutil

import pytest
from playwright import sync_api

from helpers.web_page import PASSAGE


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_CHROMIUM = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
TIMEOUT = 300_000  # milliseconds that a test waits before it fails; slow machines take 100 seconds for one step
expect = sync_api.expect


def loaded(page, url=None):
    """The page when its session is there."""
    page.goto(url) if url else page.reload()
    page.wait_for_function(
        "['#write', '#stop-writing'].some(name => document.querySelector(name)?.disabled === false)"
    )
    return page


def fill_passage(page, title="Lighthouse", passage=PASSAGE):
    page.locator("#title textarea, #title input").fill(title)
    page.locator("#passage textarea").fill(passage)
    expect(page.locator("#token-count")).not_to_contain_text(re.compile(r"^\s*0 "), timeout=TIMEOUT)


def write(page):
    page.locator("#write").click()
    expect(page.locator("#learn-all")).to_be_visible(timeout=TIMEOUT)


def learn(page):
    page.locator("#learn-all").click()
    expect(page.locator("#ask-next")).to_be_visible(timeout=TIMEOUT)


def ask(page, question="Who drew it?"):
    page.get_by_role("tab", name="Ask").click()
    page.locator("#question textarea, #question input").fill(question)
    page.locator("#ask").click()
    expect(page.locator("#ask-status")).to_contain_text("answered without the passage", timeout=TIMEOUT)


def text_of(page, name):
    return page.locator(f"#{name} textarea").input_value()


def open_tab(page, name):
    """Open a tab, which on a narrow screen may stand in the menu of those that do not fit."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()
