"""A run's results as tables."""

from helpers.reported_runs import RIGHT, WRONG, answered, scored, write_evaluations
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.records.journal import Journal
from seal_hf.records.report import evaluations
from seal_hf.records.tables import results_table


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
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results_table(tmp_path).splitlines()[4:]]
    assert len({len(row) for row in table}) == 1
    assert [row[:4:3] for row in table[2:]] == [
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
        "| condition                 |             accuracy | per question |          minus passage only |        minus before round 1 |\n"
        "| ------------------------- | -------------------: | -----------: | --------------------------: | --------------------------: |\n"
        "| base                      |   25.0 % [0.1, 98.9] |       33.3 % |                             |                             |\n"
        "| passage in context        | 100.0 % [1.4, 100.0] |      100.0 % |                             |                             |\n"
        "| passage only              |   50.0 % [0.3, 99.7] |       33.3 % |                             |                             |\n"
        "| self-edits before round 1 |   50.0 % [0.7, 99.3] |       50.0 % |  +0.0 points [-98.2, +98.2] |                             |\n"
        "| self-edits after round 1  |   62.5 % [1.0, 99.6] |       66.7 % | +12.5 points [-98.2, +98.9] | +12.5 points [-96.7, +98.0] |\n"
        "| self-edits after round 2  | 100.0 % [1.4, 100.0] |      100.0 % | +50.0 points [-96.6, +99.6] | +50.0 points [-94.7, +99.4] |\n"
    )


def test_results_table_of_a_run_that_has_just_begun(tmp_path):
    assert results_table(tmp_path) == "No round is scored yet.\n"
    Journal(tmp_path).write_scored(0, [scored(0, 0, None)])
    cells = [cell.strip() for cell in results_table(tmp_path).splitlines()[-1].split("|")]
    assert cells[1:-1] == ["1", "1", "1", "1", "–", "–", "–", "–"]


def test_results_table_without_passages_compares_with_the_base(tmp_path):
    write_evaluations(tmp_path, [[answered(0, BASE, 0, [WRONG]), answered(0, SELF_EDITS, 0, [RIGHT])]])
    header, _, base, own = results_table(tmp_path).splitlines()[2:]
    assert [cell.strip() for cell in header.split("|")] == [
        "",
        "condition",
        "accuracy",
        "per question",
        "minus base",
        "",
    ]
    assert "+100.0 points" in own and "points" not in base
