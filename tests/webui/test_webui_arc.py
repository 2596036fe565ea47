"""The tab ARC on a tiny model: what is shown of grids, what a pasted task may be, and the work."""

import json
import re
from dataclasses import replace

import pytest

from helpers.web_page import finish, slowed
from seal_hf.domains import ArcDomain
from seal_hf.domains.arc.augmentation import training_tasks
from seal_hf.domains.arc.generated import generate_tasks
from seal_hf.domains.arc.grids import write_grid
from seal_hf.domains.arc.prediction import questions_of
from seal_hf.domains.arc.transforms import VIEWS
from seal_hf.webui.tabs.arc_grids import escaped, grid_svg, predictions_html, preview_html, task_html
from seal_hf.webui.tabs.arc_tab import solved_text
from seal_hf.webui.work import arc_inputs, arc_work
from seal_hf.webui.work.arc_inputs import read_task, write_task
from seal_hf.webui.work.arc_work import ArcSettings, ArcWork
from seal_hf.webui.work.jobs import DONE, STOPPED, JobRefused
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.workbench import Workbench


TASK = generate_tasks(1)[0]
PLAIN = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}] * 2, "test": [{"input": [[3, 0]], "output": [[0, 3]]}]}
QUICK = ArcSettings(num_generations=2, max_completion_length=16, max_tasks=3, lora_r=2)


def self_edit(*groups, epochs=1, rate=1e-3):
    data = {f"use_{name}_augmentations": name in groups for name in ("basic", "size", "chain", "repeat")}
    training = {"strategy": "train_using_output_tokens", "learning_rate": rate, "num_train_epochs": epochs}
    return json.dumps({"data_generation": data, "training": training})


def pasted(**changes):
    return json.dumps({**PLAIN, **changes})


@pytest.fixture
def arc(bench):
    return ArcWork(bench)


def test_a_grid_is_a_rectangle_for_each_run_of_a_colour():
    shown = grid_svg(((1, 1, 2), (0, 0, 0)))
    assert re.findall(r'<path fill="(#\w+)" d="(\w[^"]*)"/>', shown) == [
        ("#000000", "M0 10h30v10h-30z"),
        ("#0074d9", "M0 0h20v10h-20z"),
        ("#ff4136", "M20 0h10v10h-10z"),
    ]
    assert 'viewBox="0 0 30 20"' in shown and 'aria-label="Grid of 2 x 3"' in shown
    assert 'd="M10 0V20M20 0V20M0 10H30"' in shown
    # The largest grid is no wider than a small one.
    assert 'width="132" height="132"' in grid_svg(((5,) * 30,) * 30)


def test_a_text_is_never_markup_or_a_template():
    assert escaped("<b onclick='x'>{{value}} ${1} `") == (
        "&lt;b onclick=&#x27;x&#x27;&gt;&#123;&#123;value&#125;&#125; &#36;&#123;1&#125; &#96;"
    )


