"""Rounds draw examples that no earlier round has used, and say so at the start where there are too few."""

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import tiny_config, tiny_examples, tiny_trainer
from seal_hf.outer_loop.stages import examples_per_round, round_places


pytestmark = pytest.mark.usefixtures("without_pictures")

OPTIONS = {"num_train": 5, "num_eval": 0, "num_generations": 2, "num_repeats": 1, "examples_per_round": 2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = tiny_trainer(tmp_path_factory.mktemp("unbroken"), **OPTIONS)
    trainer.train()
    return trainer


def places_of(folder, round_index):
    return sorted({edit["example"] for edit in read(folder / "journal" / f"round_{round_index:03d}.jsonl")})


@pytest.mark.parametrize(
    ("num_examples", "num_rounds", "given", "expected"),
    [(100, 2, None, 50), (7, 2, None, 3), (3, 3, None, 1), (9, 2, 4, 4), (8, 2, 4, 4), (4, 3, 0, 4), (1, 9, 0, 1)],
)
def test_examples_per_round(tmp_path, num_examples, num_rounds, given, expected):
    args = tiny_config(tmp_path, num_rounds=num_rounds, examples_per_round=given)
    assert examples_per_round(args, num_examples) == expected
    rounds = [round_places(args, range(num_examples), index) for index in range(num_rounds)]
    assert [len(places) for places in rounds] == [expected] * num_rounds
    assert rounds == [tuple(sorted(set(places))) for places in rounds]
    if given == 0:
        assert rounds == [tuple(range(num_examples))] * num_rounds
    else:
        assert len(set().union(*rounds)) == expected * num_rounds <= num_examples


def test_places_are_drawn_from_the_seed_and_the_round_alone(tmp_path):
    two, three, other = (
        [
            round_places(tiny_config(tmp_path, num_rounds=n, examples_per_round=4, seed=seed), range(20), i)
            for i in range(2)
        ]
        for n, seed in ((2, 3), (3, 3), (2, 4))
    )
    assert two == three and two != other


def test_two_rounds_share_no_example(unbroken):
    folder = unbroken._folder.path
    rounds = [places_of(folder, index) for index in range(2)]
    assert [len(places) for places in rounds] == [2, 2] and not set(rounds[0]) & set(rounds[1])
    for index in range(2):
        for kind in ("proposals", "journal"):
            for edit in read(folder / kind / f"round_{index:03d}.jsonl"):
                # The place in the whole dataset.
                assert edit["example_id"] == str(edit["example"]) and edit["prompt"].startswith(f"T{edit['example']}:")
        kept = read(folder / "selected" / f"round_{index:03d}.jsonl")
        assert sorted(int(edit["example_id"]) for edit in kept) == rounds[index]
    # 1 step of scoring and 2 of SFT in each round: 2 kept, 2 a step, 2 epochs.
    assert unbroken.state.global_step == unbroken.state.max_steps == 6
    assert [entry["num_examples"] for entry in unbroken.state.log_history if "num_examples" in entry] == [2, 2]


def test_no_passage_comes_in_two_rounds(tmp_path, caplog):
    """Whatever its questions, title and id are: the passage is what is learned."""
    first, second, third, fourth = tiny_examples(4)
    again = {**first, "title": "Other", "context": f" {first['context']}\n"}
    dataset = [first, again, second, third, {**third, "questions": third["questions"][:1]}, fourth]
    with caplog.at_level("WARNING"):
        trainer = tiny_trainer(tmp_path / "run", train_dataset=dataset, **OPTIONS)
    (record,) = [record for record in caplog.records if record.name == "seal_hf.outer_loop.seal_trainer"]
    assert record.getMessage().startswith(
        "2 of 6 training examples have the same content as an earlier one and are left out"
    )
    assert trainer.plan().num_examples == 4
    trainer.train()
    rounds = [places_of(tmp_path / "run", index) for index in range(2)]
    assert [len(places) for places in rounds] == [2, 2] and sorted(rounds[0] + rounds[1]) == [0, 2, 3, 5]

    few = "train_dataset has 4 different examples, but num_rounds=2 rounds of 3 new ones need 6"
    with pytest.raises(ValueError, match=few):
        tiny_trainer(tmp_path / "more", train_dataset=dataset, **{**OPTIONS, "examples_per_round": 3})
    # Where every round has all examples, none is left out.
    caplog.clear()
    everything = tiny_trainer(tmp_path / "all", train_dataset=dataset, **{**OPTIONS, "examples_per_round": 0})
    assert everything.plan().num_examples == 6
    assert not [record for record in caplog.records if record.name.startswith("seal_hf")]


def test_an_example_is_written_about_as_in_a_round_of_all(unbroken, tmp_path):
    trainer = tiny_trainer(tmp_path, **{**OPTIONS, "num_rounds": 1, "examples_per_round": 0})
    trainer.train()
    everything = {
        (edit["example"], edit["edit"]): edit["completion"] for edit in read(tmp_path / "proposals/round_000.jsonl")
    }
    own = read(unbroken._folder.path / "proposals" / "round_000.jsonl")
    assert len(everything) == 10 and len(own) == 4
    assert [everything[edit["example"], edit["edit"]] for edit in own] == [edit["completion"] for edit in own]


def test_the_plan_counts_the_examples_of_a_round(tmp_path):
    plan = tiny_trainer(tmp_path, **OPTIONS).plan()
    assert (plan.num_examples, plan.examples_per_round) == (5, 2)
    assert [(one.prompts_to_write, one.adapters) for one in plan.rounds] == [(4, 4)] * 2
    assert plan.optimizer_steps == [2, 2]
    places = [place for index in range(2) for place in round_places(tiny_config(tmp_path, **_args()), range(5), index)]
    examples = tiny_examples(5)
    own = [len(f"{examples[place]['title']}\n{examples[place]['context']}") + 1 for place in places]
    # A token a character and an end, 2 epochs, 2 self-edits of twice the passage.
    assert plan.everything.tokens == 2 * 2 * 2 * sum(own)
    assert str(plan).startswith(
        "rounds: 2, examples: 5, 2 new ones in each round, evaluated on: 0, processes: 1; left"
    )


def _args():
    return {name: value for name, value in OPTIONS.items() if not name.startswith("num_train") and name != "num_eval"}


def test_a_stopped_run_goes_on_with_the_examples_of_its_round(unbroken, tmp_path):
    # In the middle of the second round's banks.
    stopped = tiny_trainer(tmp_path, **OPTIONS, callbacks=[Act("on_substep_end", 3, stop)])
    stopped.train()
    assert not (tmp_path / "journal" / "round_001.jsonl").exists()
    tiny_trainer(tmp_path, **OPTIONS).train(resume_from_checkpoint=True)
    assert records(tmp_path) == records(unbroken._folder.path)


@pytest.mark.parametrize("value", [None, 0, 1])
def test_another_number_is_another_run(unbroken, tmp_path, value):
    folder = unbroken._folder.path
    # An equal share of 5 examples is 2, so it is the same run.
    trainer = tiny_trainer(folder, **{**OPTIONS, "examples_per_round": value})
    if value is None:
        trainer.train(resume_from_checkpoint=True)
        return
    here = value or 5
    with pytest.raises(ValueError, match=rf"with other settings: examples_per_round \(2 there, {here} here\)"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"examples_per_round": 3}, "num_rounds=2 rounds of 3 new ones need 6"),
        ({"num_rounds": 6, "examples_per_round": None}, "num_rounds=6 rounds of 1 new ones need 6"),
        ({"num_rounds": 3}, "num_rounds=3 rounds of 2 new ones need 6"),
    ],
)
def test_too_few_examples_are_named_at_the_start(tmp_path, options, numbers):
    with pytest.raises(ValueError) as raised:
        tiny_trainer(tmp_path / "run", **{**OPTIONS, **options})
    assert str(raised.value) == (
        f"train_dataset has 5 different examples, but {numbers}; give more examples, lower examples_per_round or num_rounds, or set "
        "examples_per_round=0 to train on all examples in every round."
    )
    assert not (tmp_path / "run").exists()
