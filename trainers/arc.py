"""
Teach a model to choose how it is trained on a puzzle: SEAL on few-shot ARC.

    python -m trainers.arc --config trainers/configs/arc-small.yaml
    accelerate launch -m trainers.arc --config trainers/configs/arc-paper.yaml

Every field of SEALConfig and of TRL's ModelConfig is an option, on the command line or in the YAML file. With --dry_run
everything is checked and the plan is printed. The same command with --resume_from_checkpoint true continues a run.
"""

from dataclasses import dataclass, field

from seal_hf import SEALConfig
from seal_hf.domains import ArcDomain
from seal_hf.domains.arc.augmentation import MAX_TASKS
from seal_hf.domains.arc.domain import MAX_SEQUENCES
from seal_hf.domains.arc.generated import RULES, generate_tasks
from seal_hf.domains.arc.tasks import Task, load_tasks
from trainers.outer_loop import PolicyModelConfig, run_script, train


GENERATED = "generated"
# Generated tasks to evaluate on are drawn with another seed than those to learn from.
_EVAL_SEED = 10_000


@dataclass
class ArcArguments:
    """Tasks to learn from and to evaluate on, and what is made of them."""

    dataset_name: str = field(
        default=GENERATED,
        metadata={"help": "'generated' (small tasks), 'arc-agi-1', 'arc-agi-2', or a JSON file of tasks."},
    )
    dataset_solutions: str | None = field(
        default=None, metadata={"help": "A JSON file with the test outputs by task, where the tasks' file has none."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to learn from: 'train' or 'evaluation'."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Where the tasks to evaluate on are, if not in the same place."}
    )
    eval_dataset_solutions: str | None = field(default=None, metadata={"help": "Their test outputs."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on. Default: nothing is evaluated."}
    )
    num_train_tasks: int | None = field(default=None, metadata={"help": "Take only the first so many."})
    num_eval_tasks: int | None = field(default=None, metadata={"help": "Take only the first so many."})
    task_ids: list[str] = field(default_factory=list, metadata={"help": "Learn from these tasks only."})
    eval_task_ids: list[str] = field(default_factory=list, metadata={"help": "Evaluate on these tasks only."})
    rules: list[str] = field(
        default_factory=lambda: list(RULES), metadata={"help": "Rules of the generated tasks, in turn."}
    )
    task_seed: int = field(
        default=0, metadata={"help": "Seed of the generated tasks, of the training tasks and of the contexts drawn."}
    )
    max_training_tasks: int = field(default=MAX_TASKS, metadata={"help": "Most training tasks of a self-edit."})
    max_inner_sequences: int = field(
        default=MAX_SEQUENCES, metadata={"help": "Most training tasks of a self-edit times its epochs."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Check everything and print the plan, no more."})


def load(
    name: str, split: str, solutions: str | None, number: int | None, ids: list[str], rules: list[str], seed: int
) -> list[Task]:
    """
    The tasks of a place, those with these ids alone, or the first so many.

    Raises:
        ValueError: `number` is below 1, generated tasks without a number or with ids, or as for [`load_tasks`].
    """
    if number is not None and number < 1:
        raise ValueError(f"The number of tasks, {number}, must be at least 1.")
    if name == GENERATED:
        if number is None:
            raise ValueError("There is no end of generated tasks; give --num_train_tasks and --num_eval_tasks.")
        if ids:
            raise ValueError(
                f"Generated tasks are not chosen by their ids, as in {ids[0]}; give a number and --rules."
            )
        return generate_tasks(number, seed, tuple(rules))
    return load_tasks(name, split, solutions, ids)[:number]


def main(script_args: ArcArguments, training_args: SEALConfig, model_args: PolicyModelConfig) -> None:
    eval_dataset = None
    if (
        script_args.dataset_test_split is not None
        or script_args.eval_dataset_name is not None
        or (script_args.dataset_name == GENERATED and script_args.num_eval_tasks is not None)
    ):
        eval_dataset = load(
            script_args.eval_dataset_name or script_args.dataset_name,
            script_args.dataset_test_split or "evaluation",
            script_args.eval_dataset_solutions,
            script_args.num_eval_tasks,
            script_args.eval_task_ids,
            script_args.rules,
            script_args.task_seed + _EVAL_SEED,
        )
    train_dataset = load(
        script_args.dataset_name,
        script_args.dataset_train_split,
        script_args.dataset_solutions,
        script_args.num_train_tasks,
        script_args.task_ids,
        script_args.rules,
        script_args.task_seed,
    )
    domain = ArcDomain(
        seed=script_args.task_seed,
        max_tasks=script_args.max_training_tasks,
        max_sequences=script_args.max_inner_sequences,
    )
    train(domain, train_dataset, eval_dataset, training_args, model_args, dry_run=script_args.dry_run)


if __name__ == "__main__":
    run_script(main, ArcArguments)
