"""What a person sees and does, in chromium."""

import json
import re
import shutil
import time
from dataclasses import replace

import pytest
from playwright import sync_api

from helpers.finished_runs import write_finished_run
from helpers.web_page import PASSAGE, QUICK, served_page, slowed
from seal_hf import SelfAdaptingLM
from seal_hf.webui.tabs import teach_tab
from seal_hf.webui.work import device, settings
from seal_hf.webui.work.sessions import Draft


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
TIMEOUT = 300_000  # milliseconds that a test waits before it fails; slow machines take 100 seconds for one step
expect = sync_api.expect


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
    expect(page.locator("#token-count")).not_to_contain_text("0 of ", timeout=TIMEOUT)


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


def open_training(page):
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#train-status")).to_contain_text("write better self-edits", timeout=TIMEOUT)


def test_where_no_run_can_be_started_its_command_can_be_copied(app, visit):
    page = visit()
    open_training(page)
    page.locator("#train-num_rounds input").fill("3")
    page.locator("#train-num_rounds input").blur()
    page.locator("#train-command").get_by_role("button").first.click()
    expect(page.locator("#train-yaml")).to_contain_text("num_rounds: 3", timeout=TIMEOUT)
    page.locator("#train-start").click()
    expect(page.locator("#train-status")).to_contain_text("start it on your own machine", timeout=TIMEOUT)


def test_a_run_is_stopped_found_again_and_resumed(lm, visit, tmp_path):
    script = tmp_path / "stub.py"
    script.write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    with served_page(tmp_path, lm, script=script) as app:
        page = visit(app.url)
        open_training(page)
        page.locator("#train-start").click()
        expect(page.locator("#train-status")).to_contain_text("before the first round: writing", timeout=TIMEOUT)
        loaded(page)
        page.get_by_role("tab", name="Train").click()
        expect(page.locator("#train-stop")).to_be_enabled(timeout=TIMEOUT)
        page.locator("#train-stop").click()
        expect(page.locator("#train-status")).to_contain_text("Stopped.", timeout=TIMEOUT)
        page.locator("#train-resume").click()
        expect(page.locator("#train-stop")).to_be_enabled(timeout=TIMEOUT)
        page.locator("#train-stop").click()
        expect(page.locator("#train-resume")).to_be_enabled(timeout=TIMEOUT)


def test_a_trained_policy_writes_for_one_visitor_alone(app, visit, lm):
    others = set(app.workbench.sessions._sessions)
    ann = visit()
    (session_id,) = set(app.workbench.sessions._sessions) - others
    write_finished_run(app.workbench.runs, session_id, lm)
    loaded(ann)
    fill_passage(ann)
    write(ann)
    by_base = text_of(ann, "self-edit-1")
    ann.get_by_role("tab", name="Train").click()
    expect(ann.locator("#train-accuracies")).to_contain_text("Held-out passages, 2 rounds", timeout=TIMEOUT)
    for line in ("passage in context", "passage only", "self-edits"):
        expect(ann.locator("#train-accuracies")).to_contain_text(line, timeout=TIMEOUT)
    expect(ann.locator("#train-edits")).to_contain_text("Self-edits of round 2: 2, 1 kept", timeout=TIMEOUT)
    ann.locator("#train-round input").click()
    ann.get_by_role("option", name="Round 1", exact=True).click()
    expect(ann.locator("#train-edits")).to_contain_text("Self-edits of round 1: 2, 1 kept", timeout=TIMEOUT)
    expect(ann.locator("#train-edits")).to_contain_text("Which is number 12? → answer 1.12")
    ann.locator("#train-use").click()
    expect(ann.locator("#train-writer")).to_contain_text("the policy of run 1, round 1", timeout=TIMEOUT)
    loaded(ann)
    expect(ann.locator("#writer")).to_contain_text("the policy of run 1, round 1", timeout=TIMEOUT)
    bob = visit()
    expect(bob.locator("#writer")).to_contain_text("base model")
    assert not bob.locator("#writer-base").is_visible()
    ann.locator("#write").click()
    expect(ann.locator("#write-status")).to_contain_text("Written by the policy of run 1, round 1", timeout=TIMEOUT)
    assert text_of(ann, "self-edit-1") != by_base
    ann.set_viewport_size({"width": 390, "height": 844})
    assert ann.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ann.locator("#writer-base").click()
    expect(ann.locator("#writer")).to_have_text(re.compile("written by: base model"), timeout=TIMEOUT)
    ann.locator("#write").click()
    expect(ann.locator("#write-status")).not_to_contain_text("Written by", timeout=TIMEOUT)
    expect(ann.locator("#write")).to_be_enabled(timeout=TIMEOUT)
    assert text_of(ann, "self-edit-1") == by_base


