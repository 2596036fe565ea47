"""What a person sees and does in the tabs Teach, Ask and Adapters."""

import re
import time
from dataclasses import replace

import pytest

from helpers.browser_page import (
    IN_CHROMIUM,
    TIMEOUT,
    ask,
    expect,
    fill_passage,
    learn,
    loaded,
    open_tab,
    text_of,
    write,
)
from helpers.web_page import PASSAGE, QUICK, served_page, slowed
from seal_hf import SelfAdaptingLM
from seal_hf.webui.tabs import teach_tab
from seal_hf.webui.work import device_work, settings
from seal_hf.webui.work.session_items import Draft


pytestmark = IN_CHROMIUM


@pytest.mark.slow
def test_the_whole_story_with_the_embedded_model(visit, embedded_path, tmp_path, monkeypatch):
    """From a click to an adapted answer; the screenshots are for people to look at."""
    shorter = replace(settings.TINY_MODEL, max_completion_length=64, num_train_epochs=3)
    monkeypatch.setitem(settings.PRESETS, "Tiny model", shorter)
    lm = SelfAdaptingLM.from_pretrained("embedded-tiny")
    with served_page(tmp_path, lm) as app:
        page = visit(app.url)
        page.locator("#example-0").click()
        expect(page.locator("#token-count")).to_contain_text("135 of", timeout=TIMEOUT)
        page.locator("#number input[type=number]").fill("2")
        page.locator("#write").click()
        page.wait_for_function("document.querySelector('#self-edit-2 textarea')?.value.length > 20")
        assert page.locator("#stop-writing").is_enabled()  # before the writing has ended
        early = text_of(page, "self-edit-1")
        page.screenshot(path=tmp_path / "watching.png")
        expect(page.locator("#learn-all")).to_be_visible(timeout=TIMEOUT)
        written = text_of(page, "self-edit-1")
        assert written.startswith(early.strip()) and len(written) > len(early)
        expect(page.locator("#watched input, #watched textarea")).to_have_value(re.compile(r"\?$"), timeout=TIMEOUT)
        page.locator("#learn-together").click()
        expect(page.locator("#watching")).to_contain_text("Base model", timeout=TIMEOUT)
        expect(page.locator("#learn-status")).to_contain_text("tokens/s", timeout=TIMEOUT)
        expect(page.locator("#watching")).to_contain_text("Self-edit 1 + 2, step", timeout=TIMEOUT)
        expect(page.locator("#loss")).to_be_visible(timeout=TIMEOUT)
        expect(page.locator("#rewards")).to_contain_text("1 + 2, together", timeout=TIMEOUT)
        page.screenshot(path=tmp_path / "applying.png")
        page.locator("#ask-next").click()
        ask(page, "Who was the engineer of the lighthouse?")
        assert text_of(page, "adapted") and text_of(page, "adapted") != text_of(page, "base")
        page.screenshot(path=tmp_path / "asking.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_learns_asks_and_keeps(app, visit):
    page = visit()
    expect(page.locator("#empty")).to_contain_text("Paste a passage")
    fill_passage(page)
    write(page)
    assert text_of(page, "self-edit-1") and text_of(page, "self-edit-2")
    page.locator("#passage textarea").fill("Bees hum.")
    page.locator("#learn-all").click()
    expect(page.locator("#learn-status")).to_contain_text(
        "The passage in the first step is not the one", timeout=TIMEOUT
    )
    fill_passage(page)
    learn(page)
    page.locator("#ask-next").click()
    ask(page)
    expect(page.locator("#history")).to_contain_text("Who drew it?")
    page.locator("#probe").click()
    expect(page.locator("#scores")).to_contain_text("capital of France")
    expect(page.locator("#ask-status")).to_contain_text("nothing to do with the passage", timeout=TIMEOUT)
    page.get_by_role("tab", name="Adapters").click()
    expect(page.locator("#adapters")).to_contain_text("Lighthouse · self-edit 2", timeout=TIMEOUT)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "lighthouse-self-edit-1.zip"
    page.locator("#delete").click()
    expect(page.locator("#adapters-status")).to_contain_text("Deleted", timeout=TIMEOUT)
    expect(page.locator("#adapters")).not_to_contain_text("self-edit 1")


def test_words_appear_before_the_writing_ends_and_stop_keeps_them(app, visit, monkeypatch):
    page = visit()
    fill_passage(page)
    with slowed(monkeypatch, 0.8, "text"):
        page.locator("#write").click()
        page.wait_for_function("document.querySelector('#self-edit-2 textarea')?.value.length > 3")
        assert page.locator("#write").is_disabled()
        page.locator("#stop-writing").dblclick()  # the second click does nothing
        expect(page.locator("#write-status")).to_contain_text("Stopped.", timeout=TIMEOUT)
    assert 0 < len(text_of(page, "self-edit-2")) < QUICK.max_completion_length
    expect(page.locator("#write")).to_be_enabled()


def test_a_page_that_is_loaded_again_finds_its_job(app, visit, monkeypatch):
    page = visit()
    fill_passage(page)
    with slowed(monkeypatch, 0.8, "text"):
        page.locator("#write").click()
        page.wait_for_function("document.querySelector('#self-edit-2 textarea')?.value.length > 2")
        loaded(page)
        expect(page.locator("#write-status")).to_contain_text("Writing", timeout=TIMEOUT)
        expect(page.locator("#stop-writing")).to_be_enabled(timeout=TIMEOUT)
    expect(page.locator("#learn-all")).to_be_visible(timeout=TIMEOUT)
    written = text_of(page, "self-edit-1")
    page.locator("#self-edit-2 textarea").fill("Halda Tremmery drew it in 1874.")
    page.locator("#self-edit-2 textarea").blur()
    with slowed(monkeypatch, 10, "step"):
        page.locator("#learn-all").click()
        expect(page.locator("#learn-status")).to_contain_text("tokens/s", timeout=TIMEOUT)
        loaded(page)
        assert page.locator("#passage textarea").input_value() == PASSAGE
        expect(page.locator("#stop-learning")).to_be_enabled(timeout=TIMEOUT)
    expect(page.locator("#ask-next")).to_be_visible(timeout=TIMEOUT)
    assert text_of(page, "self-edit-1") == written
    assert text_of(page, "self-edit-2") == "Halda Tremmery drew it in 1874."


def test_learning_that_is_stopped_keeps_its_adapters(app, visit, monkeypatch):
    page = visit()
    fill_passage(page)
    write(page)
    with slowed(monkeypatch, 0.5, "step"):
        page.locator("#learn-all").click()
        expect(page.locator("#learn-status")).to_contain_text("Step 1", timeout=TIMEOUT)
        page.locator("#stop-learning").click()
        expect(page.locator("#learn-status")).to_contain_text("Stopped after step", timeout=TIMEOUT)
    ask(page)


def test_two_people_see_nothing_of_each_other(app, visit, monkeypatch):
    ann, bob = visit(), visit()
    fill_passage(ann, "Ann's bees", "Ann keeps nine bees in Oslo.")
    fill_passage(bob, "Bob's ants", "Bob keeps ten ants in Bergen.")
    with slowed(monkeypatch, 0.1, "text"):
        ann.locator("#write").click()
        ann.wait_for_function("document.querySelector('#self-edit-1 textarea')?.value.length > 1")
        bob.locator("#write").click()
        expect(bob.locator("#write-status")).to_contain_text("Waiting for 1 other", timeout=TIMEOUT)
    for person in (ann, bob):
        expect(person.locator("#learn-all")).to_be_visible(timeout=TIMEOUT)
        learn(person)
        person.get_by_role("tab", name="Adapters").click()
    expect(ann.locator("#adapters")).to_contain_text("Ann's bees", timeout=TIMEOUT)
    expect(bob.locator("#adapters")).to_contain_text("Bob's ants", timeout=TIMEOUT)
    assert "Bob" not in ann.content() and "Ann" not in bob.content()


def test_bad_input_is_a_sentence_where_one_looks(app, visit):
    page = visit()
    page.locator("#write").click()
    expect(page.locator("#write-status")).to_contain_text("There is no passage yet", timeout=TIMEOUT)
    fill_passage(page, title="<script>document.title = 'taken'</script>", passage="🦭 🦭")
    page.locator("#write").click()
    expect(page.locator("#write-status")).to_contain_text("The passage has no words", timeout=TIMEOUT)
    page.locator("#passage textarea").fill(PASSAGE + " <img src=x onerror=\"document.title = 'taken'\">")
    write(page)
    page.locator("#self-edit-1 textarea").fill("  ")
    page.locator("#learn-all").click()
    expect(page.locator("#learn-status")).to_contain_text("Self-edit 1 is empty", timeout=TIMEOUT)
    page.locator("#use-1 input").uncheck()
    learn(page)
    page.get_by_role("tab", name="Adapters").click()
    expect(page.locator("#adapters")).to_contain_text("<script>", timeout=TIMEOUT)
    assert page.title() == "Teach a language model a passage"
    page.get_by_role("tab", name="Ask").click()
    page.locator("#ask").click()
    expect(page.locator("#ask-status")).to_contain_text("There is no question yet", timeout=TIMEOUT)


def test_no_page_is_wider_than_the_screen(app, visit):
    page = visit()
    fill_passage(page)
    write(page)
    learn(page)
    ask(page)
    for width, scheme in ((1280, "light"), (390, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        loaded(page)
        expect(page.locator("#ask-next")).to_be_visible(timeout=TIMEOUT)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for tab, widget in (("Ask", "#history"), ("Adapters", "#adapters")):
            open_tab(page, tab)
            expect(page.locator(widget)).to_be_visible(timeout=TIMEOUT)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_name_is_chosen_by_the_keyboard_and_its_question_joins_what_was_edited(app, visit, monkeypatch):
    asking = replace(QUICK, prompt_style="questions", training_format="prompt_completion")
    pairs = (("When was it built?", "In 1874."),)
    drafts = [Draft("", pairs=list(map(list, pairs)), written="When was it built?")] * 2
    monkeypatch.setattr(device_work, "write", lambda *arguments, **options: list(drafts))
    monkeypatch.setattr(
        device_work, "add_question", lambda *arguments: time.sleep(1) or ["Who drew it?", "Halda Tremmery."]
    )
    monkeypatch.setattr(teach_tab, "read_settings", lambda values: asking)
    page = visit()
    fill_passage(page)
    write(page)
    expect(page.locator("#coverage")).to_contain_text("Nothing asks for these", timeout=TIMEOUT)
    name = page.locator("#left-out").get_by_role("button", name="Tremmery")
    name.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#coverage")).to_contain_text("The model asks about Tremmery", timeout=TIMEOUT)
    page.locator("#use-2 input").uncheck()  # meanwhile
    expect(page.locator("#coverage")).to_contain_text("A question about Tremmery is in self-edit 1", timeout=TIMEOUT)
    expect(page.locator("#pairs-1")).to_contain_text("Who drew it?")
    expect(page.locator("#pairs-2")).not_to_contain_text("Who drew it?")
    assert not page.locator("#use-2 input").is_checked()
    loaded(page)
    expect(page.locator("#pairs-1")).to_contain_text("Who drew it?", timeout=TIMEOUT)
