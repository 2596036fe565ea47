"""The stages of a run, and the seeds of its random streams."""

from ..domains import Domain
from ..generation.base import draw_seed
from ..records.journal import Journal
from ..rollout.examples import ExampleSet
from ..rollout.stage import Stage
from .seal_config import SEALConfig


# First parts of the seeds, after the run's own.
_TRAINING, _EVALUATION, _SFT = range(3)


def training_stage(args: SEALConfig, domain: Domain, journal: Journal, data: ExampleSet, round_index: int) -> Stage:
    """The self-edits that a round chooses from, beside the base model's reward."""
    seed = draw_seed(args.seed, _TRAINING, round_index)
    return Stage(
        name=f"round {round_index + 1}/{args.num_rounds}: inner updates",
        journal=journal,
        round=round_index,
        data=data,
        seed=seed,
        inner_seeds=tuple(draw_seed(seed, repeat) for repeat in range(args.num_repeats)),
        num_generations=args.num_generations,
        baselines=domain.conditions[:1],
    )


def evaluation_stage(args: SEALConfig, domain: Domain, journal: Journal, data: ExampleSet, num_rounds: int) -> Stage:
    """
    The evaluation of a policy that was trained for `num_rounds`. All have the same draws, so that rounds differ by their
    policies alone; the first measures the domain's other conditions too.
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
        baselines=domain.conditions if num_rounds == 0 else (),
        is_evaluation=True,
    )


def sft_seed(args: SEALConfig, round_index: int) -> int:
    """The seed of a round's outer SFT."""
    return draw_seed(args.seed, _SFT, round_index)
