"""The tab Shelf: everything that was taught, and one question for all of it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import gradio as gr

from ..languages import Message, laid_out, say
from ..work.errors import explain
from ..work.jobs import DONE, Job
from ..work.sessions import Session
from ..work.shelf_work import ASKING, ask_shelf
from ..work.shelves import BASE, EVERYTHING, ShelvedBook
from ..work.workbench import Workbench
from .shared import (
    append,
    cumulative,
    ended_text,
    escape,
    follow,
    is_waiting,
    opened,
    percent,
    read_only_table,
    started,
    table_of,
    waiting_text,
    warning,
)


_LONGEST_TITLE = 80  # characters of a title in a list


def build_shelf_tab(
    workbench: Workbench, session: gr.BrowserState, tabs: gr.Tabs
) -> tuple[Callable[[gr.events.Dependency], None], gr.events.Dependency]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        tabs (`gr.Tabs`):
            The tabs; the one with the id `"adapters"` shows what is taken from a book.

    Returns:
        `tuple`: A function, which makes the tab show the state after the event that it is called with; and the event after which
        there may be new adapters.
    """
    gr.Markdown(laid_out("shelf.heading"), elem_classes="step")
    status = gr.Markdown(laid_out("shelf.empty"), elem_id="shelf-status", elem_classes="status")
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            label=laid_out("common.question"),
            placeholder=laid_out("shelf.hint"),
            elem_id="shelf-question",
            scale=6,
            min_width=220,
        )
        always = [(laid_out("shelf.everything"), EVERYTHING), (laid_out("shelf.base"), BASE)]
        who = gr.Dropdown(
            always, value=EVERYTHING, label=laid_out("shelf.who"), elem_id="shelf-who", scale=3, min_width=180
        )
        ask = gr.Button(laid_out("common.ask"), variant="primary", elem_id="shelf-ask", min_width=90, scale=1)
        stop = gr.Button(laid_out("common.stop"), elem_id="stop-shelf", min_width=80, scale=1, interactive=False)
    answer = gr.Textbox(label=laid_out("common.answer"), lines=2, interactive=False, elem_id="shelf-answer")
    answered_by = gr.Markdown(elem_id="answered-by", elem_classes="status")
    books = read_only_table([40, 24, 36], elem_id="books", max_height=360, visible=False)
    with gr.Column(visible=False) as actions:
        picked = gr.Dropdown([], label=laid_out("shelf.picked"), multiselect=True, elem_id="picked")
        with gr.Row():
            take = gr.Button(laid_out("shelf.take"), size="sm", elem_id="take-book", min_width=140)
            merge = gr.Button(laid_out("shelf.merge"), size="sm", elem_id="merge-books", min_width=150)
            forget = gr.Button(
                laid_out("shelf.forget"), size="sm", variant="stop", elem_id="forget-books", min_width=90
            )

    def show(current: Session, asked: object = EVERYTHING, text: str = "") -> dict:
        found = workbench.shelves.books(current)
        kept = say("shelf.kept") if workbench.shelves.is_kept(current) else say("shelf.of_session")
        count = say("shelf.count", count=len(found)) if found else say("shelf.empty")
        named = [(_label(one), one.book.id) for one in found]
        choices = [
            *always,
            *((label, book_id) for (label, book_id), one in zip(named, found, strict=True) if not one.fault),
        ]
        return {
            status: text or f"{count} {kept}",
            books: gr.update(
                value=table_of(("shelf.book", "shelf.known", "common.details"), [table_line(one) for one in found]),
                visible=bool(found),
            ),
            actions: gr.update(visible=bool(found)),
            who: gr.update(choices=choices, value=asked if asked in [one for _, one in choices] else EVERYTHING),
            picked: gr.update(choices=named, value=[]),
        }

    async def watch(job: Job) -> AsyncIterator[dict]:
        texts, told = [""], {}
        async for log, events in follow(workbench, job):
            for event in events:
                if event["event"] == "asked":
                    told = event["choice"]
                elif event["event"] == "text":
                    append(texts, event["new"])
                elif event["event"] == "answered":
                    texts = [event["answer"]]
            by = answered_text(told) if told else ""
            if log.has_ended:
                text = by if log.state == DONE else ended_text(log, "", say("job.stopped"))
            else:
                text = waiting_text(workbench, job) if is_waiting(log) else by or say("common.answering")
            yield {answer: texts[0], answered_by: text, stop: gr.update(interactive=not log.has_ended)}

    @cumulative
    async def on_ask(session_id: str, text: str, asked: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        job = await started(lambda: ask_shelf(workbench, current, text, asked or EVERYTHING))
        if isinstance(job, str):
            yield {answer: "", answered_by: job}
            return
        yield {answer: "", answered_by: say("job.starting")}
        async for shown in watch(job):
            yield shown

    def on_stop(session_id: str) -> None:
        workbench.stop(workbench.sessions.open(session_id), ASKING)

    @cumulative
    async def on_show(session_id: str, asked: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        # In a thread, since many books take a while to read.
        yield await asyncio.to_thread(show, current, asked)
        job = workbench.jobs.find(current.shown.get(ASKING, ""), current.id)
        if job is not None:
            async for shown in watch(job):
                yield shown

    def change(session_id: str, asked: str, work: Callable[[Session], str]) -> dict:
        current = workbench.sessions.open(session_id)
        try:
            text = work(current)
        except (ValueError, OSError) as error:
            text = warning(explain(error))
        return show(current, asked, text)

    def on_forget(session_id: str, asked: str, chosen: list[str]) -> dict:
        def work(current: Session) -> str:
            if not chosen:
                raise ValueError(Message("shelf.none_chosen"))
            gone = [workbench.shelves.forget(current, book_id).title for book_id in chosen]
            return say("shelf.forgot", titles=", ".join(map(escape, gone)))

        return change(session_id, asked, work)

    def on_merge(session_id: str, asked: str, chosen: list[str]) -> dict:
        def work(current: Session) -> str:
            if len(chosen) != 2:
                raise ValueError(Message("shelf.choose_two", count=len(chosen)))
            book = workbench.shelves.merge(current, *chosen)
            return say("shelf.merged", title=escape(book.title), count=len(book.passages))

        return change(session_id, asked, work)

    def on_take(session_id: str, asked: str, chosen: list[str]) -> dict:
        is_taken = False

        def work(current: Session) -> str:
            nonlocal is_taken
            if len(chosen) != 1:
                raise ValueError(Message("shelf.choose_one", count=len(chosen)))
            taken = workbench.shelves.take(current, chosen[0])
            is_taken = True
            return say("shelf.taken", count=len(taken))

        return {**change(session_id, asked, work), tabs: gr.Tabs(selected="adapters") if is_taken else gr.skip()}

    shared = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [status, books, actions, who, picked]
    gr.on(
        [question.submit, ask.click],
        on_ask,
        [session, question, who],
        [answer, answered_by, stop],
        concurrency_limit=None,
        **shared,
    )
    stop.click(on_stop, session, api_visibility="private", queue=False)
    forget.click(on_forget, [session, who, picked], shown, **shared)
    merge.click(on_merge, [session, who, picked], shown, **shared)
    taken = take.click(on_take, [session, who, picked], [*shown, tabs], **shared)

    def attach(event: gr.events.Dependency) -> None:
        event.then(on_show, [session, who], [*shown, answer, answered_by, stop], concurrency_limit=None, **shared)

    return attach, taken


def answered_text(told: dict) -> str:
    """Who answered a question, and why, in a sentence; `told` is as [`described_choice`] gives it."""
    score = {name: told[name] for name in ("score", "threshold")}
    if told["book"] is None:
        if told["is_chosen"]:
            return say("shelf.by_chosen_base")
        if told["nearest"] is None:
            return say("shelf.by_base_alone")
        return say("shelf.by_base", nearest=escape(told["nearest"]), **score)
    book = f"**{escape(told['title'])}**"
    if told["num_passages"] > 1:
        book += say("shelf.passage_of", number=told["passage"], all=told["num_passages"])
    return say("shelf.by_chosen", book=book) if told["is_chosen"] else say("shelf.by_book", book=book, **score)


def table_line(one: ShelvedBook) -> list[str]:
    """A line of the table: title, share of the questions that are known, and when, size and what keeps it from being asked."""
    book = one.book
    num_passages = f" · {say('shelf.passages', count=len(book.passages))}" if len(book.passages) > 1 else ""
    if one.fault:
        return [f"⊘ {book.title}{num_passages}", percent(book.recall), say("shelf.not_asked", fault=one.fault)]
    details = [book.local_time, say("size.megabytes", size=one.num_bytes / 1e6)]
    if book.num_asked:
        details.insert(0, say("shelf.right", right=book.num_right, count=book.num_asked))
    return [f"{book.title}{num_passages}", percent(book.recall), ", ".join(details)]


def _label(one: ShelvedBook) -> str:
    title = one.book.title
    return f"{title[:_LONGEST_TITLE]} …" if len(title) > _LONGEST_TITLE else title
