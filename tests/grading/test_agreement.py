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
    """Two passages with two self-edits each; the local grader disagrees with one adapted and one base verdict."""

    def self_edit(reward, *rows):
        return {"stats": {"adapter_mean": reward}, "questions": list(rows)}

    base = ("Cy", False)
    first = [  # the stored verdicts choose the second self-edit, the grader sees equals and takes the first
        self_edit(0.0, stored_row("Ann", "Ann", False, *base), stored_row("Ann", "Ben", False, *base, rep=1)),
        self_edit(0.5, stored_row("Ann", "Ann", True, *base), stored_row("Ann", "Ben", False, *base, rep=1)),
    ]
    second = [  # both choose the second
        self_edit(0.0, stored_row("Ann", "Ben", False, "Ann", False)),
        self_edit(1.0, stored_row("Ann", "Ann", True, "Ann", False)),
    ]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"articles": [{"completions": first}, {"completions": second}]}))
    return path


def test_compare_counts_by_hand(run_file):
    result = compare(load_run(run_file), LexicalGrader())
    assert (result.adapter_agreement, result.num_adapter) == (5 / 6, 6)
    assert (result.baseline_agreement, result.num_baseline) == (1 / 2, 2)
    assert result.agreement == 6 / 8
    # all (0.25 + 0.5) / 2, stored (0.5 + 1) / 2, local (0 + 1) / 2
    assert (result.mean_reward, result.stored_choice, result.chosen) == (0.375, 0.75, 0.5)
    assert result.captured_share == pytest.approx(1 / 3)


def test_report(run_file, capsys):
    main([str(run_file)])
    assert capsys.readouterr().out.splitlines() == [
        f"{run_file}: 2 passages",
        "  agreement          0.750  n = 8",
        "    adapted answers  0.833  n = 6",
        "    base answers     0.500  n = 2",
        "  captured share     0.333  (mean reward: all 0.375, stored choice 0.750, local choice 0.500)",
    ]


def test_report_on_a_part_of_the_passages(run_file, capsys):
    main([str(run_file), "--passages", "1:2"])
    output = capsys.readouterr().out
    assert "1 passages" in output and "captured share     1.000" in output


def test_report_without_a_choice(tmp_path, capsys):
    edit = {"stats": {"adapter_mean": 1.0}, "questions": [stored_row("Ann", "Ann", True, "Ben", False)]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"articles": [{"completions": [edit]}]}))
    main([str(path)])
    assert "captured share     none to capture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give the path of a stored run."),
        ("{", "is not a stored run (JSONDecodeError"),
        ("[]", "is not a stored run (TypeError"),
        ('{"passages": []}', "is not a stored run (KeyError: 'articles')"),
        ('{"articles": []}', "has no self-edits in the part asked for; widen `--passages`."),
        (
            '{"articles": [{"completions": [{"stats": {"adapter_mean": 0.4}, "questions": []}]}]}',
            "has self-edits without graded questions; give a run stored with its verdicts.",
        ),
        (
            json.dumps(
                {
                    "articles": [
                        {
                            "completions": [
                                {
                                    "stats": {"adapter_mean": 0.4},
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
        ("run", "passages", "agreement", "num_answers"),
        [
            ("rank_iter0.json", slice(0, 25), 0.866, 1840),
            ("rank_iter0.json", slice(25, 50), 0.885, 1760),
            ("eval_base.json", slice(None), 0.882, 1948),
        ],
    )
    def test_agreement(self, run, passages, agreement, num_answers):
        result = compare(load_run(SHARED_DATA / run, passages), LexicalGrader())
        assert result.agreement == pytest.approx(agreement, abs=0.0005)
        assert result.num_adapter + result.num_baseline == num_answers

    @pytest.mark.parametrize(
        ("passages", "captured_share"),
        # The held half stays below the aim of 0.77, all passages together are above it.
        [(slice(0, 25), 0.861), (slice(25, 50), 0.742), (slice(None), 0.803)],
    )
    def test_captured_share(self, passages, captured_share):
        result = compare(load_run(SHARED_DATA / "rank_iter0.json", passages), LexicalGrader())
        assert result.captured_share == pytest.approx(captured_share, abs=0.0005)
