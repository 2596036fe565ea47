"""What a task must define for SEAL to learn it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..grading.rewards import ACCURACY
from ..self_edit import Prompt, SelfEdit
from .tools import AskModel


# The two conditions that every domain has: the model without an inner adapter, and with one for a self-edit.
BASE, SELF_EDITS = "base", "self-edits"


@dataclass(frozen=True)
class Condition:
    """
    Something that an evaluation compares self-edits with.

    Parameters:
        name (`str`):
            Its name in records, tables and plots.
        questions (`Callable[[Mapping], list[str | list[dict]]]`):
            The prompts that an example is asked under it; as many as [`Domain.questions`] gives.
        self_edit (`Callable[[Mapping], SelfEdit]`, *optional*):
            What an inner adapter is trained on for an example; nothing is trained where it is absent.
    """

    name: str
    questions: Callable[[Mapping[str, Any]], list[Prompt]]
    self_edit: Callable[[Mapping[str, Any]], SelfEdit] | None = None


class Domain:
    """
    A task that a model can adapt to with self-edits (SEAL, section 3.2).

    Subclass it, implement `prompt`, `parse`, `questions` and `grade`, and pass an instance to [`SelfAdaptingLM`] or
    [`SEALTrainer`]; nothing has to be registered. An `example` is one row of the dataset. The reward of a self-edit is
    the mean of the verdicts that [`~Domain.grade`] gives to the answers of the model adapted to it.

    The other methods have defaults that suit most tasks. A domain is never changed by the model that uses it.
    """

    def prompt(self, example: Mapping[str, Any]) -> Prompt:
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
        Turn what the policy wrote into training examples and hyperparameters.

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

    def parts(self, example: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """
        Return what the policy writes about one after another: its completions for the [`~Domain.prompt`] of each part, joined by
        lines of `---`, are the completion that is parsed. Where there are several, [`~Domain.carry_out`] may tell as `kept` what
        is left of them, joined in the same way, a text for each part.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.

        Returns:
            `Sequence[Mapping[str, Any]]`: examples; by default the example alone.
        """
        return (example,)

    def questions(self, example: Mapping[str, Any]) -> list[Prompt]:
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
            `list[list[bool | None]]`: For each example its verdicts: one for each answer, or a single one for all of
            them, for example after a vote; always as many for the same example. `None` marks what could not be graded;
            it counts neither as right nor as wrong.
        """
        raise NotImplementedError

    def max_answer_length(self, example: Mapping[str, Any]) -> int | None:
        """
        Return the longest answer to a question of an example, in tokens, where the domain knows it; `None`, the default, leaves
        it to the run's settings.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.
        """
        return None

    def carry_out(
        self, self_edits: Sequence[SelfEdit], examples: Sequence[Mapping[str, Any]], ask: AskModel
    ) -> list[SelfEdit]:
        """
        Carry out what self-edits ask of a tool (SEAL, abstract: self-edits may "invoke tools for data augmentation").

        Override it in a domain whose [`~Domain.parse`] gives self-edits with `calls`. It is given many of them at once, so
        that the model can be asked about all in common batches. What it returns is recorded with the self-edits, so that a
        resumed run does not ask again.

        Args:
            self_edits (`Sequence[SelfEdit]`):
                Self-edits with calls.
            examples (`Sequence[Mapping[str, Any]]`):
                For each the example that it was written for.
            ask ([`AskModel`]):
                Answers prompts in common batches: prompts and the most tokens of an answer in, an object with `text` and
                `finished` for each out. A prompt that does not fit the model's context is answered with nothing.

        Returns:
            `list[SelfEdit]`: for each the self-edit with its `examples`, without `calls`, and with `metrics`, which are added to
                those that it had; the rest of it stays as it was, but for `kept`. One without `examples` is malformed.
        """
        return list(self_edits)

    @property
    def pools_drafts(self) -> bool:
        """
        Whether one self-edit may be made of several drafts. They are joined by lines of `---` and parsed as one: of several
        parts all those of the first draft, then those of the next. What [`~Domain.carry_out`] tells as `kept` of them stands in
        their place then.
        """
        return False

    def instruction(self, completion: str) -> str | None:
        """
        Return the instruction under which the policy wrote a self-edit, where it writes one itself as a part of it; `None`, the
        default, where a domain's prompt is the only instruction.

        Args:
            completion (`str`):
                What the policy wrote.
        """
        return None

    def with_instructions(self, example: Mapping[str, Any], instructions: Sequence[str]) -> Mapping[str, Any]:
        """
        Return an example whose [`~Domain.prompt`] also shows instructions that paid; by default the example itself.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.
            instructions (`Sequence[str]`):
                What [`~Domain.instruction`] gave for other self-edits, the best first.
        """
        return example

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """
        What an evaluation compares self-edits with. The first is [`BASE`], the model without an inner adapter, whose
        reward a training round measures too.
        """
        return (Condition(BASE, self.questions),)

    def check(self, example: Mapping[str, Any]) -> None:
        """
        Find out before any work is done whether an example can be learned and graded.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.

        Raises:
            ValueError: Something is missing. The message says what, and how to repair it, and follows the words
                "example 3 ", as in "has no question; add one".
        """
        try:
            self.prompt(example)
            questions = self.questions(example)
        except KeyError as error:
            raise ValueError(
                f"has no {error}, which {type(self).__name__} asks for; add it, or drop the example."
            ) from error
        if not questions:
            raise ValueError("has no question, so that nothing can be rewarded; add one, or drop it.")

    def check_unlabelled(self, example: Mapping[str, Any]) -> None:
        """
        Find out the same where no reward needs a label, as for a passage without questions. By default as
        [`~Domain.check`].

        Raises:
            ValueError: Something is missing.
        """
        self.check(example)

    @property
    def reward_funcs(self) -> tuple[str, ...]:
        """
        The names of the rewards (see [`seal_hf.grading.rewards`]) that self-edits of this domain can get. By default the
        labelled one alone. A domain with `"rubric"` has a text as its [`~Domain.content`]; one with `"own_questions"`
        implements [`~Domain.own_examples`], one with `"self_consistency"` [`~Domain.open_book`].
        """
        return (ACCURACY,)

    def own_examples(
        self, example: Mapping[str, Any], self_edits: Sequence[SelfEdit | None], lm: Any, seed: int
    ) -> list[Mapping[str, Any] | None]:
        """
        Return what the adapters of the self-edits about an example are asked to earn the reward `"own_questions"`: for each an
        example with questions and answers that the model made itself, with what is to be learned in view. They are asked and
        graded as [`~Domain.questions`] and [`~Domain.grade`] do it.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset. Labels that it may have are not looked at.
            self_edits (`Sequence[SelfEdit | None]`):
                All self-edits about it, with what their tools gave; `None` for a malformed one. No self-edit is asked what it
                trains on itself.
            lm ([`SelfAdaptingLM`]):
                The model.
            seed (`int`):
                Seed of what is drawn.

        Returns:
            `list[Mapping | None]`: one for each self-edit; `None` where there is no question for it. JSON can store it.
        """
        raise NotImplementedError

    def open_book(self, examples: Sequence[Mapping[str, Any]], lm: Any) -> list[Mapping[str, Any] | None]:
        """
        Return what adapters are asked to earn the reward `"self_consistency"`: each example with what the model without an inner
        adapter answers with all in view in place of its answers.

        Args:
            examples (`Sequence[Mapping[str, Any]]`):
                Rows of the dataset. Their answers are not looked at.
            lm ([`SelfAdaptingLM`]):
                The model.

        Returns:
            `list[Mapping | None]`: one for each example; `None` where no question got an answer. JSON can store it.
        """
        raise NotImplementedError

    def content(self, example: Mapping[str, Any]) -> str:
        """
        Return the part of an example that is learned. Two examples of equal content are the same to learn, so that one
        must not be trained on and the other held out.
        """
        return json.dumps({key: value for key, value in example.items() if key != "id"}, sort_keys=True, default=str)

    def routes(self, examples: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], list[int | None]] | None:
        """
        Return what tells for each question of an example which of these examples it is about, by what a user would ask alone:
        their places, `None` where that is not clear. `None`, the default, where a domain cannot tell.

        Args:
            examples (`Sequence[Mapping[str, Any]]`):
                Rows of the dataset.
        """
        return None

    def recitation_prompt(self, example: Mapping[str, Any]) -> Prompt | None:
        """
        Return a prompt that asks for the whole of what was learned and nothing in particular, such as "Tell me about ...".

        An evaluation grades the adapted model's answer to it as if it were the answer to every question of the example: what
        it earns so, a model that only recites would earn. `None`, the default, where a domain has no such prompt.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.
        """
        return None

    def recited(self, example: Mapping[str, Any], answers: Sequence[str]) -> list[bool] | None:
        """
        Tell which answers recite what was learned in place of answering (see [`seal_hf.grading.recitation`]); `None`, the
        default, where a domain does not tell.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.
            answers (`Sequence[str]`):
                The answers to its [`~Domain.questions`].
        """
        return None

    def short(self, example: Mapping[str, Any], answers: Sequence[str]) -> list[bool] | None:
        """
        Tell which answers are short (see [`seal_hf.grading.is_short`]): those that are right besides make the strict accuracy
        of an evaluation. `None`, the default, where a domain does not tell.

        Args:
            example (`Mapping[str, Any]`):
                One row of the dataset.
            answers (`Sequence[str]`):
                The answers to its [`~Domain.questions`], with a verdict on each.
        """
        return None

    def retention_example(self) -> Mapping[str, Any] | None:
        """
        Return an example whose questions have nothing to do with what is learned, such as the capital of France.

        An evaluation asks them of the base model and of every adapter, to see what learning should not have changed. They are
        asked and graded as [`~Domain.questions`] and [`~Domain.grade`] do it. `None`, the default, where a domain has none.
        """
        return None

    def for_model(self, has_chat_template: bool) -> "Domain":
        """
        Return the domain in the form that suits a model; the domain itself where it has one form alone.

        Args:
            has_chat_template (`bool`):
                Whether the model's tokenizer has a chat template.

        Raises:
            ValueError: The domain does not work with such a model.
        """
        return self

    def example_from_text(self, text: str) -> dict[str, Any]:
        """
        Return the example that a plain text stands for, where a domain has such examples.

        Raises:
            TypeError: It has none.
        """
        raise TypeError(f"{type(self).__name__} learns from examples, not from a plain text; give it a mapping.")

    def ask(self, questions: Sequence[str], title: str = "") -> list[Prompt]:
        """
        Return evaluation prompts for questions in plain text, where a domain has such questions.

        Args:
            questions (`Sequence[str]`):
                What to ask.
            title (`str`, *optional*, defaults to `""`):
                The topic.

        Raises:
            TypeError: It has none.
        """
        raise TypeError(f"{type(self).__name__} has no questions in plain text; give its prompts to answer_prompts().")


def check_conditions(domain: Domain) -> None:
    """
    Raises:
        ValueError: A domain's conditions do not begin with the base model, or have names that cannot be told apart.
    """
    conditions = domain.conditions
    names = [condition.name for condition in conditions]
    begins = names[:1] == [BASE] and conditions[0].self_edit is None
    if not begins or SELF_EDITS in names or len(set(names)) < len(names):
        raise ValueError(
            f"{type(domain).__name__}.conditions has the names {names}; begin with {BASE!r}, which trains nothing, and "
            f"give the others names of their own, other than {SELF_EDITS!r}."
        )
