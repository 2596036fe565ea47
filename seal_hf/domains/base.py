"""What a task must define for SEAL to learn it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..self_edit import SelfEdit


class Domain:
    """
    A task that a model can adapt to with self-edits (SEAL, section 3.2).

    Subclass it, implement the four methods and pass an instance to [`SelfAdaptingLM`]; nothing has to be registered. An
    `example` is one row of the dataset. The reward of a self-edit is the mean of the verdicts that [`~Domain.grade`]
    gives to the answers of the model adapted to it.
    """

    def prompt(self, example: Mapping[str, Any]) -> str | list[dict]:
        """
        Return what the policy sees when it writes a self-edit.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.

        Returns:
            `str` or `list[dict]`: Plain text, or chat messages for the tokenizer's chat template.
        """
        raise NotImplementedError

    def parse(self, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        """
        Turn what the policy wrote into training sequences and hyperparameters.

        Args:
            completion (`str`):
                What the policy wrote.
            example (`Mapping[str, Any]`):
                The row that the completion was written for.

        Returns:
            [`SelfEdit`] or `None`: `None` marks a malformed completion, whose reward is 0. A malformed completion
            never raises.
        """
        raise NotImplementedError

    def questions(self, example: Mapping[str, Any]) -> list[str | list[dict]]:
        """
        Return the prompts that the adapted model is evaluated on.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.

        Returns:
            `list[str | list[dict]]`: Evaluation prompts. What the self-edit should teach is not in them.
        """
        raise NotImplementedError

    def grade(
        self, examples: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]
    ) -> list[list[bool | None]]:
        """
        Judge the answers to the evaluation prompts of many examples at once.

        Args:
            examples (`Sequence[Mapping[str, Any]]`):
                Rows of the dataset. The same row may occur more than once.
            answers (`Sequence[Sequence[str]]`):
                For each example, the answers to its [`~Domain.questions`], in their order.

        Returns:
            `list[list[bool | None]]`: A verdict for each answer of each example. `None` marks an answer that could
            not be graded; it counts neither as right nor as wrong.
        """
        raise NotImplementedError
