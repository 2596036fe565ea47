"""The table of a run's rewards against the labelled one."""

from dataclasses import replace

import pytest

from helpers.reported_runs import read_table, scored
from seal_hf.records.journal import Journal
from seal_hf.records.reward_ranking import label_agreement, main, reward_rankings


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
    printed = capsys.readouterr().out
    rows = {row["reward"]: row for row in read_table(printed, "reward")}
    assert (
        rows["accuracy"]["gain of choosing"].startswith("+20.0 points [")
        and rows["accuracy"]["rank correlation"] == "–"
    )
    assert rows["rubric"]["rank correlation"].startswith("0.00 [-") and rows["rubric"]["examples ranked"] == "2"
    assert rows["rubric"]["share of the gain"].startswith("0 % [-")

    (row,) = read_table(printed, "repeats")
    # +0.2 in both examples, in the repeat that chooses as in the other.
    assert row["repeats"] == "2" and row["rank correlation"].startswith("1.00 [") and row["examples ranked"] == "2"
    assert row["gain where chosen"].startswith("+20.0 points [") and row["gain in another"].startswith(
        "+20.0 points ["
    )
    assert row["share kept"] == "100 % [100, 100]" and row["examples chosen from"] == "2"


def test_labels_alone_are_compared_with_themselves(tmp_path, capsys):
    edits = []
    for example, edit, rewards in ((0, 0, [0.2, 0.6]), (0, 1, [0.8, 0.4]), (1, 0, [0.3, 0.1]), (1, 1, [0.1, 0.1])):
        one = scored(example, edit, 0.5, losses=[None, None])
        edits.append(replace(one, repeats=[{**own, "reward": r} for own, r in zip(one.repeats, rewards, strict=True)]))
    write(tmp_path, [edits])
    assert list(reward_rankings(tmp_path)) == ["accuracy"]
    found = label_agreement(tmp_path)
    # +0.3 and +0.1 where chosen, -0.1 and -0.3 in the other; +0.1 and 0 (of equals the first), 0 and +0.1.
    assert found.gain_when_chosen.value == pytest.approx((0.2 + 0.05) / 2)
    assert found.gain_kept.value == pytest.approx((-0.2 + 0.05) / 2)
    assert found.share_kept == pytest.approx(-0.15 / 0.25) and found.correlation.num_passages == 1
    main([str(tmp_path)])
    assert [row["reward"] for row in read_table(capsys.readouterr().out, "reward")] == ["accuracy"]


def test_one_repeat_is_told(tmp_path, capsys):
    write(tmp_path, [[scored(0, 0, 0.5, losses=[None]), scored(0, 1, 0.75, losses=[None])]])
    main([str(tmp_path)])
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith(
        "The labelled reward cannot be compared with itself: no example has two self-edits with two"
    )
    assert line.endswith("num_repeats of at least 2.")


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no scored round"):
        main([str(tmp_path)])
    rubric = [replace(one, rewards={"rubric": 0.1}) for one in ROUNDS[0][:2]]
    write(tmp_path, [rubric])
    with pytest.raises(ValueError, match="has the rewards rubric, but not 'accuracy', with which others are compared"):
        reward_rankings(tmp_path)
