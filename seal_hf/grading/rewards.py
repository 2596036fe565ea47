"""The rewards of a self-edit by their names, and their weighted sum."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


# The labelled reward; and those that need no gold answers.
ACCURACY, RUBRIC, OWN_QUESTIONS, SELF_CONSISTENCY = "accuracy", "rubric", "own_questions", "self_consistency"
REWARD_FUNCS = (ACCURACY, RUBRIC, OWN_QUESTIONS, SELF_CONSISTENCY)
# What an adapter has to be trained for.
_OF_ADAPTERS = (ACCURACY, OWN_QUESTIONS, SELF_CONSISTENCY)


@dataclass(frozen=True)
class Rewards:
    """
    Which rewards a self-edit gets, and how they are summed.

    The weights are divided by their sum, so that the sum of rewards, which are shares from 0 to 1, is such a share too. (TRL's
    GRPO leaves them as they are; which self-edit is the best does not change.)

    Parameters:
        names (`tuple[str, ...]`, *optional*, defaults to `("accuracy",)`):
            Some of [`REWARD_FUNCS`].
        weights (`tuple[float, ...]`, *optional*):
            One for each, at least 0. A reward with the weight 0 is recorded and takes no part in the sum. Equal where absent.

    Raises:
        ValueError: No name, an unknown one or one given twice; or weights that are not one for each, below 0, or all 0.
    """

    names: tuple[str, ...] = (ACCURACY,)
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        unknown = [name for name in self.names if name not in REWARD_FUNCS]
        if not self.names or unknown or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"reward_funcs={list(self.names)} must be one or more of {', '.join(map(repr, REWARD_FUNCS))}, each once."
            )
        if self.weights is None:
            return
        if len(self.weights) != len(self.names):
            raise ValueError(
                f"reward_weights={list(self.weights)} must be one for each of reward_funcs={list(self.names)}."
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or not any(self.weights):
            raise ValueError(
                f"reward_weights={list(self.weights)} must be numbers of at least 0, and one of them above 0."
            )

    @property
    def is_default(self) -> bool:
        """Whether the labelled reward is the only one."""
        return self.names == (ACCURACY,)

    @property
    def needs_adapters(self) -> bool:
        """Whether any of them is earned by an adapter that is trained on the self-edit."""
        return any(name in _OF_ADAPTERS for name in self.names)

    def total(self, values: Mapping[str, float | None]) -> float | None:
        """
        The weighted sum.

        Args:
            values (`Mapping[str, float | None]`):
                Each reward by its name, from 0 to 1; `None` where it is not known.

        Returns:
            `float`, *optional*: from 0 to 1; `None` where a reward with a weight above 0 is not known.

        Example:

        ```python
        >>> rewards = Rewards(("rubric", "own_questions", "accuracy"), (1, 3, 0))
        >>> rewards.total({"rubric": 0.5, "own_questions": 1.0, "accuracy": None})
        0.875

        ```
        """
        weights = dict(zip(self.names, self.weights or (1.0,) * len(self.names), strict=True))
        counted = {name: weight for name, weight in weights.items() if weight}
        if any(values.get(name) is None for name in counted):
            return None
        return sum(weight * values[name] for name, weight in counted.items()) / sum(counted.values())


# The labelled reward alone.
LABELLED = Rewards()
