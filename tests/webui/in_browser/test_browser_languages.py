"""The page in the language of the browser."""

import pytest

from helpers.browser_page import IN_CHROMIUM, TIMEOUT, expect, fill_passage


pytestmark = IN_CHROMIUM

# What is laid out, set by the server when the page is loaded, and said after an event and of an error.
ENGLISH = {
    "title": "Teach a language model a passage",
    "tabs": ["Teach", "Ask", "Shelf", "Adapters", "ARC", "Train", "About"],
    "write": "Write self-edits",
    "placeholder": "Paste a text to learn, in any language",
    "column": "Question",
    "error": "There is no passage yet: paste a text to learn, or take an example.",
    "status": "Edit the self-edits if you like, and let the model learn them.",
    "demonstration": "Demonstration 1",
}
GERMAN = {
    "title": "Einem Sprachmodell einen Text beibringen",
    "tabs": ["Lehren", "Fragen", "Regal", "Adapter", "ARC", "Trainieren", "Info"],
    "write": "Self-Edits schreiben",
    "placeholder": "Einen Text zum Lernen einfügen, in beliebiger Sprache",
    "column": "Frage",
    "error": "Es gibt noch keinen Text: Bitte einen zum Lernen einfügen oder ein Beispiel nehmen.",
    "status": "Jetzt die Self-Edits nach Wunsch ändern und das Modell daraus lernen lassen.",
    "demonstration": "Beispiel 1",
}


@pytest.mark.parametrize(("locale", "texts"), [("de-DE", GERMAN), ("en-US", ENGLISH), ("fr-FR", ENGLISH)])
def test_a_page_is_in_the_language_of_its_browser(visit, locale, texts):
    page = visit(locale=locale)
    expect(page.get_by_role("tab")).to_have_text(texts["tabs"])
    expect(page).to_have_title(texts["title"])
    expect(page.locator("#write")).to_have_text(texts["write"])
    expect(page.locator("#passage textarea")).to_have_attribute("placeholder", texts["placeholder"])
    page.locator("#questions-panel button").first.click()
    expect(page.locator("#questions")).to_contain_text(texts["column"], timeout=TIMEOUT)
    page.locator("#write").click()
    expect(page.locator("#write-status")).to_contain_text(texts["error"], timeout=TIMEOUT)
    fill_passage(page)
    page.locator("#write").click()
    expect(page.locator("#write-status")).to_contain_text(texts["status"], timeout=TIMEOUT)
    page.get_by_role("tab", name="ARC").click()
    expect(page.locator("#arc-task")).to_contain_text(texts["demonstration"], timeout=TIMEOUT)
    assert "__i18n__" not in page.locator("body").inner_text()
