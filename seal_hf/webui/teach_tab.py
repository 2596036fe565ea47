"""Passage, self-edits and their learning: steps 1 to 3. Widgets only."""

from collections.abc import AsyncIterator, Callable

import gradio as gr
import pandas as pd

from . import checks
from .following import append, duration, ended_text, escape, follow, is_waiting, percent, waiting_text
from .jobs import Job
from .passage_panel import PassagePanel, build_passage_panel, read_settings
from .sessions import Draft, Session
from .settings import MOST_SELF_EDITS
from .widgets import read_only_table
from .workbench import NUM_OWN_QUESTIONS, Workbench


_EMPTY = """
1. Paste a passage, or take one of the examples.
2. Press **Write self-edits**: the model writes its own training data, all candidates at once, here.
3. Read, edit or drop them, and let the model learn. The best is the one that answers most questions right afterwards.
4. Ask the base and the adapted model the same, side by side.
"""
_WRITTEN = "Edit or drop what you like, then let the model learn."


def build_teach_tab(
    workbench: Workbench, session: gr.State, tabs: gr.Tabs
) -> tuple[Callable[[gr.events.Dependency], None], PassagePanel, list[gr.events.Dependency]]:
    """
    Lay the tab out, at the place where this is called.

    Parameters:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.State`):
            Id of the visitor's session.
        tabs (`gr.Tabs`):
            Of which the one with the id `"ask"` comes next.

    Returns:
        `tuple`: a function that, called with the event of the page's loading, makes a page that was loaded again show what
        there is and follow the jobs that are under way; the widgets of the passage; and the events of learning.
    """
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=5, min_width=320):
            panel = build_passage_panel(workbench)
            with gr.Row():
                # It waits for the session that the page's loading opens.
                write = gr.Button(
                    "Write self-edits", variant="primary", elem_id="write", min_width=160, interactive=False
                )
                stop_writing = gr.Button("Stop", elem_id="stop-writing", min_width=80, interactive=False)
        with gr.Column(scale=7, min_width=320):
            gr.Markdown("### 2 · Self-edits", elem_classes="step")
            empty = gr.Markdown(_EMPTY, elem_id="empty")
            write_status = gr.Markdown(elem_id="write-status", elem_classes="status")
            cards, texts, uses, previews = [], [], [], []
            with gr.Row(elem_classes="cards"):
                for number in range(1, MOST_SELF_EDITS + 1):
                    with gr.Column(visible=False, min_width=260, elem_classes="card") as card:
                        texts.append(
                            gr.Textbox(
                                label=f"Self-edit {number}",
                                lines=7,
                                max_lines=7,
                                interactive=False,
                                elem_id=f"self-edit-{number}",
                                autoscroll=True,
                            )  # fmt: skip
                        )
                        uses.append(gr.Checkbox(True, label="Use it", container=False, elem_id=f"use-{number}"))
                        with gr.Accordion("What it trains on", open=False):
                            previews.append(
                                gr.Textbox(show_label=False, lines=4, max_lines=12, interactive=False, container=False)
                            )
                    cards.append(card)
            with gr.Column(visible=False, elem_id="learning") as learning:
                gr.Markdown("### 3 · Learn", elem_classes="step")
                with gr.Row():
                    learn_all = gr.Button(
                        "Try all, keep the best", variant="primary", elem_id="learn-all", min_width=210, size="md"
                    )
                    only = gr.Dropdown(
                        [1], value=1, show_label=False, container=False, min_width=64, scale=0, elem_id="only"
                    )
                    learn_one = gr.Button("Learn only this one", elem_id="learn-one", min_width=150, size="md")
                    stop_learning = gr.Button(
                        "Stop", elem_id="stop-learning", min_width=80, interactive=False, size="md"
                    )
                learn_status = gr.Markdown(elem_id="learn-status", elem_classes="status")
                plot = gr.LinePlot(
                    x="step", y="loss", color="self-edit", title="Training loss", height=240, visible=False,
                    x_title="optimizer step", y_title="nats per token", elem_id="loss",
                )  # fmt: skip
                rewards = read_only_table(
                    ["Self-edit", "Right", "Reward", ""], [30, 25, 25, 20], elem_id="rewards", visible=False
                )
                ask_next = gr.Button("Ask it something →", visible=False, elem_id="ask-next")
                with gr.Accordion("Answers behind the rewards", open=False, visible=False) as answers_panel:
                    answers_note = gr.Markdown(elem_classes="quiet")
                    answers = read_only_table(
                        ["Question", "Right answer", "Base model", "Best adapter"], [28, 16, 28, 28]
                    )

    def before_learning() -> dict:
        return {
            learn_status: "",
            plot: gr.update(visible=False),
            rewards: gr.update(visible=False),
            answers_panel: gr.update(visible=False),
            ask_next: gr.update(visible=False),
        }

    def show_drafts(drafts: list[Draft], current: Session) -> dict:
        shown = {learning: gr.update(visible=True), only: gr.update(choices=list(range(1, len(drafts) + 1)), value=1)}
        for place, (card, text, use) in enumerate(zip(cards, texts, uses, strict=True)):
            there = place < len(drafts)
            shown[card] = gr.update(visible=there)
            shown[text] = gr.update(value=drafts[place].text if there else "", interactive=there)
            shown[use] = drafts[place].use if there else True
            shown[previews[place]] = preview(drafts[place].text, current) if there else ""
        return shown

    def preview(text: str, current: Session) -> str:
        sequences = workbench.sequences(current, text)
        return "\n\n".join(f"{number}. {sequence}" for number, sequence in enumerate(sequences, 1))

    async def watch_writing(current: Session, job: Job) -> AsyncIterator[dict]:
        written: list[str] = []
        yield {
            empty: gr.update(visible=False),
            write: gr.update(interactive=False),
            stop_writing: gr.update(interactive=True),
            **before_learning(),
        }
        async for log, events in follow(job):
            shown = {}
            for event in events:
                if event["event"] == "writing":
                    written = [""] * event["count"]
                    shown |= {learning: gr.update(visible=False)}
                    shown |= {card: gr.update(visible=place < len(written)) for place, card in enumerate(cards)}
                elif event["event"] == "text":
                    append(written, event["new"])
            shown |= {text: gr.update(value=new, interactive=False) for text, new in zip(texts, written, strict=False)}
            if log.has_ended:
                if current.drafts:
                    shown |= show_drafts(current.drafts, current)
                ended = ended_text(log, _WRITTEN, f"Stopped. {_WRITTEN}" if current.drafts else "Stopped.")
                yield {
                    **shown,
                    write_status: ended,
                    write: gr.update(interactive=True),
                    stop_writing: gr.update(interactive=False),
                }
            elif is_waiting(log):
                yield {**shown, write_status: waiting_text(workbench, job)}
            else:
                num_words = sum(len(text.split()) for text in written)
                yield {**shown, write_status: f"Writing all at once … {num_words} words"}

    async def on_write(session_id: str, title: str, passage: str, rows: list, *values: object) -> AsyncIterator[dict]:
        current = workbench.sessions.open(session_id)
        try:
            job = workbench.propose(current, title, passage, checks.checked_questions(rows), read_settings(values))
        except ValueError as error:
            yield {write_status: f"⚠️ {escape(str(error))}"}
            return
        async for shown in watch_writing(current, job):
            yield shown

    async def watch_learning(current: Session, job: Job) -> AsyncIterator[dict]:
        steps: list[dict] = []
        names: list[str] = []
        yield {
            **before_learning(),
            learning: gr.update(visible=True),
            learn_all: gr.update(interactive=False),
            learn_one: gr.update(interactive=False),
            stop_learning: gr.update(interactive=True),
        }
        async for log, events in follow(job):
            shown, text, num_before = {}, None, len(steps)
            for event in events:
                if event["event"] == "learning":
                    names = [str(number) for number in event["numbers"]]
                elif event["event"] == "step":
                    steps.append(event)
                elif event["event"] == "asking_itself":
                    text = f"Trained. The model writes up to {NUM_OWN_QUESTIONS} questions of its own …"
                elif event["event"] == "questions":
                    text = f"Trained. Answering {len(event['questions'])} questions without the passage …"
                elif event["event"] == "learned":
                    shown |= show_rewards(event, names, current)
            if len(steps) > num_before:
                shown[plot] = gr.update(value=loss_table(steps, names), visible=True)
                text = text or training_text(steps[-1])
            if log.has_ended:
                text = ended_text(log, learned_text(current), stopped_text(current, steps))
                shown |= {
                    learn_all: gr.update(interactive=True),
                    learn_one: gr.update(interactive=True),
                    stop_learning: gr.update(interactive=False),
                    ask_next: gr.update(visible=bool(current.adapters)),
                }
            elif is_waiting(log):
                text = waiting_text(workbench, job)
            if text:
                shown[learn_status] = text
            if shown:  # Gradio takes an empty dictionary for a value
                yield shown

    def show_rewards(event: dict, names: list[str], current: Session) -> dict:
        if "verdicts" not in event:
            return {}
        right = [sum(map(bool, row)) for row in event["verdicts"]]
        count = len(event["questions"])
        rows = [["Base model", f"{right[0]} of {count}", percent(right[0] / count), ""]] + [
            [
                name,
                f"{right[place]} of {count}",
                percent(right[place] / count),
                "best" * (place == event["best"] + 1),
            ]
            for place, name in enumerate(names, 1)
        ]
        whose = (
            "The model wrote these questions itself, from the passage, and answered them with it in view."
            if event["own"]
            else "Your questions."
        )
        table = [
            [item["question"], item["answer"], base, best]
            for item, base, best in zip(
                event["questions"], event["answers"][0], event["answers"][event["best"] + 1], strict=True
            )
        ]
        return {
            rewards: gr.update(value=rows, visible=True),
            answers_panel: gr.update(visible=True),
            answers_note: f"{whose} {count} questions: differences of {percent(1 / count)} are one answer.",
            answers: table,
        }

    async def on_learn(session_id: str, rows: list, number: int | None, *values: object) -> AsyncIterator[dict]:
        current = workbench.sessions.open(session_id)
        edited, values = values[: 2 * MOST_SELF_EDITS], values[2 * MOST_SELF_EDITS :]
        for draft, text, use in zip(current.drafts, edited[::2], edited[1::2], strict=False):
            draft.text, draft.use = text, use
        chosen = [place for place, draft in enumerate(current.drafts) if draft.use] if number is None else [number - 1]
        try:
            job = workbench.adapt(current, chosen, read_settings(values), checks.checked_questions(rows))
        except ValueError as error:
            yield {learn_status: f"⚠️ {escape(str(error))}"}
            return
        async for shown in watch_learning(current, job):
            yield shown

    async def on_load(session_id: str) -> AsyncIterator[dict]:
        current = workbench.sessions.open(session_id)
        if current.example is None:
            yield {write: gr.update(interactive=True)}
        else:
            rows = [[item["question"], item["answer"]] for item in current.example["questions"]]
            yield {
                panel.title: current.example["title"],
                panel.passage: current.example["context"],
                **({panel.questions: rows} if rows else {}),
                empty: gr.update(visible=False),
                write: gr.update(interactive=True),
                write_status: _WRITTEN,
                **show_drafts(current.drafts, current),
            }
        for kind, watch in (("propose", watch_writing), ("adapt", watch_learning)):
            job = workbench.jobs.find(current.shown.get(kind, ""), current.id)
            if job is not None and (kind == "adapt" or workbench.jobs.active(current.id, kind)):
                async for shown in watch(current, job):
                    yield shown

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    shown_by_writing = [
        empty, write, stop_writing, write_status, learning, only, *cards, *texts, *uses, *previews,
        learn_status, plot, rewards, answers_panel, ask_next,
    ]  # fmt: skip
    shown_by_learning = [
        learning, learn_all, learn_one, stop_learning, learn_status, plot, rewards, answers_panel, answers_note, answers, ask_next,
    ]  # fmt: skip
    write.click(on_write, [session, *panel.inputs], shown_by_writing, **shared)
    stop_writing.click(
        lambda session_id: workbench.stop(workbench.sessions.open(session_id), "propose") and None,
        session,
        api_visibility="private",
        queue=False,
    )
    edits = [widget for pair in zip(texts, uses, strict=True) for widget in pair]
    no_number = gr.State(None)
    learned = [
        button.click(
            on_learn, [session, panel.questions, number, *edits, *panel.settings], shown_by_learning, **shared
        )
        for button, number in ((learn_all, no_number), (learn_one, only))
    ]
    ask_next.click(lambda: gr.Tabs(selected="ask"), outputs=tabs, api_visibility="private", queue=False)
    stop_learning.click(
        lambda session_id: workbench.stop(workbench.sessions.open(session_id), "adapt") and None,
        session,
        api_visibility="private",
        queue=False,
    )
    for place, text in enumerate(texts):
        text.blur(
            lambda session_id, new_text, place=place: edit(workbench.sessions.open(session_id), place, new_text),
            [session, text],
            previews[place],
            api_visibility="private",
            queue=False,
            show_progress="hidden",
        )

    def edit(current: Session, place: int, text: str) -> str:
        if place < len(current.drafts):
            current.drafts[place].text = text
        return preview(text, current)

    def attach(loaded: gr.events.Dependency) -> None:
        outputs = {panel.title, panel.passage, panel.questions, *shown_by_writing, *shown_by_learning}
        loaded.then(on_load, session, list(outputs), **shared)

    return attach, panel, learned


