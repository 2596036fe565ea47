"""What programs call: every step through gradio_client, what is refused, and who sees what."""

import json
import threading
import time
import zipfile

import httpx2
import pytest
from gradio_client import Client, handle_file
from huggingface_hub import HfApi

from helpers.finished_runs import write_finished_run
from helpers.web_page import PASSAGE, QUESTIONS, QUICK, served_page, slowed, tiny_lm
from seal_hf import Adapter
from seal_hf.webui import api
from seal_hf.webui.page import build_page
from seal_hf.webui.tabs import shared
from seal_hf.webui.work import device
from seal_hf.webui.work.session_items import Draft
from seal_hf.webui.work.training_runs import TrainingRuns


@pytest.fixture(scope="module")
def app(lm, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "PRESETS", {"Tiny model": QUICK})
        patch.setattr(shared, "_REFRESH", 0.02)  # a page would be updated less often
        with served_page(tmp_path_factory.mktemp("app"), lm) as page:
            yield page


@pytest.fixture(scope="module")
def client(app):
    return Client(app.url, verbose=False)


@pytest.fixture(scope="module")
def learned(client):
    """A session that has learned the passage."""
    written = client.predict("Lighthouse", PASSAGE, api_name="/propose")
    return written["session"], client.predict(written["session"], [], QUESTIONS, api_name="/adapt")


