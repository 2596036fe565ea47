"""Runs that are written by hand, and the rows that a dataset of them has."""

import json

from seal_hf.domains.base import SELF_EDITS
from seal_hf.records.files import RUN_FILE
from seal_hf.records.journal import Journal
from seal_hf.records.schema import ScoredSelfEdit, SelectedSelfEdit


COLUMNS = ["prompt", "completion", "kept", "reward", "base_reward", "well_formed", "example_id", "round", "edit"]
COLUMNS += ["completion_tokens", "tokens", "repeats"]
PLAIN = "Passage: bees hum.\n"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rewrite: bees hum."}]


def scored(example, edit, reward, *, prompt=PLAIN, round_index=0, condition=SELF_EDITS):
    """A self-edit with one repeat; malformed where the reward is `None`."""
    repeat = {
        "seed": 2**63 - 1,
        "reward": reward,
        "answers": ["a", 'b "\u2028ü'],
        "verdicts": [True, None],
        "loss": 1.5,
    }
    return ScoredSelfEdit(
        round=round_index,
        condition=condition,
        example=example,
        example_id=f"id {example}",
        edit=edit,
        prompt=prompt,
        completion=f"Bees {example}\n---\n{edit} hum.",
        completion_tokens=7,
        well_formed=reward is not None,
        repeats=[] if reward is None else [repeat],
        reward=reward,
        base_reward=0.25,
        tokens=30,
        seconds=1.5,
    )


def selected(edit):
    return SelectedSelfEdit(edit.prompt, edit.completion, edit.example_id, edit.edit, edit.reward)


def write_run(folder, rounds, selections=(), settings=None):
    journal = Journal(folder)
    for number, edits in enumerate(rounds):
        journal.write_scored(number, edits)
    for number, edits in enumerate(selections):
        journal.write_selected(number, list(map(selected, edits)))
    folder.mkdir(exist_ok=True)
    record = {"schema_version": 1, "settings": {"model": "someone/tiny", "seed": 3, **(settings or {})}}
    (folder / RUN_FILE).write_text(json.dumps(record))
    return folder


def two_rounds(folder):
    """A run with one round that is selected and one that is only scored."""
    first = [scored(0, 0, 0.5), scored(0, 1, 1.0), scored(1, 0, None)]
    second = [scored(0, 0, 0.75, round_index=1)]
    return write_run(folder, [first, second], [[first[1]]])


def expected_rows(folder):
    """The rows of a run with plain prompts, from its files."""
    rows = []
    for file in sorted((folder / "journal").glob("round_???.jsonl")):
        records = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
        chosen = folder / "selected" / file.name
        kept = chosen.exists() and [json.loads(line) for line in chosen.read_text("utf-8").split("\n")[:-1]]
        for record in records:
            same = [
                all(one[name] == record[name] for name in ("example_id", "edit", "completion")) for one in kept or ()
            ]
            record |= {"kept": any(same) if chosen.exists() else None}
            rows.append({name: record[name] for name in COLUMNS})
    return rows
