"""The paper's single-passage protocol (SEAL, section 4.2): adapt to one passage, then answer about it without seeing it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from ..records.report import Evaluation
from ..self_adapting_lm import SelfAdaptingLM
from .plan import EvaluationPlan
from .protocol import ProtocolArguments, ProtocolRun, evaluated


def single_passage(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    **arguments: Unpack[ProtocolArguments],
) -> Evaluation | EvaluationPlan:
    """
    Evaluate what a model learns from each example alone, and compare with the domain's other conditions.

    The model writes self-edits about every example, and an adapter is trained on each of them. Where the domain has a
    baseline that trains, such as the passage alone, it gets an adapter too. Every adapter is asked about its own example.
    The records are those of a trainer's evaluation, in `output_dir/evaluation`: what is on disk is not computed again, so
    that an interrupted evaluation is continued by the same call.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model, its domain and the settings of the inner loop.
        examples (`Sequence[Mapping]`):
            Examples of the domain, with their questions.
        output_dir (`str` or `Path`):
            Where the records go.
        **arguments ([`ProtocolArguments`]):
            `num_generations`, `config`, `seed`, `self_edits`, `compared` and `dry_run`.

    Returns:
        [`Evaluation`]: accuracies and differences; [`seal_hf.records.tables.results_table`] shows them. With
            `dry_run` an [`EvaluationPlan`], which can be printed.

    Raises:
        GradingIncomplete: The grader could not grade an answer.
        ValueError: An example that the domain refuses, that does not fit the model or that `self_edits` have too few for, or an
            output directory with a run of other settings, or one that another process works in, or two conditions of one name.
        OSError: The output directory cannot be written.
    """
    return evaluated("single_passage", _score_each, lm, examples, output_dir, **arguments)


def _score_each(run: ProtocolRun) -> None:
    run.rollout.score(run.stage, run.rollout.propose(run.stage))
