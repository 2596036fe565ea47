"""The tab Ask, step 4: the base and the adapted model answer the same question, without the passage."""

from collections.abc import AsyncIterator, Callable

import gradio as gr

from ..languages import laid_out, say
from ..work.jobs import DONE, Job
from ..work.sessions import Session
from ..work.workbench import Workbench
from .shared import (
    RECITED,
    answers_table,
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
)


def build_ask_tab(
    workbench: Workbench, session: gr.BrowserState, questions: gr.Dataframe, read_questions: Callable
) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        questions (`gr.Dataframe`):
            The visitor's questions and answers.
        read_questions (`Callable`):
            Turns the content of `questions` into questions.

    Returns:
        `Callable`: Called with an event, it makes the tab show the state after it.
    """
    gr.Markdown(laid_out("ask.heading"), elem_classes="step")
    status = gr.Markdown(laid_out("ask.empty"), elem_id="ask-status", elem_classes="status")
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            label=laid_out("common.question"),
            placeholder=laid_out("ask.hint"),
            elem_id="question",
            scale=8,
            min_width=220,
        )
        ask = gr.Button(laid_out("common.ask"), variant="primary", elem_id="ask", min_width=90)
    with gr.Row():
        shape = {"lines": 3, "interactive": False, "min_width": 280}
        base = gr.Textbox(label=laid_out("common.base_model"), elem_id="base", **shape)
        adapted = gr.Textbox(label=laid_out("common.adapted"), elem_id="adapted", **shape)
    with gr.Row():
        score = gr.Button(laid_out("ask.score"), size="sm", elem_id="score", min_width=150)
        probe = gr.Button(laid_out("ask.probe"), size="sm", elem_id="probe", min_width=190)
        stop = gr.Button(laid_out("common.stop"), size="sm", elem_id="stop-asking", min_width=80)
    table = read_only_table([34, 33, 33], elem_id="scores", visible=False)
    history = read_only_table([24, 38, 38], elem_id="history", label=laid_out("ask.history"), visible=False)

    def show_history(current: Session) -> dict:
        headers = ("common.question", "common.base_model", "common.adapted")
        return gr.update(value=table_of(headers, current.asked[::-1]), visible=len(current.asked) > 0)

    async def watch_question(current: Session, job: Job) -> AsyncIterator[dict]:
        texts, asked, ended = ["", ""], "", {}
        yield {base: "", adapted: "", status: say("job.starting")}
        async for log, events in follow(workbench, job):
            for event in events:
                if event["event"] == "asked":
                    asked = event["questions"][0]["question"]
                elif event["event"] == "text":
                    append(texts, event["new"])
                elif event["event"] == "answered":
                    texts = [event["base"][0], event["adapted"][0]]
            if log.has_ended:
                if log.state == DONE:
                    ended = {history: show_history(current)}
                text = ended_text(log, say("ask.answered", question=escape(asked)), say("job.stopped"))
            else:
                text = waiting_text(workbench, job) if is_waiting(log) else say("common.answering")
            yield {base: texts[0], adapted: texts[1], status: text, **ended}

    async def watch_table(job: Job) -> AsyncIterator[dict]:
        asked, texts, answered, text = [], [], {}, say("job.starting")
        yield {table: gr.update(visible=False), status: text}
        async for log, events in follow(workbench, job):
            for event in events:
                if event["event"] == "asked":
                    asked = event["questions"]
                    texts = [""] * 2 * len(asked)
                elif event["event"] == "text":
                    append(texts, event["new"])
                elif event["event"] == "answered":
                    texts, answered = [*event["base"], *event["adapted"]], event
            verdicts = answered.get("verdicts")
            if log.has_ended:
                found = (verdicts, answered["recited"], answered["best_of"]) if verdicts else None
                text = ended_text(log, accuracy_text(job.kind, *found) if found else "", say("job.stopped"))
            elif is_waiting(log):
                text = waiting_text(workbench, job)
            else:
                text = say("ask.answering", count=len(asked))
            shown = answers_table(asked, [texts[: len(asked)], texts[len(asked) :]], verdicts)
            headers = ("common.question_and_answer", "common.base_model", "common.adapted")
            yield {table: gr.update(value=table_of(headers, shown), visible=bool(shown)), status: text}

    async def watch_started(
        start: Callable[[], Job], watch: Callable[[Job], AsyncIterator[dict]]
    ) -> AsyncIterator[dict]:
        job = await started(start)
        if isinstance(job, str):
            yield {status: job}
            return
        async for shown in watch(job):
            yield shown

    @cumulative
    async def on_ask(session_id: str, text: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        watching = watch_started(lambda: workbench.ask(current, text), lambda job: watch_question(current, job))
        async for shown in watching:
            yield shown

    @cumulative
    async def on_score(session_id: str, pairs: list) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        async for shown in watch_started(lambda: workbench.score(current, read_questions(pairs)), watch_table):
            yield shown

    @cumulative
    async def on_probe(session_id: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        async for shown in watch_started(lambda: workbench.probe(current), watch_table):
            yield shown

    def on_stop(session_id: str) -> None:
        current = workbench.sessions.open(session_id)
        for kind in ("ask", "score", "probe"):
            workbench.stop(current, kind)

    @cumulative
    async def on_show(session_id: str) -> AsyncIterator[dict]:
        current = await opened(workbench, session_id)
        kept = current.adapters.get(current.chosen or "")
        yield {
            status: say("ask.ask_both", adapter=escape(kept.name)) if kept else say("ask.empty"),
            adapted: gr.update(label=say("ask.adapted", adapter=kept.name) if kept else say("common.adapted")),
            history: show_history(current),
        }
        for job in workbench.jobs.active(current.id):
            if job.kind in ("ask", "score", "probe"):
                async for shown in watch_question(current, job) if job.kind == "ask" else watch_table(job):
                    yield shown

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    gr.on([question.submit, ask.click], on_ask, [session, question], [status, base, adapted, history], **shared)
    score.click(on_score, [session, questions], [status, table], **shared)
    probe.click(on_probe, session, [status, table], **shared)
    stop.click(on_stop, session, api_visibility="private", queue=False)

    def attach(event: gr.events.Dependency) -> None:
        event.then(on_show, session, [status, base, adapted, history, table], **shared)

    return attach


def accuracy_text(kind: str, verdicts: list[list[bool]], recited: list[float], best_of: int) -> str:
    """The accuracy of both models, how much they recite, and whether the adapter may have been chosen by these questions."""
    (base, adapted) = (sum(map(bool, one)) for one in verdicts)
    count = sum(verdict is not None for verdict in verdicts[0])
    counts = {
        "base": base,
        "adapted": adapted,
        "all": count,
        "base_share": percent(base / count),
        "adapted_share": percent(adapted / count),
    }
    if kind == "probe":
        return say("ask.probed", **counts)
    shares = {"base": percent(recited[0]), "adapted": percent(recited[1])}
    sentences = [say("ask.scored", **counts), say("ask.recited", means=RECITED, **shares)]
    if best_of > 1:
        sentences.append(say("ask.chosen_by_them", best_of=best_of))
    return " ".join(sentences)
