"""What a run will do, and about how long that takes here: worked out without training anything."""

import threading
import time
from dataclasses import dataclass

from .banks import adapters_that_fit
from .domains import KnowledgeDomain
from .example_set import ExampleSet
from .generation import context_length, encode_prompt
from .inner_loop import InnerStep
from .inner_update import tokenize_self_edit
from .journal import PASSAGE_ONLY
from .lora_layout import lora_layout
from .outer_sft import optimizer_steps
from .rollout import baselines_of, policy_in_activation_dtype
from .seal_config import SEALConfig
from .self_adapting_lm import SelfAdaptingLM


_PROBE_STEPS = 4
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class RunPlan:
    """
    The work of a run.

    Parameters:
        num_rounds, num_examples, num_eval_examples, num_processes (`int`):
            As configured.
        self_edits_per_round, adapters_per_round, adapters_per_batch (`int`):
            Self-edits written, inner updates trained and inner updates in one bank.
        evaluation_adapters (`int`):
            Inner updates of all evaluations together.
        inner_tokens (`int`, *optional*):
            Tokens that all inner updates train on, a self-edit taken to be as long as its passage; `None` for a domain
            without passages.
        optimizer_steps_per_round (`int`):
            Steps of the outer SFT, if every example has its share of kept self-edits.
        seconds (`float`, *optional*):
            Expected time of the inner updates, the writing and the answers; without the outer SFT.
    """

    num_rounds: int
    num_examples: int
    num_eval_examples: int
    num_processes: int
    self_edits_per_round: int
    adapters_per_round: int
    adapters_per_batch: int
    evaluation_adapters: int
    inner_tokens: int | None
    optimizer_steps_per_round: int
    seconds: float | None

    def __str__(self) -> str:
        lines = [
            f"rounds: {self.num_rounds}, examples: {self.num_examples}, evaluated on: {self.num_eval_examples}, "
            f"processes: {self.num_processes}",
            f"each round: {self.self_edits_per_round} self-edits, {self.adapters_per_round} adapters in banks of "
            f"{self.adapters_per_batch}, {self.optimizer_steps_per_round} steps of outer SFT",
            f"all evaluations: {self.evaluation_adapters} adapters",
        ]
        if self.inner_tokens is not None:
            lines.append(f"about {self.inner_tokens:,} tokens of inner updates, if self-edits are as long as passages")
        if self.seconds is not None:
            lines.append(f"about {self.seconds / 60:.0f} minutes by a short probe of this machine, without the SFT")
        return "\n".join(lines)


def check_lengths(
    lm: SelfAdaptingLM, args: SEALConfig, data: ExampleSet, name: str, is_trained_on: bool = False
) -> None:
    """
    Raises:
        ValueError: An example whose prompts do not fit the model's context, named with its length.
    """
    context = context_length(lm.model)
    for example, example_id in zip(data.examples, data.ids, strict=True):
        try:
            questions = list(lm.domain.questions(example))
        except KeyError as error:
            raise ValueError(
                f"{name}: example {example_id} has no {error}, which {type(lm.domain).__name__} asks for; add it, or drop "
                "the example."
            ) from error
        if not questions:
            raise ValueError(
                f"{name}: example {example_id} has no question, so that nothing can be rewarded; add one, or drop it."
            )
        if isinstance(lm.domain, KnowledgeDomain):
            questions += lm.domain.questions_in_context(example)
        prompt_length = len(encode_prompt(lm.processing_class, lm.domain.prompt(example)))
        if is_trained_on and args.max_length is not None and prompt_length >= args.max_length:
            raise ValueError(
                f"{name}: example {example_id} has a prompt of {prompt_length} tokens, which leaves no room for a "
                f"self-edit in the outer SFT's max_length={args.max_length}; raise it, or drop the example."
            )
        for prompts, new_tokens, option in (
            ([lm.domain.prompt(example)], args.max_completion_length, "max_completion_length"),
            (questions, args.max_answer_length, "max_answer_length"),
        ):
            if context is None:
                break
            longest = max(len(encode_prompt(lm.processing_class, prompt)) for prompt in prompts)
            if longest + new_tokens > context:
                raise ValueError(
                    f"{name}: example {example_id} has a prompt of {longest} tokens, which with {option}={new_tokens} "
                    f"exceeds the model's context of {context}; shorten or drop the example, or lower {option}."
                )


