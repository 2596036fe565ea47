"""What the page's settings hold: how self-edits are written and learned, and what a training run does."""

from dataclasses import asdict, dataclass, fields, replace

import yaml
from peft import LoraConfig

from ...domains import PROMPT_STYLES, TRAINING_FORMATS, KnowledgeDomain
from ...inner_loop.update import InnerLoopConfig
from ...self_adapting_lm import SelfAdaptingLM
from ..languages import Message
from .limits import Limits


MAX_SELF_EDITS = 8
_LONGEST_MODULES = 500  # characters
SHUFFLE_SEED = 42


def check_range(label: str, value: object, least: float, most: float) -> None:
    """
    Args:
        label (`str`):
            The setting's label on the page.
        value:
            The setting, a whole number where `least` is one.
        least, most (`float`):
            The smallest and the largest allowed value.

    Raises:
        ValueError: `value` is not a number, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(Message("settings.out_of_range", label=label, value=value, least=least, most=most))
    if isinstance(least, int) and not isinstance(value, int):
        raise ValueError(Message("settings.not_whole", label=label, value=value, least=least, most=most))


def check_prompt_style(name: str) -> None:
    """
    Raises:
        ValueError: There is no such prompt style.
    """
    if name not in PROMPT_STYLES:
        raise ValueError(Message("settings.no_style", name=repr(name), names=", ".join(PROMPT_STYLES)))


def check_training_format(name: str) -> None:
    """
    Raises:
        ValueError: There is no such training format.
    """
    if name not in TRAINING_FORMATS:
        raise ValueError(Message("settings.no_format", name=repr(name), names=", ".join(TRAINING_FORMATS)))


def as_number(value: object) -> object:
    """A widget's value, in which a whole number may be a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Settings:
    """
    How self-edits are written and learned. The defaults are the paper's (knowledge incorporation, appendix B).

    Parameters:
        num_generations (`int`, *optional*, defaults to `4`):
            Number of self-edits, 1 to 8.
        prompt_style (`str`, *optional*, defaults to `"implications"`):
            One of the styles of [`KnowledgeDomain`].
        training_format (`str`, *optional*, defaults to `"language_modeling"`):
            One of the formats of [`KnowledgeDomain`].
        temperature, top_p, max_completion_length, seed:
            As in [`SelfAdaptingLM.propose`].
        learning_rate, num_train_epochs, batch_size:
            As in [`InnerLoopConfig`].
        lora_r, lora_alpha, target_modules:
            As in `LoraConfig`. `target_modules` are names separated by commas; empty for PEFT's default, which is all linear
            layers for architectures that it does not know.

    Raises:
        ValueError: A value is out of its range.
    """

    num_generations: int = 4
    prompt_style: str = "implications"
    training_format: str = "language_modeling"
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
        check_prompt_style(self.prompt_style)
        check_training_format(self.training_format)
        for name, (label, least, most) in RANGES.items():
            check_range(label, getattr(self, name), least, most)
        if not isinstance(self.target_modules, str) or len(self.target_modules) > _LONGEST_MODULES:
            raise ValueError(Message("settings.modules", most=_LONGEST_MODULES))

    @classmethod
    def of(cls, **values: object) -> "Settings":
        """From the widgets' values, in which whole numbers may be floats."""
        return cls(**{name: as_number(value) for name, value in values.items()})

    def lm(self, base: SelfAdaptingLM) -> SelfAdaptingLM:
        """The same model with these settings."""
        modules = [name.strip() for name in self.target_modules.split(",") if name.strip()]
        return base.with_domain(
            KnowledgeDomain(self.prompt_style, chat=base.domain.chat, training_format=self.training_format),
            peft_config=LoraConfig(
                r=self.lora_r,
                lora_alpha=self.lora_alpha,
                target_modules="all-linear" if modules == ["all-linear"] else modules or None,
            ),
            inner_config=InnerLoopConfig(
                learning_rate=self.learning_rate, num_train_epochs=self.num_train_epochs, batch_size=self.batch_size
            ),
        )

    def sampling(self) -> dict[str, object]:
        """The sampling arguments of [`SelfAdaptingLM.write_batch`]."""
        names = ("temperature", "top_p", "max_completion_length", "seed")
        return {name: value for name, value in asdict(self).items() if name in names}


# Label on the page, smallest and largest value.
RANGES = {
    "num_generations": (Message("settings.self_edits"), 1, MAX_SELF_EDITS),
    "temperature": (Message("settings.temperature"), 0.05, 2.0),
    "top_p": (Message("settings.top_p"), 0.05, 1.0),
    "max_completion_length": (Message("settings.longest"), 16, 1024),
    "seed": (Message("settings.seed"), 0, 2**31 - 1),
    "learning_rate": (Message("settings.learning_rate"), 1e-6, 1e-1),
    "num_train_epochs": (Message("settings.epochs"), 1, 50),
    "batch_size": (Message("settings.batch_size"), 1, 16),
    "lora_r": (Message("settings.lora_r"), 1, 128),
    "lora_alpha": (Message("settings.lora_alpha"), 1, 256),
}