def test_only_what_is_meant_for_programs_is_exported(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    of_adapters = {
        "/propose",
        "/add_question",
        "/adapt",
        "/ask",
        "/load_adapter",
        "/download_adapter",
        "/push_adapter",
    }
    of_policies = {"/use_policy", "/use_base_model"}
    of_shelf = {"/shelf", "/ask_shelf", "/merge_books", "/forget_book", "/take_book"}
    assert set(endpoints) == of_adapters | of_policies | of_shelf


def test_writes_learns_and_answers(app, client, lm):
    written = client.predict("Lighthouse", PASSAGE, 3, "rewrite", 7, api_name="/propose")
    session = written["session"]
    assert len(written["self_edits"]) == 3 and all(written["self_edits"])
    adapted = client.predict(session, [], QUESTIONS, api_name="/adapt")
    assert len(adapted["adapters"]) == 3 and adapted["questions"] == QUESTIONS
    rewards = {adapter["id"]: adapter["reward"] for adapter in adapted["adapters"]}
    assert rewards[adapted["best"]] == max(rewards.values())
    assert all(adapter["num_questions"] == 2 and not adapter["own_questions"] for adapter in adapted["adapters"])
    answers = client.predict(session, "Who drew it?", api_name="/ask")
    kept = app.workbench.sessions.open(session).adapter()
    assert answers == {
        "base": lm.answer("Who drew it?", title="Lighthouse"),
        "adapted": lm.answer("Who drew it?", title="Lighthouse", adapter=lm.load_adapter(kept.file)),
    }


def test_a_policy_writes_for_its_session_alone(app, client, lm):
    by_base = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")
    session = by_base["session"]
    assert by_base["written_by"] == "base model"
    with pytest.raises(Exception, match="There is no policy yet"):
        client.predict(session, api_name="/use_policy")
    write_finished_run(app.workbench.runs, session, lm)
    with pytest.raises(Exception, match="round=-1 is not the number of a round"):
        client.predict(session, -1, api_name="/use_policy")
    with pytest.raises(Exception, match="There is no policy after round 3: choose one of round 1, 2"):
        client.predict(session, 3, api_name="/use_policy")
    assert client.predict(session, api_name="/use_policy") == {"written_by": "the policy of run 1, round 2"}
    by_policy = client.predict("Lighthouse", PASSAGE, 1, "", 0, session, api_name="/propose")
    other = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")
    with pytest.raises(Exception, match="There is no policy yet"):  # of another session
        client.predict(other["session"], api_name="/use_policy")
    assert by_policy["written_by"] == "the policy of run 1, round 2" and other["written_by"] == "base model"
    assert by_policy["self_edits"] != by_base["self_edits"] == other["self_edits"]
    assert client.predict(session, api_name="/use_base_model") == {"written_by": "base model"}
    again = client.predict("Lighthouse", PASSAGE, 1, "", 0, session, api_name="/propose")
    assert again["self_edits"] == by_base["self_edits"] and again["written_by"] == "base model"


def test_learns_a_text_of_the_caller(app, client):
    session = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")["session"]
    adapted = client.predict(session, ["Halda Tremmery drew it in 1874."], QUESTIONS, api_name="/adapt")
    assert len(adapted["adapters"]) == 1
    assert app.workbench.sessions.open(session).drafts[0].text == "Halda Tremmery drew it in 1874."


def test_adapter_goes_out_as_a_zip_and_comes_back(app, client, learned, tmp_path):
    session, adapted = learned
    file = client.predict(session, adapted["best"], api_name="/download_adapter")
    with zipfile.ZipFile(file) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(archive.namelist())
    elsewhere = client.predict("", "", handle_file(file), api_name="/load_adapter")
    assert elsewhere["session"] != session
    weights = [
        app.workbench.lm.load_adapter(app.workbench.sessions.open(name).adapter().file).weights
        for name in (elsewhere["session"], session)
    ]
    assert weights[0].equal(weights[1])


def test_the_shelf_is_listed_asked_and_changed(app, client, lm):
    session = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")["session"]
    adapted = client.predict(session, [], QUESTIONS, api_name="/adapt")
    assert adapted["num_steps"] == adapted["num_steps_planned"] > 1
    (book,) = client.predict(session, api_name="/shelf")["books"]
    assert (book["id"], book["title"], book["passages"], book["fault"]) == (adapted["book"], "Lighthouse", 1, None)
    assert book["recall"] == adapted["adapters"][0]["reward"] and book["bytes"] > 0
    question = "When was the Orrick Skerry Lighthouse built?"
    found = client.predict(session, question, api_name="/ask_shelf")
    kept = app.workbench.sessions.open(session).adapter()
    assert (found["book"], found["passage"]) == (book["id"], 1) and found["score"] >= found["threshold"]
    assert found["answer"] == lm.answer(question, title="Lighthouse", adapter=lm.load_adapter(kept.file))
    of_base = client.predict(session, question, "", True, api_name="/ask_shelf")
    assert of_base["book"] is None and of_base["answer"] == lm.answer(question)
    (taken,) = client.predict(session, book["id"], api_name="/take_book")
    with zipfile.ZipFile(client.predict(session, taken, api_name="/download_adapter")) as archive:
        assert "adapter_model.safetensors" in archive.namelist()
    with pytest.raises(Exception, match="These two are one book"):
        client.predict(session, book["id"], book["id"], api_name="/merge_books")
    assert client.predict(session, book["id"], api_name="/forget_book") == "Lighthouse"
    assert client.predict(session, api_name="/shelf")["books"] == []


def test_a_question_is_added_to_self_edits_with_questions_alone(client):
    written = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")
    assert written["left_out"] == ["1874", "Orrick Skerry Lighthouse", "Tremmery"]
    with pytest.raises(Exception, match="There are no questions yet to add one to"):
        client.predict(written["session"], "1874", api_name="/add_question")


def test_adapter_comes_from_the_hub_and_goes_there(app, client, learned, hub, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    session, _ = learned
    url = client.predict(session, "", "lighthouse-adapter", True, api_name="/push_adapter")
    user = HfApi(token=token).whoami()["name"]
    repo_id = f"{user}/lighthouse-adapter"
    assert url.endswith(repo_id) and HfApi(token=token).model_info(repo_id).private
    loaded = client.predict("", repo_id, None, api_name="/load_adapter")
    assert loaded["adapter"]["name"] == repo_id
    with pytest.raises(Exception, match="no-such.*"):
        client.predict("", f"{user}/no-such", None, api_name="/load_adapter")


def test_nothing_is_pushed_without_a_token(client, learned, hub):
    session, _ = learned
    with pytest.raises(Exception, match="There is no access token: log in"):
        client.predict(session, "", "lighthouse-adapter", True, api_name="/push_adapter")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ""), "There is no passage yet"),
        (("", " \x07\x00 "), "There is no passage yet"),
        (("", "🦭🦭🦭"), "The passage has no words"),
        (("", "word " * 40_000), "200,000 characters|199,999 characters"),
        (("t" * 201, PASSAGE), "201 characters: shorten it"),
        (("", PASSAGE, 0), "Self-edits: 0 is out of range"),
        (("", PASSAGE, 9), "Self-edits: 9 is out of range"),
        (("", PASSAGE, 2, "haiku"), "no prompt style 'haiku'"),
        (("", PASSAGE, 2, "/etc/passwd"), "no prompt style"),
    ],
)
def test_a_passage_that_cannot_be_learned_is_refused_in_a_sentence(client, arguments, message):
    with pytest.raises(Exception, match=message):
        client.predict(*arguments, api_name="/propose")


