"""The tab ARC: a puzzle of grids, for which the model chooses how it is trained on it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import gradio as gr

from ..languages import laid_out, language, say
from ..work import arc_inputs
from ..work.arc_work import LEARNING, MAX_SELF_EDITS, WRITING, ArcSettings, ArcWork
from ..work.jobs import Job
from ..work.sessions import Session
from ..work.workbench import Workbench
from .arc_grids import predictions_html, preview_html
from .arc_task_panel import NAMES, build_task_panel, read_settings
from .learning_texts import loss_axes, loss_table, training_text
from .shared import append, cumulative, ended_text, follow, is_waiting, opened, started, waiting_text


_BY_HAND = 0  # the choice of all tools in place of a self-edit, which have numbers from 1


def build_arc_tab(workbench: Workbench, session: gr.BrowserState) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.

    Returns:
        `Callable`: Called with an event, it makes the tab show the session and follow its jobs after it.
    """
    arc = ArcWork(workbench)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=5, min_width=320):
            panel, attach_task = build_task_panel()
            with gr.Row():
                write = gr.Button(
                    laid_out("teach.write"), variant="primary", elem_id="arc-write", min_width=160, interactive=False
                )
                stop_writing = gr.Button(
                    laid_out("common.stop"), elem_id="arc-stop-writing", min_width=80, interactive=False
                )
        with gr.Column(scale=7, min_width=320):
            gr.Markdown(laid_out("teach.heading"), elem_classes="step")
            empty = gr.Markdown(laid_out("arc.empty"), elem_id="arc-introduction")
            write_status = gr.Markdown(elem_id="arc-write-status", elem_classes="status")
            cards, texts, previews = [], [], []
            with gr.Row(elem_classes="cards"):
                for number in range(1, MAX_SELF_EDITS + 1):
                    with gr.Column(visible=False, min_width=260, elem_classes="card") as card:
                        texts.append(
                            gr.Textbox(
                                label=laid_out("common.self_edit", number=number),
                                lines=9,
                                max_lines=12,
                                interactive=False,
                                autoscroll=True,
                                elem_id=f"arc-self-edit-{number}",
                                elem_classes="arc-code",
                            )
                        )
                        previews.append(gr.HTML(elem_id=f"arc-preview-{number}"))
                    cards.append(card)
            gr.Markdown(laid_out("arc.learn_heading"), elem_classes="step")
            chosen = gr.Radio(
                [(laid_out("arc.by_hand"), _BY_HAND)], value=_BY_HAND, show_label=False, elem_id="arc-chosen"
            )
            with gr.Row():
                learn = gr.Button(
                    laid_out("arc.learn"), variant="primary", elem_id="arc-learn", min_width=160, interactive=False
                )
                stop_learning = gr.Button(
                    laid_out("common.stop"), elem_id="arc-stop-learning", min_width=80, interactive=False
                )
            if limits := workbench.limits.say():
                gr.Markdown(laid_out(limits), elem_classes="quiet")
            learn_status = gr.Markdown(elem_id="arc-learn-status", elem_classes="status")
            plot = gr.LinePlot(x="step", y="loss", height=220, visible=False, elem_id="arc-loss")
            predictions = gr.HTML(visible=False, elem_id="arc-predictions")

    def choices(count: int) -> dict:
        written = [(say("common.self_edit", number=number), number) for number in range(1, count + 1)]
        return {
            chosen: gr.update(
                choices=[*written, (say("arc.by_hand"), _BY_HAND)], value=written[0][1] if written else _BY_HAND
            )
        }

    def show_written(current: Session) -> dict:
        puzzle = current.puzzle
        if not puzzle.previews or puzzle.language != language():
            settings, puzzle.language = ArcSettings(**puzzle.settings), language()
            puzzle.previews = [preview_html(arc.preview(puzzle.task, text, settings)) for text in puzzle.texts]
        shown = choices(len(puzzle.texts))
        for index, (card, text, preview) in enumerate(zip(cards, texts, previews, strict=True)):
            there = index < len(puzzle.texts)
            own = puzzle.texts[index] if there else ""
            shown[card] = gr.update(visible=there)
            shown[text] = gr.update(value=own, interactive=there)
            shown[preview] = puzzle.previews[index] if there else ""
        return shown

    async def watch_writing(current: Session, job: Job) -> AsyncIterator[dict]:
        written: list[str] = []
        yield {
            empty: gr.update(visible=False),
            write: gr.update(interactive=False),
            stop_writing: gr.update(interactive=True),
            learn_status: "",
            plot: gr.update(visible=False),
            predictions: gr.update(visible=False),
        }
        async for log, events in follow(workbench, job):
            shown = {}
            for event in events:
                if event["event"] == "writing":
                    written = [""] * event["count"]
                    shown |= {card: gr.update(visible=index < len(written)) for index, card in enumerate(cards)}
                    shown |= dict.fromkeys(previews, "")
                elif event["event"] == "text":
                    append(written, event["new"])
            shown |= {text: gr.update(value=new, interactive=False) for text, new in zip(texts, written, strict=False)}
            if log.has_ended:
                if current.puzzle is not None:
                    shown |= await asyncio.to_thread(show_written, current)
                shown |= {write: gr.update(interactive=True), stop_writing: gr.update(interactive=False)}
                text = ended_text(log, say("arc.edit"), say("job.stopped"))
            elif is_waiting(log):
                text = waiting_text(workbench, job)
            else:
                text = say("arc.writing")
            yield {**shown, write_status: text}

    async def watch_learning(job: Job) -> AsyncIterator[dict]:
        steps: list[dict] = []
        task, solved = {}, ""
        yield {
            learn: gr.update(interactive=False),
            stop_learning: gr.update(interactive=True),
            plot: gr.update(visible=False),
            predictions: gr.update(visible=False),
            learn_status: say("job.starting"),
        }
        async for log, events in follow(workbench, job):
            shown, text, num_before = {}, None, len(steps)
            for event in events:
                if event["event"] == "task":
                    task = event
                elif event["event"] == "step":
                    steps.append(event)
                elif event["event"] == "predicting":
                    text = say("arc.predicting", count=event["count"])
                elif event["event"] == "predicted":
                    found = await asyncio.to_thread(predictions_html, task["task"], task["seed"], event["answers"])
                    shown[predictions] = gr.update(value=found, visible=True)
                    solved = solved_text(event["solved"])
            if len(steps) > num_before:
                shown[plot] = gr.update(
                    value=loss_table(steps, [""]), title=say("learn.loss"), visible=True, **loss_axes()
                )
                text = text or training_text(steps[-1])
            if log.has_ended:
                text = ended_text(log, solved, say("arc.stopped"))
                shown |= {learn: gr.update(interactive=True), stop_learning: gr.update(interactive=False)}
            elif is_waiting(log):
                text = waiting_text(workbench, job)
            if text:
                shown[learn_status] = text
            if shown:  # Gradio would show an empty dictionary as a value
                yield shown

    @cumulative
    async def on_write(session_id: str, text: str, *values: object) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        job = await started(lambda: arc.propose(current, arc_inputs.read_task(text), read_settings(values)))
        if isinstance(job, str):
            yield {write_status: job}
            return
        async for shown in watch_writing(current, job):
            yield shown

    @cumulative
    async def on_learn(session_id: str, choice: int | None, text: str, *values: object) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        edited, values = values[:MAX_SELF_EDITS], values[MAX_SELF_EDITS:]

        def start() -> Job:
            own = edited[choice - 1] if choice in range(1, MAX_SELF_EDITS + 1) else None
            return arc.learn(current, arc_inputs.read_task(text), own, read_settings(values))

        job = await started(start)
        if isinstance(job, str):
            yield {learn_status: job}
            return
        async for shown in watch_learning(job):
            yield shown

    def on_edit(session_id: str, index: int, new_text: str, text: str, *values: object) -> str:
        current = workbench.sessions.open(session_id)
        try:
            found = preview_html(arc.preview(arc_inputs.read_task(text), new_text, read_settings(values)))
        except ValueError:  # said where the task is
            return ""
        puzzle = current.puzzle
        if puzzle is not None and index < len(puzzle.texts):
            puzzle.texts[index] = new_text
            if puzzle.previews and puzzle.language == language():
                puzzle.previews[index] = found
            else:  # they are made anew when they are shown
                puzzle.previews = []
        return found

    def on_restore(session_id: str) -> dict:
        current = workbench.sessions.open(session_id)
        if current.puzzle is None:
            return {write_status: ""}
        widgets = zip(panel.settings, NAMES, strict=True)
        return {
            panel.text: arc_inputs.write_task(current.puzzle.task),
            **{widget: current.puzzle.settings[name] for widget, name in widgets},
            empty: gr.update(visible=False),
            write_status: say("arc.edit"),
            **show_written(current),
        }

    @cumulative
    async def on_follow(session_id: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        yield {write: gr.update(interactive=True), learn: gr.update(interactive=True)}
        for job in workbench.jobs.active(current.id, WRITING):
            async for shown in watch_writing(current, job):
                yield shown
        job = workbench.jobs.find(current.shown.get(LEARNING, ""), current.id)
        if job is not None:
            async for shown in watch_learning(job):
                yield shown

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    followed = [learn, stop_learning, learn_status, plot, predictions]
    outputs = [empty, write, stop_writing, write_status, *cards, *texts, *previews, chosen, *followed]
    write.click(on_write, [session, *panel.inputs], outputs, **shared)
    learn.click(on_learn, [session, chosen, panel.text, *texts, *panel.settings], followed, **shared)
    for index, (text, preview) in enumerate(zip(texts, previews, strict=True)):
        text.blur(
            lambda session_id, new_text, task, *values, index=index: on_edit(
                session_id, index, new_text, task, *values
            ),
            [session, text, *panel.inputs],
            preview,
            api_visibility="private",
            show_progress="hidden",
            # The tools take a moment: one visitor after another, and not in the time of all.
            concurrency_limit=1,
            concurrency_id="arc-preview",
        )
    for button, kind in ((stop_writing, WRITING), (stop_learning, LEARNING)):
        button.click(
            lambda session_id, kind=kind: workbench.stop(workbench.sessions.open(session_id), kind) and None,
            session,
            api_visibility="private",
            queue=False,
        )

    def attach(loaded: gr.events.Dependency) -> None:
        restored = attach_task(loaded).then(
            on_restore,
            session,
            [*panel.inputs, *outputs],
            api_visibility="private",
            show_progress="hidden",
        )
        restored.then(on_follow, session, outputs, **shared)

    return attach


def solved_text(solved: list[bool] | None) -> str:
    """Whether the base model and the adapted one have solved a task, in a sentence; `None` where nobody knows."""
    if solved is None:
        return say("arc.predicted")
    before, after = (say("arc.solved") if one else say("arc.not_solved") for one in solved)
    return say("arc.result", before=before, after=after)
