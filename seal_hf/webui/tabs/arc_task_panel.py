"""The first step of the tab ARC: a task that is chosen, drawn or pasted, and the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gradio as gr

from ...domains.arc.grids import MAX_SIDE, as_grid
from ..languages import laid_out, say, told
from ..work import arc_inputs
from ..work.arc_inputs import GENERATED
from ..work.arc_work import MAX_SELF_EDITS, RANGES, ArcSettings
from .arc_grids import COLOURS, escaped, task_html


NAMES = ("num_generations", "temperature", "max_completion_length", "seed", "max_tasks", "batch_size", "lora_r")
# The palette and the cells of one grid; `value` is the colour that is chosen, the rows and the words of the visitor's language.
_EDITOR = (
    '<div class="arc-editor" data-chosen="{{value.colour}}"><div class="arc-palette">{{#each value.names}}<button type="button" '
    'class="colour-{{@index}}" data-colour="{{@index}}" title="{{this}}" aria-label="{{this}}"></button>{{/each}}</div>'
    '<div class="arc-cells">{{#each value.rows}}<div class="arc-line">{{#each this}}<button type="button" '
    'class="colour-{{this}}" data-row="{{@../index}}" data-column="{{@index}}" aria-label="{{@root.value.words.row}} '
    '{{@../index}}, {{@root.value.words.column}} {{@index}}, {{@root.value.words.colour}} {{this}}"></button>{{/each}}</div>'
    "{{/each}}</div></div>"
)
_ON_CLICK = """
element.addEventListener('click', (event) => {
  const {colour, row, column} = event.target.dataset;
  if (colour !== undefined) {
    props.value = {...props.value, colour: Number(colour)};
  } else if (row !== undefined) {
    const rows = props.value.rows.map((cells) => [...cells]);
    rows[Number(row)][Number(column)] = props.value.colour;
    props.value = {...props.value, rows};
    trigger('input');
  }
});
"""


@dataclass
class TaskPanel:
    """The widgets whose values the tab needs. `settings` are in the order of `NAMES`."""

    text: gr.Textbox
    settings: list[gr.components.Component]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The task's JSON and the settings."""
        return [self.text, *self.settings]


def read_settings(values: Sequence[object]) -> ArcSettings:
    """
    The settings from the values of [`TaskPanel`]'s `settings`.

    Raises:
        ValueError: A value is out of its range.
    """
    return ArcSettings.of(**dict(zip(NAMES, values, strict=True)))


