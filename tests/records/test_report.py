"""What a run's records say: hand-computed metrics, the tables, the picture and the samples."""

import json
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest
from datasets import load_dataset
from matplotlib.figure import Figure
from matplotlib.image import imread

from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.grading.intervals import accuracy, paired_difference
from seal_hf.records import plot as run_plot
from seal_hf.records.journal import Journal, ScoredSelfEdit, SelectedSelfEdit
from seal_hf.records.plot import save_plot
from seal_hf.records.report import best_of_k, evaluations, metrics, round_metrics
from seal_hf.records.samples import save_samples
from seal_hf.records.tables import results_table


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def scored(example, edit, reward, *, base_reward=None, losses=(), well_formed=True, length=10, tokens=0, seconds=0.0):
    """A self-edit of a training round, with one repeat for each loss."""
    return ScoredSelfEdit(
        round=0,
        condition=SELF_EDITS,
        example=example,
        example_id=f"id {example}",
        edit=edit,
        prompt="Write.",
        completion=f"text {example}.{edit}",
        completion_tokens=length,
        well_formed=well_formed,
        repeats=[
            {"seed": i, "reward": reward, "answers": [f"answer {i}"], "verdicts": [True], "loss": loss}
            for i, loss in enumerate(losses)
        ],
        reward=reward,
        base_reward=base_reward,
        tokens=tokens,
        seconds=seconds,
    )


def selected(edit, completion=None):
    return SelectedSelfEdit(edit.prompt, completion or edit.completion, edit.example_id, edit.edit, edit.reward)


def answered(round_index, condition, example, *runs, edit=0, recited=None, recitation=None):
    """
    An evaluation's record from the verdicts of its repeats; without any it is malformed. All repeats recite alike: flags of
    the answers, and verdicts on the recitation.
    """
    repeats = [
        {"seed": i, "reward": sum(run) / len(run), "answers": ["?"] * len(run), "verdicts": run, "loss": None}
        | {"recited": recited, "recitation": recitation and {"answer": "It is said.", "verdicts": recitation}}
        for i, run in enumerate(runs)
    ]
    reward = sum(repeat["reward"] for repeat in repeats) / len(repeats) if repeats else 0.0
    kind = (round_index, condition, example, str(example), edit)
    tokens = 0 if condition in (BASE, IN_CONTEXT) else 30 * len(runs)
    return ScoredSelfEdit(*kind, "", "", 0, bool(runs), repeats, reward, None, tokens, 0.0)


RIGHT, WRONG = True, False
TRAINING = [
    scored(0, 0, 0.5, base_reward=0.25, losses=[1.0, 2.0], length=30, tokens=300, seconds=2.0),
    scored(0, 1, 0.0, base_reward=0.25, well_formed=False, length=2),
    scored(1, 0, 0.75, base_reward=0.5, losses=[6.0, None], length=20, tokens=100, seconds=2.0),
    scored(1, 1, 0.75, base_reward=None, losses=[math.nan, math.nan], length=40),
    scored(2, 0, None, base_reward=None, length=8),
]
# Passage 0 has two questions, passage 1 has one. The base answers one of passage 0's.
EVALUATIONS = [
    [
        answered(0, BASE, 0, [RIGHT, WRONG]),
        answered(0, BASE, 1, [WRONG]),
        answered(0, IN_CONTEXT, 0, [RIGHT, RIGHT]),
        answered(0, IN_CONTEXT, 1, [RIGHT]),
        answered(0, PASSAGE_ONLY, 0, [WRONG, WRONG]),
        answered(0, PASSAGE_ONLY, 1, [RIGHT]),
        # (1 + 0) / 2 in the repeats of the first, the base's 1/2 for the malformed one.
        answered(0, SELF_EDITS, 0, [RIGHT, RIGHT], [WRONG, WRONG]),
        answered(0, SELF_EDITS, 0, edit=1),
        answered(0, SELF_EDITS, 1, [WRONG]),
        answered(0, SELF_EDITS, 1, [RIGHT], edit=1),
    ],
    [
        answered(1, SELF_EDITS, 0, [RIGHT, RIGHT]),
        answered(1, SELF_EDITS, 0, [RIGHT, WRONG], edit=1),
        answered(1, SELF_EDITS, 1, [RIGHT]),
        answered(1, SELF_EDITS, 1, edit=1),
    ],
    [answered(2, SELF_EDITS, 0, [RIGHT, RIGHT]), answered(2, SELF_EDITS, 1, [RIGHT])],
]


@pytest.fixture
def run(tmp_path):
    """A run of one training round with three evaluations."""
    journal = Journal(tmp_path)
    journal.write_scored(0, TRAINING)
    journal.write_selected(0, [selected(TRAINING[0]), selected(TRAINING[2])])
    write_evaluations(tmp_path, EVALUATIONS)
    return tmp_path


