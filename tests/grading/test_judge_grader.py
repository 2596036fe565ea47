import hashlib
import json
import logging
import sys
import threading
import time
from http.server import ThreadingHTTPServer

import pytest

from helpers.judge_server import JudgeHandler
from seal_hf.grading import GradingIncomplete, JudgeGrader, require_verdicts
from seal_hf.grading.judge import parse_verdict


KEY = "sk-not-for-any-log"


def test_require_verdicts():
    assert require_verdicts([True, False]) == [True, False]
    with pytest.raises(GradingIncomplete, match="1 of 3 answers could not be graded"):
        require_verdicts([True, None, False])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("No.", False),
        ("**Yes**, nothing says no.", True),
        ("The verdict is: no", False),
        ("<think>yes or no?</think>\n\nno", False),
        ("It could be yes or no.", None),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_parse_verdict(reply, verdict):
    assert parse_verdict(reply) is verdict


def judge(server, **options):
    options = {"api_key": KEY, "initial_wait": 0.01, "timeout": 10.0, **options}
    return JudgeGrader("judge-model", base_url=server.url, **options)


def test_judge_request(serve):
    server = serve(lambda prompt, attempt: (200, "yes"))
    assert judge(server).grade(["Who {ran}?"], ["Ann"], ["It was {Ann}."]) == [True]
    ((path, headers, request),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["temperature"]) == ("judge-model", 0.0)
    for text in ("Question: Who {ran}?\n", "Reference answer: Ann\n", "Student's answer: It was {Ann}.\n"):
        assert text in request["messages"][0]["content"]


def test_judge_is_asked_once_with_all_gold_answers(serve):
    server = serve(lambda prompt, attempt: (200, "yes"))
    golds = [["the keeper", "Edric Molloway", "the keeper"]]
    assert judge(server).grade(["Who?"] * 2, golds * 2, ["Molloway", " "]) == [True, False]
    ((_, _, request),) = server.requests
    prompt = request["messages"][0]["content"]
    assert (
        "Reference answers, of which any one is enough:\n- the keeper\n- Edric Molloway\nStudent's answer: " in prompt
    )
    with pytest.raises(ValueError, match="The gold answer to 'Who\\?' is empty"):
        judge(server).grade(["Who?"], [[]], ["Ann"])


def test_the_papers_judge_is_asked_in_the_papers_words(serve):
    server = serve(lambda prompt, attempt: (200, "yes"))
    question = "Topic: Ann's {bees}\nWho keeps bees?"
    assert judge(server, prompt="paper").grade([question], [["Ann", "Anna"]], [" It is Ann. "]) == [True]
    ((_, _, request),) = server.requests
    (message,) = request["messages"]
    # Of what the paper's code makes of this question, "Ann" and the answer.
    digest = "14dc40324e0257b17588e13f429b40921a134ccc7b4b2addb65095c9384599fd"
    assert hashlib.sha256(message["content"].encode()).hexdigest() == digest


def test_judge_is_shown_what_an_answer_says_first(serve):
    """By the paper's prompt all of it."""
    first, rest = (
        "The keeper of the light kept bees.",
        "She sold them to a sailor from Vell in the autumn of that year.",
    )
    for prompt, shown in (("default", False), ("paper", True)):
        server = serve(lambda prompt, attempt: (200, "yes"))
        assert judge(server, prompt=prompt).grade(["Who kept bees?"], ["the keeper"], [f"{first} {rest}"]) == [True]
        ((_, _, request),) = server.requests
        asked = request["messages"][0]["content"]
        assert first in asked and (rest in asked) == shown


def test_judge_keeps_order_under_concurrency(serve):
    def respond(prompt, attempt):
        number = int(prompt.split("Student's answer: ")[1].split()[0])
        time.sleep(0.05 * (7 - number % 8) / 7)  # the first sent are the last to return
        return 200, "yes" if number % 3 == 0 else "no"

    server = serve(respond)
    answers = [str(number) for number in range(24)]
    verdicts = judge(server, max_workers=8).grade(["Which?"] * 24, ["It"] * 24, answers)
    assert verdicts == [number % 3 == 0 for number in range(24)]


def test_judge_asks_concurrently_up_to_max_workers(serve):
    together = threading.Barrier(4)

    def respond(prompt, attempt):
        together.wait(timeout=10)  # returns only while four requests are under way
        return 200, "yes"

    server = serve(respond)
    assert judge(server, max_workers=4).grade(["Who?"] * 8, ["Ann"] * 8, list("abcdefgh")) == [True] * 8
    assert server.most_under_way == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_judge_retries_passing_faults(serve, status):
    server = serve(lambda prompt, attempt: (200, "yes") if attempt == 3 else (status, b"{}"))
    assert judge(server).grade(["Who?"], ["Ann"], ["Ann"]) == [True]
    assert len(server.requests) == 3


