"""The tab Teach: step 2, the self-edits, between the panels of steps 1 and 3."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import gradio as gr

from ..languages import laid_out, say, told
from ..work import inputs
from ..work.added_questions import ADDING, add_question
from ..work.jobs import Job
from ..work.session_items import Draft
from ..work.sessions import Session
from ..work.workbench import Workbench
from .learning_panel import build_learning_panel
from .passage_panel import NAMES, PassagePanel, build_passage_panel, pairs_table, questions_table, read_settings
from .self_edit_cards import added_text, build_cards, build_coverage, read_drafts, show_coverage
from .shared import append, cumulative, ended_text, escape, follow, is_waiting, opened, started, waiting_text
from .writer_lines import WriterLines


def build_teach_tab(
    workbench: Workbench, session: gr.BrowserState, tabs: gr.Tabs, writer: WriterLines
) -> tuple[Callable[[gr.events.Dependency], None], PassagePanel, list[gr.events.Dependency]]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        tabs (`gr.Tabs`):
            The tabs; the one with the id `"ask"` is the next step.
        writer ([`WriterLines`]):
            Says who writes the self-edits.

    Returns:
        `tuple`: A function, which makes a page show the session and follow its jobs after the event that it is called with;
        the widgets of the passage; and the events after which there may be new adapters.
    """
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=5, min_width=320):
            panel = build_passage_panel(workbench)
            with gr.Row():
                # The button is enabled when the page has its session.
                write = gr.Button(
                    laid_out("teach.write"), variant="primary", elem_id="write", min_width=160, interactive=False
                )
                stop_writing = gr.Button(
                    laid_out("common.stop"), elem_id="stop-writing", min_width=80, interactive=False
                )
        with gr.Column(scale=7, min_width=320):
            gr.Markdown(laid_out("teach.heading"), elem_classes="step")
            writer.add("writer")
            empty = gr.Markdown(laid_out("teach.empty"), elem_id="empty")
            write_status = gr.Markdown(elem_id="write-status", elem_classes="status")
            cards = build_cards()
            coverage, left_out = build_coverage()
            added = gr.State()
            values = [widget for card in cards for widget in card.values]
            learning = build_learning_panel(workbench, session, tabs, panel, values)

    def show_drafts(drafts: list[Draft], current: Session) -> dict:
        numbers = list(range(1, len(drafts) + 1))
        shown = {learning.column: gr.update(visible=True), learning.number: gr.update(choices=numbers, value=1)}
        for card, draft in zip_longest(cards, drafts):
            shown |= card.show(draft, preview(draft, current) if draft else "")
        return {**shown, **show_coverage(coverage, left_out, current)}

    def preview(draft: Draft, current: Session) -> str:
        texts = workbench.training_texts(current, draft)
        return "\n\n".join(f"{number}. {one}" for number, one in enumerate(texts, 1))

    async def watch_writing(current: Session, job: Job, watched: str = "") -> AsyncIterator[dict]:
        written: list[str] = []
        text = ""
        yield {
            empty: gr.update(visible=False),
            write: gr.update(interactive=False),
            stop_writing: gr.update(interactive=True),
            **learning.reset(),
        }
        async for log, events in follow(workbench, job):
            shown = {}
            for event in events:
                if event["event"] == "writing":
                    written = [""] * event["count"]
                    shown |= {
                        learning.column: gr.update(visible=False),
                        coverage: "",
                        left_out: gr.update(visible=False),
                    }
                    for index, card in enumerate(cards):
                        shown |= card.writing(index < len(written))
                elif event["event"] == "text":
                    append(written, event["new"])
                elif event["event"] == "answering":
                    text = say("teach.answering", count=event["count"])
            shown |= {
                card.text: gr.update(value=new, interactive=False) for card, new in zip(cards, written, strict=False)
            }
            if log.has_ended:
                if current.drafts:
                    shown |= show_drafts(current.drafts, current)
                    shown[learning.watched] = watched or question_to_watch(current)
                written_text = text_of_written(current)
                stopped = say("job.stopped")
                ended = ended_text(log, written_text, f"{stopped} {written_text}" if current.drafts else stopped)
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
                yield {**shown, write_status: text or say("teach.writing", count=num_words)}

    @cumulative
    async def on_write(
        session_id: str, watched: str, title: str, passage: str, pairs: list, *values: object
    ) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        job = await started(
            lambda: workbench.propose(
                current, title, passage, inputs.questions_from_table(pairs), read_settings(values)
            )
        )
        if isinstance(job, str):
            yield {write_status: job}
            return
        async for shown in watch_writing(current, job, watched):
            yield shown

    def on_restore(session_id: str) -> dict:
        current = workbench.sessions.open(session_id)
        if current.passage is None:
            return {write_status: "", panel.questions: questions_table(())}
        shown = {
            panel.title: inputs.title_of(current.passage),
            panel.passage: inputs.passage_of(current.passage),
            panel.questions: questions_table(current.passage["questions"]),
            empty: gr.update(visible=False),
        }
        if current.drafts:
            widgets = zip(panel.settings, NAMES, strict=True)
            shown |= {widget: current.settings[name] for widget, name in widgets}
            shown |= {write_status: text_of_written(current), **show_drafts(current.drafts, current)}
            shown[learning.watched] = question_to_watch(current)
        return shown

    # Apart from `on_restore`, which would overwrite what the visitor types meanwhile.
    @cumulative
    async def on_follow(session_id: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        yield {write: gr.update(interactive=True)}
        for kind, watch in (("propose", watch_writing), (ADDING, watch_adding), ("adapt", learning.watch)):
            job = workbench.jobs.find(current.shown.get(kind, ""), current.id)
            if job is not None and (kind == "adapt" or workbench.jobs.active(current.id, kind)):
                async for shown in watch(current, job):
                    yield shown

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    outputs = [
        empty, write, stop_writing, write_status, *(widget for card in cards for widget in card.widgets), coverage,
        left_out, added,
        learning.number, *learning.outputs,
    ]  # fmt: skip
    write.click(on_write, [session, learning.watched, *panel.inputs], outputs, **shared)

    def on_stop(session_id: str) -> None:
        current = workbench.sessions.open(session_id)
        for kind in ("propose", ADDING):
            workbench.stop(current, kind)

    stop_writing.click(on_stop, session, api_visibility="private", queue=False)

    def keep(index: int, draft: Draft, current: Session) -> str:
        """The texts that an edited self-edit trains on; empty where it cannot be learned as it is, and is not kept."""
        if shown := preview(draft, current):
            current.drafts[index] = draft
        return shown

    def on_edit(index: int, session_id: str, text: str, use: bool, rows: list) -> dict:
        current = workbench.sessions.open(session_id)
        if index >= len(current.drafts):
            return {cards[index].preview: ""}
        draft = replace(current.drafts[index], text=text, use=use)
        if draft.pairs is not None:
            draft.pairs = rows
        return {cards[index].preview: keep(index, draft, current), **show_coverage(coverage, left_out, current)}

    async def watch_adding(current: Session, job: Job) -> AsyncIterator[dict]:
        fact = ""
        async for log, events in follow(workbench, job):
            for event in events:
                if event["event"] == "asking_about":
                    fact = escape(event["fact"])
                elif event["event"] == "added":
                    yield {added: event}
            if log.has_ended:
                text = ended_text(log, "", say("job.stopped"))
                yield {**show_coverage(coverage, left_out, current, text), stop_writing: gr.update(interactive=False)}
            else:
                text = waiting_text(workbench, job) if is_waiting(log) else say("teach.asking", fact=fact)
                yield {
                    coverage: text,
                    left_out: gr.update(visible=False),
                    stop_writing: gr.update(interactive=True),
                }

    @cumulative
    async def on_add(session_id: str, chosen: gr.SelectData) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        yield {added: None}
        (fact,) = chosen.value if isinstance(chosen.value, list) and len(chosen.value) == 1 else [""]
        job = await started(lambda: add_question(workbench, current, fact))
        if isinstance(job, str):
            yield show_coverage(coverage, left_out, current, job)
            return
        async for shown in watch_adding(current, job):
            yield shown

    def on_added(session_id: str, event: dict | None, *values: object) -> dict:
        """Append the pair to what the page holds now, which may have been edited meanwhile."""
        current = workbench.sessions.open(session_id)
        if not event:
            return {added: None}
        place, pair, shown = event["place"], event["pair"], {}
        drafts = read_drafts(current, values)
        if place is not None and place < len(drafts) and drafts[place].pairs is not None and pair:
            draft, card = drafts[place], cards[place]
            rows = [row for row in draft.pairs if any(row)]
            draft.pairs = rows if pair in rows else [*rows, pair]
            shown = {card.pairs: pairs_table(draft.pairs), card.preview: keep(place, draft, current)}
        return {**shown, added: None, **show_coverage(coverage, left_out, current, added_text(event))}

    for index, card in enumerate(cards):
        gr.on(
            [card.text.blur, card.pairs.input, card.use.input],
            partial(on_edit, index),
            [session, *card.values],
            [card.preview, coverage, left_out],
            api_visibility="private",
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
        )

    appended = [
        coverage,
        left_out,
        added,
        *(widget for card in cards for widget in (card.pairs, card.preview)),
    ]
    asked_for = left_out.select(on_add, session, [coverage, left_out, added, stop_writing], **shared)
    asked_for.then(
        on_added, [session, added, *values], appended, api_visibility="private", show_progress="hidden", queue=False
    )

    def attach(loaded: gr.events.Dependency) -> None:
        restored = loaded.then(
            on_restore,
            session,
            [panel.title, panel.passage, panel.questions, *panel.settings, *outputs],
            api_visibility="private",
            show_progress="hidden",
        )
        followed = restored.then(on_follow, session, outputs, **shared)
        followed.then(
            on_added,
            [session, added, *values],
            appended,
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        )

    return attach, panel, learning.learned


def text_of_written(current: Session) -> str:
    """What to do with self-edits that are written, in a sentence or two."""
    edit = say("teach.edit")
    return f"{say('teach.written_by', writer=told(current.written_by))} {edit}" if current.written_by else edit


def question_to_watch(current: Session) -> str:
    """The first of the visitor's questions about the passage; empty where there are none."""
    return next((item["question"] for item in (current.passage or {}).get("questions", ())), "")