def write_evaluations(output_dir, rounds):
    for number, records in enumerate(rounds):
        Journal(output_dir / "evaluation").write_scored(number, records)


def test_round_metrics():
    result = round_metrics(TRAINING, [selected(TRAINING[0]), selected(TRAINING[2])])
    assert result == {
        "reward": 0.5,  # (0.5 + 0 + 0.75 + 0.75) / 4: the malformed one counts, the one without a reward does not
        "reward_std": 0.125,  # 0.25 and 0, of the two examples with rewards
        "frac_reward_zero_std": 0.5,
        "reward/best": 0.625,
        "completions/mean_length": 20.0,
        "completions/min_length": 2,
        "completions/max_length": 40,
        "self_edits/valid_ratio": 0.8,
        "self_edits/kept_ratio": 0.4,
        "inner/loss": 3.0,
        "inner/gain": pytest.approx((0.25 - 0.25 + 0.25) / 3),
        "inner/tokens_per_second": 100.0,
        "num_examples": 3,
    }


def test_the_share_of_completions_that_were_cut_off():
    edits = [replace(scored(0, i, 0.5), finished=finished) for i, finished in enumerate((True, False, True, True))]
    assert round_metrics(edits, [])["completions/clipped_ratio"] == 0.25


def test_round_metrics_leave_out_what_has_no_value():
    result = round_metrics([scored(0, 0, None)], [])
    assert set(result) == {
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "self_edits/valid_ratio",
        "self_edits/kept_ratio",
        "num_examples",
    }
    assert result["self_edits/kept_ratio"] == 0.0
    assert round_metrics([], []) == {"num_examples": 0}


def repeated(example, edit, *rewards, well_formed=True):
    """A self-edit with these rewards of its repeats."""
    known = [reward for reward in rewards if reward is not None]
    record = scored(example, edit, sum(known) / len(known) if known else 0.0, well_formed=well_formed)
    repeats = [{"seed": i, "reward": reward, "loss": 1.0} for i, reward in enumerate(rewards)]
    return ScoredSelfEdit(**vars(record) | {"repeats": repeats})


def test_best_of_k_is_scored_by_repeats_that_did_not_choose():
    # Repeat 0 chooses edit 0, which repeat 1 scores with 0; repeat 1 chooses edit 1, which repeat 0 scores with 0.
    noise = [repeated(0, 0, 1.0, 0.0), repeated(0, 1, 0.0, 1.0)]
    assert best_of_k(noise).value == 0.0
    # The better edit is chosen by any two of the repeats.
    better = [repeated(1, 0, 0.2, 0.4, 0.2), repeated(1, 1, 0.6, 0.8, 0.4), repeated(1, 2, well_formed=False)]
    assert best_of_k(better).value == pytest.approx(0.6)
    both = best_of_k([*noise, repeated(1, 0, 0.2, 0.4), repeated(1, 1, 0.6, 0.8)])
    assert (both.value, both.num_passages) == (pytest.approx(0.35), 2)


def test_best_of_k_chooses_as_the_selection_does():
    # By repeat 1 both earn nothing; the selection never takes the malformed one.
    assert best_of_k([repeated(0, 0, well_formed=False), repeated(0, 1, 1.0, 0.0)]).value == 0.5
    # Of equals it takes the first that was not cut off.
    cut_off, finished = repeated(0, 0, 0.2, 0.2), replace(repeated(0, 1, 1.0, 0.2), finished=True)
    assert best_of_k([replace(cut_off, finished=False), finished]).value == pytest.approx(0.6)
    assert best_of_k([replace(cut_off, finished=True), finished]).value == pytest.approx(0.2)
    # Where it can take nothing, nothing is earned, as in the mean reward.
    nothing = best_of_k([repeated(0, 0, well_formed=False), repeated(1, 0, 1.0, 1.0)])
    assert (nothing.value, nothing.num_passages) == (0.5, 2)


def test_best_of_k_needs_two_repeats():
    once = [repeated(0, 0, 1.0), repeated(0, 1, 0.0)]
    assert best_of_k(once) is None
    assert "reward/best" not in round_metrics(once, [])
    assert best_of_k([repeated(0, 0, well_formed=False)]) is None
    assert best_of_k([repeated(0, 0, 1.0, None), repeated(0, 1, 0.0, 0.5)]) is None


def test_noise_alone_gains_nothing_by_choosing():
    draws = np.random.default_rng(0)
    edits = [repeated(passage, edit, *draws.random(3)) for passage in range(400) for edit in range(5)]
    assert best_of_k(edits).value == pytest.approx(0.5, abs=0.03)
    assert np.mean([max(own.reward for own in edits[i : i + 5]) for i in range(0, 2000, 5)]) > 0.65


