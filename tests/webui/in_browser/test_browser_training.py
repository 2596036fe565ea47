"""What a person sees and does in the tab Train."""

import re

from helpers.browser_page import IN_CHROMIUM, TIMEOUT, expect, fill_passage, loaded, text_of, write
from helpers.finished_runs import write_finished_run
from helpers.web_page import served_page


pytestmark = IN_CHROMIUM


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
