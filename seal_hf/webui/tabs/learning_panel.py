"""Step 3: learn the self-edits, and find out which adapter answers best."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gradio as gr

from ..languages import Message, laid_out, say, told
from ..work import inputs
from ..work.adaptation import NUM_OWN_QUESTIONS
from ..work.jobs import Job
from ..work.sessions import Session
from ..work.workbench import Workbench
from .learning_texts import (
    answers_headers,
    diverged_text,
    learned_text,
    loss_axes,
    loss_table,
    loss_title,
    rewards_table,
    settled_text,
    shelved_text,
    stopped_text,
    training_text,
    watched_table,
)
from .passage_panel import PassagePanel, read_settings
from .self_edit_cards import read_drafts
from .shared import (
    RECITED,
    answers_table,
    cumulative,
    ended_text,
    follow,
    is_waiting,
    opened,
    percent,
    read_only_table,
    started,
    table_of,
    waiting_text,
)


# Columns of the tables.
_WATCHED = ("", "learn.watched_answer", "learn.likely")
_REWARDS = ("common.self_edit_column", "learn.right", "common.reward", "common.recited", "")
# What the buttons do.
_TOGETHER, _EACH, _ONE = "together", "each", "one"


@dataclass
class LearningPanel:
    """
    The panel, as the tab sees it.

    Parameters:
        column (`gr.Column`):
            The whole panel, which is hidden until there is something to learn.
        number (`gr.Dropdown`):
            The self-edit that "Learn only this one" learns.
        watched (`gr.Textbox`):
            The question that is asked while it is learned.
        outputs (`list`):
            The widgets that `watch` and `reset` change.
        reset (`Callable[[], dict]`):
            Hides the results of an earlier job.
        watch (`Callable[[Session, Job], AsyncIterator[dict]]`):
            Follows a job.
        learned (`list[gr.events.Dependency]`):
            The events after which there may be new adapters.
    """

    column: gr.Column
    number: gr.Dropdown
    watched: gr.Textbox
    outputs: list
    reset: Callable[[], dict]
    watch: Callable[[Session, Job], AsyncIterator[dict]]
    learned: list[gr.events.Dependency]


def build_learning_panel(
    workbench: Workbench,
    session: gr.BrowserState,
    tabs: gr.Tabs,
    panel: PassagePanel,
    edits: Sequence[gr.components.Component],
) -> LearningPanel:
    """
    Lay out the panel where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        tabs (`gr.Tabs`):
            The tabs; the one with the id `"ask"` is the next step.
        panel ([`PassagePanel`]):
            Has the questions and the settings.
        edits (`Sequence`):
            What the cards of all self-edits hold (see [`read_drafts`]).
    """
    with gr.Column(visible=False, elem_id="learning") as learning:
        gr.Markdown(laid_out("learn.heading"), elem_classes="step")
        watched = gr.Textbox(
            label=laid_out("learn.watched"),
            placeholder=laid_out("learn.watched_hint"),
            max_lines=1,
            elem_id="watched",
        )
        stops_early = gr.Checkbox(True, label=laid_out("learn.stops_early"), container=False, elem_id="stops-early")
        with gr.Row():
            learn_together = gr.Button(
                laid_out("learn.together"), variant="primary", elem_id="learn-together", min_width=200, size="md"
            )
            learn_all = gr.Button(laid_out("learn.each"), elem_id="learn-all", min_width=190, size="md")
            only = gr.Dropdown([1], value=1, show_label=False, container=False, min_width=64, scale=0, elem_id="only")
            learn_one = gr.Button(laid_out("learn.only"), elem_id="learn-one", min_width=150, size="md")
            stop_learning = gr.Button(
                laid_out("common.stop"), elem_id="stop-learning", min_width=80, interactive=False, size="md"
            )
        if limits := workbench.limits.say():
            gr.Markdown(laid_out(limits), elem_id="limits", elem_classes="quiet")
        learn_status = gr.Markdown(elem_id="learn-status", elem_classes="status")
        watching = read_only_table([24, 58, 18], elem_id="watching", visible=False)
        plot = gr.LinePlot(x="step", y="loss", color="self-edit", height=240, visible=False, elem_id="loss")
        rewards = read_only_table([26, 18, 21, 21, 14], elem_id="rewards", visible=False)
        ask_next = gr.Button(laid_out("learn.ask_next"), visible=False, elem_id="ask-next")
        with gr.Accordion(laid_out("learn.graded"), open=False, visible=False) as answers_panel:
            answers_note = gr.Markdown(elem_classes="quiet")
            answers = read_only_table([34, 33, 33], elem_id="graded")

    def reset() -> dict:
        return {
            learn_status: "",
            watching: gr.update(visible=False),
            plot: gr.update(visible=False),
            rewards: gr.update(visible=False),
            answers_panel: gr.update(visible=False),
            ask_next: gr.update(visible=False),
        }

    async def watch(current: Session, job: Job) -> AsyncIterator[dict]:
        steps: list[dict] = []
        seen: list[dict] = []
        names: list[str] = []
        learned_event: dict | None = None
        shelved: dict | None = None
        settled: dict | None = None
        yield {
            **reset(),
            learning: gr.update(visible=True),
            **{button: gr.update(interactive=False) for button in buttons},
            stop_learning: gr.update(interactive=True),
        }
        async for log, events in follow(workbench, job):
            shown, text, num_before, num_seen = {}, None, len(steps), len(seen)
            for event in events:
                if event["event"] == "learning":
                    names = event["names"]
                    if event["watched"]:
                        shown[watched] = event["watched"]["question"]
                elif event["event"] == "watched":
                    seen.append(event)
                elif event["event"] == "step":
                    steps.append(event)
                elif event["event"] == "asking_itself":
                    text = say("learn.asking_itself", most=NUM_OWN_QUESTIONS)
                elif event["event"] == "questions":
                    text = say("learn.answering", count=len(event["questions"]))
                elif event["event"] == "learned":
                    learned_event = event
                    shown |= show_rewards(event)
                elif event["event"] == "settled":
                    settled = event
                elif event["event"] == "shelved":
                    shelved = event
            if len(seen) > num_seen:
                shown[watching] = gr.update(value=table_of(_WATCHED, watched_table(seen, names)), visible=True)
            if steps and (len(steps), len(seen)) != (num_before, num_seen):
                # Gradio draws a new line of the plot only where something else than its value changes, too.
                shown[plot] = gr.update(
                    value=loss_table(steps, names, seen),
                    title=loss_title(names, seen),
                    visible=True,
                    **loss_axes(),
                )
            if len(steps) > num_before:
                text = text or training_text(steps[-1])
            if log.has_ended:
                learned_now = (
                    settled_text(settled) + learned_text(current, learned_event) + diverged_text(learned_event)
                )
                text = ended_text(log, learned_now, stopped_text(steps)) + shelved_text(shelved)
                shown |= {
                    **{button: gr.update(interactive=True) for button in buttons},
                    stop_learning: gr.update(interactive=False),
                    ask_next: gr.update(visible=bool(current.adapters)),
                }
            elif is_waiting(log):
                text = waiting_text(workbench, job)
            if text:
                shown[learn_status] = text
            if shown:  # Gradio would show an empty dictionary as a value
                yield shown

    def show_rewards(event: dict) -> dict:
        if "verdicts" not in event:
            return {}
        count, names = len(event["questions"]), event["names"]
        origin = say("learn.own_questions") if event["own"] else say("learn.your_questions")
        base, best = 0, event["best"] + 1
        table = answers_table(
            event["questions"], *([event[key][base], event[key][best]] for key in ("answers", "verdicts"))
        )
        return {
            rewards: gr.update(value=table_of(_REWARDS, rewards_table(event, names)), visible=True),
            answers_panel: gr.update(visible=True),
            answers_note: f"{origin} {say('learn.share_of_one', number=count, share=percent(1 / count))} {told(RECITED)}.",
            answers: {"headers": answers_headers(names), "data": table},
        }

    @cumulative
    async def on_learn(
        how: str, session_id: str, passage: str, pairs: list, number: int, question: str, ends: bool, *values: object
    ) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        edited, values = values[: len(edits)], values[len(edits) :]

        def start() -> Job:
            is_other = current.example is not None and (
                len(passage) > inputs.LONGEST_PASSAGE or inputs.clean(passage) != inputs.passage_of(current.example)
            )
            if is_other:
                raise ValueError(Message("learn.other_passage"))
            drafts = read_drafts(current, edited)
            chosen = [number - 1] if how == _ONE else [index for index, draft in enumerate(drafts) if draft.use]
            questions = inputs.questions_from_table(pairs)
            return workbench.adapt(
                current,
                chosen,
                read_settings(values),
                questions,
                drafts,
                together=how == _TOGETHER,
                watched=question,
                stops_early=bool(ends),
            )

        job = await started(start)
        if isinstance(job, str):
            yield {learn_status: job}
            return
        async for shown in watch(current, job):
            yield shown

    buttons = {learn_together: _TOGETHER, learn_all: _EACH, learn_one: _ONE}
    outputs = [
        learning, *buttons, stop_learning, learn_status, watched, watching, plot, rewards, answers_panel, answers_note, answers,
        ask_next,
    ]  # fmt: skip
    learned = [
        button.click(
            partial(on_learn, how),
            [session, panel.passage, panel.questions, only, watched, stops_early, *edits, *panel.settings],
            outputs,
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )
        for button, how in buttons.items()
    ]
    ask_next.click(lambda: gr.Tabs(selected="ask"), outputs=tabs, api_visibility="private", queue=False)
    stop_learning.click(
        lambda session_id: workbench.stop(workbench.sessions.open(session_id), "adapt") and None,
        session,
        api_visibility="private",
        queue=False,
    )
    return LearningPanel(learning, only, watched, outputs, reset, watch, learned)
