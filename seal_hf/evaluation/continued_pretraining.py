"""
The paper's continued pretraining (SEAL, section 4.2): all passages into one adapter, then answer about each of them.

The paper's first version trains a LoRA adapter here, its second all weights. They are two different things: figures are comparable
within one of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from ..inner_loop.full_finetuning import check_finetunable
from ..records.report import Evaluation
from ..records.schema import TrialResult
from ..rollout.stage import Trial, untrained_banks
from ..self_adapting_lm import SelfAdaptingLM
from .plan import EvaluationPlan
from .protocol import ProtocolArguments, ProtocolRun, evaluated, joined_update, together


def continued_pretraining(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    *,
    full_finetuning: bool = False,
    **arguments: Unpack[ProtocolArguments],
) -> Evaluation | EvaluationPlan:
    """
    Evaluate what a model learns from all examples at once.

    One adapter is trained on the self-edits about all examples, and one for every baseline that trains. Each is asked about all
    examples. Records, resume and sharing over processes are those of [`single_passage`]. What a self-edit sets of its training
    is left to the settings of `lm`, since it is trained on with others.

    Args:
        lm, examples, output_dir:
            As for [`single_passage`].
        full_finetuning (`bool`, *optional*, defaults to `False`):
            Whether all weights of a copy of the model are trained in place of an adapter (see [`finetune`]), one condition after the
            other. The learning rate is that of `lm`'s inner loop, whose default is for adapters.
        **arguments ([`ProtocolArguments`]):
            As for [`single_passage`]. All of `num_generations` self-edits about every example go into the one adapter.

    Returns:
        [`Evaluation`]: as of [`single_passage`]. Tokens and seconds are of the one adapter. The paper states its accuracies here
            per question. With `dry_run` an [`EvaluationPlan`].

    Raises:
        GradingIncomplete, ValueError, OSError: As [`single_passage`]; with `full_finetuning` also a `ValueError` for a model that
            carries a policy, is quantized or has a skill vector added, and `DoesNotFit` where the memory is short.
    """
    options = {}
    if full_finetuning:  # named only then, so that older runs can be resumed
        _check_finetunable(lm)
        options["full_finetuning"] = True
    return evaluated("continued_pretraining", _score_all, lm, examples, output_dir, options, **arguments)


def _check_finetunable(lm: SelfAdaptingLM) -> None:
    check_finetunable(lm.model)
    if lm.added is not None:
        raise ValueError(
            "A skill vector is added to adapters, of which full finetuning has none; leave one of the two out."
        )


def _score_all(run: ProtocolRun) -> None:
    stage, rollout = run.stage, run.rollout
    trains_all_weights = run.options.get("full_finetuning", False)
    if trains_all_weights:
        _check_finetunable(rollout.lm)
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
            trial = Trial(condition, 0, 0, update, stage.places, questions, trains_all_weights=trains_all_weights)
            banks[len(banks)] = [trial]
        return rollout.run(stage, banks | untrained_banks(stage, len(banks)))

    rollout.record(stage, recorded, trials)