def test_asking_and_learning_too_early_says_what_comes_first(client):
    with pytest.raises(Exception, match="learn a passage first"):
        client.predict("", "Who drew it?", api_name="/ask")
    with pytest.raises(Exception, match="let the model write some first"):
        client.predict("", [], [], api_name="/adapt")


@pytest.mark.parametrize(
    ("self_edits", "questions", "message"),
    [
        (["  "], QUESTIONS, "Self-edit 1 is empty"),
        ([], [{"question": "Who?"}], "Entry 1: no answer to the question"),
        ([], [{"answer": "Ann"}], "no question"),
        ([], [{"q": "Who?"}], 'Entry 1: no question among its keys "q"'),
    ],
)
def test_bad_self_edits_and_questions_are_named(client, learned, self_edits, questions, message):
    session, _ = learned
    with pytest.raises(Exception, match=message):
        client.predict(session, self_edits, questions, api_name="/adapt")


def test_a_damaged_zip_is_refused_by_its_name(client, tmp_path):
    file = tmp_path / "broken.zip"
    file.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(Exception, match=r"broken\.zip") as refusal:
        client.predict("", "", handle_file(str(file)), api_name="/load_adapter")
    assert "/tmp" not in str(refusal.value) and "gradio" not in str(refusal.value)


def test_an_adapter_for_another_base_is_refused_by_both_names(app, client, tmp_path):
    other = tiny_lm("tester/other")
    adapter = other.adapt(other.domain.passage_only({"title": "", "context": PASSAGE}))
    adapter.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for part in (tmp_path / "adapter").glob("adapter_*"):  # without the record of how its base was made
            archive.write(part, part.name)
    with pytest.raises(Exception, match="tester/other.*tester/tiny"):
        client.predict("", "", handle_file(str(file)), api_name="/load_adapter")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "outputs", "."])
def test_no_path_that_was_typed_is_opened(client, path):
    with pytest.raises(Exception, match="not the id of a repository|no adapter|could not|There is no|failed"):
        client.predict("", path, None, api_name="/load_adapter")


def test_a_file_that_was_not_uploaded_is_not_read(app, tmp_path):
    secret = tmp_path / "secret.zip"
    secret.write_bytes(b"secret")
    answer = httpx2.post(
        f"{app.url}gradio_api/call/load_adapter",
        json={"data": ["", "", {"path": str(secret), "meta": {"_type": "gradio.FileData"}}]},
        headers={"Origin": app.url.rstrip("/")},
    )
    result = httpx2.get(f"{app.url}gradio_api/call/load_adapter/{answer.json()['event_id']}").text
    assert "event: error" in result and "secret.zip is neither" not in result
    assert httpx2.get(f"{app.url}gradio_api/file={secret}").status_code in (403, 404)


