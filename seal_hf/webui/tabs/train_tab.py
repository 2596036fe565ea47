"""The tab Train, step 6: the outer loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr

from ...domains.files import TEXT_FILE_TYPES
from ..languages import laid_out, say, told
from ..work.errors import explain
from ..work.jobs import DONE, FAILED, RUNNING, STOPPED
from ..work.policies import use_policy
from ..work.sessions import Session, Sessions
from ..work.settings import TRAINING_RANGES, TrainingSettings, as_number
from ..work.training_records import TrainingSnapshot, self_edits_of
from ..work.training_runs import TrainingRuns
from .passage_panel import style_choices
from .shared import escape, read_only_table, table_of, warning
from .train_tables import (
    accuracy_colors,
    accuracy_points,
    any_reward,
    edits_label,
    edits_table,
    held_out_label,
    held_out_table,
    reward_colors,
    reward_points,
    rounds_table,
)
from .writer_lines import WriterLines


_MOST_EDITS = 40  # rows of the table of self-edits; the run's files have all of them
_REFRESH = 1.0  # seconds between two updates of the page
# Columns of the tables.
_MEANS = ("train.round", "train.scored", "train.mean", "train.best", "train.kept_column")
_HELD_OUT = ("train.answered_by_column", "train.accuracy", "common.recited")
_EDITS = ("common.self_edit_column", "train.trains_on")
_SHOWN = ("num_train_passages", "num_eval_passages", "num_rounds", "num_generations")
_FOLDED = (
    "temperature",
    "max_completion_length",
    "inner_num_train_epochs",
    "inner_batch_size",
    "inner_learning_rate",
    "num_train_epochs",
    "seed",
)
_COMMAND = "accelerate launch -m trainers.knowledge --config config.yaml --resume_from_checkpoint true"


def build_train_tab(
    runs: TrainingRuns, sessions: Sessions, session: gr.BrowserState, writer: WriterLines
) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        runs ([`TrainingRuns`]):
            Does the work.
        sessions ([`Sessions`]):
            The sessions, to which the runs belong.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        writer ([`WriterLines`]):
            Says who writes the self-edits in the tab Teach.

    Returns:
        `Callable`: Called with an event, it makes the page show the session's run after it.
    """
    defaults = TrainingSettings()
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=320):
            gr.Markdown(laid_out("train.heading"), elem_classes="step")
            if limits := runs.limits.say_of_runs():
                gr.Markdown(laid_out(limits), elem_id="train-limits", elem_classes="quiet")
            upload = gr.File(
                label=laid_out("train.file"),
                file_types=list(TEXT_FILE_TYPES), height=150, elem_id="train-file",
            )  # fmt: skip
            with gr.Row():
                numbers = {name: _number(name, defaults) for name in _SHOWN}
            style = gr.Dropdown(
                style_choices(),
                value=defaults.prompt_style,
                label=laid_out("passage.style"),
            )
            with gr.Accordion(laid_out("common.advanced"), open=False), gr.Row():
                numbers |= {name: _number(name, defaults) for name in _FOLDED}
            with gr.Row():
                start = gr.Button(laid_out("train.start"), variant="primary", elem_id="train-start", min_width=90)
                stop = gr.Button(laid_out("common.stop"), interactive=False, elem_id="train-stop", min_width=80)
                resume = gr.Button(laid_out("train.resume"), interactive=False, elem_id="train-resume", min_width=90)
            with gr.Accordion(laid_out("train.elsewhere"), open=False, elem_id="train-command"):
                # No line numbers: they are misplaced, since the box is laid out while it is folded.
                code = {"interactive": False, "wrap_lines": True, "show_line_numbers": False}
                gr.Code(_COMMAND, language="shell", label=laid_out("train.command"), lines=3, **code)
                config = gr.Code(
                    runs.yaml(defaults), language="yaml", label="config.yaml", elem_id="train-yaml", **code
                )
        with gr.Column(scale=7, min_width=320):
            gr.Markdown(laid_out("train.run"), elem_classes="step")
            status = gr.Markdown(laid_out("train.empty"), elem_id="train-status", elem_classes="status")
            plot = gr.ScatterPlot(
                x="number", y="reward", color="self-edit", height=260, y_lim=[-0.05, 1.05],
                visible=False, elem_id="train-plot",
            )  # fmt: skip
            means = read_only_table(
                [24, 24, 18, 17, 17], label=laid_out("train.rewards"), elem_id="train-rounds", visible=False
            )
            accuracies = gr.LinePlot(
                x="round", y="accuracy", color="answered by", height=280, y_lim=[-0.03, 1.03], visible=False,
                elem_id="train-accuracies",
            )  # fmt: skip
            held_out = read_only_table(
                [44, 38, 18], label=laid_out("train.held_out"), elem_id="train-held-out", visible=False
            )
            with gr.Row(visible=False, elem_id="train-policies") as policies:
                which = gr.Dropdown(
                    [(laid_out("train.newest"), 0)], value=0, label=laid_out("train.round"), min_width=140, scale=1,
                    elem_id="train-round",
                )  # fmt: skip
                use = gr.Button(
                    laid_out("train.use"), interactive=False, min_width=150, scale=1, size="md", elem_id="train-use"
                )
            use_status = gr.Markdown(elem_id="train-use-status", elem_classes="status", visible=False)
            writer.add("train-writer")
            # Few columns, so that words are not broken on a phone.
            edits = read_only_table(
                [33, 67], elem_id="train-edits", visible=False, max_height=700, label=laid_out("train.self_edits")
            )
            with gr.Accordion(laid_out("train.log"), open=False):
                log = gr.Textbox(show_label=False, lines=10, max_lines=10, interactive=False, elem_id="train-log")

    settings = [style, *numbers.values()]

    def no_session() -> str:
        return f"⚠️ {say('train.no_session')}"

    def session_of(session_id: str) -> Session | None:
        # Only an id that a page has was given out. One that anybody can guess, such as an empty one, has no run.
        return sessions.find(session_id)

    def read(values: tuple) -> TrainingSettings:
        chosen = dict(zip(["prompt_style", *numbers], values, strict=True))
        return TrainingSettings(**{name: as_number(value) for name, value in chosen.items()})

    async def watch(session_id: str) -> AsyncIterator[dict]:
        seen = None
        while True:
            current = session_of(session_id)
            try:
                snapshot = current and await asyncio.to_thread(runs.snapshot, current.id)
            except ValueError as error:
                yield {start: gr.update(interactive=True), status: warning(explain(error))}
                return
            if not snapshot:
                yield {start: gr.update(interactive=True)}
                return
            # The round may be chosen anew meanwhile, so that the list is only sent where it is another.
            table, of_table = {}, (current.shown_round, snapshot.candidates, snapshot.policies)
            if seen != of_table:
                seen, table = of_table, await asyncio.to_thread(show_round, snapshot, current.shown_round)
            yield {**show(snapshot), **table}
            if snapshot.state != RUNNING:
                return
            await asyncio.sleep(_REFRESH)

    def show(snapshot: TrainingSnapshot) -> dict:
        running = snapshot.state == RUNNING
        scored = any_reward(snapshot.candidates)
        found = snapshot.evaluations
        return {
            status: status_text(snapshot, shows_folder=not runs.limits.is_shared),
            start: gr.update(interactive=not running),
            stop: gr.update(interactive=running),
            resume: gr.update(interactive=snapshot.state in (STOPPED, FAILED)),
            plot: gr.update(
                value=reward_points(snapshot.candidates),
                color_map=reward_colors(),
                title=say("train.rewards_plot"),
                x_title=say("train.self_edit_axis"),
                y_title=say("train.share_axis"),
                color_title=say("common.self_edit_column"),
                x_lim=[0, len(snapshot.candidates) + 1],
                visible=scored,
            ),
            means: gr.update(value=table_of(_MEANS, rounds_table(snapshot.candidates)), visible=scored),
            accuracies: gr.update(
                value=accuracy_points(found),
                color_map=accuracy_colors(found),
                # Gradio draws a new line only where something else than the value changes, too.
                title=say("train.held_out_after", count=len(found) - 1),
                x_title=say("train.rounds_axis"),
                y_title=say("train.share_axis"),
                color_title=say("train.answered_by"),
                x_lim=[0, max(1, len(found) - 1)],
                visible=bool(found),
            ),
            held_out: gr.update(
                value=table_of(_HELD_OUT, held_out_table(found)), label=held_out_label(found), visible=bool(found)
            ),
            log: snapshot.log,
        }

    def show_round(snapshot: TrainingSnapshot, number: int) -> dict:
        num_rounds = max((one.round for one in snapshot.candidates), default=0)
        found = self_edits_of(snapshot, number, _MOST_EDITS)
        return {
            policies: gr.update(visible=bool(snapshot.candidates)),
            which: gr.update(choices=_rounds(num_rounds), value=number),
            use: gr.update(interactive=number in snapshot.policies if number else bool(snapshot.policies)),
            edits: gr.update(
                value=table_of(_EDITS, edits_table(found)),
                label=edits_label(found, snapshot.candidates),
                visible=bool(snapshot.candidates),
            ),
        }

    async def on_round(session_id: str, number: int) -> dict:
        current = session_of(session_id)
        snapshot = current and await asyncio.to_thread(runs.snapshot, current.id)
        if not snapshot or number not in {0, *(one.round for one in snapshot.candidates)}:
            return {edits: gr.skip()}
        current.shown_round = number
        return await asyncio.to_thread(show_round, snapshot, number)

    def on_use(session_id: str, number: int) -> dict:
        if (current := session_of(session_id)) is None:
            return {use_status: gr.update(value=no_session(), visible=True)}
        try:
            use_policy(runs, current, number)
        except (ValueError, OSError) as error:
            return {use_status: gr.update(value=warning(explain(error)), visible=True)}
        return {use_status: gr.update(visible=False)}

    async def on_start(session_id: str, file: str | None, *values: object) -> AsyncIterator[dict]:
        if (current := session_of(session_id)) is None:
            yield {status: no_session()}
            return
        current.shown_round = 0
        yield {start: gr.update(interactive=False), status: say("job.starting")}
        try:
            await asyncio.to_thread(runs.start, current.id, read(values), Path(file) if file else None)
        except (ValueError, OSError) as error:
            yield {start: gr.update(interactive=True), status: warning(explain(error))}
            return
        async for shown in watch(session_id):
            yield shown

    async def on_resume(session_id: str) -> AsyncIterator[dict]:
        if (current := session_of(session_id)) is None:
            yield {status: no_session()}
            return
        try:
            await asyncio.to_thread(runs.resume, current.id)
        except (ValueError, OSError) as error:
            yield {status: warning(explain(error))}
            return
        async for shown in watch(session_id):
            yield shown

    def on_stop(session_id: str) -> dict:
        if (current := session_of(session_id)) is None:
            return {status: no_session()}
        runs.stop(current.id)
        return {stop: gr.update(interactive=False), status: say("train.stopping")}

    def restore(session_id: str) -> list[object]:
        current = session_of(session_id)
        try:
            chosen = runs.settings(current.id) if current else None
        except ValueError:  # `watch` tells it
            chosen = None
        return [gr.skip() if chosen is None else getattr(chosen, name) for name in ("prompt_style", *numbers)]

    def show_config(file: str | None, *values: object) -> str:
        try:
            return runs.yaml(read(values), Path(file).name if file else "demo")
        except ValueError as error:
            return f"# {told(error)}"

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    of_round = [policies, which, use, edits]
    shown = [status, start, stop, resume, plot, means, accuracies, held_out, *of_round, log]
    start.click(on_start, [session, upload, *settings], shown, trigger_mode="once", **shared)
    resume.click(on_resume, session, shown, trigger_mode="once", **shared)
    stop.click(on_stop, session, [stop, status], api_visibility="private", queue=False)
    which.input(on_round, [session, which], of_round, **shared)
    writer.changed_by(use.click(on_use, [session, which], use_status, trigger_mode="once", **shared))
    gr.on(
        [widget.change for widget in (upload, *settings)],
        show_config,
        [upload, *settings],
        config,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
    )

    def attach(event: gr.events.Dependency) -> None:
        event.then(restore, session, settings, api_visibility="private", show_progress="hidden", queue=False)
        event.then(watch, session, shown, **shared)

    return attach


