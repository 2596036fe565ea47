"""The data of a run, checked before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from ..rollout.examples import ExampleSet, check_examples
from ..self_adapting_lm import SelfAdaptingLM
from .outer_sft import require_end_token
from .seal_config import SEALConfig
from .stages import longest_instructions, places_to_draw_from, showing


@dataclass(frozen=True)
class RunData:
    """
    What a run trains on and is evaluated on.

    Parameters:
        train ([`ExampleSet`]):
            The training examples.
        evaluation ([`ExampleSet`], *optional*):
            The held-out examples.
        num_to_draw_from (`int`):
            Training examples that rounds draw from (see [`places_to_draw_from`]).
    """

    train: ExampleSet
    evaluation: ExampleSet | None
    num_to_draw_from: int

    @classmethod
    def checked(
        cls,
        lm: SelfAdaptingLM,
        eval_lm: SelfAdaptingLM,
        args: SEALConfig,
        train_dataset: Dataset | Sequence[Mapping] | None,
        eval_dataset: Dataset | Sequence[Mapping] | None,
    ) -> "RunData":
        """
        Check the examples that a [`SEALTrainer`] is given by their domains, and that they fit the model.

        Args:
            lm, eval_lm ([`SelfAdaptingLM`]):
                The model with the domain of training, and with that of evaluations.
            args ([`SEALConfig`]):
                The run's settings.
            train_dataset, eval_dataset:
                As for [`SEALTrainer`].

        Raises:
            ValueError: No training examples, ids that are not unique, a reward that the domain has not, or an example
                that the domain refuses or that does not fit the model's context.
            TypeError: A dataset that cannot be indexed.
        """
        if train_dataset is None:
            raise ValueError("train_dataset is required; give a list or a datasets.Dataset of examples.")
        train = ExampleSet.of(train_dataset, "train_dataset")
        evaluation = None if eval_dataset is None else ExampleSet.of(eval_dataset, "eval_dataset")
        rewards = args.rewards()
        if missing := [name for name in rewards.names if name not in lm.domain.reward_funcs]:
            raise ValueError(
                f"reward_funcs={list(rewards.names)}: {type(lm.domain).__name__} has no reward {missing[0]!r}, only "
                f"{', '.join(map(repr, lm.domain.reward_funcs))}; leave it out, or add it to the domain's reward_funcs."
            )
        shown = showing(lm.domain, train, longest_instructions(lm.domain, args.num_instructions_shown))
        lengths = (args.max_completion_length, args.max_answer_length)
        check_examples(lm, shown, "train_dataset", *lengths, args.max_length, rewards)
        require_end_token(lm.processing_class, lm.domain.prompt(train.examples[0]))
        if evaluation is not None:
            check_examples(eval_lm, evaluation, "eval_dataset", *lengths)
            evaluation.warn_of_shared(train, lm.domain.content)
        return cls(train, evaluation, len(places_to_draw_from(args, lm.domain, train)))


def checked_evaluation_set(
    lm: SelfAdaptingLM, args: SEALConfig, eval_dataset: Dataset | Sequence[Mapping]
) -> ExampleSet:
    """
    Check examples that a run is evaluated on besides its own.

    Raises:
        ValueError: As for [`RunData.checked`].
        TypeError: A dataset that cannot be indexed.
    """
    data = ExampleSet.of(eval_dataset, "eval_dataset")
    check_examples(lm, data, "eval_dataset", args.max_completion_length, args.max_answer_length)
    return data
