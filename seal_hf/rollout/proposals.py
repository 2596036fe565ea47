"""The proposals of a stage: made of what was written, and read as what an adapter is trained on."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

from ..domains.base import SELF_EDITS
from ..generation.base import Generation
from ..inner_loop.update import InnerUpdate, tokenize_self_edit
from ..records.schema import Proposal
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit, TrainingExample
from .bank_schedule import Work, work_of
from .stage import Stage
from .writing import Written


logger = logging.getLogger(__name__)


class ProposedUpdates:
    """
    What the proposals of a stage train on, each parsed and tokenized once.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The domain, which parses them, the tokenizer and the inner loop's settings.
    """

    def __init__(self, lm: SelfAdaptingLM):
        self.lm = lm
        # Those of one stage, by condition, example and edit.
        self._stage: Stage | None = None
        self._updates: dict[tuple[str, int, int], InnerUpdate | None] = {}
        self._has_warned = False

    def update_of(self, stage: Stage, proposal: Proposal) -> InnerUpdate | None:
        """What a proposal trains on; `None` where it is malformed, which is data."""
        updates = self._updates_of(stage)
        if (key := key_of(proposal)) not in updates:
            updates[key] = self._tokenized(proposal, self.self_edit_of(stage, proposal))
        return updates[key]

    def updates_of(self, stage: Stage, proposals: Sequence[Proposal]) -> list[InnerUpdate | None]:
        """
        What every proposal trains on.

        Raises:
            ValueError: One is not read as it was when it was recorded.
        """
        updates = [self.update_of(stage, proposal) for proposal in proposals]
        for proposal, update in zip(proposals, updates, strict=True):
            if proposal.well_formed != (update is not None):
                raise ValueError(
                    f"{stage.journal.directory}: self-edit {proposal.edit} of example {proposal.example_id} is not read as "
                    "it was when it was recorded; use the domain that recorded it, or give another output_dir."
                )
        return updates

    def self_edit_of(self, stage: Stage, proposal: Proposal) -> SelfEdit | None:
        """A proposal as a self-edit, with what is recorded of its tool."""
        example = stage.data.examples[proposal.example]
        if proposal.condition != SELF_EDITS:
            (baseline,) = (one for one in stage.trained_baselines if one.name == proposal.condition)
            return baseline.self_edit(example)
        self_edit = self.lm.domain.parse(proposal.completion, example)
        if self_edit is None or proposal.tool_examples is None:
            return self_edit
        return replace(self_edit, examples=tuple(TrainingExample(**one) for one in proposal.tool_examples), calls=())

    def drafts(self, stage: Stage, written: Sequence[Sequence[Written]]) -> tuple[list[Proposal], list[Work]]:
        """
        What was written, and the baselines that train, as proposals without banks.

        Args:
            stage ([`Stage`]):
                The stage.
            written (`Sequence[Sequence[Written]]`):
                The self-edits of each of its examples; none where the stage brings its proposals, which are taken as they are.

        Returns:
            `tuple[list[Proposal], list[Work]]`: the proposals, and the work of those that are trained: the well-formed ones, of
                equal self-edits of an example the first alone.
        """
        if stage.proposals is not None:
            updates = self.updates_of(stage, stage.proposals)
            drafts = [replace(one, round=stage.round, banks=[]) for one in stage.proposals]
            return drafts, [
                work_of(update)
                for one, update in zip(drafts, updates, strict=True)
                if update is not None and one.same_as is None
            ]
        drafts, work = [], []
        for place, own in zip(stage.places, written, strict=True):
            example = stage.data.examples[place]
            candidates = [(SELF_EDITS, i, one) for i, one in enumerate(own)]
            candidates += [
                (baseline.name, 0, Written(Generation("", 0, True), baseline.self_edit(example)))
                for baseline in stage.trained_baselines
            ]
            first_of: dict[InnerUpdate, int] = {}
            for condition, edit, one in candidates:
                draft = self._draft(stage, condition, place, edit, one)
                update = self._tokenized(draft, one.self_edit)
                self._updates_of(stage)[key_of(draft)] = update
                if update is not None:
                    own_work = work_of(update)
                    draft = replace(draft, well_formed=True, tokens=own_work.num_tokens)
                    first = first_of.setdefault(update, edit) if condition == SELF_EDITS else edit
                    if first != edit:
                        draft = replace(draft, same_as=first)
                    else:
                        work.append(own_work)
                drafts.append(draft)
        return drafts, work

    def _draft(self, stage: Stage, condition: str, place: int, edit: int, written: Written) -> Proposal:
        generation, self_edit = written.generation, written.self_edit
        return Proposal(
            round=stage.round,
            condition=condition,
            example=place,
            example_id=stage.data.ids[place],
            edit=edit,
            prompt=self.lm.domain.prompt(stage.data.examples[place]) if condition == SELF_EDITS else "",
            completion=generation.text,
            completion_tokens=generation.num_tokens,
            well_formed=False,
            tokens=0,
            banks=[],
            finished=generation.finished,
            completion_ids=list(generation.token_ids),
            tool_examples=list(map(_record, self_edit.examples)) if written.called else None,
            metrics=dict(self_edit.metrics) or None if self_edit is not None else None,
            written_tokens=written.num_tokens,
            unfinished_parts=list(generation.unfinished_parts) or None,
        )

    def _updates_of(self, stage: Stage) -> dict[tuple[str, int, int], InnerUpdate | None]:
        if self._stage is not stage:
            self._stage, self._updates = stage, {}
        return self._updates

    def _tokenized(self, proposal: Proposal, self_edit: SelfEdit | None) -> InnerUpdate | None:
        if self_edit is None or not self_edit.examples:
            return None
        try:
            return tokenize_self_edit(self_edit, self.lm.processing_class, self.lm.inner_config)
        except ValueError as error:  # too short a text, or hyperparameters that are not possible
            if proposal.condition != SELF_EDITS:
                raise ValueError(
                    f"The baseline {proposal.condition!r} cannot be trained on example {proposal.example_id}: {error}"
                ) from error
            # What is wrong with a domain is wrong with all of them.
            level, self._has_warned = logging.DEBUG if self._has_warned else logging.WARNING, True
            name = (proposal.edit, proposal.example_id)
            logger.log(level, "Self-edit %d of example %s is malformed: %s", *name, error)
            return None


def _record(example: TrainingExample) -> dict:
    """What is recorded of a training example: `trains_on_prompt` only where it is set."""
    return {name: value for name, value in asdict(example).items() if value or name != "trains_on_prompt"}


def key_of(proposal: Proposal) -> tuple[str, int, int]:
    """What tells a proposal from the others of its stage."""
    return proposal.condition, proposal.example, proposal.edit
