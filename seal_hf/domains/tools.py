"""The tools that self-edits call: whom they may ask, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ..self_edit import Prompt, SelfEdit


if TYPE_CHECKING:
    from .base import Domain


class Answer(Protocol):
    """
    What a model answers to a prompt.

    Attributes:
        text (`str`):
            The answer.
        finished (`bool`):
            Whether it has its end, rather than being cut off by the length limit.
    """

    text: str
    finished: bool


class AskModel(Protocol):
    """
    The model that a tool may ask, without an inner adapter. Its answers are greedy. It is the student, which is to learn from
    them, or as the writer the policy; they are one model unless the student is the base (see [`SelfAdaptingLM`]).

    `one_line` says of all prompts, or of each, that nothing is wanted after the first line of its answer.
    """

    def __call__(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        as_writer: bool = False,
        one_line: bool | Sequence[bool] = False,
    ) -> Sequence[Answer]: ...


def carried_out(
    domain: "Domain", self_edits: Sequence[SelfEdit | None], examples: Sequence[Mapping], ask: AskModel
) -> list[SelfEdit | None]:
    """
    Self-edits after the domain's tool has done what they ask of it, with one call for all (see [`Domain.carry_out`]).

    Args:
        domain ([`Domain`]):
            The domain.
        self_edits (`Sequence[SelfEdit | None]`):
            What [`Domain.parse`] gave. Those without calls are returned as they are.
        examples (`Sequence[Mapping]`):
            For each the example that it was written for.
        ask ([`AskModel`]):
            The model that the tool may ask.

    Returns:
        `list[SelfEdit | None]`: one for each. One without `examples` is malformed.

    Raises:
        ValueError: The domain has not carried out all of them.
    """
    calling = [place for place, edit in enumerate(self_edits) if edit is not None and edit.calls]
    if not calling:
        return list(self_edits)
    done = domain.carry_out([self_edits[place] for place in calling], [examples[place] for place in calling], ask)
    if len(done) != len(calling) or any(edit.calls for edit in done):
        raise ValueError(
            f"{type(domain).__name__}.carry_out() must return a self-edit without calls for each of the "
            f"{len(calling)} that it was given; its parse() gives self-edits with calls."
        )
    result = list(self_edits)
    for place, edit in zip(calling, done, strict=True):
        # Nothing else of it is recorded by a run.
        result[place] = replace(
            self_edits[place],
            examples=edit.examples,
            metrics={**self_edits[place].metrics, **edit.metrics},
            calls=(),
            kept=edit.kept,
        )
    return result