def test_an_arc_task_is_chosen_written_about_learned_and_predicted(app, visit):
    page = visit()
    page.get_by_role("tab", name="ARC").click()
    page.locator("#arc-name input").click()
    page.get_by_role("option", name="flip-0-1", exact=True).click()
    page.locator("#arc-own").get_by_role("button").first.click()
    expect(page.locator("#arc-json textarea")).to_have_value(re.compile("flip-0-1"), timeout=TIMEOUT)
    page.locator("#arc-settings").get_by_role("button").first.click()
    page.locator("#arc-max_tasks input").fill("3")
    page.locator("#arc-write").click()
    expect(page.locator("#arc-preview-2")).to_contain_text("Malformed", timeout=TIMEOUT)  # what a random model writes
    data = {f"use_{name}_augmentations": name == "basic" for name in ("basic", "size", "chain", "repeat")}
    training = {"strategy": "train_using_output_tokens", "learning_rate": 1e-3, "num_train_epochs": 1}
    page.locator("#arc-self-edit-1 textarea").fill(json.dumps({"data_generation": data, "training": training}))
    page.locator("#arc-self-edit-1 textarea").blur()
    expect(page.locator("#arc-preview-1")).to_contain_text("11 tools make", timeout=TIMEOUT)
    assert page.locator("#arc-preview-1 .arc-tools svg").count() == 24  # two of each tool, and of none
    page.locator("#arc-learn").click()
    expect(page.locator("#arc-learn-status")).to_contain_text("after learning it is not solved", timeout=TIMEOUT)
    expect(page.locator("#arc-predictions")).to_contain_text("truth")
    # A cell of the first grid is drawn in red.
    page.locator("#arc-editor .arc-palette .colour-2").click()
    cell = page.locator("#arc-editor .arc-line").first.locator("button").first
    cell.click()
    expect(cell).to_have_class("colour-2")
    expect(page.locator("#arc-json textarea")).to_have_value(
        re.compile(r'"train": \[\s*{"input": \[\[2,'), timeout=TIMEOUT
    )
    page.locator("#arc-json textarea").fill('{"train": [], "test": "<img src=x onerror=\'document.title = 1\'>"}')
    expect(page.locator("#arc-task")).to_contain_text("has no demonstration", timeout=TIMEOUT)
    page.locator("#arc-write").click()
    expect(page.locator("#arc-write-status")).to_contain_text("has no demonstration", timeout=TIMEOUT)
    page.set_viewport_size({"width": 390, "height": 844})
    loaded(page)  # the task and its predictions are found again
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text="ARC").click()
    expect(page.locator("#arc-predictions")).to_contain_text("after learning", timeout=TIMEOUT)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


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


def open_tab(page, name):
    """Open a tab, which on a narrow screen may stand in the menu of those that do not fit."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()


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


def test_a_name_is_chosen_by_the_keyboard_and_its_question_joins_what_was_edited(app, visit, monkeypatch):
    asking = replace(QUICK, prompt_style="questions", training_format="prompt_completion")
    pairs = (("When was it built?", "In 1874."),)
    drafts = [Draft("", pairs=list(map(list, pairs)), written="When was it built?")] * 2
    monkeypatch.setattr(device, "write", lambda *arguments, **options: list(drafts))
    monkeypatch.setattr(
        device, "add_question", lambda *arguments: time.sleep(1) or ["Who drew it?", "Halda Tremmery."]
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
