"""The page's settings: their ranges, the presets, and the YAML file of a training run."""

from types import SimpleNamespace

import pytest

from seal_hf import InnerLoopConfig
from seal_hf.webui.work.limits import OWN_MACHINE, ZERO_GPU
from seal_hf.webui.work.settings import PAPER, PRESETS, SMALL_MODEL, Settings, TrainingSettings, preset_for
from trainers.arguments import AdaptationArguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 0}, "LoRA rank: 0 is out of range; choose from 1 to 128"),
        ({"num_train_epochs": 2.5}, "Epochs: 2.5 is not a whole number"),
        ({"learning_rate": None}, "Learning rate: None is out of range"),
        ({"temperature": True}, "Temperature: True"),
    ],
)
def test_settings_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(**{**vars(PAPER), **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_rounds": 0}, "Rounds: 0 is out of range; choose from 1 to 10"),
        ({"num_train_passages": 2.5}, "Passages to learn from, all rounds: 2.5 is not a whole number"),
        ({"temperature": None}, "Temperature: None is out of range"),
        ({"prompt_style": "haiku"}, "no prompt style 'haiku'"),
    ],
)
def test_training_settings_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**values)


def test_the_presets_are_the_papers_and_the_demos():
    inner = InnerLoopConfig()
    assert (PAPER.learning_rate, PAPER.num_train_epochs) == (inner.learning_rate, inner.num_train_epochs)
    assert (PAPER.lora_r, PAPER.lora_alpha, PAPER.temperature) == (32, 64, 1.0)
    demo = AdaptationArguments()
    names = (
        "prompt_style",
        "training_format",
        "temperature",
        "top_p",
        "max_completion_length",
        "num_generations",
        "seed",
    )
    for name in names:
        assert getattr(SMALL_MODEL, name) == getattr(demo, name), name
    for name in ("lora_r", "lora_alpha", "learning_rate", "num_train_epochs", "batch_size"):
        assert getattr(SMALL_MODEL, name) == getattr(demo, f"inner_{name}"), name
    assert demo.inner_target_modules == [SMALL_MODEL.target_modules]


@pytest.mark.parametrize(
    ("num_parameters", "name"), [(135e6, "Tiny model"), (494e6, "Small model"), (1.5e9, "Paper"), (7e9, "Paper")]
)
def test_a_preset_fits_the_size_of_the_model(num_parameters, name):
    model = SimpleNamespace(num_parameters=lambda: num_parameters)
    assert preset_for(SimpleNamespace(model=model), OWN_MACHINE) == name and name in PRESETS
    # It is told in the visitor's language.
    assert preset_for(SimpleNamespace(model=model), OWN_MACHINE).key.startswith("preset.")
    assert preset_for(SimpleNamespace(model=model), ZERO_GPU) == "One minute of a GPU"