def test_judge_retries_a_body_that_is_not_json(serve):
    server = serve(lambda prompt, attempt: (200, "no") if attempt == 2 else (200, b"<html>busy</html>"))
    assert judge(server).grade(["Who?"], ["Ann"], ["Ben"]) == [False]


def test_judge_gives_up_with_none_and_one_warning(serve, caplog):
    body = json.dumps({"error": {"message": f"overloaded, your key is {KEY}"}}).encode()
    server = serve(lambda prompt, attempt: (503, body) if "Ben" in prompt else (200, "yes"))
    with caplog.at_level(logging.DEBUG):
        verdicts = judge(server, max_attempts=3).grade(["Who?"] * 3, ["Ann"] * 3, ["Ann", "Ben", "Ben!"])
    assert verdicts == [True, None, None]
    assert [count for prompt, count in server.attempts.items() if "Ben" in prompt] == [3, 3]
    warnings = [record.getMessage() for record in caplog.records if record.name == "seal_hf.grading.judge"]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of 3 answers could not be graded; the last: HfHubHTTPError")
    assert "503" in warnings[0] and KEY not in caplog.text


def test_judge_reply_that_is_neither_yes_nor_no(serve, caplog):
    server = serve(lambda prompt, attempt: (200, "Perhaps."))
    assert judge(server).grade(["Who?"], ["Ann"], ["Ann"]) == [None]
    assert len(server.requests) == 1
    assert "the reply 'Perhaps.' is neither yes nor no" in caplog.text


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'{"choices": [{"index": 0, "message": null}]}'])
def test_judge_reply_without_text(serve, body):
    server = serve(lambda prompt, attempt: (200, body))
    assert judge(server).grade(["Who?"], ["Ann"], ["Ann"]) == [None]


def test_judge_does_not_repeat_a_rejected_request(serve):
    server = serve(lambda prompt, attempt: (400, b'{"error": "prompt too long"}'))
    assert judge(server).grade(["Who?"], ["Ann"], ["Ann"]) == [None]
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_judge_stops_at_a_configuration_fault(serve, caplog, status):
    body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode()
    server = serve(lambda prompt, attempt: (status, body))
    with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError) as caught:
        judge(server, max_workers=1).grade(["Who?"] * 20, ["Ann"] * 20, [str(n) for n in range(20)])
    message = str(caught.value)
    assert f"The judge 'judge-model' at {server.url} refused the request; check `api_key`" in message
    assert str(status) in message
    assert len(server.requests) < 20  # those not yet sent are dropped
    assert max(server.attempts.values()) == 1
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert KEY not in "".join(map(repr, chain)) + caplog.text
    assert chain[1:] == [None, None]


def test_judge_that_cannot_be_reached():
    with ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
    grader = JudgeGrader("judge-model", base_url=url, max_attempts=2, initial_wait=0.01)
    assert grader.grade(["Who?"], ["Ann"], ["Ann"]) == [None]


def test_judge_asks_once_for_equal_answers_and_never_for_empty_ones(serve):
    server = serve(lambda prompt, attempt: (200, "yes"))
    assert judge(server).grade(["Who?"] * 4, ["Ann"] * 4, ["Ann", "", "Ann", "  "]) == [True, False, True, False]
    assert len(server.requests) == 1


def test_judge_sends_no_saved_token_to_an_endpoint(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    server = serve(lambda prompt, attempt: (200, "yes"))
    assert judge(server, api_key=None).grade(["Who?"], ["Ann"], ["Ann"]) == [True]
    assert "hf_saved" not in str(server.requests)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 0}, "`max_workers` must be at least 1, but is 0"),
        ({"max_attempts": 0}, "`max_attempts` must be at least 1, but is 0"),
        ({"prompt": "papers"}, "`prompt` must be 'default' or 'paper', but is 'papers'"),
        ({"base_url": "localhost:8000/v1"}, "`base_url` must be an http"),
        ({"base_url": "http://me:secret@localhost/v1"}, "pass keys as `api_key`"),
    ],
)
def test_judge_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        JudgeGrader("judge-model", **options)
    assert "secret" not in str(caught.value)


def test_judge_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ImportError, match=r"pip install 'seal-hf\[judge\]'"):
        JudgeGrader("judge-model")
