"""
One round over a set of examples: the policy writes self-edits, each trains an adapter, its answers give the reward.

What is computed is a function of the policy, the examples and the seed alone: batches of generation are cut by the
examples, banks are composed from the proposals and recorded with them, and every random stream has a seed of its own.
So neither the number of processes nor an interruption changes the records (in fp32; in lower precision up to rounding).
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tqdm.auto import tqdm

from .adapter_bank import activation_dtype
from .adapters import Adapter
from .banks import adapters_that_fit, compose_banks, share_banks
from .domains import KnowledgeDomain
from .example_set import ExampleSet
from .generation import Generation, draw_seed
from .grading import require_verdicts
from .inner_loop import InnerStep
from .inner_update import tokenize_self_edit
from .journal import BASE, IN_CONTEXT, PASSAGE_ONLY, SELF_EDITS, Journal, Proposal, ScoredSelfEdit, TrialResult
from .lora_layout import lora_layout
from .processes import Processes
from .seal_config import SEALConfig
from .self_adapting_lm import SelfAdaptingLM
from .self_edit import SelfEdit


logger = logging.getLogger(__name__)

# Rows of one batch of generation.
_GENERATION_ROWS = 64
# Examples whose questions are answered without an adapter in one bank.
_EXAMPLES_PER_PLAIN_BANK = 16


@dataclass(frozen=True)
class Stage:
    """
    One round over a set of examples.

    Parameters:
        name (`str`):
            For progress bars.
        journal ([`Journal`]):
            Where its records go.
        round (`int`):
            Round, from 0.
        data ([`ExampleSet`]):
            The examples.
        seed (`int`):
            Seed of everything random in it.
        num_generations (`int`):
            Self-edits per example.
        num_repeats (`int`):
            Inner updates per self-edit.
        baselines (`tuple[str, ...]`):
            Conditions to score beside the self-edits.
        is_evaluation (`bool`):
            Whether the baselines without an adapter are recorded beside the self-edits, and an answer that could not be
            graded is an error, rather than left out of the reward.
    """

    name: str
    journal: Journal
    round: int
    data: ExampleSet
    seed: int
    num_generations: int
    num_repeats: int = 1
    baselines: tuple[str, ...] = (BASE,)
    is_evaluation: bool = False


@dataclass(frozen=True)
class _Trial:
    """One row of a bank: an example under a condition, with a self-edit to adapt to or without."""

    condition: str
    example: int
    edit: int
    repeat: int
    self_edit: SelfEdit | None
    tokens: int


class Rollout:
    """
    Proposes and scores stages, in as many processes as the run has.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model with its policy adapter, the domain and the inner loop's settings.
        args ([`SEALConfig`]):
            Sampling, answer length and bank size.
        processes ([`Processes`]):
            The processes of the run.
        on_bank (`Callable[[], bool]`):
            Called after every bank of this process; returning `True` ends the stage, with all that is scored on disk.
    """

    def __init__(self, lm: SelfAdaptingLM, args: SEALConfig, processes: Processes, on_bank: Callable[[], bool]):
        self.lm, self.args, self.processes, self.on_bank = lm, args, processes, on_bank

    def propose(self, stage: Stage) -> list[Proposal]:
        """Let the policy write the stage's self-edits, unless they are on disk, and compose its banks."""
        recorded = self.processes.on_main(stage.journal.proposals, stage.round)
        if recorded is not None:
            per_example = stage.num_generations + (PASSAGE_ONLY in stage.baselines)
            _require_all(stage, "proposals", len(recorded), len(stage.data) * per_example)
            return recorded
        written = self._write(stage)
        # Of an earlier run, on the disk of a machine that this run's folder was not removed from.
        stage.journal.forget_banks(stage.round)
        return self.processes.on_main(self._record_proposals, stage, written)

    def score(self, stage: Stage, proposals: Sequence[Proposal]) -> list[ScoredSelfEdit] | None:
        """
        Train and examine every adapter of the stage that is not scored yet.

        Returns:
            `list[ScoredSelfEdit]`, or `None` where `on_bank` asked to end early.

        Raises:
            GradingIncomplete: An answer could not be graded and `stage.is_evaluation` is set.
        """
        recorded = self.processes.on_main(stage.journal.scored, stage.round)
        if recorded is not None:
            _require_all(stage, "journal", len(recorded), len(proposals) + len(self._plain(stage)))
            stage.journal.forget_banks(stage.round)
            return recorded
        banks = self._banks(stage, proposals)
        finished: dict[int, list[TrialResult]] = {}
        # Every process reads its own disk, so that a shared one is not needed.
        for found in self.processes.gather(stage.journal.banks(stage.round)):
            finished.update({bank: results for bank, results in found.items() if len(results) == len(banks[bank])})
        costs = {
            bank: sum(trial.tokens + self.args.max_answer_length for trial in trials)
            for bank, trials in banks.items()
            if bank not in finished
        }
        own, stopped = share_banks(costs, self.processes.count)[self.processes.index], False
        scored: dict[int, list[TrialResult]] = {}
        with self._bar(stage, sum(costs[bank] for bank in own)) as bar, policy_in_activation_dtype(self.lm.model):
            for bank in own:
                scored[bank] = self._run_bank(stage, banks[bank], bar)
                stage.journal.write_bank(stage.round, bank, scored[bank])
                if stopped := self.on_bank():
                    break
        for results, one_stopped in self.processes.gather((scored, stopped)):
            finished.update(results)
            stopped |= one_stopped
        if stopped:
            return None
        results = [result for bank in sorted(finished) for result in finished[bank]]
        recorded = self.processes.on_main(self._record_scored, stage, proposals, results)
        stage.journal.forget_banks(stage.round)
        return recorded

    def _write(self, stage: Stage) -> list[list[Generation]]:
        """The completions of every example, each process writing a share of the batches."""
        per_batch = max(1, _GENERATION_ROWS // stage.num_generations)
        starts = range(0, len(stage.data.examples), per_batch)
        own = {}
        with policy_in_activation_dtype(self.lm.model):
            for first in starts[self.processes.index :: self.processes.count]:
                own[first] = self.lm.write_batch(
                    stage.data.examples[first : first + per_batch],
                    stage.num_generations,
                    temperature=self.args.temperature,
                    top_p=self.args.top_p,
                    max_completion_length=self.args.max_completion_length,
                    seed=stage.seed,
                    first_example=first,
                )
        batches: dict[int, list[list[Generation]]] = {}
        for written in self.processes.gather(own):
            batches.update(written)
        return [generations for first in starts for generations in batches[first]]

    def _record_proposals(self, stage: Stage, written: Sequence[Sequence[Generation]]) -> list[Proposal]:
        drafts, work = [], []
        for place, (example, generations) in enumerate(zip(stage.data.examples, written, strict=True)):
            candidates = [(SELF_EDITS, i, generation) for i, generation in enumerate(generations)]
            if PASSAGE_ONLY in stage.baselines:
                candidates.append((PASSAGE_ONLY, 0, Generation("", 0, True)))
            for condition, edit, generation in candidates:
                self_edit = self._self_edit(condition, generation.text, example)
                size = self._size(self_edit)
                drafts.append(
                    Proposal(
                        round=stage.round,
                        condition=condition,
                        example=place,
                        example_id=stage.data.ids[place],
                        edit=edit,
                        prompt=self.lm.domain.prompt(example) if condition == SELF_EDITS else "",
                        completion=generation.text,
                        completion_tokens=generation.num_tokens,
                        well_formed=size is not None,
                        tokens=size[1] if size else 0,
                        banks=[],
                    )
                )
                work += [size] if size else []
        size = self.args.adapters_per_batch or adapters_that_fit(
            lora_layout(self.lm.model, self.lm.peft_config), self.lm.model.device
        )
        composed = iter(compose_banks(work, stage.num_repeats, size)[0])
        proposals = [replace(draft, banks=next(composed)) if draft.well_formed else draft for draft in drafts]
        stage.journal.write_proposals(stage.round, proposals)
        return proposals

    def _self_edit(self, condition: str, completion: str, example: Mapping) -> SelfEdit | None:
        if condition == PASSAGE_ONLY:
            return self.lm.domain.passage_only(example)
        return self.lm.domain.parse(completion, example)

    def _size(self, self_edit: SelfEdit | None) -> tuple[int, int] | None:
        """Optimizer steps and tokens of a self-edit; `None` where there is nothing to train on."""
        if self_edit is None:
            return None
        try:
            update = tokenize_self_edit(self_edit, self.lm.processing_class, self.lm.inner_config)
        except ValueError:  # no text, or hyperparameters that are not possible: malformed, which is data
            return None
        epoch = sum(len(sequence.input_ids) for sequence in update.sequences)
        return update.num_steps, epoch * update.config.num_train_epochs

    def _banks(self, stage: Stage, proposals: Sequence[Proposal]) -> dict[int, list[_Trial]]:
        """The trials of each bank: those of the proposals as recorded, then those that need no adapter."""
        banks = defaultdict(list)
        for proposal in proposals:
            self_edit = self._self_edit(proposal.condition, proposal.completion, stage.data.examples[proposal.example])
            for repeat, bank in enumerate(proposal.banks):
                banks[bank].append(
                    _Trial(proposal.condition, proposal.example, proposal.edit, repeat, self_edit, proposal.tokens)
                )
        plain = [name for name in stage.baselines if name in (BASE, IN_CONTEXT)]
        for first in range(0, len(stage.data.examples), _EXAMPLES_PER_PLAIN_BANK):
            places = range(len(stage.data.examples))[first : first + _EXAMPLES_PER_PLAIN_BANK]
            if trials := [_Trial(name, place, 0, 0, None, 0) for name in plain for place in places]:
                banks[max(banks, default=-1) + 1] = trials
        return dict(banks)

    def _run_bank(self, stage: Stage, trials: Sequence[_Trial], bar: tqdm) -> list[TrialResult]:
        lm, seed = self.lm, draw_seed(stage.seed, trials[0].repeat)
        before, start = bar.n, time.perf_counter()

        def on_step(step: InnerStep) -> None:
            bar.update(max(0, before + step.num_tokens - bar.n))

        self_edits = [trial.self_edit for trial in trials if trial.self_edit is not None]
        trained = self._adapt(self_edits, seed, on_step) if self_edits else []
        seconds = time.perf_counter() - start
        num_tokens = sum(adapter.training["num_tokens"] for adapter in trained)
        remaining = iter(trained)
        adapters = [next(remaining) if trial.self_edit is not None else None for trial in trials]
        prompts = [self._questions(trial.condition, stage.data.examples[trial.example]) for trial in trials]
        flat = iter(
            lm.answer_prompts(
                [prompt for own in prompts for prompt in own],
                [adapter for own, adapter in zip(prompts, adapters, strict=True) for _ in own],
                max_answer_length=self.args.max_answer_length,
            )
        )
        answers = [[next(flat) for _ in own] for own in prompts]
        verdicts = lm.domain.grade([stage.data.examples[trial.example] for trial in trials], answers)
        if stage.is_evaluation:
            verdicts = [require_verdicts(own) for own in verdicts]
        bar.update(before + sum(trial.tokens + self.args.max_answer_length for trial in trials) - bar.n)
        results = []
        for trial, adapter, own_answers, own_verdicts in zip(trials, adapters, answers, verdicts, strict=True):
            training = adapter.training if adapter is not None else {"num_tokens": 0, "losses": ()}
            steps = len(training["losses"]) // training.get("num_train_epochs", 1)
            last_epoch = training["losses"][-steps:] if steps else ()
            results.append(
                TrialResult(
                    condition=trial.condition,
                    example=trial.example,
                    edit=trial.edit,
                    repeat=trial.repeat,
                    seed=seed,
                    reward=_mean([verdict for verdict in own_verdicts if verdict is not None]),
                    answers=own_answers,
                    verdicts=own_verdicts,
                    loss=_mean(last_epoch),
                    tokens=training["num_tokens"],
                    seconds=seconds * training["num_tokens"] / num_tokens if num_tokens else 0.0,
                )
            )
        return results

    def _adapt(self, self_edits: list[SelfEdit], seed: int, on_step: Callable[[InnerStep], None]) -> list[Adapter]:
        """Train a bank, in halves where the memory does not hold it; the adapters are the same up to rounding."""
        try:
            return self.lm.adapt(self_edits, seed=seed, on_step=on_step)
        except torch.OutOfMemoryError:
            if len(self_edits) == 1:
                raise
        half = len(self_edits) // 2
        logger.warning("A bank of %d adapters is too large for the memory; it is trained in halves.", len(self_edits))
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        return self._adapt(self_edits[:half], seed, on_step) + self._adapt(self_edits[half:], seed, on_step)

    def _questions(self, condition: str, example: Mapping) -> list[str | list[dict]]:
        domain = self.lm.domain
        return domain.questions_in_context(example) if condition == IN_CONTEXT else domain.questions(example)

    def _record_scored(
        self, stage: Stage, proposals: Sequence[Proposal], results: Sequence[TrialResult]
    ) -> list[ScoredSelfEdit]:
        by_edit = defaultdict(list)
        for result in results:
            by_edit[result.condition, result.example, result.edit].append(result)
        scored = []
        for row in map(vars, (*proposals, *self._plain(stage))):
            runs = sorted(by_edit[row["condition"], row["example"], row["edit"]], key=lambda run: run.repeat)
            base = by_edit.get((BASE, row["example"], 0))
            rewards = [run.reward for run in runs if run.reward is not None]
            scored.append(
                ScoredSelfEdit(
                    **{name: value for name, value in row.items() if name not in ("tokens", "banks")},
                    repeats=[
                        {name: getattr(run, name) for name in ("seed", "reward", "answers", "verdicts", "loss")}
                        for run in runs
                    ],
                    reward=_mean(rewards) if row["well_formed"] else 0.0,
                    base_reward=base[0].reward if base else None,
                    tokens=sum(run.tokens for run in runs),
                    seconds=sum(run.seconds for run in runs),
                )
            )
        stage.journal.write_scored(stage.round, scored)
        return scored

    def _plain(self, stage: Stage) -> list[Proposal]:
        """What is recorded of the baselines without an adapter; in a training round they are the base reward, no more."""
        return [
            Proposal(stage.round, condition, place, stage.data.ids[place], 0, "", "", 0, True, 0, [])
            for condition in (BASE, IN_CONTEXT)
            if condition in stage.baselines and stage.is_evaluation
            for place in range(len(stage.data))
        ]

    def _bar(self, stage: Stage, total: int) -> tqdm:
        hidden = self.args.disable_tqdm or not self.processes.is_main or not total
        return tqdm(total=total, desc=stage.name, unit=" tokens", unit_scale=True, leave=False, disable=hidden)


def baselines_of(domain: object) -> tuple[str, ...]:
    """The conditions that a domain's evaluation compares self-edits with."""
    return (BASE, IN_CONTEXT, PASSAGE_ONLY) if isinstance(domain, KnowledgeDomain) else (BASE,)


def _require_all(stage: Stage, kind: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{stage.journal.directory / kind} holds {found} records of round {stage.round + 1}, but {expected} were "
            "written; restore the file, or remove it to work the round out again."
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@contextmanager
def policy_in_activation_dtype(model: torch.nn.Module) -> Iterator[None]:
    """
    Hold the policy's matrices in the dtype of the activations inside the block.

    The SFT trains them in fp32. PEFT would cast the activations up to them in every layer, which more than doubles the
    cost of the policy where it is only read.
    """
    if not isinstance(model, PeftModel):
        yield
        return
    dtype = activation_dtype(model)
    parameters = [
        parameter
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name, parameter in module.named_parameters()
        if "lora_" in name
    ]
    originals = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original
