"""A run's results as tables."""

import re
from dataclasses import replace

from helpers.reported_runs import FURTHER, RIGHT, WRONG, answered, read_table, scored, write_evaluations
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.records.journal import Journal
from seal_hf.records.report import evaluations
from seal_hf.records.tables import LONG_WORDS, results_table


def test_all_columns_cover_the_same_passages(tmp_path):
    """Also where all self-edits about a passage are malformed: what the base answered counts."""
    write_evaluations(
        tmp_path,
        [
            [
                answered(0, BASE, 0, [RIGHT], recited=[True], recitation=[RIGHT]),
                answered(0, BASE, 1, [RIGHT], recited=[False], recitation=[WRONG]),
                answered(0, SELF_EDITS, 0),
                answered(0, SELF_EDITS, 1, [WRONG], recited=[False], recitation=[WRONG]),
            ],
            [answered(1, SELF_EDITS, 0), answered(1, SELF_EDITS, 1)],
        ],
    )
    for one in evaluations(Journal(tmp_path / "evaluation")):
        own = [values[SELF_EDITS] for values in (one.accuracies, one.recitations, one.recited)]
        assert [value.num_passages for value in own] == [2, 2, 2]
        assert [value.value for value in own] == [1.0 if one.round else 0.5, 0.5, 0.5]
    assert "A malformed self-edit counts in every column and row as what the base model answered." in results_table(
        tmp_path
    )


def test_results_table_of_a_run_whose_first_round_did_not_tell(tmp_path):
    write_evaluations(
        tmp_path,
        [
            [answered(0, BASE, 0, [RIGHT]), answered(0, SELF_EDITS, 0)],
            [answered(1, SELF_EDITS, 0, [RIGHT], recited=[True], recitation=[WRONG])],
        ],
    )
    table = read_table(results_table(tmp_path), "condition")
    assert [[row["condition"], row["recited"]] for row in table] == [
        ["base", "–"],
        ["self-edits before round 1", "–"],
        ["self-edits after round 1", "100.0 %"],
        ["recitation, self-edits after round 1", ""],
    ]


def test_results_table(run):
    assert results_table(run) == (
        "Training: rewards on the passages that each round trains on, means over these passages with 95 % intervals. The best "
        "of k is scored by repeats that did not choose it, so it needs two of them.\n"
        "\n"
        "| round | passages | self-edits | well-formed | kept |        mean reward |          best of k | base reward |\n"
        "| ----- | -------: | ---------: | ----------: | ---: | -----------------: | -----------------: | ----------: |\n"
        "| 1     |        3 |          5 |           4 |    2 | 50.0 % [0.6, 99.4] | 62.5 % [1.1, 99.6] |      37.5 % |\n"
        "\n"
        "Evaluation on 2 passages with 3 questions. Accuracy: the mean over passages of the share of right answers, with 95 % "
        "intervals over passages; differences are of it, paired by passage. Per question: the mean over all questions. A "
        "malformed self-edit counts in every column and row as what the base model answered. Measured before round 1 alone, so "
        "that gains after later rounds are over these answers too: base, passage in context, passage only.\n"
        "\n"
        "Tokens and seconds of training are means per adapter.\n"
        "\n"
        "| condition                 |             accuracy | per question | tokens |\n"
        "| ------------------------- | -------------------: | -----------: | -----: |\n"
        "| base                      |   25.0 % [0.1, 98.9] |       33.3 % |      – |\n"
        "| passage in context        | 100.0 % [1.4, 100.0] |      100.0 % |      – |\n"
        "| passage only              |   50.0 % [0.3, 99.7] |       33.3 % |     30 |\n"
        "| self-edits before round 1 |   50.0 % [0.7, 99.3] |       50.0 % |     30 |\n"
        "| self-edits after round 1  |   62.5 % [1.0, 99.6] |       66.7 % |     30 |\n"
        "| self-edits after round 2  | 100.0 % [1.4, 100.0] |      100.0 % |     30 |\n"
        "\n"
        "| difference                                               |                    accuracy |\n"
        "| -------------------------------------------------------- | --------------------------: |\n"
        "| self-edits before round 1 minus passage only             |  +0.0 points [-98.2, +98.2] |\n"
        "| self-edits after round 1 minus passage only              | +12.5 points [-98.2, +98.9] |\n"
        "| self-edits after round 1 minus self-edits before round 1 | +12.5 points [-96.7, +98.0] |\n"
        "| self-edits after round 2 minus passage only              | +50.0 points [-96.6, +99.6] |\n"
        "| self-edits after round 2 minus self-edits before round 1 | +50.0 points [-94.7, +99.4] |\n"
    )