PAPER = Settings()
# A model of some hundred million parameters finds what it learned in the form in which it is asked, and few full steps keep it
# able to answer.
SMALL_MODEL = Settings(
    num_generations=2,
    prompt_style="questions-by-fact",
    training_format="prompt_completion",
    temperature=0.7,
    max_completion_length=300,
    num_train_epochs=8,
    batch_size=16,
    target_modules="all-linear",
)
# A model of a hundred million parameters writes no questions that it can answer.
TINY_MODEL = Settings(
    prompt_style="rewrite",
    temperature=0.3,
    max_completion_length=256,
    num_train_epochs=20,
    target_modules="all-linear",
)
# For a GPU that one has for a minute: the questions of a small model's preset take few full steps, where the paper's batches of one
# line take hundreds; shorter texts are written sooner.
ONE_MINUTE = replace(SMALL_MODEL, max_completion_length=200)
GPU_PRESET, TINY_PRESET, SMALL_PRESET, PAPER_PRESET = (
    Message(f"preset.{name}") for name in ("one_minute", "tiny", "small", "paper")
)
PRESETS = {
    TINY_PRESET: TINY_MODEL,
    SMALL_PRESET: SMALL_MODEL,
    PAPER_PRESET: PAPER,
    GPU_PRESET: ONE_MINUTE,
}
_TINY, _SMALL = 300_000_000, 1_000_000_000  # parameters


def preset_for(lm: SelfAdaptingLM, limits: Limits) -> str:
    """The name of the preset that fits the GPU's time, where that is limited, or else the model's size."""
    if limits.is_zero_gpu:
        return GPU_PRESET
    size = lm.model.num_parameters()
    return TINY_PRESET if size < _TINY else SMALL_PRESET if size < _SMALL else PAPER_PRESET


@dataclass(frozen=True)
class TrainingSettings:
    """
    What a training run does. The defaults take some minutes with the small model on two CPU cores.

    Parameters:
        num_train_passages, num_eval_passages (`int`):
            Number of passages to learn from, which all rounds share, and number of other passages to evaluate the policy on;
            0 for no evaluation.
        num_rounds, num_generations, prompt_style, training_format, temperature, max_completion_length,
        inner_num_train_epochs, inner_batch_size, inner_learning_rate, num_train_epochs, seed:
            As the options of `trainers/knowledge.py`.

    Raises:
        ValueError: A value is out of its range.
    """

    num_train_passages: int = 2
    num_eval_passages: int = 2
    num_rounds: int = 1
    num_generations: int = 2
    prompt_style: str = "questions-by-fact"
    training_format: str = "prompt_completion"
    temperature: float = 0.7
    max_completion_length: int = 300
    inner_num_train_epochs: int = 8
    inner_batch_size: int = 16
    inner_learning_rate: float = 1e-3
    num_train_epochs: int = 4
    seed: int = 42

    def __post_init__(self):
        check_prompt_style(self.prompt_style)
        check_training_format(self.training_format)
        for name, (label, least, most) in TRAINING_RANGES.items():
            check_range(label, getattr(self, name), least, most)

    @classmethod
    def of_config(cls, config: dict[str, object]) -> "TrainingSettings":
        """From the content of a run's YAML file."""
        # The file of a run without evaluation does not name `num_eval_passages`, and one of before no format.
        absent = {"num_eval_passages": 0, "training_format": "language_modeling", "inner_batch_size": 1}
        return cls(**{one.name: config.get(one.name, absent.get(one.name)) for one in fields(cls)})

    def config(
        self,
        model_name_or_path: str,
        output_dir: str,
        dataset: str = "demo",
        *,
        load_in_4bit: bool = False,
        chat_template_kwargs: dict[str, object] | None = None,
    ) -> str:
        """
        The YAML file of a run of `trainers/knowledge.py`.

        Args:
            model_name_or_path (`str`):
                The base model.
            output_dir (`str`):
                Where the run writes its files.
            dataset (`str`, *optional*, defaults to `"demo"`):
                A file of passages, or `"demo"`.
            load_in_4bit (`bool`, *optional*, defaults to `False`):
                Whether to quantize the base model.
            chat_template_kwargs (`dict[str, object]`, *optional*):
                What the chat template is given.
        """
        values = asdict(self)
        evaluates = bool(values["num_eval_passages"])
        if not evaluates:
            del values["num_eval_passages"]
        is_demo = dataset == "demo"
        config = {
            "model_name_or_path": model_name_or_path,
            **({"load_in_4bit": True} if load_in_4bit else {}),
            **({"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {}),
            "output_dir": output_dir,
            "dataset_name": dataset,
            **({"dataset_train_split": "train"} if is_demo else {}),
            **({"eval_dataset_name": "demo"} if evaluates and not is_demo else {}),
            **({"dataset_test_split": "test"} if evaluates else {}),
            **values,
            # The order of the passages, of which the first so many are taken.
            "shuffle_seed": SHUFFLE_SEED,
            "inner_target_modules": ["all-linear"],
            "num_repeats": 1,
            "student": "base",
            # One passage after another, so that rewards appear early.
            "adapters_per_bank": self.num_generations,
            "sft_batch_size": 4,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


TRAINING_RANGES = {
    "num_train_passages": (Message("settings.train_passages"), 1, 200),
    "num_eval_passages": (Message("settings.eval_passages"), 0, 200),
    "num_rounds": (Message("settings.rounds"), 1, 10),
    "num_generations": (Message("settings.self_edits_each"), 2, MAX_SELF_EDITS),
    "temperature": (Message("settings.temperature"), 0.05, 2.0),
    "max_completion_length": (Message("settings.longest"), 16, 1024),
    "inner_num_train_epochs": (Message("settings.inner_epochs"), 1, 50),
    "inner_batch_size": (Message("settings.inner_batch_size"), 1, 16),
    "inner_learning_rate": (Message("settings.inner_learning_rate"), 1e-6, 1e-1),
    "num_train_epochs": (Message("settings.outer_epochs"), 1, 20),
    "seed": (Message("settings.seed"), 0, 2**31 - 1),
}
