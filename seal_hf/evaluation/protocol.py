"""What the protocols of an evaluation share: checked examples, folders of the right settings, and conditions to compare."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

from ..adapters.layout import lora_layout
from ..domains.base import SELF_EDITS
from ..domains.stored_self_edits import stored_completions
from ..generation.parts import PART_SEPARATOR
from ..inner_loop.update import InnerLoopConfig, InnerUpdate
from ..models.identity import canonical_name, weights_fingerprint
from ..records.files import RESUME_EVALUATION
from ..records.journal import Journal
from ..records.report import COMPARED_FOLDER, Evaluation, evaluations
from ..records.round_metrics import self_edit_metrics
from ..records.run_folder import RunFolder
from ..records.schema import Proposal, TrialResult
from ..rollout.examples import ExampleSet, check_examples
from ..rollout.planning import Counts, PlanningRollout
from ..rollout.processes import Processes
from ..rollout.rollout import Rollout
from ..rollout.settings import describe, fingerprint
from ..rollout.stage import FREE_OPTIONS, RolloutConfig, Stage, Trial
from ..self_adapting_lm import SelfAdaptingLM
from .conditions import ComparedCondition, check_names, folder_name, written_in
from .plan import EvaluationPlan, plan_of
from .remedies import ROUTED, routes_of, run_apart


class ProtocolArguments(TypedDict, total=False):
    """
    What all protocols take in the same way.

    Parameters:
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
            a folder of its own, `output_dir/conditions/NAME`, and may be added later. The names in a list are checked before any
            work; of a generator, which may load a model for each, one is taken when those before it are done.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether everything is checked and the work that is left is counted, and nothing is written, trained or kept. An
            [`EvaluationPlan`] is returned then.
    """

    num_generations: int
    config: RolloutConfig | None
    seed: int
    self_edits: Iterable[Mapping[str, Any]] | None
    compared: Iterable[ComparedCondition]
    dry_run: bool


@dataclass(frozen=True)
class ProtocolRun:
    """
    One condition of a protocol, ready to be scored.

    Parameters:
        stage ([`Stage`]):
            Its examples, self-edits and baselines.
        rollout ([`Rollout`]):
            The engine.
        folder ([`RunFolder`]):
            Where its records go.
        options (`Mapping[str, Any]`):
            Settings of the protocol, with those of the condition.
    """

    stage: Stage
    rollout: Rollout
    folder: RunFolder
    options: Mapping[str, Any]


def evaluated(
    protocol: str,
    score: Callable[[ProtocolRun], None],
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: str | Path,
    options: Mapping[str, Any] | None = None,
    **arguments: Unpack[ProtocolArguments],
) -> Evaluation | EvaluationPlan:
    """
    Score a model's self-edits with the domain's baselines, then one after another the conditions to compare them with.

    Each of the latter has a folder of its own in `output_dir/conditions`, which is one of a run; so conditions may be added
    later.

    Args:
        protocol (`str`):
            Name of the protocol, which is a setting of the run.
        score (`Callable[[ProtocolRun], None]`):
            Scores one condition by the protocol.
        lm, examples, output_dir:
            As for [`single_passage`].
        options (`Mapping[str, Any]`, *optional*):
            Settings of the protocol itself.
        **arguments ([`ProtocolArguments`]):
            What all protocols take.

    Returns:
        [`Evaluation`]: what all conditions come to; with `dry_run` an [`EvaluationPlan`] of them.

    Raises:
        ValueError: As [`single_passage`].
    """
    num_generations, config = arguments.get("num_generations", 1), arguments.get("config") or RolloutConfig()
    if num_generations < 1:
        raise ValueError(f"num_generations={num_generations!r} must be a whole number of at least 1.")
    output_dir, dry_run = Path(output_dir), arguments.get("dry_run", False)
    remedy = f"Every bank that was scored is in {output_dir}; {RESUME_EVALUATION}, with any number of processes."
    processes = Processes(output_dir, remedy=remedy)
    taken = {SELF_EDITS, *(condition.name for condition in lm.domain.conditions)}
    conditions = arguments.get("compared", ())
    if isinstance(conditions, Sequence):
        check_names([one.name for one in conditions], taken)
    common = {"num_generations": num_generations, "config": config, "seed": arguments.get("seed", 0)}
    common |= {"options": {"protocol": protocol, **(options or {})}}
    with processes.explaining_termination(lm.generator.clean_up):
        own = _prepared(processes, lm, examples, output_dir, self_edits=arguments.get("self_edits"), **common)
        if dry_run:
            counted = _counted(score, own)
        else:
            _score(score, own)
        compared = {}
        for one in conditions:
            check_names([one.name], taken)
            taken.add(one.name)
            folder = output_dir / COMPARED_FOLDER / folder_name(one.name)
            shared = processes.on_main(_shared_self_edits, output_dir, dry_run) if one.shares_self_edits else None
            its_own = {"self_edits": one.self_edits, "shared": shared, "condition": one}
            run = _prepared(processes, one.lm, examples, folder, **its_own, **common)
            one_score = score_routed if one.is_routed else score
            if dry_run:
                counts = _counted(one_score, run, writes=not one.shares_self_edits).counts
                compared[one.name] = sum(counts.values(), Counts())
            else:
                _score(one_score, run)
            del one, run  # with its model, before the next is loaded
        if dry_run:
            return plan_of(protocol, counted, own.stage, compared)
        (evaluation,) = processes.on_main(evaluations, Journal(output_dir / "evaluation"))
    return evaluation


def _prepared(
    processes: Processes,
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    output_dir: Path,
    *,
    num_generations: int,
    config: RolloutConfig,
    seed: int,
    self_edits: Iterable[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    condition: ComparedCondition | None = None,
    shared: Sequence[Proposal] | None = None,
) -> ProtocolRun:
    """A condition with its settings, of which nothing is on disk yet."""
    data = ExampleSet.of(examples, "examples")
    check_examples(lm, data, "examples", config.max_completion_length, config.max_answer_length)
    own_options = {**options, **(condition.options if condition is not None else {})}
    options = {**own_options, "num_generations": num_generations, "seed": seed}
    options |= {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS}
    options |= {f"inner_{name}": value for name, value in asdict(lm.inner_config).items()}
    completions = None
    if self_edits is not None:
        completions = stored_completions(lm.domain, data.examples, data.ids, self_edits, num_generations)
        options["self_edits"] = f"stored, {fingerprint(completions)}"
    if shared is not None:
        options["self_edits"] = f"stored, {fingerprint(_recorded(shared, data))}"
    layout = lora_layout(lm.model, lm.peft_config)
    options |= {"inner_lora_r": layout.r, "inner_lora_alpha": layout.lora_alpha}
    options |= {"inner_target_modules": layout.target_modules}
    if condition is not None:
        options |= _settings_of(condition, data)
        if not lm.domain.pools_drafts:
            config = replace(config, num_drafts=1)
    folder = RunFolder(output_dir, describe(lm, {"eval_dataset": data.examples}, options), resume=RESUME_EVALUATION)
    stage = Stage(
        name="evaluation" if condition is None else condition.name,
        journal=folder.evaluation,
        round=0,
        data=data,
        seed=seed,
        inner_seeds=(seed,),
        num_generations=0 if condition is not None and condition.baseline is not None else num_generations,
        baselines=lm.domain.conditions if condition is None else tuple(filter(None, [condition.baseline])),
        is_evaluation=True,
        completions=completions,
        proposals=shared,
    )
    rollout = Rollout(lm, config, processes, writer=condition and condition.writer)
    return ProtocolRun(stage, rollout, folder, own_options)


def _score(score: Callable[[ProtocolRun], None], run: ProtocolRun) -> None:
    processes = run.rollout.processes
    with ExitStack() as held:
        processes.on_main(run.folder.open, True, 0)
        processes.on_main(lambda: held.enter_context(run.folder.held()))
        score(run)


def _counted(score: Callable[[ProtocolRun], None], run: ProtocolRun, writes: bool = True) -> PlanningRollout:
    """The engine that has counted what is left to be done of a condition, with a journal that is thrown away."""
    run.rollout.processes.on_main(run.folder.check, True, 0)
    rollout = PlanningRollout(run.rollout, run.folder.evaluation, writes)
    with TemporaryDirectory() as directory:
        score(replace(run, stage=replace(run.stage, journal=Journal(Path(directory))), rollout=rollout))
    return rollout


def _recorded(self_edits: Sequence[Proposal], data: ExampleSet) -> list:
    """What tells self-edits from others: for each example its completions, and where a tool was asked what it gave."""
    own: list[list[Proposal]] = [[] for _ in data.examples]
    for one in self_edits:
        own[one.example].append(one)
    completions = [[one.completion for one in several] for several in own]
    if all(one.tool_examples is None for one in self_edits):
        return completions
    return [completions, [[one.tool_examples for one in several] for several in own]]


def _shared_self_edits(output_dir: Path, dry_run: bool) -> list[Proposal] | None:
    """Those of the evaluation's first row; `None` where they are counted alone and not written yet."""
    is_written = Journal(output_dir / "evaluation").proposals(0) is not None
    return written_in(output_dir) if is_written or not dry_run else None


