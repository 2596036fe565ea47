"""The settings of a run of the outer loop."""

from dataclasses import dataclass

from ...domains import PROMPT_STYLES
from .settings import check_range


@dataclass(frozen=True)
class TrainingSettings:
    """
    A run. The defaults take some minutes with the small model on two CPU cores.

    Parameters:
        num_train_passages, num_eval_passages (`int`):
            How many passages are learned from, and how many others the policy is evaluated on (0: none).
        num_rounds, num_generations, prompt_style, temperature, max_completion_length, inner_num_train_epochs,
        inner_learning_rate, num_train_epochs, seed:
            As in [`SEALConfig`].

    Raises:
        ValueError: A value out of its range.
    """

    num_train_passages: int = 2
    num_eval_passages: int = 2
    num_rounds: int = 1
    num_generations: int = 3
    prompt_style: str = "rewrite"
    temperature: float = 0.6
    max_completion_length: int = 256
    inner_num_train_epochs: int = 20
    inner_learning_rate: float = 1e-3
    num_train_epochs: int = 4
    seed: int = 42

    def __post_init__(self):
        if self.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"There is no prompt style {self.prompt_style!r}: choose {', '.join(PROMPT_STYLES)}.")
        for name, (label, least, most) in TRAINING_RANGES.items():
            check_range(label, getattr(self, name), least, most)


TRAINING_RANGES = {
    "num_train_passages": ("Passages to learn from", 1, 200),
    "num_eval_passages": ("Passages to evaluate on", 0, 200),
    "num_rounds": ("Rounds", 1, 10),
    "num_generations": ("Self-edits per passage", 2, 8),
    "temperature": ("Temperature", 0.05, 2.0),
    "max_completion_length": ("Longest self-edit (tokens)", 16, 1024),
    "inner_num_train_epochs": ("Epochs of the inner loop", 1, 50),
    "inner_learning_rate": ("Learning rate of the inner loop", 1e-6, 1e-1),
    "num_train_epochs": ("Epochs of the outer SFT", 1, 20),
    "seed": ("Seed", 0, 2**31 - 1),
}
