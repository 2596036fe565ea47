"""Step 3: learn the self-edits, and find out which adapter answers best."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gradio as gr
import pandas as pd

from ..work import inputs
from ..work.jobs import Job
from ..work.sessions import Session
from ..work.workbench import NUM_OWN_QUESTIONS, Workbench
from .passage_panel import PassagePanel, read_settings
from .self_edit_cards import read_drafts
from .shared import (
    MARKS,
    RECITED,
    answers_table,
    cumulative,
    duration,
    ended_text,
    escape,
    follow,
    is_waiting,
    opened,
    percent,
    read_only_table,
    started,
    waiting_text,
)


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
        gr.Markdown("### 3 · Learn", elem_classes="step")
        watched = gr.Textbox(
            label="Question to watch (optional)",
            placeholder="Asked again and again while it learns, without the passage",
            max_lines=1,
            elem_id="watched",
        )
        with gr.Row():
            learn_together = gr.Button(
                "Learn from all together", variant="primary", elem_id="learn-together", min_width=200, size="md"
            )
            learn_all = gr.Button("Try each, keep the best", elem_id="learn-all", min_width=190, size="md")
            only = gr.Dropdown([1], value=1, show_label=False, container=False, min_width=64, scale=0, elem_id="only")
            learn_one = gr.Button("Learn only this one", elem_id="learn-one", min_width=150, size="md")
            stop_learning = gr.Button("Stop", elem_id="stop-learning", min_width=80, interactive=False, size="md")
        if limits := workbench.limits.say():
            gr.Markdown(limits, elem_id="limits", elem_classes="quiet")
        learn_status = gr.Markdown(elem_id="learn-status", elem_classes="status")
        watching = read_only_table(
            ["", "Answer to the watched question", "Likely"], [20, 62, 18], elem_id="watching", visible=False
        )
        plot = gr.LinePlot(
            x="step", y="loss", color="self-edit", title="Training loss", height=240, visible=False,
            x_title="optimizer step", y_title="nats per token", elem_id="loss",
        )  # fmt: skip
        rewards = read_only_table(
            ["Self-edit", "Right", "Reward", "Recited", ""], [24, 21, 20, 20, 15], elem_id="rewards", visible=False
        )
        ask_next = gr.Button("Ask it something →", visible=False, elem_id="ask-next")
        with gr.Accordion("The graded answers", open=False, visible=False) as answers_panel:
            answers_note = gr.Markdown(elem_classes="quiet")
            answers = read_only_table(["Question → right answer", "Base model", "Best adapter"], [34, 33, 33])

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
                    text = f"Trained. The model writes up to {NUM_OWN_QUESTIONS} questions …"
                elif event["event"] == "questions":
                    text = f"Trained. All models answer {len(event['questions'])} questions without the passage …"
                elif event["event"] == "learned":
                    learned_event = event
                    shown |= show_rewards(event, names)
                elif event["event"] == "shelved":
                    shelved = event
            if len(seen) > num_seen:
                shown[watching] = gr.update(value=watched_table(seen, names), visible=True)
            if steps and (len(steps), len(seen)) != (num_before, num_seen):
                # Gradio draws a new line of the plot only where something else than its value changes, too.
                shown[plot] = gr.update(
                    value=loss_table(steps, names, seen), title=loss_title(names, seen), visible=True
                )
            if len(steps) > num_before:
                text = text or training_text(steps[-1])
            if log.has_ended:
                text = ended_text(log, learned_text(current, learned_event), stopped_text(steps)) + shelved_text(
                    shelved
                )
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

    def show_rewards(event: dict, names: list[str]) -> dict:
        if "verdicts" not in event:
            return {}
        right = [sum(map(bool, one)) for one in event["verdicts"]]
        count = len(event["questions"])
        lines = [
            [
                name,
                f"{right[index]} of {count}",
                percent(right[index] / count),
                percent(event["recited"][index]),
                "best" * (index == event["best"] + 1),
            ]
            for index, name in enumerate(["Base model", *names])
        ]
        origin = (
            "The model wrote these questions itself, and answered them with the passage in view."
            if event["own"]
            else "Your questions."
        )
        base, best = 0, event["best"] + 1
        table = answers_table(
            event["questions"], *([event[key][base], event[key][best]] for key in ("answers", "verdicts"))
        )
        return {
            rewards: gr.update(value=lines, visible=True),
            answers_panel: gr.update(visible=True),
            answers_note: f"{origin} There are {count}, so one answer is {percent(1 / count)} of a reward. {RECITED}.",
            answers: table,
        }

    @cumulative
    async def on_learn(
        how: str, session_id: str, passage: str, pairs: list, number: int, question: str, *values: object
    ) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        edited, values = values[: len(edits)], values[len(edits) :]

        def start() -> Job:
            is_other = current.example is not None and (
                len(passage) > inputs.LONGEST_PASSAGE or inputs.clean(passage) != inputs.passage_of(current.example)
            )
            if is_other:
                raise ValueError(
                    "The passage in the first step is not the one that these self-edits are about: write new self-edits, or "
                    "restore their passage."
                )
            drafts = read_drafts(current, edited)
            chosen = [number - 1] if how == _ONE else [index for index, draft in enumerate(drafts) if draft.use]
            questions = inputs.questions_from_table(pairs)
            return workbench.adapt(
                current, chosen, read_settings(values), questions, drafts, together=how == _TOGETHER, watched=question
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
            [session, panel.passage, panel.questions, only, watched, *edits, *panel.settings],
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


def loss_table(steps: list[dict], names: list[str], seen: Sequence[dict] = ()) -> pd.DataFrame:
    """
    The loss of each self-edit at each step, and a line upwards where the watched question was first answered right and stayed
    so. A long training is thinned out to about 150 steps.
    """
    stride = max(1, len(steps) // 150)
    lines = [
        {"step": step["step"], "loss": loss, "self-edit": names[int(adapter)]}
        for step in [*steps[::stride], steps[-1]]
        for adapter, loss in step["losses"].items()
    ]
    highest = max(line["loss"] for line in lines)
    for adapter, name in enumerate(names):
        if (step := first_right(seen, adapter)) is not None:
            label = f"{name} answers right"
            lines += [{"step": step, "loss": height, "self-edit": label} for height in (0.0, highest)]
    return pd.DataFrame(lines)


def loss_title(names: list[str], seen: Sequence[dict]) -> str:
    """The title of the plot, with the steps since which the watched question has been answered right."""
    since = {name: first_right(seen, adapter) for adapter, name in enumerate(names)}
    told = [f"{name} since step {step}" for name, step in since.items() if step is not None]
    return f"Training loss. The watched question is answered right: {', '.join(told)}" if told else "Training loss"


def first_right(seen: Sequence[dict], adapter: int) -> int | None:
    """The step since which an adapter has answered the watched question right; `None` where the last answer was not."""
    found = None
    for event in seen:
        if event["step"] and event["verdicts"] and str(adapter) in event["verdicts"]:
            is_right = event["verdicts"][str(adapter)]
            found = (found or event["step"]) if is_right else None
    return found


def watched_table(seen: list[dict], names: list[str]) -> list[list[str]]:
    """What the base model and each adapter answer to the watched question, and how likely they find the right answer."""
    latest = {adapter: event for event in seen[1:] for adapter in event["answers"]}
    lines = [("Base model", seen[0], "0")]
    lines += [
        (f"Self-edit {names[int(adapter)]}, step {event['step']}", event, adapter) for adapter, event in latest.items()
    ]
    return [
        [
            label,
            MARKS[(event["verdicts"] or {}).get(adapter)] + event["answers"][adapter],
            percent((event["probabilities"] or {}).get(adapter)),
        ]
        for label, event, adapter in lines
    ]


def training_text(step: dict) -> str:
    """The progress of the training, in a sentence."""
    left = step["seconds"] / step["step"] * (step["num_steps"] - step["step"])
    return (
        f"Step {step['step']} of {step['num_steps']} · {step['num_tokens'] / max(step['seconds'], 1e-3):,.0f} tokens/s · "
        f"about {duration(left)} left"
    )


def learned_text(current: Session, event: dict | None) -> str:
    """The result of the training, in a sentence."""
    kept = current.adapters.get(event["adapters"][event["best"]]) if event else None
    if kept is None:  # it has been deleted
        return "Learned."
    if kept.reward is None:
        return "Learned. There was no question to score it with. **Ask it something** under Ask."
    origin = "the model's own questions" if kept.own_questions else "your questions"
    best = "best " * (kept.best_of > 1)
    chosen = (
        f"It was chosen as the best of {kept.best_of} by these very questions, so its share tends to be too high by chance: ask others, too. "
    ) * (kept.best_of > 1)
    return (
        f"Learned in {duration(kept.seconds)}. Without the passage, the {best}adapter answers **{percent(kept.reward)}** of "
        f"{origin} right, the base model {percent(kept.base_reward)}. {chosen}One text for all of them, what it says to “Tell me about” "
        f"the topic, would be right for {percent(kept.recitation)}. **Ask it something** under Ask."
    )


def stopped_text(steps: list[dict]) -> str:
    """What is left when the training was stopped, in a sentence."""
    if not steps:
        return "Stopped before the first step: nothing was learned."
    return f"Stopped after step {steps[-1]['step']}. The adapters are kept as they were then, without a reward."


def shelved_text(event: dict | None) -> str:
    """Whether what was learned is on the shelf, as a sentence after others; empty where it is not to be there."""
    if event is None:
        return ""
    if event["error"]:
        return f" It is not on the shelf: {escape(event['error'])}"
    return (
        " It is a book on the **Shelf**."
        if event["book"]
        else " The book of this passage on the **Shelf** stays as it was."
    )