def together(run: ProtocolRun, proposals: Sequence[Proposal]) -> list[Proposal]:
    """
    What is recorded where the self-edits of a condition are trained on together: one for each condition and example, with all that
    was written about the example, joined as several drafts are. It is malformed where nothing of its condition can be trained on.
    """
    groups: dict[tuple[str, int], list[Proposal]] = defaultdict(list)
    for proposal in proposals:
        groups[proposal.condition, proposal.example].append(proposal)
    trained = {proposal.condition for proposal in proposals if proposal.well_formed}
    return [
        Proposal(
            round=run.stage.round,
            condition=condition,
            example=place,
            example_id=run.stage.data.ids[place],
            edit=0,
            prompt=own[0].prompt,
            completion=PART_SEPARATOR.join(one.completion for one in own if one.completion),
            completion_tokens=sum(one.completion_tokens for one in own),
            well_formed=condition in trained,
            tokens=0,
            banks=[],
            metrics=self_edit_metrics(own) or None,
            written_tokens=sum(
                one.completion_tokens if one.written_tokens is None else one.written_tokens for one in own
            ),
        )
        for (condition, place), own in groups.items()
    ]


def score_routed(run: ProtocolRun) -> None:
    """
    Score adapters apart, of which each question gets the one that it is routed to.

    Raises:
        ValueError: The domain cannot tell what a question is about.
    """
    stage, rollout = run.stage, run.rollout
    routes_of(rollout.lm.domain, stage.data.examples)
    proposals = rollout.propose(stage)

    def trials() -> list[TrialResult] | None:
        updates = rollout.updates_of(stage, proposals)
        by_example = [
            [one for proposal, one in zip(proposals, updates, strict=True) if proposal.example == place]
            for place in stage.places
        ]
        joined = [joined_update(own, rollout.lm.inner_config) for own in by_example]
        steps = [Trial(SELF_EDITS, 0, 0, None, stage.places, rollout.lm.domain.questions)]
        results, cost = run_apart(rollout, stage, proposals, joined, steps, ROUTED)
        return [replace(one, tokens=cost[one.example][0], seconds=cost[one.example][1]) for one in results]

    rollout.record(stage, together(run, proposals), trials)


def joined_update(updates: Iterable[InnerUpdate | None], config: InnerLoopConfig) -> InnerUpdate | None:
    """All sequences of several updates as one with this configuration, in their order; `None` where there are none."""
    sequences = [sequence for update in updates if update is not None for sequence in update.sequences]
    return InnerUpdate(tuple(sequences), config) if sequences else None


def _settings_of(condition: ComparedCondition, data: ExampleSet) -> dict[str, Any]:
    """What defines a condition beside its model and domain."""
    settings: dict[str, Any] = {"condition": condition.name, "is_routed": condition.is_routed}
    if condition.writer is not None:
        settings["writer"] = canonical_name(condition.writer.base_model_id)
        settings["writer.weights"] = weights_fingerprint(condition.writer.model)
    for name in ("writer", "added"):
        if (adapter := getattr(condition.lm, name)) is not None:
            settings[f"{name}_adapter"] = adapter.fingerprint[:16]
    if condition.baseline is not None:
        decisive = [condition.baseline.questions(example) for example in data.examples]
        if condition.baseline.self_edit is not None:
            decisive += [asdict(condition.baseline.self_edit(example)) for example in data.examples]
        settings["baseline"] = fingerprint(decisive)
    return settings
