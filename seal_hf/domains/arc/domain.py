"""
Few-shot ARC as a domain (SEAL, section 4.1): the policy sees the demonstrations of a task and chooses how training data are made of
them and how an adapter is trained; the adapted model predicts the test outputs, which vote.

Deviations from the scripts of SEAL's authors:

- Grids are rows of digits in place of nested lists, which takes a third of the tokens (see [`seal_hf.domains.arc.grids`]).
- What is drawn is the same in every process (see [`seal_hf.domains.arc.augmentation`] and [`seal_hf.domains.arc.prediction`]).
- A self-edit whose training would take more than `max_sequences` sequences is malformed. There it leaves the model untrained.
- Prompts, training and prediction have the same form, with one beginning-of-sequence token, and no date.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from ...self_edit import Prompt, SelfEdit, TrainingExample
from ..base import BASE, Condition, Domain
from .augmentation import MAX_TASKS, Pair, training_tasks
from .choices import ALL_TOKENS, MAX_EPOCHS, MAX_LEARNING_RATE, OUTPUT_TOKENS, Choices, read_choices
from .grids import Grid, read_grid, write_grid
from .prediction import attempts, is_solved, questions_of
from .tasks import check_task, demonstrations


ALL_TOOLS = "all tools"
MAX_SEQUENCES = 750
# The authors' setting by hand.
_BY_HAND = Choices.model_validate(
    {
        "data_generation": {f"use_{name}_augmentations": True for name in ("basic", "size", "chain", "repeat")},
        "training": {"strategy": OUTPUT_TOKENS, "learning_rate": 1e-4, "num_train_epochs": 2},
    }
)
_TASK = (
    "Each input grid becomes an output grid by the same rule. Find the rule, and write the output of the last input."
)
_TOOLS = """\
Choose how a small model is trained on this puzzle. Answer with a JSON object and nothing else:

{{"data_generation": {{"use_basic_augmentations": bool, "use_size_augmentations": bool, "use_chain_augmentations": bool, \
"use_repeat_augmentations": bool}}, "training": {{"strategy": "{all_tokens}" or "{output_tokens}", "learning_rate": number, \
"num_train_epochs": number}}}}

