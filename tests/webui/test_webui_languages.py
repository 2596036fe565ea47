"""The texts of the page: their files, who uses them, and which language a visitor gets."""

import ast
import json
import pickle
import re
import string
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from helpers.folders import ROOT
from helpers.web_page import end_of
from seal_hf.webui import languages
from seal_hf.webui.languages import LANGUAGES, Message, as_data, language_of, of_data, say, told
from seal_hf.webui.page import build_page
from seal_hf.webui.tabs.shared import ended_text, table_of, waiting_text
from seal_hf.webui.work import inputs
from seal_hf.webui.work.errors import explain
from seal_hf.webui.work.job_queue import JobQueue
from seal_hf.webui.work.jobs import FAILED, STOPPED, JobLog, JobRefused
from seal_hf.webui.work.limits import OWN_MACHINE, SHARED, ZERO_GPU, minutes
from seal_hf.webui.work.training_runs import TrainingRuns
from seal_hf.webui.work.workbench import Workbench


WEBUI = ROOT / "seal_hf" / "webui"
FORMS = ("one", "other")
ENGLISH = LANGUAGES["en"]
# What a page shows of its widgets.
SHOWN = ("label", "info", "placeholder", "title", "x_title", "y_title", "color_title", "caption", "submit_btn")
# Widgets whose contents are no texts of the page, by their ids: passages, names of tasks, commands, and what the server fills in.
CONTENTS = r"example-\d|only|arc-(name|json|task|editor)|train-(command|yaml)"


@contextmanager
def visited_in(accepted):
    """Inside the block, the request of a browser that prefers these languages is worked on."""
    token = LocalContext.request.set(SimpleNamespace(request=SimpleNamespace(headers={"accept-language": accepted})))
    try:
        yield
    finally:
        LocalContext.request.reset(token)


def fields_of(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def texts_of(key):
    """The English texts of a key: one, or its forms."""
    return [ENGLISH[one] for one in (key, *(f"{key}.{form}" for form in FORMS)) if one in ENGLISH]


def trees():
    return {file.relative_to(ROOT): ast.parse(file.read_text(encoding="utf-8")) for file in WEBUI.rglob("*.py")}


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_every_language_has_the_same_texts_with_the_same_fields(language):
    texts = LANGUAGES[language]
    assert texts.keys() == ENGLISH.keys()
    assert [key for key, text in texts.items() if not text.strip()] == []
    assert {key for key, text in texts.items() if fields_of(text) != fields_of(ENGLISH[key])} == set()
    assert {key for key in texts if key.endswith(".one") and f"{key[:-4]}.other" not in texts} == set()


def test_every_text_that_the_page_asks_for_is_there_with_its_fields():
    asked = [
        (f"{file}:{call.lineno}", call.args[0].value, {one.arg for one in call.keywords})
        for file, tree in trees().items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("say", "Message", "laid_out")
        if call.args and isinstance(call.args[0], ast.Constant)
    ]  # fmt: skip
    assert len(asked) > 300
    assert [one for one in asked if not texts_of(one[1])] == []
    for place, key, given in asked:
        if None not in given:  # no `**fields`, of which nothing is known here
            needed = set().union(*map(fields_of, texts_of(key))) | ({"count"} if key not in ENGLISH else set())
            assert given == needed, (place, key)


def test_every_text_is_used():
    constants, patterns = set(), []
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                constants.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(one.value) if isinstance(one, ast.Constant) else r"[\w-]+" for one in node.values]
                patterns.append("".join(parts))
    patterns = [re.compile(one) for one in patterns if re.match(r"[a-z_]+\\\.", one)]  # such as f"style.{style}"
    unused = []
    for key in ENGLISH:
        names = (key, key.rpartition(".")[0] if key.rpartition(".")[2] in FORMS else key)
        if not constants & set(names) and not any(one.fullmatch(name) for one in patterns for name in names):
            unused.append(key)
    assert unused == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-DE", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("de-AT;q=0.9", "de"),
        ("de", "de"),
        ("en-US,de;q=0.9", "en"),
        ("fr-FR,de;q=0.9", "en"),  # as the frontend, which asks for the first language alone
        ("", "en"),
        ("*", "en"),
        (",;q=,--de", "en"),
        ("../de", "en"),
    ],
)
def test_the_language_is_the_first_of_the_browser_or_english(accepted, language):
    assert language_of(accepted) == language
    with visited_in(accepted):
        assert say("common.stop") == LANGUAGES[language]["common.stop"]
    assert say("common.stop") == "Stop"  # outside of requests


def test_a_text_is_said_with_the_numbers_and_forms_of_its_language():
    many = Message("passage.tokens", mark="", count=1234, most=2040.0)
    assert many == "1,234 of 2,040.0 tokens" and f"{many}" == many
    waiting = Message("shelf.by_base", nearest="Bees, 1.5", score=0.25, threshold=0.3)
    with visited_in("de"):
        assert told(many) == "1.234 von 2.040,0 Token"
        assert "Bees, 1.5 mit 0,25 Punkten, nötig sind 0,3." in told(waiting)
        assert [say("shelf.count", count=count) for count in (1, 2)] == ["1 Buch.", "2 Bücher."]
        # A field may be a text, too.
        assert "10 Minuten" in told(Message("job.overdue", time=minutes(600)))
        assert told("library says this") == "library says this"
        assert table_of(("", "common.answer"), [["a", "b"]]) == {"headers": ["", "Antwort"], "data": [["a", "b"]]}
    assert [say("shelf.count", count=count) for count in (1, 2)] == ["1 book.", "2 books."]