def test_a_task_is_read_as_it_was_written():
    assert read_task(write_task(TASK)) == {name: TASK[name] for name in ("id", "train", "test")}
    named = read_task(json.dumps({"a1": PLAIN}))
    assert named["id"] == "a1" and read_task(pasted(id=7, rule="<script>"))["id"] == "pasted"
    assert read_task(pasted(id="x" * 500, rule=[{}])).keys() == {"id", "train", "test"}
    unsolved = read_task(pasted(test=[{"input": [[3, 0]]}]))
    assert not arc_inputs.has_solutions(unsolved) and "predicted and not graded" in task_html(unsolved)
    assert "not graded" not in task_html(named) and task_html(named).count("<svg") == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "There is no task yet: choose one, draw one or paste its JSON."),
        (
            "{",
            "The task, line 1: malformed JSON (Expecting property name enclosed in double quotes); paste the JSON of",
        ),
        ("[" * 100_000, "The task, line 1 has lists or objects that are nested more than 50 deep; write them flat."),
        ("3", "This is no task: paste {"),
        (json.dumps({"a": PLAIN, "b": PLAIN}), "This has neither demonstrations nor test inputs: paste one task"),
        (json.dumps({"a": 3}), "This has neither demonstrations nor test inputs"),
        (pasted(train=[]), 'Task pasted has no demonstration; give "train" a list'),
        (pasted(test=[]), "Task pasted has no test input"),
        (pasted(train=[{"input": [[1]]}]), "demonstration 1 has no output; add it, or drop the demonstration."),
        (pasted(test=[{"input": [[1], [2, 3]]}]), "test input 1: the input has rows of 1 to 2 cells; make them all"),
        (pasted(test=[{"input": [[10]]}]), "the input has 10 in row 1; a colour is a whole number from 0 to 9."),
        (pasted(test=[{"input": [["<b>"]]}]), "the input has '<b>' in row 1; a colour is a whole number"),
        (pasted(test=[{"input": [[0] * 31]}]), "the input has 1 x 31 cells; a grid has at most 30 x 30."),
        (pasted(train=PLAIN["train"] * 6), "The task has 12 demonstrations: keep 10 at most."),
        (pasted(test=PLAIN["test"] * 5), "The task has 5 test inputs: keep 4 at most."),
        (" " * 200_001 + "{", "The task has 200,002 characters: paste at most 200,000."),
    ],
)
def test_what_is_no_task_is_said_in_a_sentence(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_task(text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


def test_a_task_that_is_longer_than_the_context(bench, session, arc):
    large = [[1] * 30] * 30
    task = read_task(pasted(train=[{"input": large, "output": large}] * 3))
    with pytest.raises(ValueError, match=r"takes [\d,]+ tokens, and this model's context has 4,096: choose one with"):
        arc.propose(session, task, QUICK)
    with pytest.raises(ValueError, match="this model's context has 4,096"):
        arc.learn(session, task, None, QUICK)
    assert not bench.jobs.active(session.id)


def test_the_collections():
    assert [name for _, name in arc_inputs.collections()][:2] == ["generated", "arc-agi-1/train"]
    assert len(arc_inputs.tasks_of("generated")) == 24
    assert arc_inputs.task_of("arc-agi-1/evaluation", "59341089")["id"] == "59341089"
    for collection in ("../secret.json/train", "arc-agi-1/test"):
        with pytest.raises(ValueError, match="no such collection"):
            arc_inputs.tasks_of(collection)
    with pytest.raises(ValueError, match="no such task"):
        arc_inputs.task_of("generated", "59341089")


def test_a_task_is_drawn():
    task = arc_inputs.empty_task()
    places = dict(arc_inputs.places_of(task))
    assert list(places)[:2] == ["Demonstration 1, input", "Demonstration 1, output"] and len(places) == 6
    solution = places["Test 1, output"]
    assert arc_inputs.grid_at(task, solution) == ((0,) * 3,) * 3 and not arc_inputs.has_solutions(task)
    drawn = arc_inputs.with_grid(task, solution, arc_inputs.resized(((1, 2), (3, 4)), 3, 1))
    assert drawn["test"][0]["output"] == ((1,), (3,), (0,)) and "output" not in task["test"][0]
    more = arc_inputs.with_demonstrations(drawn, 1)
    assert len(more["train"]) == 3 and read_task(write_task(more)) == more
    for _ in range(5):
        more = arc_inputs.with_demonstrations(more, -1)
    assert len(more["train"]) == 1


def test_what_the_chosen_tools_make_is_shown_with_its_counts(arc):
    settings = ArcSettings(max_tasks=5)
    preview = arc.preview(TASK, self_edit("size", "repeat"), settings)
    assert preview.made.drawn == training_tasks(TASK, ("size", "repeat"), 0, 5)
    shown = preview_html(preview)
    assert "size, repeat · rate 0.001 · epochs 1 · loss on the outputs that are asked for" in shown
    # Three demonstrations make nine training tasks, and each tool makes as many of them.
    assert "6 tools make 63 training tasks" in shown and "5 are drawn" in shown
    assert shown.count(" · 9</small>") == 7 and "double width · 9" in shown
    assert "Malformed" in preview_html(arc.preview(TASK, "{<b>", settings))
    large = read_task(pasted(train=[{"input": [[1] * 20], "output": [[2] * 20]}] * 2))
    assert "2 of the tools make grids that are too large" in preview_html(
        arc.preview(large, self_edit("size"), settings)
    )


def test_predictions_are_turned_back_and_compared_with_the_truth():
    questions, (solution,) = questions_of(TASK, 0), (pair["output"] for pair in TASK["test"])
    right = [write_grid(VIEWS[one.view][0](solution)) for one in questions]
    mixed = ["<b>no</b>", *["1\n2"] * 3, *right[4:]]  # the first four are without a view
    shown = predictions_html(TASK, 0, [mixed, right])
    count = len(questions)
    before, after = shown.split("<h4>after learning</h4>")
    assert f"✓ attempt 1, {count - 4} of {count} votes" in before and f"✗ attempt 2, 3 of {count} votes" in before
    assert before.count("arc-none") == 1 and "<b>" not in shown
    assert f"✓ attempt 1, {count} of {count} votes" in after and "attempt 2" not in after
    assert after.count("arc-box right") == count + 1 and "✓ flip up down" in after
    unsolved = {**TASK, "test": [{"input": TASK["test"][0]["input"]}]}
    shown = predictions_html(unsolved, 0, [["?"] * count, right])
    assert "no attempt" in shown and "truth" not in shown and "✓" not in shown
    assert solved_text([False, True]).endswith("**not solved**, after learning it is **solved**.")
    assert "no solution" in solved_text(None)


def test_self_edits_are_written_as_the_library_does(bench, session, arc, lm):
    log, events = finish(bench, arc.propose(session, TASK, QUICK))
    assert log.state == DONE
    texts = ["", ""]
    for event in events:
        if event["event"] == "text":
            texts = [text + new for text, new in zip(texts, event["new"], strict=True)]
    (written,) = QUICK.lm(lm).write_batch([TASK], 2, **QUICK.sampling())
    assert session.puzzle.texts == [one.text.strip() for one in written] == [text.strip() for text in texts]
    assert session.puzzle.task == TASK and not bench.sessions.open().puzzle


def test_a_task_is_learned_and_predicted(bench, session, arc, lm):
    log, events = finish(bench, arc.learn(session, TASK, self_edit("basic"), QUICK))
    assert (log.state, log.error) == (DONE, None)
    by_name = {event["event"]: event for event in events}
    assert by_name["step"]["num_steps"] == 1 and by_name["task"]["task"]["id"] == TASK["id"]
    own = QUICK.lm(lm)
    prompts, longest = own.domain.questions(TASK), own.domain.max_answer_length(TASK)
    adapter = own.adapt(own.domain.parse(self_edit("basic"), TASK))
    answers = by_name["predicted"]["answers"]
    assert answers[0] == lm.answer_prompts(prompts, max_answer_length=longest)
    assert answers[1] == lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=longest)
    assert by_name["predicted"]["solved"] == [False, False]
    assert not session.adapters  # it is of no use for another task


def test_a_stop_predicts_nothing(bench, session, arc, monkeypatch):
    with slowed(monkeypatch, 0.3, "step"):
        job = arc.learn(session, TASK, self_edit(epochs=9), QUICK)
        with pytest.raises(JobRefused, match="still under way"):
            arc.learn(session, TASK, self_edit(epochs=8), QUICK)
        while not bench.stop(session, arc_work.LEARNING):
            pass
        log, events = finish(bench, job)
    assert log.state == STOPPED and not any(event["event"] == "predicted" for event in events)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("{}", QUICK, "The self-edit is malformed: give it the keys and values that its form has"),
        (" " * 4_001 + self_edit(), QUICK, "The self-edit is malformed"),
        (
            self_edit("basic", epochs=10),
            ArcSettings(max_tasks=250),
            "trains on more than 750 sequences: choose fewer epochs or training tasks",
        ),
        (self_edit("basic", epochs=7), ArcSettings(max_tasks=100), "tokens in all epochs, and 100,000 is the limit here: choose"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_before_any_work(lm, tmp_path, text, settings, message):
    bench = Workbench(lm, tmp_path, limits=replace(SHARED, job_tokens=100_000))
    session = bench.sessions.open()
    with pytest.raises(ValueError, match=re.escape(message)):
        ArcWork(bench).learn(session, TASK, text, settings)
    assert not bench.jobs.active(session.id)


def test_settings_are_checked_and_reach_the_model(lm):
    with pytest.raises(ValueError, match="Training tasks: 251 is out of range; choose from 1 to 250"):
        ArcSettings(max_tasks=251)
    own = ArcSettings.of(max_tasks=7.0, batch_size=3, lora_r=5, seed=2, temperature=0.5).lm(lm)
    assert isinstance(own.domain, ArcDomain) and (own.domain.max_tasks, own.domain.seed) == (7, 2)
    assert (own.inner_config.batch_size, own.inner_config.max_length, own.peft_config.r) == (3, 4096, 5)
    assert own.model is lm.model