def build_task_panel() -> tuple[TaskPanel, Callable[[gr.events.Dependency], gr.events.Dependency]]:
    """
    Lay out the panel where this is called.

    Returns:
        `tuple`: The panel; and a function, which shows the task in the visitor's language after the event that it is called with.
    """
    first, *_ = tasks = arc_inputs.tasks_of(GENERATED).values()
    places = arc_inputs.places_of(first)
    default = ArcSettings()

    gr.Markdown(laid_out("arc.task_heading"), elem_classes="step")
    with gr.Row():
        collection = gr.Dropdown(
            [(laid_out(label) if name == GENERATED else label, name) for label, name in arc_inputs.collections()],
            value=GENERATED,
            label=laid_out("arc.collection"),
            min_width=180,
            elem_id="arc-collection",
        )
        name = gr.Dropdown(
            [task["id"] for task in tasks],
            value=first["id"],
            label=laid_out("arc.task"),
            min_width=140,
            elem_id="arc-name",
        )
    shown = gr.HTML(task_html(first), elem_id="arc-task")
    with gr.Accordion(laid_out("arc.own"), open=False, elem_id="arc-own"):
        place = gr.Dropdown(
            [(laid_out(label), number) for number, (label, _) in enumerate(places)],
            value=0,
            label=laid_out("arc.grid"),
            elem_id="arc-place",
        )
        editor = gr.HTML(
            _edited(None, first["train"][0]["input"]),
            html_template=_EDITOR,
            js_on_load=_ON_CLICK,
            elem_id="arc-editor",
        )
        with gr.Row():
            height, width = (
                gr.Number(
                    len(side), label=laid_out(f"arc.{name}"), minimum=1, maximum=MAX_SIDE, precision=0, min_width=80, elem_id=f"arc-{name}"
                )
                for name, side in (("rows", first["train"][0]["input"]), ("columns", first["train"][0]["input"][0]))
            )  # fmt: skip
        with gr.Row():
            empty = gr.Button(laid_out("arc.empty_task"), size="sm", min_width=90, elem_id="arc-empty")
            more = gr.Button(laid_out("arc.more"), size="sm", min_width=90)
            fewer = gr.Button(laid_out("arc.fewer"), size="sm", min_width=90)
        text = gr.Textbox(
            arc_inputs.write_task(first), label=laid_out("arc.json"), lines=5, max_lines=10, elem_id="arc-json", elem_classes="arc-code"
        )  # fmt: skip
    with gr.Accordion(laid_out("arc.settings"), open=False, elem_id="arc-settings"):
        with gr.Row():
            settings = [
                gr.Number(
                    value=getattr(default, name),
                    label=laid_out(RANGES[name][0]),
                    minimum=RANGES[name][1],
                    maximum=RANGES[name][2],
                    precision=0 if isinstance(RANGES[name][1], int) else None,
                    step=1 if isinstance(RANGES[name][1], int) else 0.05,
                    min_width=130,
                    elem_id=f"arc-{name}",
                )
                for name in NAMES
            ]
        gr.Markdown(laid_out("arc.settings_hint", most=MAX_SELF_EDITS), elem_classes="quiet")

    def on_collection(collection: str) -> tuple[dict, str]:
        try:
            tasks = arc_inputs.tasks_of(collection)
        except (ValueError, ImportError, OSError) as error:
            raise gr.Error(told(error), print_exception=False) from error
        first = next(iter(tasks.values()))
        return gr.update(choices=list(tasks), value=first["id"]), arc_inputs.write_task(first)

    def on_name(collection: str, name: str) -> object:
        try:
            return arc_inputs.write_task(arc_inputs.task_of(collection, name))
        except ValueError:  # the name is still that of another collection
            return gr.skip()

    def on_text(text: str, index: int | None, value: object) -> tuple:
        try:
            task = arc_inputs.read_task(text)
        except ValueError as error:
            return f'<div class="arc"><p>⚠️ {escaped(told(error))}</p></div>', *[gr.skip()] * 4
        places = arc_inputs.places_of(task)
        index = index if isinstance(index, int) and 0 <= index < len(places) else 0
        grid = arc_inputs.grid_at(task, places[index][1])
        drawn = _edited(value, grid)
        return (
            task_html(task),
            gr.update(choices=[(told(label), number) for number, (label, _) in enumerate(places)], value=index),
            gr.skip() if drawn == value else drawn,  # what one draws is there already
            len(grid),
            len(grid[0]),
        )

    def on_grid(text: str, index: int | None, value: object, height: int | None, width: int | None) -> object:
        """The task with a grid of the editor, of this size."""
        try:
            task = arc_inputs.read_task(text)
            grid = as_grid(value.get("rows") if isinstance(value, dict) else None)
            place = arc_inputs.places_of(task)[index or 0][1]
        except (ValueError, IndexError):
            return gr.skip()
        sides = [
            int(side) if isinstance(side, int | float) and 1 <= side <= MAX_SIDE else None for side in (height, width)
        ]
        if None in sides:
            return gr.skip()
        return arc_inputs.write_task(arc_inputs.with_grid(task, place, arc_inputs.resized(grid, *sides)))

    def changed(change: int) -> Callable[[str], object]:
        def on_change(text: str) -> object:
            try:
                return arc_inputs.write_task(arc_inputs.with_demonstrations(arc_inputs.read_task(text), change))
            except ValueError:
                return gr.skip()

        return on_change

    quick = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    collection.input(on_collection, collection, [name, text], api_visibility="private", show_progress="hidden")
    name.input(on_name, [collection, name], text, **quick)
    gr.on(
        [text.change, place.input],
        on_text,
        [text, place, editor],
        [shown, place, editor, height, width],
        trigger_mode="always_last",
        **quick,
    )
    grid = [text, place, editor, height, width]

    def attach(event: gr.events.Dependency) -> gr.events.Dependency:
        return event.then(on_text, [text, place, editor], [shown, place, editor, height, width], **quick)

    gr.on([editor.input, height.input, width.input], on_grid, grid, text, trigger_mode="always_last", **quick)
    empty.click(lambda: arc_inputs.write_task(arc_inputs.empty_task()), outputs=text, **quick)
    more.click(changed(1), text, text, **quick)
    fewer.click(changed(-1), text, text, **quick)
    return TaskPanel(text, settings), attach


def _edited(value: object, grid: Sequence) -> dict:
    """The value of the editor with a grid; the colour stays as it was chosen."""
    colour = value.get("colour") if isinstance(value, dict) else None
    return {
        "colour": colour if colour in range(10) else 1,
        "rows": list(map(list, grid)),
        "names": [say(f"colour.{number}") for number in range(len(COLOURS))],
        "words": {word: say(f"arc.{word}_word") for word in ("row", "column", "colour")},
    }
