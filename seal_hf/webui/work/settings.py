"""How self-edits are written and learned: what the page's advanced settings hold."""

from dataclasses import asdict, dataclass

from peft import LoraConfig

from ...domains import PROMPT_STYLES, KnowledgeDomain
from ...inner_loop.update import InnerLoopConfig
from ...self_adapting_lm import SelfAdaptingLM


MOST_SELF_EDITS = 8


def check_range(label: str, value: object, least: float, most: float) -> None:
    """
    Parameters:
        label (`str`):
            What the page calls it.
        value:
            A whole number where `least` is one.

    Raises:
        ValueError: It is no number, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{label}: {value} is out of range; choose from {least} to {most}.")
    if isinstance(least, int) and not isinstance(value, int):
        raise ValueError(f"{label}: {value} is not a whole number; choose from {least} to {most}.")


def as_number(value: object) -> object:
    """A widget's value, in which a whole number may be a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Settings:
    """
    The defaults are the paper's (knowledge incorporation, appendix B).

    Parameters:
        num_generations (`int`, *optional*, defaults to `4`):
            Self-edits, 1 to 8.
        prompt_style (`str`, *optional*, defaults to `"implications"`):
            One of the styles of [`KnowledgeDomain`].
        temperature, top_p, max_completion_length, seed:
            As in [`SelfAdaptingLM.propose`].
        learning_rate, num_train_epochs, batch_size:
            As in [`InnerLoopConfig`].
        lora_r, lora_alpha, target_modules:
            As in `LoraConfig`; `target_modules` are names separated by commas, or PEFT's default where empty.

    Raises:
        ValueError: A value out of its range.
    """

    num_generations: int = 4
    prompt_style: str = "implications"
    temperature: float = 1.0
    top_p: float = 0.95
    max_completion_length: int = 512
    seed: int = 0
    learning_rate: float = 1e-3
    num_train_epochs: int = 10
    batch_size: int = 1
    lora_r: int = 32
    lora_alpha: int = 64
    target_modules: str = ""

    def __post_init__(self):
        if self.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"There is no prompt style {self.prompt_style!r}: choose {', '.join(PROMPT_STYLES)}.")
        for name, (least, most) in RANGES.items():
            check_range(LABELS[name], getattr(self, name), least, most)

    @classmethod
    def of(cls, **values: object) -> "Settings":
        """From the widgets' values, in which whole numbers may be floats."""
        return cls(**{name: as_number(value) for name, value in values.items()})

    def lm(self, base: SelfAdaptingLM) -> SelfAdaptingLM:
        """The same model with these settings."""
        modules = [name.strip() for name in self.target_modules.split(",") if name.strip()]
        return SelfAdaptingLM(
            base.model,
            base.processing_class,
            domain=KnowledgeDomain(self.prompt_style, chat=base.domain.chat),
            peft_config=LoraConfig(
                r=self.lora_r,
                lora_alpha=self.lora_alpha,
                target_modules="all-linear" if modules == ["all-linear"] else modules or None,
            ),
            inner_config=InnerLoopConfig(
                learning_rate=self.learning_rate, num_train_epochs=self.num_train_epochs, batch_size=self.batch_size
            ),
            base_model_id=base.base_model_id,
        )

    def sampling(self) -> dict[str, object]:
        """What [`SelfAdaptingLM.write_batch`] needs."""
        names = ("temperature", "top_p", "max_completion_length", "seed")
        return {name: value for name, value in asdict(self).items() if name in names}


LABELS = {
    "num_generations": "Self-edits",
    "temperature": "Temperature",
    "top_p": "Top p",
    "max_completion_length": "Longest self-edit (tokens)",
    "seed": "Seed",
    "learning_rate": "Learning rate",
    "num_train_epochs": "Epochs",
    "batch_size": "Batch size",
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA alpha",
}
RANGES = {
    "num_generations": (1, MOST_SELF_EDITS),
    "temperature": (0.05, 2.0),
    "top_p": (0.05, 1.0),
    "max_completion_length": (16, 1024),
    "seed": (0, 2**31 - 1),
    "learning_rate": (1e-6, 1e-1),
    "num_train_epochs": (1, 50),
    "batch_size": (1, 16),
    "lora_r": (1, 128),
    "lora_alpha": (1, 256),
}

PAPER = Settings()
# A model of some hundred million parameters follows no long instruction and needs more steps.
SMALL_MODEL = Settings(
    prompt_style="rewrite",
    temperature=0.3,
    max_completion_length=256,
    num_train_epochs=20,
    target_modules="all-linear",
)
PRESETS = {"Small model": SMALL_MODEL, "Paper": PAPER}
_SMALL = 1_000_000_000  # parameters


def preset_for(lm: SelfAdaptingLM) -> str:
    """The name of the preset that fits a model's size."""
    return "Small model" if lm.model.num_parameters() < _SMALL else "Paper"
