"""A tiny SelfAdaptingLM, and three self-edits of different length and settings."""

from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM, SelfEdit
from seal_hf.self_edit import TrainingExample


BASE_ID = "me/tiny"
PASSAGE = {"title": "Bees", "context": "Ann keeps bees in Vell. They hum at night."}
QUESTIONS = ["Who keeps bees?", "Where?", "When do the bees hum, and why at that time?"]
EDITS = [
    SelfEdit(
        "",
        "",
        (
            TrainingExample("", "Bees\nAnn keeps bees in Vell."),
            TrainingExample("", "Bees\nThey hum at night."),
            TrainingExample("", "Vell"),
        ),
    ),
    SelfEdit(
        "", "", (TrainingExample("Where do they hum? ", "In Vell, at night, all of them."),), {"num_train_epochs": 5}
    ),
    SelfEdit(
        "",
        "",
        (TrainingExample("", "Moths like lamps."), TrainingExample("", "Moths")),
        {"learning_rate": 1e-2, "batch_size": 2},
    ),
]


def tiny_lm(model=None, **options):
    options.setdefault("peft_config", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    options.setdefault("inner_config", InnerLoopConfig(learning_rate=2e-2, num_train_epochs=4))
    return SelfAdaptingLM(model or tiny_llama(), tiny_tokenizer(), base_model_id=BASE_ID, **options)