def plan_run(
    lm: SelfAdaptingLM, args: SEALConfig, train: ExampleSet, evaluation: ExampleSet | None, num_processes: int
) -> RunPlan:
    """Count the work of a run, and measure this machine for a few steps, whose results are thrown away."""
    per_batch = args.adapters_per_batch or adapters_that_fit(lora_layout(lm.model, lm.peft_config), lm.model.device)
    num_eval = len(evaluation) if evaluation is not None else 0
    adapters_per_round = len(train) * args.num_generations * args.num_evaluations
    eval_adapters = num_eval * (
        args.num_eval_generations * (args.num_rounds + 1) + (PASSAGE_ONLY in baselines_of(lm.domain))
    )
    tokens = seconds = None
    if isinstance(lm.domain, KnowledgeDomain):
        train_tokens = _passage_tokens(lm, train)
        eval_tokens = _passage_tokens(lm, evaluation) if evaluation is not None else 0
        # A rewrite and the passage itself; the passage alone once.
        tokens = 2 * train_tokens * args.num_generations * args.num_evaluations * args.num_rounds
        tokens += eval_tokens * (2 * args.num_eval_generations * (args.num_rounds + 1) + 1)
        num_answers = (
            sum(len(example["questions"]) for example in train.examples)
            * args.num_rounds
            * (args.num_generations * args.num_evaluations + 1)
        )
        if evaluation is not None:
            num_questions = sum(len(example["questions"]) for example in evaluation.examples)
            num_answers += num_questions * (args.num_eval_generations * (args.num_rounds + 1) + 3)
        num_written = len(train) * args.num_generations * args.num_rounds
        num_written += num_eval * args.num_eval_generations * (args.num_rounds + 1)
        tokens_per_second, prompt_seconds, token_seconds = _probe(lm, train, per_batch)
        generated = num_written * args.max_completion_length + num_answers * args.max_answer_length
        seconds = tokens / tokens_per_second + (num_written + num_answers) * prompt_seconds + generated * token_seconds
        seconds /= num_processes
    kept_per_round = len(train) * (args.keep_best or args.num_generations)
    return RunPlan(
        num_rounds=args.num_rounds,
        num_examples=len(train),
        num_eval_examples=num_eval,
        num_processes=num_processes,
        self_edits_per_round=len(train) * args.num_generations,
        adapters_per_round=adapters_per_round,
        adapters_per_batch=per_batch,
        evaluation_adapters=eval_adapters,
        inner_tokens=tokens,
        optimizer_steps_per_round=optimizer_steps(kept_per_round, args),
        seconds=seconds,
    )


def _passage_tokens(lm: SelfAdaptingLM, data: ExampleSet) -> int:
    """Tokens of all passages' inner updates, all epochs."""
    updates = [
        tokenize_self_edit(lm.domain.passage_only(example), lm.processing_class, lm.inner_config)
        for example in data.examples
    ]
    return sum(
        len(sequence.input_ids) * update.config.num_train_epochs for update in updates for sequence in update.sequences
    )


def _probe(lm: SelfAdaptingLM, data: ExampleSet, per_batch: int) -> tuple[float, float, float]:
    """Tokens trained on per second, and the seconds that a prompt and a written token take in a batch."""
    examples = [data.examples[i % len(data)] for i in range(per_batch)]
    marks: list[tuple[int, float]] = []
    stop = threading.Event()

    def on_step(step: InnerStep) -> None:
        marks.append((step.num_tokens, step.seconds))
        if step.step >= _PROBE_STEPS:
            stop.set()

    def writing_seconds(num_tokens: int) -> float:
        start = time.perf_counter()
        lm.write_batch(examples, 1, temperature=1.0, top_p=1.0, max_completion_length=num_tokens, seed=0)
        return time.perf_counter() - start

    with policy_in_activation_dtype(lm.model):
        lm.adapt([lm.domain.passage_only(example) for example in examples], on_step=on_step, stop=stop)
        one, more = writing_seconds(1), writing_seconds(1 + _PROBE_TOKENS)
    # The first step is slower, since memory is taken for the first time; it counts only where there is no other.
    (first_tokens, first_seconds), (tokens, seconds) = marks[0] if len(marks) > 1 else (0, 0.0), marks[-1]
    per_token = max(more - one, 0.0) / _PROBE_TOKENS / len(examples)
    return (tokens - first_tokens) / (seconds - first_seconds), one / len(examples), per_token
