"""What a person sees and does in the tab Shelf."""

from helpers.browser_page import IN_CHROMIUM, TIMEOUT, expect, fill_passage, learn, loaded, write
from helpers.web_page import PASSAGE, slowed


pytestmark = IN_CHROMIUM


def open_shelf(page, title):
    page.get_by_role("tab", name="Shelf").click()
    expect(page.locator("#books")).to_contain_text(title, timeout=TIMEOUT)


def choose_books(page, *titles):
    for title in titles:
        page.locator("#picked input").click()
        page.get_by_role("option", name=title, exact=True).click()
    page.keyboard.press("Escape")


def test_the_shelf_is_asked_loaded_again_and_changed(app, visit, monkeypatch):
    page, other = visit(), visit()
    for title, passage in (
        ("Lighthouse", PASSAGE),
        ("Glass harvester", "The glass harvester is an ant. It carries seeds."),
    ):
        fill_passage(page, title, passage)
        write(page)
        learn(page)
        expect(page.locator("#learn-status")).to_contain_text("It is a book on the Shelf", timeout=TIMEOUT)
    open_shelf(page, "Lighthouse")
    page.locator("#shelf-question textarea, #shelf-question input").fill("What does the glass harvester carry?")
    with slowed(monkeypatch, 0.1, "text"):
        page.locator("#shelf-ask").click()
        expect(page.locator("#answered-by")).to_contain_text("Answered by: Glass harvester", timeout=TIMEOUT)
        loaded(page)  # while it answers
        open_shelf(page, "Glass harvester")
        expect(page.locator("#answered-by")).to_contain_text("Answered by: Glass harvester", timeout=TIMEOUT)
    page.locator("#shelf-who input").click()
    page.get_by_role("option", name="Lighthouse", exact=True).click()
    page.locator("#shelf-question textarea, #shelf-question input").fill("What is 7 x 8?")
    page.locator("#shelf-ask").click()
    expect(page.locator("#answered-by")).to_contain_text("Answered by: Lighthouse, as chosen", timeout=TIMEOUT)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    choose_books(page, "Lighthouse", "Glass harvester")
    page.locator("#merge-books").click()
    expect(page.locator("#books")).to_contain_text("Lighthouse · 2 passages", timeout=TIMEOUT)
    choose_books(page, "Lighthouse")
    page.locator("#take-book").click()
    expect(page.locator("#adapters-status")).to_contain_text("6 adapters", timeout=TIMEOUT)
    page.set_viewport_size({"width": 1280, "height": 900})
    open_shelf(page, "Lighthouse")
    choose_books(page, "Lighthouse")
    page.locator("#forget-books").click()
    expect(page.locator("#shelf-status")).to_contain_text("Forgot Lighthouse", timeout=TIMEOUT)
    other.get_by_role("tab", name="Shelf").click()
    expect(other.locator("#shelf-status")).to_contain_text("The shelf is empty", timeout=TIMEOUT)
    assert "harvester" not in other.content()
