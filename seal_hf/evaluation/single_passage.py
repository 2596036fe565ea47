"""The paper's single-passage protocol (SEAL, section 4.2): adapt to one passage, then answer about it without seeing it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..adapters.layout import lora_layout
from ..domains.stored_self_edits import stored_completions
from ..records.report import Evaluation, evaluations
from ..records.run_folder import RunFolder
from ..rollout.examples import ExampleSet, check_examples
from ..rollout.processes import Processes
from ..rollout.rollout import Rollout
from ..rollout.settings import describe, fingerprint
from ..rollout.stage import FREE_OPTIONS, RolloutConfig, Stage
from ..self_adapting_lm import SelfAdaptingLM


def single_passage(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    *,
    num_generations: int = 1,
    config: RolloutConfig | None = None,
    seed: int = 0,
    self_edits: Iterable[Mapping[str, Any]] | None = None,
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

    Returns:
        [`Evaluation`]: accuracies and differences; [`seal_hf.records.tables.results_table`] shows them.

    Raises:
        GradingIncomplete: The grader could not grade an answer.
        ValueError: An example that the domain refuses, that does not fit the model or that `self_edits` have too few for, or an
            output directory with a run of other settings, or one that another process works in.
        OSError: The output directory cannot be written.
    """
    config, data = config or RolloutConfig(), ExampleSet.of(examples, "examples")
    check_examples(lm, data, "examples", config.max_completion_length, config.max_answer_length)
    options = {"protocol": "single_passage", "num_generations": num_generations, "seed": seed}
    options |= {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS}
    options |= {f"inner_{name}": value for name, value in asdict(lm.inner_config).items()}
    completions = None
    if self_edits is not None:
        completions = stored_completions(lm.domain, data.examples, data.ids, self_edits, num_generations)
        options["self_edits"] = f"stored, {fingerprint(completions)}"
    layout = lora_layout(lm.model, lm.peft_config)
    options |= {"inner_lora_r": layout.r, "inner_lora_alpha": layout.lora_alpha}
    options |= {"inner_target_modules": layout.target_modules}
    folder = RunFolder(output_dir, describe(lm, {"eval_dataset": data.examples}, options))
    processes = Processes(Path(output_dir))
    stage = Stage(
        name="evaluation",
        journal=folder.evaluation,
        round=0,
        data=data,
        seed=seed,
        inner_seeds=(seed,),
        num_generations=num_generations,
        baselines=lm.domain.conditions,
        is_evaluation=True,
        completions=completions,
    )
    rollout = Rollout(lm, config, processes)
    with processes.explaining_termination(lm.generator.clean_up), ExitStack() as held:
        processes.on_main(folder.open, True, 0)
        processes.on_main(lambda: held.enter_context(folder.held()))
        rollout.score(stage, rollout.propose(stage))
        (evaluation,) = processes.on_main(evaluations, folder.evaluation)
    return evaluation
