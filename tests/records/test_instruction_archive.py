"""What instructions paid, by hand."""

from dataclasses import replace

from helpers.reported_runs import scored
from seal_hf.records.instructions import (
    ArchivedInstruction,
    archive_instructions,
    best_instructions,
    read_archive,
    write_archive,
)


def written(example, edit, reward, completion, **options):
    return replace(scored(example, edit, reward, **options), completion=completion)


ROUNDS = [
    [
        written(0, 0, 0.2, "Be brief.|a"),
        written(0, 1, 0.8, "Say it twice.|b"),
        written(0, 2, 0.5, "Ask.|c"),
        # An easy example: its mean is 0.9.
        written(1, 0, 1.0, "be BRIEF|d"),
        written(1, 1, 0.8, "Sing.|e"),
        written(1, 2, None, "Not graded.|f"),
    ],
    [
        written(0, 0, 0.6, "Say it twice.|g"),
        written(0, 1, 0.0, "Malformed.|h", well_formed=False),
        written(0, 2, 0.6, "|no instruction"),
    ],
]


def instruction_of(completion):
    return completion.partition("|")[0] or None


def test_gains_are_over_the_other_self_edits_of_the_example():
    archive = archive_instructions(ROUNDS, instruction_of)
    assert archive == [
        # 0.8 - 0.5 and 0.6 - 0.4
        ArchivedInstruction("Say it twice.", 0.7, 0.25, 2),
        ArchivedInstruction("Ask.", 0.5, 0.0, 1),
        ArchivedInstruction("Sing.", 0.8, -0.1, 1),
        # 0.2 - 0.5 and 1 - 0.9, in spite of the greater mean reward than that of "Ask."
        ArchivedInstruction("Be brief.", 0.6, -0.1, 2),
    ]
    assert [one.worth for one in archive] == [round(0.25 * 2 / 3, 9), 0, -0.05, round(-0.1 * 2 / 3, 9)]
    assert best_instructions(archive, 4) == ["Say it twice."] and best_instructions(archive, 0) == []


def test_one_lucky_self_edit_is_worth_less_than_several_good_ones():
    lucky, several = ArchivedInstruction("Once.", 0.9, 0.3, 1), ArchivedInstruction("Often.", 0.9, 0.25, 4)
    assert several.worth > lucky.worth > 0


def test_an_archive_on_disk(tmp_path):
    archive = archive_instructions(ROUNDS, instruction_of)
    assert read_archive(tmp_path, 1) is None
    write_archive(tmp_path, 1, archive)
    assert read_archive(tmp_path, 1) == archive and read_archive(tmp_path, 0) is None
    assert [path.name for path in (tmp_path / "instructions").iterdir()] == ["round_001.jsonl"]