def _number(name: str, defaults: TrainingSettings) -> gr.Number:
    label, least, most = TRAINING_RANGES[name]
    return gr.Number(
        value=getattr(defaults, name),
        label=laid_out(label),
        minimum=least,
        maximum=most,
        precision=0 if isinstance(least, int) else None,
        min_width=160,
        elem_id=f"train-{name}",
    )


def status_text(snapshot: TrainingSnapshot, *, shows_folder: bool = True) -> str:
    """
    The progress of the run, in a sentence.

    Args:
        snapshot ([`TrainingSnapshot`]):
            The progress.
        shows_folder (`bool`, *optional*, defaults to `True`):
            Whether the visitor may know where the run is on this machine.
    """
    if snapshot.state == FAILED:
        return f"{warning(snapshot.error or '')} {say('train.resume_failed')}"
    phase = told(snapshot.phase)
    if snapshot.state == STOPPED:
        why = [escape(told(snapshot.error))] if snapshot.error else []
        return " ".join([say("job.stopped"), f"{phase}.", *why, say("train.resume_stopped")])
    if snapshot.state == DONE and not shows_folder:
        return f"{phase}."
    if snapshot.state == DONE:
        return f"{phase}. {say('train.files', folder=snapshot.folder / 'run')}"
    paused = f" ({say('train.paused')})" if snapshot.is_paused else ""
    return f"{phase}{paused} …"


def _rounds(number: int) -> list[tuple[str, int]]:
    """The choices of a round, when there are so many."""
    return [
        (say("train.newest"), 0),
        *((say("train.round_number", number=one), one) for one in range(1, number + 1)),
    ]
