"""The stages of a run, and the seeds of its random streams."""

from collections.abc import Sequence

import numpy as np

from ..domains import Domain
from ..generation.base import draw_seed
from ..grading.rewards import ACCURACY
from ..records.journal import Journal
from ..rollout.examples import ExampleSet
from ..rollout.stage import Stage
from .seal_config import SEALConfig


# First parts of the seeds, after the run's own.
_TRAINING, _EVALUATION, _SFT, _EXAMPLES = range(4)


def examples_per_round(args: SEALConfig, num_examples: int) -> int:
    """
    How many of the training examples that rounds draw from a round takes (see [`SEALConfig`]).

    Raises:
        ValueError: There are too few examples for every round to have new ones.
    """
    if args.examples_per_round == 0:
        return num_examples
    per_round = args.examples_per_round or max(1, num_examples // args.num_rounds)
    if (needed := per_round * args.num_rounds) > num_examples:
        raise ValueError(
            f"train_dataset has {num_examples} different examples, but num_rounds={args.num_rounds} rounds of {per_round} new ones "
            f"need {needed}; give more examples, lower examples_per_round or num_rounds, or set examples_per_round=0 to "
            "train on all examples in every round."
        )
    return per_round


def places_to_draw_from(args: SEALConfig, domain: Domain, data: ExampleSet) -> list[int]:
    """
    The places of the training examples that rounds draw from. Of several with the same content it is the first alone, since
    the others are not new to a later round; where all rounds have all examples, it is all.
    """
    return list(range(len(data))) if args.examples_per_round == 0 else data.distinct(domain.content)


def round_places(args: SEALConfig, places: Sequence[int], round_index: int) -> tuple[int, ...]:
    """The places of a round's examples in the training set, in order; drawn from `places` and the seed alone."""
    per_round = examples_per_round(args, len(places))
    if args.examples_per_round == 0:
        return tuple(places)
    drawn = np.random.default_rng(draw_seed(args.seed, _EXAMPLES)).permutation(places)
    return tuple(sorted(drawn[round_index * per_round : (round_index + 1) * per_round].tolist()))


def training_stage(args: SEALConfig, domain: Domain, journal: Journal, data: ExampleSet, round_index: int) -> Stage:
    """The self-edits that a round chooses from, beside the base model's labelled reward where labels are looked at."""
    rewards = args.rewards()
    num_repeats = args.num_repeats if rewards.needs_adapters else 0
    seed = draw_seed(args.seed, _TRAINING, round_index)
    return Stage(
        name=f"round {round_index + 1}/{args.num_rounds}",
        journal=journal,
        round=round_index,
        data=data,
        seed=seed,
        inner_seeds=tuple(draw_seed(seed, repeat) for repeat in range(num_repeats)),
        num_generations=args.num_generations,
        baselines=domain.conditions[:1] if ACCURACY in rewards.names else (),
        places=round_places(args, places_to_draw_from(args, domain, data), round_index),
        rewards=rewards,
    )


def showing(domain: Domain, data: ExampleSet, instructions: Sequence[str]) -> ExampleSet:
    """Examples whose prompts show instructions (see [`Domain.with_instructions`])."""
    return ExampleSet([dict(domain.with_instructions(example, instructions)) for example in data.examples], data.ids)


def longest_instructions(domain: Domain, number: int) -> list[str]:
    """As many instructions as a prompt may show, as long as the domain keeps them; none where it has none."""
    longest = domain.instruction("instruction " * 1000)
    return [] if longest is None else [longest] * number


def evaluation_stage(args: SEALConfig, domain: Domain, journal: Journal, data: ExampleSet, num_rounds: int) -> Stage:
    """
    The evaluation of a policy that was trained for `num_rounds`. All have the same draws, so that rounds differ by their
    policies alone. Conditions that train an adapter are measured with every policy, those that do not with the first.
    """
    seed = draw_seed(args.seed, _EVALUATION)
    return Stage(
        name=f"evaluation after {num_rounds} rounds" if num_rounds else "evaluation before round 1",
        journal=journal,
        round=num_rounds,
        data=data,
        seed=seed,
        inner_seeds=(draw_seed(seed, 0),),
        num_generations=args.num_eval_generations,
        baselines=tuple(one for one in domain.conditions if num_rounds == 0 or one.self_edit is not None),
        is_evaluation=True,
    )


def sft_seed(args: SEALConfig, round_index: int) -> int:
    """The seed of a round's outer SFT."""
    return draw_seed(args.seed, _SFT, round_index)