def test_a_message_survives_json_and_other_processes():
    message = Message("inputs.too_long", name=Message("inputs.the_title"), count=1200, most=800)
    for copy in (of_data(json.loads(json.dumps(as_data(message)))), pickle.loads(pickle.dumps(message))):
        assert copy == message == "The title has 1,200 characters: shorten it to 800 at most."
        with visited_in("de"):
            assert told(copy) == "Der Titel hat 1.200 Zeichen: Bitte auf höchstens 800 kürzen."
    assert as_data("plain") == of_data("plain") == "plain" and json.dumps(message) == json.dumps(str(message))


def test_an_error_is_english_for_programs_and_of_the_visitors_language_on_the_page():
    with visited_in("de-DE"):
        with pytest.raises(ValueError) as raised:
            inputs.questions_from_table([["Who?", ""]])
        german = told(raised.value)
    assert str(raised.value).startswith("Question 1 has no answer: write the right one as a text")
    assert german.startswith("Frage 1 hat keine Antwort: Bitte die richtige als Text schreiben")
    assert explain(raised.value) == str(raised.value)
    with visited_in("de"):
        assert told(explain(raised.value)) == german
        # The library speaks English.
        assert told(explain(ValueError("A colour is a whole number."))) == "A colour is a whole number."


def test_one_jobs_end_is_read_in_each_visitors_language(tmp_path, gate):
    jobs = JobQueue(explain)
    workbench = SimpleNamespace(jobs=jobs)

    def work(job):
        raise JobRefused(Message("shelf.gone_meanwhile"))

    def submit(work, owner):
        return jobs.submit(owner, "ask", "", tmp_path, work, seconds=200.0)

    with visited_in("de"):  # whose context the work has
        log, _ = end_of(jobs, submit(work, "ann"))
        assert (
            ended_text(log, "", "") == "⚠️ Das Buch wurde inzwischen entfernt oder vereint: Bitte noch einmal fragen."
        )
    english = "The book was forgotten or merged meanwhile: ask again."
    assert (log.state, log.error) == (FAILED, english)
    assert ended_text(log, "", "") == f"⚠️ {english}"
    assert "entfernt" not in (log.job.folder / "events.jsonl").read_text(encoding="utf-8")
    blocking = submit(lambda job: gate.wait(30), "ann")
    second = submit(work, "bob")
    with visited_in("de"):
        assert waiting_text(workbench, second).startswith("Wartet auf 1 anderen Auftrag auf diesem Gerät, etwa ")
    gate.set()
    jobs.wait(blocking)
    jobs.wait(second)


def test_the_reason_of_a_stop_is_said_in_each_language(submit, jobs, gate):
    job = submit(lambda job: gate.wait(30))
    job.stop.set(Message("job.overdue", time=minutes(SHARED.job_seconds)))
    gate.set()
    log, _ = end_of(jobs, job)
    assert (log.state, log.error) == (STOPPED, "A job is ended after 10 minutes here.")
    with visited_in("de"):
        again = JobLog(job)
        again.read()
        stopped = ended_text(again, "", say("job.stopped"))
    assert stopped == "Gestoppt. Ein Auftrag wird hier nach 10 Minuten beendet."


def shown_texts(config):
    """Each text that the widgets of a page show when it is laid out, with the widget's id."""
    for component in config["components"]:
        props = component["props"]
        is_of_api = component["type"] == "api" or (component["type"], props.get("value")) == ("button", "Run")
        if is_of_api or re.fullmatch(CONTENTS, str(props.get("elem_id"))):
            continue
        texts = [props.get(name) for name in SHOWN]
        texts += [name for name, _ in props.get("choices") or ()]
        texts += props.get("headers") or ()
        if component["type"] in ("button", "markdown", "uploadbutton", "downloadbutton", "html"):
            texts.append(props.get("value"))
        yield from (
            (component["type"], props.get("elem_id"), str(text))
            for text in texts
            if text not in (None, "", True, False)
        )


@pytest.mark.parametrize("limits", [OWN_MACHINE, SHARED, ZERO_GPU], ids=["own", "shared", "ZeroGPU"])
def test_every_text_that_is_laid_out_is_of_the_files(lm, tmp_path, limits):
    bench = Workbench(lm, tmp_path / "sessions", limits=limits)
    runs = TrainingRuns(bench.jobs, tmp_path / "runs", None, lm.base_model_id, limits=limits)
    config = build_page(bench, runs, may_push=limits is OWN_MACHINE, on_space=False).get_config_file()
    translations = languages.i18n().translations
    names, literal = [], []
    for kind, elem_id, text in shown_texts(config):
        found = re.fullmatch(r'__i18n__\{"__type__": "translation_metadata", "key": "([^"{}]+)"\}', text)
        (names if found else literal).append(found[1] if found else (kind, elem_id, text))
    assert len(names) > 100
    # Names of files, models and collections are the same in all languages.
    assert [one for one in literal if not re.fullmatch(r"ARC-AGI-[12], \w+|config\.yaml", one[2])] == []
    for language, texts in translations.items():
        assert set(names) <= texts.keys(), language
    assert translations["de"]["teach.write"] == "Self-Edits schreiben"
    assert translations["de"]["common.self_edit?number=3"] == "Self-Edit 3"
    assert config["title"] == "Teach a language model a passage"
