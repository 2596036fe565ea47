import json

import pytest

from helpers.folders import SHARED_DATA
from seal_hf.grading import LexicalGrader
from seal_hf.grading.agreement import compare, load_run, main


def stored_row(gold, adapter_answer, adapter_correct, baseline_answer, baseline_correct, rep=0):
    return {
        "rep": rep,
        "question": "Who built it?",
        "answer": gold,
        "adapter_answer": adapter_answer,
        "adapter_correct": adapter_correct,
        "baseline_answer": baseline_answer,
        "baseline_correct": baseline_correct,
    }


@pytest.fixture
def run_file(tmp_path):
    """Two passages with two self-edits each, in two repeats; the grader disagrees with two adapted and one base verdict."""

    def self_edit(*verdicts, base=("Cy", False)):
        answers = {
            True: "Ann",
            False: "Ben",
            None: "Ann",
        }  # `None`: the grader accepts it, the stored verdict does not
        rows = enumerate(verdicts)
        return {"questions": [stored_row("Ann", answers[v], bool(v), *base, rep=rep) for rep, v in rows]}

    first = [self_edit(False, True), self_edit(True, None)]
    second = [self_edit(None, False, base=("Ann", False)), self_edit(True, True, base=("Ann", False))]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"articles": [{"completions": first}, {"completions": second}]}))
    return path


def test_compare_counts_by_hand(run_file):
    result = compare(load_run(run_file), LexicalGrader())
    assert (result.adapter_agreement, result.num_adapter) == (6 / 8, 8)
    assert (result.baseline_agreement, result.num_baseline) == (1 / 2, 2)
    assert result.agreement == 7 / 10
    assert (result.stricter, result.laxer) == (0, 3)
    assert (result.mentioned, result.mentioned_accepted) == (0, 0)


def test_a_choice_is_scored_by_a_repeat_that_did_not_choose(run_file):
    choice = compare(load_run(run_file), LexicalGrader()).choice
    assert choice.num_repeats == 2
    assert choice.mean_reward == (0.5 + 0.5) / 2
    # First passage, stored: repeat 1 chooses the first edit, scored 0 by repeat 0; repeat 0 the second, scored 0.
    # Local: repeat 1 sees equals and takes the first, scored 0; repeat 0 chooses the second, scored 0.
    # Second passage, stored: the second edit both times. Local: repeat 0 sees equals and takes the first, scored 0.
    assert (choice.stored, choice.local) == ((0 + 1) / 2, (0 + 0.5) / 2)
    assert choice.stored_same_draws == (0.5 + 1) / 2


def test_what_is_only_mentioned_is_counted_apart(tmp_path):
    later = "It was built of green slate, because every load of brick that was sent from the harbour had been lost at sea. "
    rows = [
        stored_row("Ann", f"{later}The engineer was Ann.", True, "Ann", True),
        stored_row("Ann", f"{later}The engineer was Ann.", False, "Ann", True),
        stored_row("Ann", f"{later}The engineer was Ben.", False, "Ann", True),
    ]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"articles": [{"completions": [{"questions": rows}]}]}))
    result = compare(load_run(path), LexicalGrader())
    assert (result.mentioned, result.mentioned_accepted) == (2, 1)
    assert (result.stricter, result.laxer) == (1, 0)


def test_report(run_file, capsys):
    main([str(run_file)])
    assert capsys.readouterr().out.splitlines() == [
        f"{run_file}: 2 passages",
        "  agreement          0.700  n = 10",
        "    adapted answers  0.750  n = 8",
        "    base answers     0.500  n = 2",
        "  right by the stored verdict alone 0, by the local grader alone 3",
        "  gold answer mentioned later, which counts as wrong: 0, of them right by the stored verdict 0",
        "  choosing a self-edit by 1 of 2 repeats, scored by the other one: mean reward over passages of all 0.500, stored choice 0.500, "
        "local choice 0.250",
        "  chosen and scored by the same repeats, which looks better by chance: stored choice 0.750",
    ]


def test_report_on_a_part_of_the_passages(run_file, capsys):
    main([str(run_file), "--passages", "1:2"])
    output = capsys.readouterr().out
    assert "1 passages" in output and "stored choice 1.000, local choice 0.500" in output


@pytest.mark.parametrize("num_edits", [1, 2])
def test_what_one_repeat_chooses_is_not_reported(tmp_path, capsys, num_edits):
    edits = [{"questions": [stored_row("Ann", "Ann", True, "Ben", False)]}] * num_edits
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"articles": [{"completions": edits}]}))
    main([str(path)])
    output = capsys.readouterr().out
    assert "choosing a self-edit: not shown" in output and "stored choice" not in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give the path of a stored run."),
        ("{", "is not a stored run (JSONDecodeError"),
        ("[]", "is not a stored run (TypeError"),
        ('{"passages": []}', "is not a stored run (KeyError: 'articles')"),
        ('{"articles": []}', "has no self-edits in the part asked for; widen `--passages`."),
        (
            '{"articles": [{"completions": [{"questions": []}]}]}',
            "has self-edits without graded questions; give a run stored with its verdicts.",
        ),
        (
            json.dumps(
                {
                    "articles": [
                        {
                            "completions": [
                                {
                                    "questions": [stored_row("Ann", "Ann", None, "Ben", False)],
                                }
                            ]
                        }
                    ]
                }
            ),
            "has self-edits without graded questions",
        ),
    ],
)
def test_report_refuses_what_is_not_a_graded_run(tmp_path, capsys, content, message):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        main([str(path)])
    assert caught.value.code == 2
    assert f"error: {path} {message}" in capsys.readouterr().err


def test_report_refuses_a_bad_slice(run_file, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(run_file), "--passages", "first"])
    assert caught.value.code == 2
    assert "'first' is not START:STOP, such as 0:25" in capsys.readouterr().err


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the paper authors' stored runs are absent")
class TestStoredRuns:
    """Rules and thresholds were chosen on passages 0:25 of `rank_iter0.json`; the other figures are statements."""

    @pytest.mark.parametrize(
        ("run", "passages", "agreement", "num_answers", "mentioned"),
        [
            ("rank_iter0.json", slice(0, 25), 0.878, 1840, 38),
            ("rank_iter0.json", slice(25, 50), 0.888, 1760, 21),
            ("eval_base.json", slice(None), 0.883, 1948, 25),
        ],
    )
    def test_agreement(self, run, passages, agreement, num_answers, mentioned):
        result = compare(load_run(SHARED_DATA / run, passages), LexicalGrader())
        assert result.agreement == pytest.approx(agreement, abs=0.0006)
        assert result.num_adapter + result.num_baseline == num_answers
        assert result.mentioned == mentioned

    def test_choice(self):
        choice = compare(load_run(SHARED_DATA / "rank_iter0.json"), LexicalGrader()).choice
        figures = (choice.mean_reward, choice.stored, choice.stored_same_draws, choice.local)
        assert figures == pytest.approx((0.402, 0.427, 0.543, 0.439), abs=0.0006)
