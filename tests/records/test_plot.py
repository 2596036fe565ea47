"""The picture of a run."""

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from helpers.reported_runs import EVALUATIONS, RIGHT, TRAINING, WRONG, answered, scored, write_evaluations
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import PASSAGE_ONLY
from seal_hf.records import plot as run_plot
from seal_hf.records.journal import Journal
from seal_hf.records.plot import save_plot
from seal_hf.records.report import evaluations


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_plot_is_a_picture_that_depends_on_the_records_alone(run):
    path = save_plot(run)
    assert path == run / "rewards.png"
    drawn = path.read_bytes()
    assert drawn.startswith(PNG_SIGNATURE)
    assert imread(path).shape == (800, 1800, 4)
    with matplotlib.rc_context({"savefig.bbox": "tight", "font.size": 20, "axes.facecolor": "black"}):
        assert save_plot(run).read_bytes() == drawn
        assert matplotlib.rcParams["font.size"] == 20
    Journal(run).write_scored(1, TRAINING)
    assert save_plot(run).read_bytes() != drawn
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ([TRAINING], []),
        ([], EVALUATIONS[:1]),
        ([[scored(0, 0, None)]], EVALUATIONS[:1]),
        ([TRAINING, [scored(0, 0, None)]], []),
    ],
    ids=["no evaluation", "evaluation only", "no rewards", "no rewards in the last round"],
)
def test_plot_of_what_there_is(tmp_path, training, evaluation):
    for number, records in enumerate(training):
        Journal(tmp_path).write_scored(number, records)
    write_evaluations(tmp_path, evaluation)
    picture = imread(save_plot(tmp_path))
    assert picture.shape == (800, 1800, 4)
    assert picture[..., :3].std() > 0


def test_plot_shows_a_baseline_that_each_policy_was_measured_on(tmp_path):
    rounds = [
        [answered(index, name, place, [verdict]) for name in names for place in range(2)]
        for index, (names, verdict) in enumerate(
            [((BASE, PASSAGE_ONLY, SELF_EDITS), WRONG), ((PASSAGE_ONLY, SELF_EDITS), RIGHT)]
        )
    ]
    write_evaluations(tmp_path, rounds)
    axes = Figure().subplots()
    run_plot._draw_accuracies(axes, evaluations(Journal(tmp_path / "evaluation")))
    rising = [line for line in axes.lines if list(line.get_ydata()) == [0.0, 1.0]]
    assert [line.get_linestyle() for line in rising] == ["--", "-"]
    names = [text.get_text() for text in axes.texts]
    assert sorted(names) == ["base: 0.0 %", "passage only: 100.0 %", "self-edits: 100.0 %"]


def test_plot_shows_how_much_is_recited(tmp_path):
    write_evaluations(
        tmp_path,
        [
            [
                answered(0, BASE, 0, [WRONG, WRONG], recited=[False, False], recitation=[WRONG, WRONG]),
                answered(0, SELF_EDITS, 0, [WRONG, WRONG], recited=[True, True], recitation=[WRONG, WRONG]),
            ],
            [answered(1, SELF_EDITS, 0, [RIGHT, RIGHT], recited=[True, False], recitation=[RIGHT, WRONG])],
        ],
    )
    axes = Figure().subplots()
    run_plot._draw_accuracies(axes, evaluations(Journal(tmp_path / "evaluation")))
    lines = {line.get_marker(): list(line.get_ydata()) for line in axes.lines}
    assert (lines["o"], lines["x"], lines["+"]) == ([0.0, 1.0], [0.0, 0.5], [1.0, 0.5])
    names = sorted(text.get_text() for text in axes.texts)
    assert names == ["a recitation earns: 50.0 %", "answers that recite: 50.0 %", "base: 0.0 %", "self-edits: 100.0 %"]


def test_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no scored round to draw; train for a round first"):
        save_plot(tmp_path)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.3, 0.6], [0.3, 0.6]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.48, 0.5, 0.9], [0.44, 0.54, 0.9]),
        ([0.0, 0.0, 0.0], [0.05, 0.15, 0.25]),
        ([0.99, 1.0], [0.85, 0.95]),
        ([0.4, 0.46, 0.58], [0.38, 0.48, 0.58]),
        ([], []),
    ],
)
def test_names_move_apart_no_more_than_they_must(places, expected):
    assert run_plot._apart(places, gap=0.1) == pytest.approx(expected)
