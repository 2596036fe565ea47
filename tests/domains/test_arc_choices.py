"""The JSON of a self-edit about an ARC task: what is read, and what is malformed."""

import json

import pytest

from seal_hf.domains.arc.choices import read_choices


DATA = {f"use_{name}_augmentations": name in ("basic", "chain") for name in ("basic", "size", "chain", "repeat")}
TRAINING = {"strategy": "train_using_output_tokens", "learning_rate": 1e-4, "num_train_epochs": 2}
WHOLE = {"data_generation": DATA, "training": TRAINING}


def changed(part, **values):
    return json.dumps({**WHOLE, part: {**WHOLE[part], **values}})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        json.dumps(WHOLE, indent=2),
        f"Here it is:\n```json\n{json.dumps(WHOLE)}\n```\nDone.",
        json.dumps(dict(reversed(WHOLE.items()))),
        json.dumps(WHOLE) + "{",
    ],
)
def test_what_is_read(text):
    choices = read_choices(text)
    assert choices.groups == ("basic", "chain")
    assert choices.training.model_dump() == TRAINING
    assert choices == read_choices(json.dumps(WHOLE)) and hash(choices) == hash(read_choices(json.dumps(WHOLE)))


@pytest.mark.parametrize(("value", "read"), [(0.1, 0.1), (1e-9, 1e-9)])
def test_learning_rates_at_the_bounds(value, read):
    assert read_choices(changed("training", learning_rate=value)).training.learning_rate == read
    assert read_choices(changed("training", num_train_epochs=10)).training.num_train_epochs == 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        json.dumps({"training": TRAINING}),
        json.dumps({**WHOLE, "more": 1}),
        changed("data_generation", use_magic=True),
        changed("data_generation", use_basic_augmentations=1),
        changed("data_generation", use_basic_augmentations="true"),
        changed("data_generation", use_basic_augmentations=None),
        changed("training", strategy="train_on_everything"),
        changed("training", learning_rate=0),
        changed("training", learning_rate=-1e-4),
        changed("training", learning_rate=0.11),
        changed("training", learning_rate="1e-4"),
        changed("training", learning_rate=True),
        changed("training", learning_rate=float("nan")),
        changed("training", learning_rate=float("inf")),
        changed("training", learning_rate=10**400),
        changed("training", num_train_epochs=0),
        changed("training", num_train_epochs=11),
        changed("training", num_train_epochs=2.0),
        changed("training", num_train_epochs=True),
        changed("training", batch_size=4),
        json.dumps(WHOLE).replace('"strategy"', '"learning_rate": 1e-3, "strategy"'),  # twice
        json.dumps(WHOLE).replace("true", "True"),
        '{"a": ' * 100_000,
    ],
)
def test_what_is_malformed(text):
    assert read_choices(text) is None