def test_results_table_of_a_run_that_has_just_begun(tmp_path):
    assert results_table(tmp_path) == "No round is scored yet.\n"
    Journal(tmp_path).write_scored(0, [scored(0, 0, None)])
    cells = [cell.strip() for cell in results_table(tmp_path).splitlines()[-1].split("|")]
    assert cells[1:-1] == ["1", "1", "1", "1", "–", "–", "–", "–"]


def test_results_table_without_passages_compares_with_the_base(tmp_path):
    write_evaluations(tmp_path, [[answered(0, BASE, 0, [WRONG]), answered(0, SELF_EDITS, 0, [RIGHT])]])
    base, own = read_table(results_table(tmp_path), "condition")
    assert list(base) == ["condition", "accuracy", "per question", "tokens"]
    assert (base["tokens"], own["tokens"]) == ("–", "30")
    assert read_table(results_table(tmp_path), "difference") == [
        {"difference": "self-edits minus base", "accuracy": "+100.0 points [-100.0, +100.0]"}
    ]


def test_columns_of_what_else_was_recorded(tmp_path):
    first, second = FURTHER
    told = [replace(edit, metrics={"coverage": 0.25}) if edit.condition == SELF_EDITS else edit for edit in first]
    write_evaluations(tmp_path, [told, second])
    base, passage, own, after = read_table(results_table(tmp_path), "condition")
    names = ("condition", "strict", "retained", "coverage", "tokens", "seconds")
    assert [base[name] for name in names] == ["base", "50.0 % [0.3, 99.7]", "75.0 %", "–", "–", "–"]
    assert [passage[name] for name in names[2:]] == ["50.0 %", "–", "30", "1.5"]
    assert [own[name] for name in names[2:]] == ["87.5 %", "25.0 %", "30", "4.5"]
    assert [after[name] for name in names[2:]] == ["25.0 %", "–", "30", "–"]
    differences = read_table(results_table(tmp_path), "difference")
    assert {row["difference"]: row["strict"].split()[0] for row in differences} == {
        "self-edits before round 1 minus passage only": "+37.5",
        "self-edits after round 1 minus passage only": "+0.0",
        "self-edits after round 1 minus self-edits before round 1": "-37.5",
    }


def test_long_examples_apart(tmp_path):
    write_evaluations(tmp_path, FURTHER)
    whole = results_table(tmp_path)
    long, at_most = "word " * (LONG_WORDS + 1), "word " * LONG_WORDS
    for same in ([long, long], [at_most, "word"]):
        assert results_table(tmp_path, same) == whole
    both = results_table(tmp_path, [long, at_most])
    assert both.startswith(whole)
    _, short, of_long = re.split(r"\n\nPassages of .* 200 words, 1:\n\n", both)
    accuracies = [
        [row["accuracy"].split(" %")[0] for row in read_table(part, "condition")] for part in (short, of_long)
    ]
    assert accuracies == [["100.0", "100.0", "100.0", "0.0"], ["50.0", "100.0", "75.0", "100.0"]]
    assert "Passages of at most 200 words, 1:" in both.split("Passages of more")[0]
    assert read_table(of_long, "difference")[0]["accuracy"].startswith("-25.0 points")
