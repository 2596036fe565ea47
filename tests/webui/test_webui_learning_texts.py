"""What the page says and draws of adapters while they learn and afterwards."""

from helpers.web_page import QUESTIONS
from seal_hf.webui.tabs.learning_texts import (
    answers_headers,
    first_right,
    loss_table,
    loss_title,
    rewards_table,
    watched_table,
)


def seen_at(step, answers, verdicts=None):
    return {"event": "watched", "step": step, "answers": answers, "verdicts": verdicts, "probabilities": None}


def test_what_is_shown_of_a_watched_question():
    seen = [
        seen_at(0, {"0": "Bo"}, {"0": False}),
        seen_at(1, {"0": "Bo", "1": "Cy"}, {"0": False, "1": True}),
        seen_at(3, {"0": "Ann", "1": "Di"}, {"0": True, "1": False}),
        seen_at(5, {"0": "Ann!"}, {"0": True}),
    ]
    assert [first_right(seen, 0), first_right(seen, 1)] == [3, None]
    assert watched_table(seen, ["2", "4"]) == [
        ["Base model", "✗ Bo", "–"],
        ["Self-edit 2, step 5", "✓ Ann!", "–"],
        ["Self-edit 4, step 3", "✗ Di", "–"],
    ]
    steps = [{"step": step, "losses": {"0": 4.0 / step, "1": 2.0}} for step in (1, 2, 3)]
    assert loss_title(["2", "4"], seen).endswith("answered right: 2 since step 3")
    assert loss_title(["2", "4"], seen[:1]) == "Training loss"
    marks = loss_table(steps, ["2", "4"], seen).query("`self-edit` == '2 answers right'")
    assert marks[["step", "loss"]].values.tolist() == [[3, 0.0], [3, 4.0]]
    assert set(loss_table(steps, ["2", "4"], seen[:2])["self-edit"]) == {"2", "4", "4 answers right"}
    assert first_right([seen_at(0, {"0": "Ann"}, {"0": True}), seen_at(2, {"0": "Ann"})], 0) is None


def test_one_adapter_is_not_called_the_best():
    event = {"questions": QUESTIONS, "verdicts": [[False, False], [True, False]], "recited": [0.0, 0.5], "best": 0}
    assert rewards_table(event, ["1 + 2"]) == [
        ["Base model", "0 of 2", "0 %", "0 %", ""],
        ["1 + 2, together", "1 of 2", "50 %", "50 %", ""],
    ]
    assert rewards_table(event, ["2"])[1][0::4] == ["2", ""]
    assert answers_headers(["1 + 2"])[2] == "Adapter"
    event |= {"verdicts": [[False, False], [True, False], [True, True]], "recited": [0.0, 0.5, None], "best": 1}
    assert [line[0::4] for line in rewards_table(event, ["1", "2"])] == [["Base model", ""], ["1", ""], ["2", "best"]]
    assert answers_headers(["1", "2"])[2] == "Best adapter"
