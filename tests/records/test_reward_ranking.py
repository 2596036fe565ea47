"""The table of a run's rewards against the labelled one."""

from dataclasses import replace

import pytest

from helpers.reported_runs import read_table, scored
from seal_hf.records.journal import Journal
from seal_hf.records.reward_ranking import main, reward_rankings


def rewarded(example, edit, accuracies, rubric, round_index=0):
    repeats = [
        {"reward": rubric, "rewards": {"accuracy": one, "rubric": rubric}, "seed": i, "answers": [], "verdicts": []}
        for i, one in enumerate(accuracies)
    ]
    rewards = {"accuracy": None, "rubric": rubric}
    return replace(scored(example, edit, rubric), round=round_index, repeats=repeats, rewards=rewards)


ROUNDS = [
    [
        rewarded(0, 0, [0.2, 0.4], 0.1),
        rewarded(0, 1, [0.8, 0.6], 0.9),
        replace(scored(0, 2, 0.0, well_formed=False), rewards={"accuracy": 0.0, "rubric": 0.0}),
        rewarded(1, 0, [0.9, None], 0.3),  # not graded
        rewarded(1, 1, [0.5, 0.5], 0.4),  # alone
    ],
    # The same example again, in another round.
    [rewarded(0, 0, [0.5, 0.7], 0.2, 1), rewarded(0, 1, [0.1, 0.3], 0.6, 1)],
]


def write(folder, rounds):
    for number, records in enumerate(rounds):
        Journal(folder).write_scored(number, records)


def test_rewards_are_compared_over_the_examples_of_all_rounds(tmp_path, capsys):
    write(tmp_path, ROUNDS)
    found = reward_rankings(tmp_path)
    assert list(found) == ["accuracy", "rubric", "weighted sum"]
    assert found["rubric"].correlation.value == 0 and found["rubric"].correlation.num_passages == 2
    assert found["accuracy"].gain.value == pytest.approx(0.2) and found["rubric"].gain.value == pytest.approx(0)
    assert found["rubric"] == found["weighted sum"]
    main([str(tmp_path)])
    rows = {row["reward"]: row for row in read_table(capsys.readouterr().out, "reward")}
    assert (
        rows["accuracy"]["gain of choosing"].startswith("+20.0 points [")
        and rows["accuracy"]["rank correlation"] == "–"
    )
    assert rows["rubric"]["rank correlation"].startswith("0.00 [-") and rows["rubric"]["examples ranked"] == "2"
    assert rows["rubric"]["share of the gain"].startswith("0 % [-")


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no scored round"):
        main([str(tmp_path)])
    write(tmp_path, [[scored(0, 0, 0.5)]])
    with pytest.raises(ValueError, match="has the rewards accuracy, but 'accuracy' and another one are compared"):
        reward_rankings(tmp_path)
