"""A dataset's examples with an id for each, and what they must have before anything is trained."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate import PartialState
from datasets import Dataset, IterableDataset

from ..domains.files import fault_of
from ..grading.rewards import ACCURACY, LABELLED, SELF_CONSISTENCY, Rewards
from ..models.encoding import encode_prompt
from ..self_adapting_lm import SelfAdaptingLM


logger = logging.getLogger(__name__)

# Tokens that a prompt must leave of the context for a self-edit, where it may be so long: most are shorter.
_LEAST_ROOM = 256


@dataclass(frozen=True)
class ExampleSet:
    """
    Examples of a domain in their order.

    Parameters:
        examples (`list[dict]`):
            Mappings.
        ids (`list[str]`):
            Each example's `"id"`, or its index where it has none.
    """

    examples: list[dict]
    ids: list[str]

    @classmethod
    def of(cls, dataset: Dataset | Sequence[Mapping], name: str) -> "ExampleSet":
        """
        Take a dataset as it is given to a trainer.

        Raises:
            TypeError: It cannot be indexed.
            ValueError: It is empty, two examples have the same id, or an id is no text that can be stored. Messages begin
                with `name`.
        """
        if isinstance(dataset, IterableDataset | Mapping | str) or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"{name} must be a list or a datasets.Dataset of examples, not a {type(dataset).__name__}; give a list of mappings."
            )
        for place, example in enumerate(dataset):
            if not isinstance(example, Mapping):
                raise TypeError(
                    f"{name}: example {place} must be a mapping, not a {type(example).__name__}; give a list of mappings."
                )
        examples = [dict(example) for example in dataset]
        if not examples:
            raise ValueError(f"{name} is empty; give at least one example.")
        ids = [str(example.get("id", place)) for place, example in enumerate(examples)]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"{name} has more than one example with the id {twice!r}; make ids unique or drop them.")
        for place, own in enumerate(ids):
            if fault := fault_of({"id": own}):
                raise ValueError(f"{name}: example {place} has {fault}.")
        return cls(examples, ids)

    def __len__(self) -> int:
        return len(self.examples)

    def distinct(self, content: Callable[[Mapping], str]) -> list[int]:
        """The places of the examples without those of the same content (see [`Domain.content`]) as an earlier one."""
        first: dict[str, int] = {}
        for place, example in enumerate(self.examples):
            first.setdefault(content(example), place)
        return list(first.values())

    def warn_of_shared(self, train: "ExampleSet", content: Callable[[Mapping], str]) -> None:
        """Warn, in the first process, of examples with the same content (see [`Domain.content`]) as one to train on."""
        theirs = set(map(content, train.examples))
        num_shared = sum(content(example) in theirs for example in self.examples)
        if num_shared and PartialState().is_main_process:
            logger.warning(
                "%d of %d evaluation examples are in the training set too; their accuracy says nothing about new ones.",
                num_shared,
                len(self),
            )


def completion_room(lm: SelfAdaptingLM, example: Mapping, max_completion_length: int) -> int:
    """Most tokens of a self-edit about an example: no more than the model's context leaves after the prompt."""
    context = lm.context_length
    if context is None:
        return max_completion_length
    return min(max_completion_length, context - len(encode_prompt(lm.processing_class, lm.domain.prompt(example))))


def check_examples(
    lm: SelfAdaptingLM,
    data: ExampleSet,
    name: str,
    max_completion_length: int,
    max_answer_length: int,
    max_length: int | None = None,
    rewards: Rewards = LABELLED,
) -> None:
    """
    Check every example by its domain, and that its prompts fit the model.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain.
        data ([`ExampleSet`]):
            The examples.
        name (`str`):
            What they are called in messages.
        max_completion_length, max_answer_length (`int`):
            Longest self-edit and longest answer, in tokens.
        max_length (`int`, *optional*):
            Longest prompt with self-edit that is trained on in the outer SFT, in tokens.
        rewards ([`Rewards`], *optional*):
            What self-edits about them are rewarded by, which decides whether they need labels. Defaults to the labelled reward.

    Raises:
        ValueError: An example that the domain refuses, or whose prompts are too long; the message names it.
    """
    context = lm.context_length
    for example, example_id in zip(data.examples, data.ids, strict=True):
        try:
            if ACCURACY in rewards.names:
                lm.domain.check(example)
            else:
                lm.domain.check_unlabelled(example)
            if SELF_CONSISTENCY in rewards.names and not lm.domain.questions(example):
                raise ValueError("has no question, which the reward 'self_consistency' needs; add one, or drop it.")
        except ValueError as error:
            raise ValueError(f"{name}: example {example_id} {error}") from error
        prompt = lm.domain.prompt(example)
        prompt_length = len(encode_prompt(lm.processing_class, prompt))
        if max_length is not None and prompt_length >= max_length:
            raise ValueError(
                f"{name}: example {example_id} has a prompt of {prompt_length} tokens, which leaves no room for a "
                f"self-edit in the outer SFT's max_length={max_length}; raise it, or drop the example."
            )
        if context is None:
            continue
        questions = [question for condition in lm.domain.conditions for question in condition.questions(example)]
        if max_completion_length > _LEAST_ROOM and prompt_length + _LEAST_ROOM > context:
            raise ValueError(
                f"{name}: example {example_id} has a prompt of {prompt_length} tokens, which leaves fewer than "
                f"{_LEAST_ROOM} of the model's context of {context} for a self-edit; shorten or drop the example."
            )
        longest_question = max((len(encode_prompt(lm.processing_class, one)) for one in questions), default=0)
        for length, new_tokens, option in (
            (prompt_length, min(max_completion_length, _LEAST_ROOM), "max_completion_length"),
            (longest_question, lm.domain.max_answer_length(example) or max_answer_length, "max_answer_length"),
        ):
            if length + new_tokens > context:
                raise ValueError(
                    f"{name}: example {example_id} has a prompt of {length} tokens, which with {option}={new_tokens} "
                    f"exceeds the model's context of {context}; shorten or drop the example, or lower {option}."
                )
