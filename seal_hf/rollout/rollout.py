"""
One round over a set of examples: the policy writes self-edits, each trains an adapter, its answers give the reward.

What is computed is a function of the policy, the examples and the seed alone: batches of generation are cut by the
examples, banks are composed from the proposals and recorded with them, and every random stream has a seed of its own.
So neither the number of processes nor an interruption changes the records (in fp32; in lower precision up to rounding).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from ..adapters.adapter import Adapter
from ..adapters.layout import lora_layout
from ..domains import KnowledgeDomain
from ..generation.base import Generation, draw_seed
from ..grading import require_verdicts
from ..inner_loop.training import InnerStep
from ..models.access import policy_in_activation_dtype
from ..outer_loop.seal_config import SEALConfig
from ..records.journal import BASE, IN_CONTEXT, PASSAGE_ONLY, SELF_EDITS, Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .bank_schedule import adapters_per_bank, compose_banks, share_banks
from .processes import Processes
from .stage import (
    Stage,
    Trial,
    mean,
    plain_proposals,
    scored_self_edits,
    self_edit_of,
    size_of,
    stage_banks,
)


logger = logging.getLogger(__name__)

# Rows of one batch of generation.
_GENERATION_ROWS = 64


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
            _require_all(stage, "journal", len(recorded), len(proposals) + len(plain_proposals(stage)))
            stage.journal.forget_banks(stage.round)
            return recorded
        # Every process reads its own disk, so that a shared one is not needed.
        on_disk = self.processes.gather(stage.journal.banks(stage.round))
        finished = self._run_banks(stage, stage_banks(self.lm, stage, proposals), on_disk)
        if finished is None:
            return None
        results = [result for bank in sorted(finished) for result in finished[bank]]
        recorded = self.processes.on_main(self._record_scored, stage, proposals, results)
        stage.journal.forget_banks(stage.round)
        return recorded

    def _run_banks(
        self,
        stage: Stage,
        banks: Mapping[int, Sequence[Trial]],
        on_disk: Sequence[Mapping[int, Sequence[TrialResult]]],
    ) -> dict[int, list[TrialResult]] | None:
        """The results of these banks, in every process; `None` where `on_bank` asked to end early."""
        finished: dict[int, list[TrialResult]] = {}
        for found in on_disk:
            for bank in found.keys() & banks.keys():
                if [result.key for result in found[bank]] == [trial.key for trial in banks[bank]]:
                    finished[bank] = list(found[bank])
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
        return None if stopped else finished

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
                size = size_of(self.lm, self_edit_of(self.lm, condition, generation.text, example))
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
                        tokens=size.num_tokens if size else 0,
                        banks=[],
                    )
                )
                work += [size] if size else []
        layout, num_repeats = lora_layout(self.lm.model, self.lm.peft_config), stage.num_repeats
        size = self.args.adapters_per_bank or adapters_per_bank(
            self.lm.model, layout, work, num_repeats, self.processes.count
        )
        composed = iter(compose_banks(work, num_repeats, size))
        proposals = [replace(draft, banks=next(composed)) if draft.well_formed else draft for draft in drafts]
        stage.journal.write_proposals(stage.round, proposals)
        return proposals

    def _run_bank(self, stage: Stage, trials: Sequence[Trial], bar: tqdm) -> list[TrialResult]:
        seed = draw_seed(stage.seed, trials[0].repeat)
        before, start = bar.n, time.perf_counter()

        def on_step(step: InnerStep) -> None:
            bar.update(max(0, before + step.num_tokens - bar.n))

        self_edits = [trial.self_edit for trial in trials if trial.self_edit is not None]
        trained = self._adapt(self_edits, seed, on_step) if self_edits else []
        seconds = time.perf_counter() - start
        num_tokens = sum(adapter.training["num_tokens"] for adapter in trained)
        remaining = iter(trained)
        adapters = [next(remaining) if trial.self_edit is not None else None for trial in trials]
        outcomes = self._answer_and_grade(stage, trials, adapters)
        bar.update(before + sum(trial.tokens + self.args.max_answer_length for trial in trials) - bar.n)
        results = []
        for trial, adapter, outcome in zip(trials, adapters, outcomes, strict=True):
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
                    loss=mean(last_epoch),
                    tokens=training["num_tokens"],
                    seconds=seconds * training["num_tokens"] / num_tokens if num_tokens else 0.0,
                    **outcome,
                )
            )
        return results

    def _answer_and_grade(
        self, stage: Stage, trials: Sequence[Trial], adapters: Sequence[Adapter | None]
    ) -> list[dict[str, Any]]:
        """What each trial's answers are worth: fields of [`TrialResult`]."""
        domain, examples = self.lm.domain, [stage.data.examples[trial.example] for trial in trials]
        prompts = [
            domain.questions_in_context(example) if trial.condition == IN_CONTEXT else domain.questions(example)
            for trial, example in zip(trials, examples, strict=True)
        ]
        flat = iter(
            self.lm.answer_prompts(*_flattened(prompts, adapters), max_answer_length=self.args.max_answer_length)
        )
        answers = [[next(flat) for _ in own] for own in prompts]
        verdicts = domain.grade(examples, answers)
        if stage.is_evaluation:
            verdicts = [require_verdicts(own) for own in verdicts]
        return [
            {
                "reward": mean([verdict for verdict in own_verdicts if verdict is not None]),
                "answers": own_answers,
                "verdicts": own_verdicts,
            }
            for own_answers, own_verdicts in zip(answers, verdicts, strict=True)
        ]

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

    def _record_scored(
        self, stage: Stage, proposals: Sequence[Proposal], results: Sequence[TrialResult]
    ) -> list[ScoredSelfEdit]:
        scored = scored_self_edits(stage, proposals, results)
        stage.journal.write_scored(stage.round, scored)
        return scored

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


def _flattened(
    prompts: Sequence[Sequence[str | list[dict]]], adapters: Sequence[Adapter | None]
) -> tuple[list[str | list[dict]], list[Adapter | None]]:
    """All prompts of a bank, and the adapter of each."""
    return (
        [prompt for own in prompts for prompt in own],
        [adapter for own, adapter in zip(prompts, adapters, strict=True) for _ in own],
    )
