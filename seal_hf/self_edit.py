"""What a model writes to teach itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SelfEdit:
    """
    One self-edit (SEAL, section 3): a completion of the policy and the finetuning data that it stands for.

    Parameters:
        prompt (`str` or `list[dict]`):
            What the policy saw: plain text, or chat messages with `"role"` and `"content"`.
        completion (`str`):
            What the policy wrote.
        sequences (`tuple[tuple[str, str], ...]`):
            Training examples as `(prompt, completion)` pairs. The loss is taken on the completion only; with an empty
            prompt it is taken on every token.
        overrides (`Mapping[str, object]`, *optional*, defaults to an empty mapping):
            Hyperparameters of the inner update that the self-edit chose itself, by the names of
            [`InnerLoopConfig`]'s fields, such as `learning_rate` or `num_train_epochs`.
    """

    prompt: str | list[dict]
    completion: str
    sequences: tuple[tuple[str, str], ...]
    overrides: Mapping[str, object] = field(default_factory=dict)
