"""
The paper's continued pretraining (SEAL, section 4.2): all passages into one adapter, then answer about each of them.

The paper's first version trains a LoRA adapter here, its second all weights. This is the first of the two.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from ..records.journal import TrialResult
from ..records.report import Evaluation
from ..rollout.stage import Trial, untrained_banks
from ..self_adapting_lm import SelfAdaptingLM
from .protocol import ProtocolArguments, ProtocolRun, evaluated, joined_update, together


def continued_pretraining(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    **arguments: Unpack[ProtocolArguments],
) -> Evaluation:
    """
    Evaluate what a model learns from all examples at once.

    One adapter is trained on the self-edits about all examples, and one for every baseline that trains. Each is asked about all
    examples. Records, resume and sharing over processes are those of [`single_passage`]. What a self-edit sets of its training
    is left to the settings of `lm`, since it is trained on with others.

    Args:
        lm, examples, output_dir:
            As for [`single_passage`].
        **arguments ([`ProtocolArguments`]):
            As for [`single_passage`]. All of `num_generations` self-edits about every example go into the one adapter.

    Returns:
        [`Evaluation`]: as of [`single_passage`]. Tokens and seconds are of the one adapter. The paper states its accuracies here
            per question.

    Raises:
        GradingIncomplete, ValueError, OSError: As [`single_passage`].
    """
    return evaluated("continued_pretraining", _score_all, lm, examples, output_dir, **arguments)


def _score_all(run: ProtocolRun) -> None:
    stage, rollout = run.stage, run.rollout
    proposals = rollout.propose(stage)
    recorded = together(run, proposals)

    def trials() -> list[TrialResult] | None:
        updates = rollout.updates_of(stage, proposals)
        asked = {condition.name: condition.questions for condition in stage.baselines}
        banks = {}
        for condition in dict.fromkeys(proposal.condition for proposal in recorded if proposal.well_formed):
            own = [
                update for proposal, update in zip(proposals, updates, strict=True) if proposal.condition == condition
            ]
            update = joined_update(own, rollout.lm.inner_config)
            questions = asked.get(condition, rollout.lm.domain.questions)
            banks[len(banks)] = [Trial(condition, 0, 0, update, stage.places, questions)]
        return rollout.run(stage, banks | untrained_banks(stage, len(banks)))

    rollout.record(stage, recorded, trials)
