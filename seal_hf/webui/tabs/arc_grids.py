"""
Grids, tasks, tools and predictions of ARC as HTML. All texts are escaped; colours are those of the ARC site, on both grounds.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from ...domains.arc.augmentation import NO_TOOL, TrainingTask
from ...domains.arc.choices import ALL_TOKENS
from ...domains.arc.grids import Grid, as_grid, read_grid
from ...domains.arc.prediction import attempts, questions_of
from ...domains.arc.tasks import demonstrations
from ..languages import say
from ..work.arc_inputs import has_solutions
from ..work.arc_work import Preview


COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
_CELL = 10  # in units of the picture
# Side of a cell in pixels, and the longest side of a grid.
_LARGEST_CELL, _LARGEST_GRID = 20, 132
_SMALL_CELL, _SMALL_GRID = 9, 54
_NUM_DRAWN = 6  # training tasks that are shown
_MARKS = {True: "✓", False: "✗", None: ""}

ARC_CSS = """
.arc-row {display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; align-items: flex-start; margin: .25rem 0 .75rem}
.arc-tools {max-height: 13rem; overflow-y: auto}
.arc-pair {display: flex; gap: .5rem; align-items: center; max-width: 100%}
.arc-pair > span {color: var(--body-text-color-subdued)}
.arc-box {display: inline-flex; flex-direction: column; gap: .2rem; max-width: 100%}
.arc-box small {color: var(--body-text-color-subdued); font-size: .78rem; line-height: 1.25; max-width: 12rem}
.arc-box.right small {color: #15803d; font-weight: 600}
.arc-box.wrong small {color: #b91c1c}
.dark .arc-box.right small {color: #4ade80}
.dark .arc-box.wrong small {color: #f87171}
.arc-grid {display: block; max-width: 100%; height: auto; border-radius: 2px; border: 1px solid #64748b}
.arc-none {border: 1px dashed #64748b; border-radius: 2px; padding: .6rem .5rem; font-size: .78rem;
  color: var(--body-text-color-subdued)}
.arc h4 {margin: .35rem 0 .1rem; font-size: .9rem}
.arc p {margin: .1rem 0 .4rem; font-size: .86rem}
.arc details summary {cursor: pointer; font-size: .86rem; margin-bottom: .3rem}
.arc-editor {display: flex; flex-direction: column; gap: .6rem}
.arc-palette {display: flex; flex-wrap: wrap; gap: .3rem}
.arc-palette button {width: 1.75rem; height: 1.75rem; border: 1px solid #64748b; border-radius: 4px; padding: 0; cursor: pointer}
.arc-cells {overflow-x: auto; padding: 2px}
.arc-line {display: flex}
.arc-line button {flex: none; width: 1.5rem; height: 1.5rem; padding: 0; border: 1px solid #64748b; margin: 0 -1px -1px 0;
  cursor: pointer; border-radius: 0}
""" + "".join(
    f".arc-editor .colour-{i} {{background: {colour}}}\n"
    f".arc-editor[data-chosen='{i}'] .arc-palette .colour-{i} "
    "{outline: 3px solid var(--color-accent); outline-offset: 1px}\n"
    for i, colour in enumerate(COLOURS)
)


def escaped(text: object) -> str:
    """A text for HTML that Gradio fills into a template, in which braces, dollars and back quotes mean something."""
    return "".join(f"&#{ord(one)};" if one in "{}$`" else one for one in html.escape(str(text)))


def grid_svg(grid: Grid, *, small: bool = False) -> str:
    """
    A grid as a picture.

    Args:
        grid (`Grid`):
            Rows of colours from 0 to 9.
        small (`bool`, *optional*, defaults to `False`):
            Whether it is a thumbnail.

    Returns:
        `str`: SVG with a path for each colour, of a rectangle for each run of its cells in a row.
    """
    height, width = len(grid), len(grid[0])
    largest, longest = (_SMALL_CELL, _SMALL_GRID) if small else (_LARGEST_CELL, _LARGEST_GRID)
    side = min(largest, longest / max(height, width))
    runs: dict[int, list[str]] = {}
    for y, row in enumerate(grid):
        x = 0
        for colour, run in groupby(row):
            count = len(list(run))
            runs.setdefault(colour, []).append(f"M{x * _CELL} {y * _CELL}h{count * _CELL}v{_CELL}h-{count * _CELL}z")
            x += count
    cells = [f'<path fill="{COLOURS[colour]}" d="{"".join(own)}"/>' for colour, own in sorted(runs.items())]
    lines = "".join(
        [f"M{x * _CELL} 0V{height * _CELL}" for x in range(1, width)]
        + [f"M0 {y * _CELL}H{width * _CELL}" for y in range(1, height)]
    )
    return (
        f'<svg class="arc-grid" role="img" aria-label="{escaped(say("arc.grid_of", height=height, width=width))}" width="{width * side:.0f}" '
        f'height="{height * side:.0f}" viewBox="0 0 {width * _CELL} {height * _CELL}" shape-rendering="crispEdges">'
        f'{"".join(cells)}<path d="{lines}" stroke="#64748b" stroke-width="{0.6 if small else 0.8}" fill="none"/></svg>'
    )


def task_html(task: Mapping) -> str:
    """The demonstrations of a task, and its test inputs with their solutions."""
    shown = [
        _pair(*pair, say("arc.demonstration", number=number)) for number, pair in enumerate(demonstrations(task), 1)
    ]
    asked = [
        _pair(
            as_grid(pair["input"]),
            as_grid(pair["output"]) if "output" in pair else None,
            say("arc.test", number=number),
        )
        for number, pair in enumerate(task["test"], 1)
    ]
    unsolved = "" if has_solutions(task) else f"<p>{escaped(say('arc.no_solution'))}</p>"
    return f'<div class="arc"><div class="arc-row">{"".join(shown)}</div><div class="arc-row">{"".join(asked)}</div>{unsolved}</div>'


def preview_html(preview: Preview | None) -> str:
    """What a self-edit chose, what each of its tools makes of the task, and what of it is drawn."""
    if preview is None:
        return f'<div class="arc"><p>{escaped(say("arc.malformed"))}</p></div>'
    training = preview.choices.training
    chosen_training = say(
        f"arc.training_{'all' if training.strategy == ALL_TOKENS else 'outputs'}",
        groups=", ".join(preview.choices.groups) or say("arc.no_tools"),
        rate=training.learning_rate,
        epochs=training.num_train_epochs,
    )
    by_tool, chosen = preview.made.by_tool, preview.made.drawn
    num_made = len({one for made in by_tool.values() for one in made})
    tools = [
        _box(_thumbnail(made), f"{say('arc.as_it_is') if name == NO_TOOL else name.replace('_', ' ')} · {len(made)}")
        for name, made in by_tool.items()
        if made
    ]
    left_out = sum(not made for made in by_tool.values())
    drawn = [_thumbnail([one]) for one in chosen[:_NUM_DRAWN]]
    too_large = f"<p>{escaped(say('arc.too_large', number=left_out))}</p>" if left_out else ""
    return (
        f'<div class="arc"><p>{escaped(chosen_training)}</p><details open><summary>'
        f"{escaped(say('arc.tools_make', num_tools=len(by_tool) - 1, num_tasks=num_made))}</summary>"
        f'<div class="arc-row arc-tools">{"".join(tools)}</div>{too_large}</details>'
        f"<details><summary>{escaped(say('arc.drawn', number=len(chosen)))}"
        f'</summary><div class="arc-row">{"".join(drawn)}</div></details></div>'
    )


def predictions_html(task: Mapping, seed: int, answers: Sequence[Sequence[str]]) -> str:
    """
    The predictions of the base model and of the adapted one, their votes and the truth.

    Args:
        task (`Mapping`):
            The task.
        seed (`int`):
            The seed of the domain, by which the contexts were drawn.
        answers (`Sequence[Sequence[str]]`):
            The answers of both models to the domain's questions.
    """
    questions = questions_of(task, seed)
    predicted = [[read_grid(text) for text in own] for own in answers]
    voted = [attempts(questions, own) for own in predicted]
    parts = []
    for test, pair in enumerate(task["test"]):
        truth = as_grid(pair["output"]) if "output" in pair else None
        name = f"{say('arc.test', number=test + 1)}: " if len(task["test"]) > 1 else ""
        source = _box(grid_svg(as_grid(pair["input"])), say("arc.input"))
        parts.append(f'<div class="arc-row">{source}{_truth(truth)}</div>')
        models = (say("arc.before_learning"), say("arc.after_learning"))
        for model, own, chosen in zip(models, predicted, voted, strict=True):
            views = [
                (question.view, None if grid is None else question.turned_back(grid))
                for question, grid in zip(questions, own, strict=True)
                if question.test == test
            ]
            votes = Counter(grid for _, grid in views)
            boxes = [
                _verdict(grid, truth, say("arc.attempt", number=number, votes=votes[grid], all=len(views)))
                for number, grid in enumerate(chosen[test], 1)
            ]
            shown = [_verdict(grid, truth, view.replace("_", " "), small=True) for view, grid in views]
            parts.append(
                f"<h4>{escaped(name + model)}</h4>"
                f'<div class="arc-row">{"".join(boxes) or _box(_no_grid(), say("arc.no_attempt"))}</div>'
                f"<details><summary>{escaped(say('arc.predictions', number=len(views)))}</summary>"
                f'<div class="arc-row">{"".join(shown)}</div></details>'
            )
    return f'<div class="arc">{"".join(parts)}</div>'


def _no_grid() -> str:
    return f'<span class="arc-none">{escaped(say("arc.no_grid"))}</span>'


def _pair(source: Grid, target: Grid | None, name: str) -> str:
    output = '<span class="arc-none">?</span>' if target is None else grid_svg(target)
    return _box(f'<div class="arc-pair">{grid_svg(source)}<span>→</span>{output}</div>', name)


def _thumbnail(made: Sequence[TrainingTask]) -> str:
    source, target = made[0].test
    return f'<div class="arc-pair">{grid_svg(source, small=True)}<span>→</span>{grid_svg(target, small=True)}</div>'


def _truth(truth: Grid | None) -> str:
    return "" if truth is None else _box(grid_svg(truth), say("arc.truth"))


def _verdict(grid: Grid | None, truth: Grid | None, text: str, *, small: bool = False) -> str:
    is_right = None if truth is None else grid == truth
    shown = _no_grid() if grid is None else grid_svg(grid, small=small)
    return _box(shown, f"{_MARKS[is_right]} {text}".strip(), {True: " right", False: " wrong", None: ""}[is_right])


def _box(content: str, text: str, kind: str = "") -> str:
    return f'<div class="arc-box{kind}">{content}<small>{escaped(text)}</small></div>'
