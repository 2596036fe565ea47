"""What a run will do, and about how long that takes here: estimated without training anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ..adapters.layout import lora_layout
from ..domains.base import Condition
from ..inner_loop.update import InnerUpdate, tokenize_self_edit
from ..rollout.bank_schedule import adapters_per_bank, work_of
from ..rollout.examples import ExampleSet
from ..rollout.probe import measure_pace
from ..self_adapting_lm import SelfAdaptingLM
from .outer_sft import optimizer_steps, parts_per_example
from .seal_config import SEALConfig
from .stages import examples_per_round, places_to_draw_from, round_places


@dataclass(frozen=True)
class RunPlan:
    """
    The work of a run.

    Parameters:
        num_rounds, num_examples, num_eval_examples, num_processes (`int`):
            As configured.
        examples_per_round (`int`):
            Training examples of each round.
        self_edits_per_round, adapters_per_round (`int`):
            Self-edits written and inner updates trained.
        adapters_per_bank (`int`, *optional*):
            Most inner updates in one bank; `None` where that follows from self-edits of unknown length.
        evaluation_adapters (`int`):
            Inner updates of all evaluations together.
        inner_tokens (`int`, *optional*):
            Tokens that all inner updates train on, a self-edit taken to be as long as what the domain's baseline trains
            on; `None` for a domain without a baseline that trains.
        optimizer_steps (`list[int]`):
            Steps of each round's outer SFT, if every example has its share of kept self-edits.
        seconds (`float`, *optional*):
            Expected time of the inner updates, the writing and the answers, with self-edits of that length; without the
            outer SFT.
    """

    num_rounds: int
    num_examples: int
    examples_per_round: int
    num_eval_examples: int
    num_processes: int
    self_edits_per_round: int
    adapters_per_round: int
    adapters_per_bank: int | None
    evaluation_adapters: int
    inner_tokens: int | None
    optimizer_steps: list[int]
    seconds: float | None

    def __str__(self) -> str:
        banks = "" if self.adapters_per_bank is None else f" in banks of {self.adapters_per_bank}"
        least, most = min(self.optimizer_steps), max(self.optimizer_steps)
        steps = f"{least}" if least == most else f"{least} to {most}"
        is_new = self.examples_per_round < self.num_examples
        own = f", {self.examples_per_round} new ones in each round" if is_new else ""
        lines = [
            f"rounds: {self.num_rounds}, examples: {self.num_examples}{own}, evaluated on: "
            f"{self.num_eval_examples}, processes: {self.num_processes}",
            f"each round: {self.self_edits_per_round} self-edits, {self.adapters_per_round} adapters{banks}, "
            f"{steps} steps of outer SFT",
            f"all evaluations: {self.evaluation_adapters} adapters",
        ]
        if self.inner_tokens is not None:
            lines.append(
                f"about {self.inner_tokens:,} tokens of inner updates, if self-edits are as long as what the baseline trains on"
            )
        if self.seconds is not None:
            lines.append(f"about {self.seconds / 60:.0f} minutes by a short probe of this machine, without the SFT")
        return "\n".join(lines)


def plan_run(
    lm: SelfAdaptingLM, args: SEALConfig, train: ExampleSet, evaluation: ExampleSet | None, num_processes: int
) -> RunPlan:
    """Count the work of a run, and measure this machine for a few steps, whose results are thrown away."""
    num_eval = len(evaluation) if evaluation is not None else 0
    num_evaluations = args.num_rounds + 1
    # Without a reward that an adapter earns none is trained but in evaluations.
    per_example = args.num_generations * (args.num_repeats if args.rewards().needs_adapters else 0)
    trained = [condition for condition in lm.domain.conditions if condition.self_edit is not None]
    tokens = seconds = None
    places = places_to_draw_from(args, lm.domain, train)
    rounds = [
        [train.examples[place] for place in round_places(args, places, index)] for index in range(args.num_rounds)
    ]
    per_round = examples_per_round(args, len(places))
    num_self_edits = per_round * args.num_generations
    per_bank = None if args.adapters_per_bank is None else min(args.adapters_per_bank, num_self_edits)
    if trained:
        baselines = [_updates(lm, trained[-1], examples) for examples in rounds]
        per_bank = per_bank or _adapters_per_bank(lm, args, baselines[0], num_processes)
        # A self-edit is taken to hold a rewrite of what the baseline trains on, and that itself.
        tokens = 2 * sum(map(_num_tokens, baselines)) * per_example
        num_answers = sum(_num_questions(lm, examples) for examples in rounds) * (per_example + 1)
        if evaluation is not None:
            own = sum(_num_tokens(_updates(lm, condition, evaluation.examples)) for condition in trained)
            tokens += num_evaluations * (
                own + 2 * _num_tokens(_updates(lm, trained[-1], evaluation.examples)) * args.num_eval_generations
            )
            num_conditions = (args.num_eval_generations + len(trained)) * num_evaluations
            num_conditions += len(lm.domain.conditions) - len(trained)
            num_answers += _num_questions(lm, evaluation.examples) * num_conditions
        num_written = num_self_edits * args.num_rounds * args.num_drafts
        num_eval_drafts = args.eval_rollout_config().num_drafts
        num_written += num_eval * args.num_eval_generations * num_evaluations * num_eval_drafts
        pace = measure_pace(lm, trained[-1], train.examples, per_bank)
        written_length = min(args.max_completion_length, _mean_length(list(chain.from_iterable(baselines))))
        generated = num_written * written_length + num_answers * args.max_answer_length
        seconds = pace.seconds(tokens, num_written + num_answers, generated) / num_processes
    return RunPlan(
        num_rounds=args.num_rounds,
        num_examples=len(places),
        examples_per_round=per_round,
        num_eval_examples=num_eval,
        num_processes=num_processes,
        self_edits_per_round=num_self_edits,
        adapters_per_round=per_round * per_example,
        adapters_per_bank=per_bank,
        evaluation_adapters=num_eval * (args.num_eval_generations + len(trained)) * num_evaluations,
        inner_tokens=tokens,
        optimizer_steps=optimizer_steps(per_round, args, parts_per_example(lm.domain, train.examples)),
        seconds=seconds,
    )


def _updates(lm: SelfAdaptingLM, condition: Condition, examples: Sequence[Mapping]) -> list[InnerUpdate]:
    """The inner updates of a baseline that trains."""
    return [
        tokenize_self_edit(condition.self_edit(example), lm.processing_class, lm.inner_config) for example in examples
    ]


def _num_questions(lm: SelfAdaptingLM, examples: Sequence[Mapping]) -> int:
    return sum(len(lm.domain.questions(example)) for example in examples)


def _num_tokens(updates: Sequence[InnerUpdate]) -> int:
    """Tokens of all updates, all epochs."""
    return sum(work_of(update).num_tokens for update in updates)


def _mean_length(updates: Sequence[InnerUpdate]) -> float:
    """Mean length of what an update trains on, in tokens."""
    return sum(len(one.input_ids) for update in updates for one in update.sequences) / len(updates)


def _adapters_per_bank(
    lm: SelfAdaptingLM, args: SEALConfig, baseline: Sequence[InnerUpdate], num_processes: int
) -> int:
    """As many as the first round will take if self-edits are twice as long as what the baseline trains on."""
    work = [
        replace(update, sequences=update.sequences * 2) for update in baseline for _ in range(args.num_generations)
    ]
    return adapters_per_bank(
        lm.model,
        lora_layout(lm.model, lm.peft_config),
        list(map(work_of, work)),
        args.num_repeats,
        num_processes,
        lm.inner_gradient_checkpointing,
    )
