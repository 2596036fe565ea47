"""
The engine as it counts: a protocol's own trials, none of which is trained or asked.

What a self-edit will be is not known before it is written. It is taken to hold what the domain's baseline trains on, and for each part
and draft a text as long as what the baseline would train on of that part.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..domains.base import SELF_EDITS
from ..generation.base import Generation
from ..generation.thoughts import after_thought
from ..grading.rewards import SELF_CONSISTENCY
from ..inner_loop.update import InnerUpdate, TrainingSequence, tokenize_self_edit
from ..records.journal import Journal
from ..records.schema import Proposal, ScoredSelfEdit, TrialResult
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .bank_schedule import work_of
from .chain import Chain
from .proposals import ProposedUpdates, key_of
from .rewards import num_prompts
from .rollout import Rollout
from .stage import Stage, Trial
from .trials import asked_of
from .writing import Written, as_written


# Stands for a self-edit that is not written yet, or whose tool has not been asked.
_UNKNOWN = SelfEdit("", "", ())
# Stands for an adapter that is not trained.
_ADAPTER = object()


@dataclass
class Counts:
    """
    The work of a condition.

    Parameters:
        prompts_to_write (`int`):
            Prompts to which self-edits are written, for every draft and part one; tools may ask more.
        tokens_to_write (`int`):
            Tokens that are written to them, estimated as the self-edits are.
        adapters (`int`):
            Inner updates, each an adapter, or a copy of the model whose weights are all trained.
        tokens (`int`):
            Tokens that they train on, all epochs together.
        prompts_to_answer (`int`):
            Questions, recitations, and what is asked for retention and for rewards without labels. Of these the questions of the
            reward `"own_questions"` are known once they are made.
        is_estimated (`bool`):
            Whether self-edits are among it whose length is not known. Their tokens are left out where the domain has no baseline that
            trains, by which they could be estimated.
        adapters_per_bank (`int`):
            Adapters of the largest bank.
    """

    prompts_to_write: int = 0
    tokens_to_write: int = 0
    adapters: int = 0
    tokens: int = 0
    prompts_to_answer: int = 0
    is_estimated: bool = False
    adapters_per_bank: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.prompts_to_write + other.prompts_to_write,
            self.tokens_to_write + other.tokens_to_write,
            self.adapters + other.adapters,
            self.tokens + other.tokens,
            self.prompts_to_answer + other.prompts_to_answer,
            self.is_estimated or other.is_estimated,
            max(self.adapters_per_bank, other.adapters_per_bank),
        )


class PlanningRollout(Rollout):
    """
    Counts what a [`Rollout`] would do, with the same banks. It writes to the journal of the stage that it is given, which is not
    that of the run.

    Parameters:
        rollout ([`Rollout`]):
            The engine of the run.
        journal ([`Journal`]):
            The run's journal: what it holds is not done again.
        writes (`bool`, *optional*, defaults to `True`):
            Whether the self-edits are written; else they will be those of another condition.

    Attributes:
        counts (`dict[str, Counts]`):
            By the name of the condition what is left to be done.
        trains_all_weights (`bool`):
            Whether all weights are trained in place of adapters.
    """

    def __init__(self, rollout: Rollout, journal: Journal, writes: bool = True):
        super().__init__(rollout.lm, rollout.config, rollout.processes, writer=rollout.writer)
        self.counts: dict[str, Counts] = defaultdict(Counts)
        self.trains_all_weights = False
        self._journal, self._writes = journal, writes
        self._baseline = next((one for one in reversed(self.lm.domain.conditions) if one.self_edit is not None), None)
        self._proposed = _ExpectedUpdates(rollout.lm)

    def propose(self, stage: Stage) -> list[Proposal]:
        """The recorded proposals, or such as stand for those that will be written."""
        recorded = self.processes.on_main(self._journal.proposals, stage.round)
        if recorded is not None:
            return super().propose(replace(stage, journal=self._journal))
        if stage.proposals is not None:
            return super().propose(stage)
        written, texts = [self._expected(stage, place) for place in stage.places], []
        for place, own in zip(stage.places, written, strict=True):
            example = stage.data.examples[place]
            baseline, own_texts = self._of_baseline(example), self._expected_texts(example)
            for edit, one in enumerate(own):
                if one.self_edit is _UNKNOWN:
                    self._proposed.unknown[SELF_EDITS, place, edit] = self._expected_update(baseline, own_texts, edit)
            texts += own_texts
        if stage.completions is None and self._writes:
            counts, longest = self.counts[SELF_EDITS], self.config.max_completion_length
            counts.prompts_to_write = len(texts) * stage.num_generations
            counts.tokens_to_write = stage.num_generations * sum(
                min(longest, sum(len(one.input_ids) for one in text)) for text in texts
            )
        return self.processes.on_main(self._record_proposals, stage, written)

    def record(
        self, stage: Stage, proposals: Sequence[Proposal], run: Callable[[], list[TrialResult] | None]
    ) -> list[ScoredSelfEdit] | None:
        """Count what is run, unless its results are on disk."""
        if self.processes.on_main(self._journal.scored, stage.round) is None:
            run()
        return None

    def run(self, stage: Stage, banks: Mapping[int, Sequence[Trial]], chain: Chain | None = None) -> list[TrialResult]:
        """Count trials; their results have no answers."""
        finished = self._finished(replace(stage, journal=self._journal), banks)
        for bank, trials in banks.items():
            if bank not in finished:
                self._count(stage, trials, has_parents=chain is not None)
        return [
            TrialResult(*key, stage.inner_seed(trial), None, [], [], None, _num_tokens(trial), 0.0)
            for trials in banks.values()
            for trial in trials
            for key in trial.keys
        ]

    def _asked_without_labels(
        self, stage: Stage, proposals: Sequence[Proposal]
    ) -> Mapping[tuple[int, int], Mapping[str, Mapping]]:
        """What is recorded; else the examples' own questions for self-consistency, as if the model found an answer to each."""
        if self.processes.on_main(self._journal.reward_questions, stage.round) is not None:
            return super()._asked_without_labels(replace(stage, journal=self._journal), proposals)
        if SELF_CONSISTENCY not in stage.rewards.names:
            return {}
        return {
            (one.example, one.edit): {SELF_CONSISTENCY: stage.data.examples[one.example]}
            for one in proposals
            if one.condition == SELF_EDITS
        }

    def _count(self, stage: Stage, trials: Sequence[Trial], has_parents: bool) -> None:
        baselines = [condition.name for condition in stage.baselines]
        # One that trains nothing is asked with the adapter that it stands on.
        adapters = [None if trial.update is None and not has_parents else _ADAPTER for trial in trials]
        for trial, one in asked_of(stage, trials, adapters):
            self.counts[trial.condition].prompts_to_answer += num_prompts(self.lm.domain, one)
        num_trained = sum(trial.update is not None for trial in trials)
        for trial in trials:
            counts = self.counts[trial.condition]
            is_estimated = (
                bool(self._proposed.unknown) and trial.update is not None and trial.condition not in baselines
            )
            counts.adapters += trial.update is not None
            counts.tokens += 0 if is_estimated and self._baseline is None else _num_tokens(trial)
            counts.is_estimated |= is_estimated
            counts.adapters_per_bank = max(counts.adapters_per_bank, num_trained)
        self.trains_all_weights |= any(trial.trains_all_weights for trial in trials)

    def _expected(self, stage: Stage, place: int) -> list[Written]:
        """What will be written about an example, as far as that is known."""
        if stage.completions is None:
            return [Written(Generation("", 0, True), _UNKNOWN) for _ in range(stage.num_generations)]
        example, written = stage.data.examples[place], []
        for text in stage.completions[place]:
            one = as_written(self.lm.processing_class, after_thought(text), self.lm.domain.prompt(example))
            self_edit = self.lm.domain.parse(one.text, example)
            written.append(Written(one, _UNKNOWN if self_edit is not None and self_edit.calls else self_edit))
        return written

    def _expected_texts(self, example: Mapping) -> list[tuple[TrainingSequence, ...]]:
        """What the texts that a self-edit about an example is made of are trained on as; nothing without a baseline that trains."""
        parts = self.lm.domain.parts(example)
        return [self._of_baseline(part) for part in parts] * self.config.num_drafts

    def _of_baseline(self, example: Mapping) -> tuple[TrainingSequence, ...]:
        if self._baseline is None:
            return ()
        self_edit = self._baseline.self_edit(example)
        return tokenize_self_edit(self_edit, self.lm.processing_class, self.lm.inner_config).sequences

    def _expected_update(
        self, baseline: Sequence[TrainingSequence], texts: Sequence[Sequence[TrainingSequence]], edit: int
    ) -> InnerUpdate:
        """Each of another first token, since self-edits that train on the same would be taken for one."""
        if self._baseline is None:
            return InnerUpdate((TrainingSequence((edit,)),), self.lm.inner_config)
        first, *others = baseline
        first = replace(first, input_ids=(first.input_ids[0] + edit, *first.input_ids[1:]))
        others += [one for text in texts for one in text]
        return InnerUpdate((first, *others), self.lm.inner_config)


class _ExpectedUpdates(ProposedUpdates):
    """What proposals train on, some of which stand for self-edits that are not written yet, in `unknown`."""

    def __init__(self, lm: SelfAdaptingLM):
        super().__init__(lm)
        self.unknown: dict[tuple[str, int, int], InnerUpdate] = {}

    def self_edit_of(self, stage: Stage, proposal: Proposal) -> SelfEdit | None:
        return _UNKNOWN if key_of(proposal) in self.unknown else super().self_edit_of(stage, proposal)

    def _tokenized(self, proposal: Proposal, self_edit: SelfEdit | None) -> InnerUpdate | None:
        if self_edit is _UNKNOWN:
            return self.unknown[key_of(proposal)]
        return super()._tokenized(proposal, self_edit)


def _num_tokens(trial: Trial) -> int:
    return 0 if trial.update is None else work_of(trial.update).num_tokens
