"""The paper's single-passage protocol (SEAL, section 4.2): adapt to one passage, then answer about it without seeing it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records.report import Evaluation
from ..rollout.stage import RolloutConfig
from ..self_adapting_lm import SelfAdaptingLM
from .protocol import ComparedCondition, ProtocolRun, evaluated


def single_passage(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    *,
    num_generations: int = 1,
    config: RolloutConfig | None = None,
    seed: int = 0,
    self_edits: Iterable[Mapping[str, Any]] | None = None,
    compared: Iterable[ComparedCondition] = (),
) -> Evaluation:
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
        num_generations (`int`, *optional*, defaults to `1`):
            Self-edits per example. A malformed one counts as answered by the base model.
        config ([`RolloutConfig`], *optional*):
            Sampling, lengths and bank size.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling, initial weights and order.
        self_edits (`Iterable[Mapping[str, Any]]`, *optional*):
            What somebody else wrote about the examples, of which the first `num_generations` about each stand in place of what
            the model would write: rows in a form of [`seal_hf.domains.stored_self_edits`]. What they ask of a tool is carried
            out by this model. None is cut, and all count as ended by their writer.
        compared (`Iterable[ComparedCondition]`, *optional*):
            Further conditions on the same examples, with the same seeds: other styles, policies, models, files, baselines. Each has
            a folder of its own, `output_dir/conditions/NAME`, and may be added later. One is taken when those before it are done.

    Returns:
        [`Evaluation`]: accuracies and differences; [`seal_hf.records.tables.results_table`] shows them.

    Raises:
        GradingIncomplete: The grader could not grade an answer.
        ValueError: An example that the domain refuses, that does not fit the model or that `self_edits` have too few for, or an
            output directory with a run of other settings, or one that another process works in, or two conditions of one name.
        OSError: The output directory cannot be written.
    """
    return evaluated(
        "single_passage",
        _score_each,
        lm,
        examples,
        output_dir,
        num_generations=num_generations,
        config=config,
        seed=seed,
        self_edits=self_edits,
        compared=compared,
    )


def _score_each(run: ProtocolRun) -> None:
    run.rollout.score(run.stage, run.rollout.propose(run.stage))
