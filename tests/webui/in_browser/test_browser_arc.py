"""What a person sees and does in the tab ARC."""

import json
import re

from helpers.browser_page import IN_CHROMIUM, TIMEOUT, expect, loaded


pytestmark = IN_CHROMIUM


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