def loss_table(steps: list[dict], names: list[str]) -> pd.DataFrame:
    """The loss of every candidate at every step; of long runs no more points than can be told apart."""
    stride = max(1, len(steps) // 150)
    return pd.DataFrame(
        [
            {"step": step["step"], "loss": loss, "self-edit": names[int(adapter)]}
            for step in [*steps[::stride], steps[-1]]
            for adapter, loss in step["losses"].items()
        ]
    )


def training_text(step: dict) -> str:
    """How far the training is."""
    left = step["seconds"] / step["step"] * (step["num_steps"] - step["step"])
    return (
        f"Step {step['step']} of {step['num_steps']} · {step['num_tokens'] / max(step['seconds'], 1e-3):,.0f} tokens/s · "
        f"about {duration(left)} left"
    )


def learned_text(current: Session) -> str:
    """What has come out of it."""
    kept = current.adapters.get(current.chosen or "")
    if kept is None:
        return ""
    if kept.reward is None:
        return "Learned. There was no question to score it with; **ask it something** under Ask."
    whose = " of the model's own questions" if kept.own_questions else " of your questions"
    return (
        f"Learned in {duration(kept.seconds)}: the best answers **{percent(kept.reward)}**{whose} right without the "
        f"passage, the base model {percent(kept.base_reward)}. **Ask it something** under Ask."
    )


def stopped_text(current: Session, steps: list[dict]) -> str:
    """What a stop has left."""
    if not steps:
        return "Stopped before the first step: nothing was learned."
    return f"Stopped after step {steps[-1]['step']}: the adapters as they were then are kept, without a reward."
