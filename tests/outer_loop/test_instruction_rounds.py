"""A run in which the policy is shown the instructions that paid in the rounds before."""

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import HashGrader, tiny_config, tiny_trainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.records.instructions import archive_instructions, best_instructions
from seal_hf.records.journal import Journal


pytestmark = pytest.mark.usefixtures("without_pictures")


class FirstLetters(KnowledgeDomain):
    """The first three characters are the instruction, since a random model seldom writes two lines."""

    def __init__(self):
        super().__init__("{title}: {context}\n{instructions}\n>", grader=HashGrader(), chat=False)

    def parse(self, completion, example):
        return super().parse(f"{completion[:3]}\n{completion[3:]}", example)

    def instruction(self, completion):
        return super().instruction(f"{completion[:3]}\n")


def searching_trainer(output_dir, **options):
    options = {"num_train": 2, "num_eval": 1, "num_generations": 3, "num_repeats": 1, **options}
    return tiny_trainer(output_dir, domain=FirstLetters(), num_instructions_shown=2, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searching")
    searching_trainer(folder).train()
    return folder


def shown_in(prompt):
    """The instructions that a prompt shows, as they stand in it."""
    return [line[2:] for line in prompt.split("\n") if line.startswith("- ")]


def test_the_best_instructions_are_shown_in_the_next_round_and_its_evaluation(folder):
    journal = Journal(folder)
    archives = [
        archive_instructions([journal.scored(number) for number in range(last + 1)], FirstLetters().instruction)
        for last in range(2)
    ]
    for number, archive in enumerate(archives):
        found = read(folder / "instructions" / f"round_{number:03d}.jsonl")
        assert [(row["instruction"], row["mean_gain"], row["n"]) for row in found] == [
            (one.instruction, one.mean_gain, one.n) for one in archive
        ]
    best = [best_instructions(archive, 2) for archive in archives]
    assert best[0] and len(archives[1]) > len(archives[0]) > 2
    expected = {0: [], 1: best[0]}
    for number, instructions in expected.items():
        for kind in ("proposals", "selected"):
            rows = read(folder / kind / f"round_{number:03d}.jsonl")
            assert rows and all(shown_in(row["prompt"]) == instructions for row in rows)
    for number, instructions in ((0, []), (1, best[0]), (2, best[1])):
        rows = read(folder / "evaluation" / "proposals" / f"round_{number:03d}.jsonl")
        own = [row for row in rows if row["condition"] == "self-edits"]
        assert own and all(shown_in(row["prompt"]) == instructions for row in own)


def test_a_run_that_was_stopped_shows_the_same(folder, tmp_path):
    # The second of the steps that are logged, after two optimizer steps of the first fit: in the second round.
    searching_trainer(tmp_path, callbacks=[Act("on_epoch_begin", 2, stop)]).train()
    assert (tmp_path / "instructions" / "round_000.jsonl").exists()
    assert not (tmp_path / "proposals" / "round_001.jsonl").exists()
    (tmp_path / "instructions" / "round_000.jsonl").unlink()  # follows from the journal
    searching_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert records(tmp_path) == records(folder)


def test_how_many_are_shown_is_a_setting_where_there_are_any(folder, tmp_path):
    with pytest.raises(ValueError, match=r"num_instructions_shown \(2 there, 1 here\)"):
        tiny_trainer(
            folder,
            domain=FirstLetters(),
            num_train=2,
            num_eval=1,
            num_generations=3,
            num_repeats=1,
            num_instructions_shown=1,
        ).train(resume_from_checkpoint=True)
    assert "num_instructions_shown" not in tiny_trainer(tmp_path, num_eval=0)._folder._settings
    with pytest.raises(ValueError, match="num_instructions_shown=-1 must be a whole number of at least 0"):
        tiny_config(tmp_path, num_instructions_shown=-1)


def test_prompts_have_to_fit_with_the_longest_instructions(tmp_path):
    domain = KnowledgeDomain("{title}: {context}\n{instructions}\n>", chat=False)
    tiny_trainer(tmp_path, domain=domain, num_eval=0, num_instructions_shown=2, max_length=1000)
    with pytest.raises(ValueError, match="example 0 has a prompt of 6[0-9][0-9] tokens, which leaves no room"):
        tiny_trainer(tmp_path, domain=domain, num_eval=0, num_instructions_shown=2, max_length=500)