basic: turned, flipped, mirrored and shifted copies. size: every cell doubled, in height, in width or in both. chain: turned or \
flipped, then doubled. repeat: the grid beside itself. The loss is taken on all grids, or on the outputs that are asked for. The \
learning rate is above 0 and at most {rate}, the epochs are from 1 to {epochs}."""


class ArcDomain(Domain):
    """
    Learn ARC tasks. An example is a task, as [`load_tasks`] gives it.

    Parameters:
        seed (`int`, *optional*, defaults to `0`):
            Of the training tasks and the contexts that are drawn, together with the task's id.
        max_tasks (`int`, *optional*, defaults to `250`):
            Most training tasks of a self-edit.
        max_sequences (`int`, *optional*, defaults to `750`):
            Most sequences that a self-edit trains on: its training tasks times its epochs. The default is the authors' limit,
            375 steps of two.

    The self-edit chooses rate, epochs and loss. All else of the inner loop is the run's (see [`InnerLoopConfig`]); the authors
    have two sequences a step, a cosine schedule and 11 steps of warm-up.

    Raises:
        ValueError: A number below 1, or a negative seed.
    """

    def __init__(self, seed: int = 0, max_tasks: int = MAX_TASKS, max_sequences: int = MAX_SEQUENCES):
        for name, value, least in (
            ("seed", seed, 0),
            ("max_tasks", max_tasks, 1),
            ("max_sequences", max_sequences, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        self.seed, self.max_tasks, self.max_sequences = seed, max_tasks, max_sequences
        self.chat = True

    def for_model(self, has_chat_template: bool) -> "ArcDomain":
        """Return the domain with prompts in chat form, or in plain text where the tokenizer has no chat template."""
        domain = copy(self)
        domain.chat = has_chat_template
        return domain

    def prompt(self, example: Mapping[str, Any]) -> Prompt:
        """Return the demonstrations of a task, and the request for a JSON object (see [`seal_hf.domains.arc.choices`])."""
        shown = "\n\n".join(_shown(pair) for pair in demonstrations(example))
        asked = _TOOLS.format(
            all_tokens=ALL_TOKENS, output_tokens=OUTPUT_TOKENS, rate=MAX_LEARNING_RATE, epochs=MAX_EPOCHS
        )
        return self._as_prompt(f"{_TASK}\n\n{shown}\n\n{asked}")

    def parse(self, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        """Return the training tasks that the choices of a completion make, and how they are trained on."""
        choices = read_choices(completion)
        return None if choices is None else self._self_edit(choices, completion, example)

    def all_tools(self, example: Mapping[str, Any]) -> SelfEdit:
        """Return the authors' setting by hand: all tools, 1e-4, two epochs, the loss on the outputs that are asked for."""
        self_edit = self._self_edit(_BY_HAND, "", example)
        if self_edit is None:
            raise ValueError(
                f"max_sequences={self.max_sequences} is too few for two epochs of {self.max_tasks} training tasks; raise it, "
                "or lower max_tasks."
            )
        return self_edit

    def _self_edit(self, choices: Choices, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        tasks = training_tasks(example, choices.groups, self.seed, self.max_tasks)
        epochs = choices.training.num_train_epochs
        if not tasks or epochs * len(tasks) > self.max_sequences:
            return None
        examples = tuple(
            TrainingExample(
                self._puzzle(task.demonstrations, task.test[0]),
                write_grid(task.test[1]),
                trains_on_prompt=choices.training.strategy == ALL_TOKENS,
            )
            for task in tasks
        )
        overrides = {"learning_rate": choices.training.learning_rate, "num_train_epochs": epochs}
        metrics = {f"uses_{group}": float(group in choices.groups) for group in ("basic", "size", "chain", "repeat")}
        metrics |= {
            "training_tasks": float(len(tasks)),
            "training_epochs": float(epochs),
            "training_rate": choices.training.learning_rate,
            "trains_on_all_tokens": float(choices.training.strategy == ALL_TOKENS),
        }
        return SelfEdit(self.prompt(example), completion, examples, overrides, metrics=metrics)

    def questions(self, example: Mapping[str, Any]) -> list[Prompt]:
        """Return a prompt for every prediction (see [`questions_of`])."""
        return [self._puzzle(one.demonstrations, one.grid) for one in questions_of(example, self.seed)]

    def max_answer_length(self, example: Mapping[str, Any]) -> int:
        """
        Return what the largest output that is to be expected takes, in tokens of one character: as much larger than its test
        input as the output of some demonstration is, whichever way it is turned.
        """
        ratios = [max(1.0, _size(target) / _size(source)) for source, target in demonstrations(example)]
        largest = max(_size(target) for _, target in demonstrations(example))
        inputs = max(_size(pair["input"]) for pair in example["test"])
        return max(largest, round(max(ratios) * inputs)) + 2

    def grade(
        self, examples: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]
    ) -> list[list[bool | None]]:
        """
        Let the predictions of each task vote for two attempts at each test input: one verdict for a task, `True` where all its test
        inputs are right. What is no grid has no vote.
        """
        return [
            [is_solved(example, attempts(questions_of(example, self.seed), [read_grid(text) for text in own]))]
            for example, own in zip(examples, answers, strict=True)
        ]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The model with the demonstrations in its context alone, and test-time training in the authors' setting by hand."""
        return (Condition(BASE, self.questions), Condition(ALL_TOOLS, self.questions, self.all_tools))

    def check(self, example: Mapping[str, Any]) -> None:
        """
        Find out whether an example is a task with its solutions (see [`Domain.check`]).

        Raises:
            ValueError: Something is missing, or is no grid.
        """
        if "id" not in example:
            raise ValueError('has no "id", from which what is drawn follows; give it a name.')
        checked = check_task(example)
        if any("output" not in pair for pair in checked["test"]):
            raise ValueError("has a test input without an output, so that nothing can be graded; add the solutions.")

    def content(self, example: Mapping[str, Any]) -> str:
        """Return the demonstrations: its id and its test inputs are not what is learned."""
        return "\n\n".join(_shown(pair) for pair in demonstrations(example))

    def _puzzle(self, shown: Sequence[Pair], grid: Grid) -> Prompt:
        parts = [_TASK, *map(_shown, shown), f"Input:\n{write_grid(grid)}\n\nOutput:"]
        return self._as_prompt("\n\n".join(parts))

    def _as_prompt(self, text: str) -> Prompt:
        return [{"role": "user", "content": text}] if self.chat else f"{text}\n"


def _shown(pair: Pair) -> str:
    source, target = pair
    return f"Input:\n{write_grid(source)}\n\nOutput:\n{write_grid(target)}"


def _size(grid: Grid) -> int:
    """Cells and ends of rows, the longer side taken as the number of rows."""
    height, width = len(grid), len(grid[0])
    return height * width + max(height, width)
