"""Records of training rounds and evaluations that are written by hand, to be reported."""

import math

from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from seal_hf.records.journal import Journal
from seal_hf.records.schema import ScoredSelfEdit, SelectedSelfEdit


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


def answered(
    round_index,
    condition,
    example,
    *runs,
    edit=0,
    recited=None,
    recitation=None,
    short=None,
    retention=None,
    seconds=0.0,
):
    """
    An evaluation's record from the verdicts of its repeats; without any it is malformed. All repeats are alike in the rest:
    flags of the answers, and verdicts on the recitation and on the general questions.
    """
    repeats = [
        {"seed": i, "reward": sum(run) / len(run), "answers": ["?"] * len(run), "verdicts": run, "loss": None}
        | {"recited": recited, "recitation": recitation and {"answer": "It is said.", "verdicts": recitation}}
        | {"short": short, "retention": retention and {"answers": ["?"] * len(retention), "verdicts": retention}}
        for i, run in enumerate(runs)
    ]
    reward = sum(repeat["reward"] for repeat in repeats) / len(repeats) if repeats else 0.0
    kind = (round_index, condition, example, str(example), edit)
    tokens = 0 if condition in (BASE, IN_CONTEXT) else 30 * len(runs)
    return ScoredSelfEdit(*kind, "", "", 0, bool(runs), repeats, reward, None, tokens, seconds)


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


# With what evaluations record besides: short answers, general questions and seconds.
FURTHER = [
    [
        answered(0, BASE, 0, [RIGHT, WRONG], short=[False, True], retention=[RIGHT, RIGHT, RIGHT, WRONG]),
        answered(0, BASE, 1, [RIGHT], short=[True]),
        answered(0, PASSAGE_ONLY, 0, [RIGHT, RIGHT], short=[False, False], retention=[WRONG] * 4, seconds=1.0),
        answered(0, PASSAGE_ONLY, 1, [RIGHT], short=[True], retention=[RIGHT] * 4, seconds=2.0),
        answered(
            0, SELF_EDITS, 0, [RIGHT, RIGHT], [RIGHT, WRONG], short=[True, True], retention=[RIGHT] * 4, seconds=9.0
        ),
        answered(0, SELF_EDITS, 1),
    ],
    [
        answered(1, SELF_EDITS, 0, [RIGHT, RIGHT], short=[True, True], retention=[RIGHT, WRONG, WRONG, WRONG]),
        answered(1, SELF_EDITS, 1, [WRONG], short=[True], retention=[RIGHT, WRONG, WRONG, WRONG]),
    ],
]


def write_evaluations(output_dir, rounds):
    for number, records in enumerate(rounds):
        Journal(output_dir / "evaluation").write_scored(number, records)


def read_table(text, first_column):
    """The rows of the first Markdown table in a text whose first column has this name, as dictionaries."""
    table = next(part for part in text.split("\n\n") if part.startswith(f"| {first_column} "))
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().split("\n")]
    return [dict(zip(header, row, strict=True)) for row in rows]
