"""What a model writes to teach itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


Prompt = str | list[dict]  # plain text, or chat messages with "role" and "content"


@dataclass(frozen=True)
class TrainingExample:
    """
    One text that an inner adapter is trained on.

    Parameters:
        prompt (`str` or `list[dict]`):
            What comes before the completion, without a loss: plain text, or chat messages for the tokenizer's template.
            Where it is empty, the loss is taken on every token of the completion.
        completion (`str`):
            What the adapter learns to write.
        trains_on_prompt (`bool`, *optional*, defaults to `False`):
            Whether the loss is taken on the prompt, too.
    """

    prompt: Prompt
    completion: str
    trains_on_prompt: bool = False


@dataclass(frozen=True)
class SelfEdit:
    """
    One self-edit (SEAL, section 3): a completion of the policy and the finetuning data that it stands for.

    Parameters:
        prompt (`str` or `list[dict]`):
            What the policy saw: plain text, or chat messages.
        completion (`str`):
            What the policy wrote.
        examples (`tuple[TrainingExample, ...]`):
            What an inner adapter is trained on.
        overrides (`Mapping[str, object]`, *optional*, defaults to an empty mapping):
            Hyperparameters of the inner update that the self-edit chose itself, by the names of
            [`InnerLoopConfig`]'s fields, such as `learning_rate` or `num_train_epochs`.
        calls (`tuple[str, ...]`, *optional*, defaults to none):
            What it asks of its domain's tool, such as questions to be answered. They are carried out before it is trained
            on (see [`Domain.carry_out`]), and gone then.
        metrics (`Mapping[str, float]`, *optional*, defaults to an empty mapping):
            What is to be told of it, such as the epochs that it chose, and how many questions its tool kept.
        kept (`str`, *optional*):
            What its tool kept of the completion, in the form in which a policy writes it: a text for each of the domain's
            parts of the example (see [`Domain.parts`]), joined by lines of `---`.
        title (`str`, *optional*, defaults to `""`):
            The topic that its examples name, if they do. The adapter that is trained on it keeps it, and is asked with it.
    """

    prompt: Prompt
    completion: str
    examples: tuple[TrainingExample, ...]
    overrides: Mapping[str, object] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: str | None = None
    title: str = ""


def joined_self_edits(self_edits: Sequence[SelfEdit]) -> SelfEdit:
    """
    Join self-edits about one example, so that one adapter learns from all of them together.

    Args:
        self_edits (`Sequence[SelfEdit]`):
            At least one, without calls.

    Returns:
        [`SelfEdit`]: the first with the examples of all: its own, and of each other those that are in none before it. What
            they set of their training is left out, since it may differ.
    """
    examples = self_edits[0].examples
    for edit in self_edits[1:]:
        examples += tuple(one for one in edit.examples if one not in examples)
    return replace(self_edits[0], examples=examples, overrides={})