def test_rewards_that_differ_by_rounding_are_equal():
    rewards = [(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3]
    assert rewards[0] != rewards[1]
    result = round_metrics([scored(0, edit, reward) for edit, reward in enumerate(rewards)], [])
    assert result["frac_reward_zero_std"] == 1.0


def test_no_evaluation(tmp_path):
    assert evaluations(Journal(tmp_path / "evaluation")) == []


def test_evaluations(run):
    first, second, third = evaluations(Journal(run / "evaluation"))
    assert [first.round, second.round, third.round] == [0, 1, 2]
    values = {name: estimate.value for name, estimate in first.accuracies.items()}
    assert values == {BASE: 0.25, IN_CONTEXT: 1.0, PASSAGE_ONLY: 0.5, SELF_EDITS: 0.5}
    assert first.accuracies[BASE] == accuracy([[1.0, 0.0], [0.0]])
    assert {name: round(one.per_question, 4) for name, one in first.accuracies.items()} == {
        BASE: 0.3333,
        IN_CONTEXT: 1.0,
        PASSAGE_ONLY: 0.3333,
        SELF_EDITS: 0.5,
    }
    assert {name: gain.value for name, gain in first.gains.items()} == {
        BASE: 0.25,
        IN_CONTEXT: -0.5,
        PASSAGE_ONLY: 0.0,
    }
    # Passage 0: (1 + 1/2) / 2; passage 1: 1 and the base's 0.
    assert {name: estimate.value for name, estimate in second.accuracies.items()} == {SELF_EDITS: 0.625}
    assert {name: gain.value for name, gain in second.gains.items()} == {
        BASE: 0.375,
        IN_CONTEXT: -0.375,
        PASSAGE_ONLY: 0.125,
        "self-edits, round 0": 0.125,
    }
    assert {name: gain.value for name, gain in third.gains.items()} == {
        BASE: 0.75,
        IN_CONTEXT: 0.0,
        PASSAGE_ONLY: 0.5,
        "self-edits, round 0": 0.5,
        "self-edits, round 1": 0.375,
    }
    assert (first.accuracies[SELF_EDITS].num_passages, first.accuracies[SELF_EDITS].num_questions) == (2, 3)


def test_recitations_and_recited_answers(tmp_path):
    write_evaluations(
        tmp_path,
        [
            [
                answered(0, BASE, 0, [WRONG, WRONG], recited=[True, True], recitation=[WRONG, RIGHT]),
                answered(0, PASSAGE_ONLY, 0, [RIGHT, WRONG], recited=[True, True], recitation=[RIGHT, WRONG]),
                answered(0, SELF_EDITS, 0, [RIGHT, RIGHT], recited=[True, False], recitation=[RIGHT, WRONG]),
                answered(0, SELF_EDITS, 0, [RIGHT, RIGHT], edit=1, recited=[False, False], recitation=[WRONG, WRONG]),
                answered(0, SELF_EDITS, 0, edit=2),
            ],
            [
                answered(1, PASSAGE_ONLY, 0, [WRONG, WRONG], recited=[True, True], recitation=[WRONG, WRONG]),
                answered(1, SELF_EDITS, 0, [RIGHT, WRONG], recited=[False, False], recitation=[RIGHT, RIGHT]),
            ],
        ],
    )
    first, second = evaluations(Journal(tmp_path / "evaluation"))
    assert {name: value.value for name, value in first.recitations.items()} == {
        BASE: 0.5,
        PASSAGE_ONLY: 0.5,
        SELF_EDITS: pytest.approx(1 / 3),  # 1/2 and 0, and the base's 1/2 for the malformed one
    }
    assert {name: value.value for name, value in first.recited.items()} == {
        BASE: 1.0,
        PASSAGE_ONLY: 1.0,
        SELF_EDITS: 0.5,  # 1/2 and 0, and the base's 1 for the malformed one
    }
    # The passage alone was measured again with the policy of round 1.
    assert second.accuracies[PASSAGE_ONLY].value == 0.0
    assert (first.gains[PASSAGE_ONLY].value, second.gains[PASSAGE_ONLY].value) == (pytest.approx(1 / 6), 0.5)
    flat = metrics(first)
    names = ("self_edits_recitation", "self_edits_recited", "base_recitation", "base_recited")
    assert [flat[name] for name in names] == [pytest.approx(1 / 3), 0.5, 0.5, 1.0]
    rows = {
        cells[1].strip(): cells for cells in (line.split("|") for line in results_table(tmp_path).splitlines()[4:])
    }
    assert list(rows) == [
        "condition",
        "-" * 39,
        "base",
        "recitation, base",
        "passage only before round 1",
        "recitation, passage only before round 1",
        "self-edits before round 1",
        "recitation, self-edits before round 1",
        "passage only after round 1",
        "recitation, passage only after round 1",
        "self-edits after round 1",
        "recitation, self-edits after round 1",
    ]
    assert rows["recitation, self-edits before round 1"][2].strip().startswith("33.3 %")
    assert [cell.strip() for cell in rows["self-edits before round 1"][3:5]] == ["66.7 %", "50.0 %"]
    assert [cell.strip() for cell in rows["recitation, self-edits before round 1"][3:5]] == ["33.3 %", ""]


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


def test_gains_are_paired_by_passage_whatever_the_order_of_the_records(run, tmp_path):
    write_evaluations(tmp_path / "other", [EVALUATIONS[0][::-1], *EVALUATIONS[1:]])
    other = evaluations(Journal(tmp_path / "other" / "evaluation"))
    assert other == evaluations(Journal(run / "evaluation"))
    gain = other[0].gains[PASSAGE_ONLY]
    assert gain == paired_difference([[0.0, 0.0], [1.0]], [[0.75, 0.25], [0.5]])


def test_single_passage_says_nothing_about_others(tmp_path):
    write_evaluations(tmp_path, [[answered(0, BASE, 0, [RIGHT, WRONG]), answered(0, SELF_EDITS, 0)]])
    (only,) = evaluations(Journal(tmp_path / "evaluation"))
    own = only.accuracies[SELF_EDITS]
    assert (own.low, own.value, own.high, own.num_passages) == (0.0, 0.5, 1.0, 1)
    assert only.gains[BASE].value == 0.0
    assert set(only.accuracies) == {BASE, SELF_EDITS}


def test_metrics_of_an_evaluation(run):
    first, _, third = evaluations(Journal(run / "evaluation"))
    flat = metrics(first)
    estimates = [f"{name}_accuracy" for name in ("base", "passage_in_context", "passage_only", "self_edits")]
    estimates += [f"gain_over_{name}" for name in ("base", "passage_in_context", "passage_only")]
    bounds = [f"{name}_{bound}" for name in estimates for bound in ("low", "high")]
    per_question = {f"{name}_per_question" for name in estimates if name.endswith("accuracy")}
    assert set(flat) == {*estimates, *bounds, *per_question, "num_passages", "num_questions"}
    assert (flat["base_accuracy"], flat["base_accuracy_per_question"]) == (0.25, pytest.approx(1 / 3))
    base = first.accuracies[BASE]
    bounds = (flat["base_accuracy_low"], flat["base_accuracy"], flat["base_accuracy_high"])
    assert bounds == (base.low, 0.25, base.high)
    assert (flat["num_passages"], flat["num_questions"]) == (2, 3)
    flat = metrics(third)
    assert (flat["gain_over_round_0"], flat["gain_over_round_1"]) == (0.5, 0.375)
    gain = third.gains[f"{SELF_EDITS}, round 1"]
    assert (flat["gain_over_round_1_low"], flat["gain_over_round_1_high"]) == (gain.low, gain.high)
    assert "base_accuracy" not in flat


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


def test_samples(run):
    path = save_samples(run, 0)
    assert path == run / "self_edits" / "round_000.parquet"
    assert not list(run.rglob("*.partial"))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert list(rows[0].items()) == [
        ("round", 0),
        ("example_id", "id 0"),
        ("edit", 0),
        ("prompt", "Write."),
        ("self_edit", "text 0.0"),
        ("well_formed", True),
        ("reward", 0.5),
        ("base_reward", 0.25),
        ("gain", 0.25),
        ("kept", True),
        ("tokens", 300),
        ("answers", ["answer 0"]),
        ("verdicts", [True]),
    ]
    assert [row["kept"] for row in rows] == [True, False, True, False, False]
    assert [row["gain"] for row in rows] == [0.25, -0.25, 0.25, None, None]
    malformed = rows[1]
    assert (malformed["well_formed"], malformed["answers"], malformed["verdicts"]) == (False, None, None)
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(run / "cache"))
    assert dataset.to_list() == rows


def test_samples_have_the_same_columns_without_values(run):
    journal = Journal(run)
    messages = [{"role": "user", "content": "Écris."}]
    empty = scored(0, 0, None)
    journal.write_scored(1, [ScoredSelfEdit(**vars(empty) | {"prompt": messages})])
    journal.write_scored(2, [])
    full, without, none = (pyarrow.parquet.read_table(save_samples(run, number)) for number in range(3))
    assert without.schema == full.schema == none.schema
    assert none.num_rows == 0
    (row,) = without.to_pylist()
    assert json.loads(row["prompt"]) == messages and "É" in row["prompt"]
    missing = {name for name, value in row.items() if value is None}
    assert missing == {"reward", "base_reward", "gain", "kept", "answers", "verdicts"}


def test_samples_of_a_round_that_is_not_scored_are_refused(run):
    with pytest.raises(ValueError, match="round_index=4 is not scored"):
        save_samples(run, 4)
    assert not (run / "self_edits").exists()