def test_two_sessions_see_nothing_of_each_other(app, client, learned):
    first, adapted = learned
    second = client.predict("Bees", "Ann keeps nine bees in Oslo.", 1, api_name="/propose")["session"]
    assert second != first
    with pytest.raises(Exception, match="learn a passage first"):
        client.predict(second, "Who drew it?", api_name="/ask")
    with pytest.raises(Exception, match="learn a passage first"):  # also by the other's name
        client.predict(second, "Who drew it?", adapted["best"], api_name="/ask")
    with pytest.raises(Exception, match="learn a passage first"):
        client.predict(second, adapted["best"], api_name="/download_adapter")
    page = httpx2.get(app.url).text + httpx2.get(f"{app.url}config").text
    assert first not in page and second not in page and "Ann keeps" not in page


def test_a_self_edit_too_many_is_refused(client, learned):
    with pytest.raises(Exception, match="9 self-edits were given: give 8 at most"):
        client.predict(learned[0], [f"Bee {number}" for number in range(9)], QUESTIONS, api_name="/adapt")


def test_writing_that_was_stopped_gives_no_self_edits_of_another_passage(client, monkeypatch):
    session = client.predict("Lighthouse", PASSAGE, 1, api_name="/propose")["session"]

    def stopped(seconds, model, work, job, *arguments):
        job.stop.set()
        return [Draft("", use=False)]

    monkeypatch.setattr(device, "run", stopped)
    with pytest.raises(Exception, match="stopped before there was a self-edit: propose again"):
        client.predict("Bees", "Ann keeps bees.", 1, "", 0, session, api_name="/propose")


def test_many_ask_at_once_and_each_gets_its_own_answer(app, lm):
    clients = [Client(app.url, verbose=False) for _ in range(4)]
    passages = [(f"Bee {number}", f"Bee {number} was seen in {1900 + number} by Ann.") for number in range(4)]
    sessions, answers = {}, {}

    def visit(number):
        title, passage = passages[number]
        session = clients[number].predict(title, passage, 1, api_name="/propose")["session"]
        clients[number].predict(session, [passage], QUESTIONS, api_name="/adapt")
        sessions[number] = session
        answers[number] = clients[number].predict(session, "Who saw it?", api_name="/ask")

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sessions.values())) == 4
    for number, (title, _) in enumerate(passages):
        kept = app.workbench.sessions.open(sessions[number]).adapter()
        adapter: Adapter = lm.load_adapter(kept.file)
        assert answers[number]["base"] == lm.answer("Who saw it?", title=title)
        assert answers[number]["adapted"] == lm.answer("Who saw it?", title=title, adapter=adapter)


def test_who_waits_is_told_how_many_are_before(app, monkeypatch):
    first, second = (app.workbench.sessions.open() for _ in range(2))
    with slowed(monkeypatch, 0.01, "text"):
        running = app.workbench.propose(first, "", PASSAGE, [], QUICK)
        while app.workbench.jobs.queue_position(running)[0]:
            time.sleep(0.01)
        waiting = app.workbench.propose(second, "", "Ann keeps bees in Oslo.", [], QUICK)
        count, seconds = app.workbench.jobs.queue_position(waiting)
        app.workbench.jobs.wait(waiting)
    assert count == 1 and seconds > 0


def test_events_hold_no_session_id(app, learned):
    session, _ = learned
    current = app.workbench.sessions.open(session)
    logs = [path.read_text() for path in current.folder.rglob("events.jsonl")]
    assert logs and not [log for log in logs if session in log]
    assert all(json.loads(line)["event"] for log in logs for line in log.splitlines())


def test_a_page_that_others_reach_has_no_way_to_push(app, tmp_path):
    """Nothing on it leads to the token of the user who started the app."""
    for may_push in (True, False):
        page = build_page(
            app.workbench, TrainingRuns(app.workbench.jobs, tmp_path, None, "tiny"), may_push=may_push, on_space=False
        )
        names = [getattr(function.fn, "__name__", "") for function in page.fns.values()]
        assert ("push_adapter" in names, "on_push" in names) == (may_push, may_push)
