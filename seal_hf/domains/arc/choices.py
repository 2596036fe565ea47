"""
What a self-edit about an ARC task chooses (SEAL, section 4.1): the tools that make its training data, and how it is trained.

The policy writes a JSON object:

```json
{
  "data_generation": {
    "use_basic_augmentations": true,
    "use_size_augmentations": false,
    "use_chain_augmentations": true,
    "use_repeat_augmentations": false
  },
  "training": {"strategy": "train_using_output_tokens", "learning_rate": 1e-4, "num_train_epochs": 2}
}
```
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


MAX_LEARNING_RATE, MAX_EPOCHS = 0.1, 10
ALL_TOKENS, OUTPUT_TOKENS = "train_using_all_tokens", "train_using_output_tokens"


class _Strict(BaseModel):
    # No key may be unknown, and no value is read as another type.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataGeneration(_Strict):
    """The groups of tools that are used (see [`seal_hf.domains.arc.transforms.tools`])."""

    use_basic_augmentations: bool
    use_size_augmentations: bool
    use_chain_augmentations: bool
    use_repeat_augmentations: bool


class Training(_Strict):
    """
    How the adapter is trained.

    Parameters:
        strategy (`str`):
            Whether the loss is taken on all tokens of a task, or on those of the output that is asked for.
        learning_rate (`float`):
            Above 0 and at most 0.1.
        num_train_epochs (`int`):
            From 1 to 10.
    """

    strategy: Literal["train_using_all_tokens", "train_using_output_tokens"]
    learning_rate: Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)]
    num_train_epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)]


class Choices(_Strict):
    """A whole self-edit."""

    data_generation: DataGeneration
    training: Training

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of tools."""
        return tuple(
            name.removeprefix("use_").removesuffix("_augmentations")
            for name, is_used in self.data_generation.model_dump().items()
            if is_used
        )


def read_choices(completion: str) -> Choices | None:
    """
    Read what a policy wrote; `None` where it is malformed.

    The first JSON object of the text counts, so that a sentence before it and a fence around it do no harm. Its keys and types
    must be exactly those of [`Choices`], each once.

    Example:

    ```python
    >>> read_choices('{"training": {"strategy": "all"}}') is None
    True

    ```
    """
    start = completion.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder(object_pairs_hook=_once).raw_decode(completion, start)
        return Choices.model_validate(value)
    except (ValueError, ValidationError, RecursionError):
        return None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """
    Raises:
        ValueError: A key comes twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("A key comes twice.")
    return found
