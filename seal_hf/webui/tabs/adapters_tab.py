"""The tab Adapters, step 5: choose, download, push, delete and load adapters."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import gradio as gr

from ...hub.errors import RepositoryExists
from ..languages import laid_out, say
from ..work import sharing
from ..work.errors import explain
from ..work.session_items import KeptAdapter
from ..work.sessions import Session
from ..work.workbench import Workbench
from .shared import duration, escape, keep_shown_files, percent, read_only_table, table_of, warning


def build_adapters_tab(
    workbench: Workbench, session: gr.BrowserState, *, may_push: bool, on_space: bool
) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session (`gr.BrowserState`):
            Id of the visitor's session.
        may_push (`bool`):
            Whether there is an account to push to: on a Space the visitor's, elsewhere that of the user of this machine if
            nobody else reaches the page.
        on_space (`bool`):
            Whether this is a Space, where visitors sign in.

    Returns:
        `Callable`: Called with an event, it makes the tab show the state after it.
    """
    gr.Markdown(laid_out("adapters.heading"), elem_classes="step")
    status = gr.Markdown(laid_out("adapters.empty"), elem_id="adapters-status", elem_classes="status")
    table = read_only_table([34, 33, 33], elem_id="adapters", visible=False)
    with gr.Column(visible=False) as actions:
        with gr.Row():
            chosen = gr.Dropdown([], label=laid_out("common.adapter"), elem_id="adapter", min_width=260, scale=3)
            download = gr.DownloadButton(laid_out("adapters.download"), elem_id="download", min_width=140)
            keep_shown_files(download)
            delete = gr.Button(laid_out("adapters.delete"), variant="stop", elem_id="delete", min_width=100)
        with gr.Accordion(laid_out("adapters.push_panel"), open=False, elem_id="push-panel"):
            if on_space:
                gr.LoginButton()
            if may_push:
                # Not in a `gr.Row`, which a phone would cut off.
                name = gr.Textbox("seal-adapter", label=laid_out("adapters.name"))
                private = gr.Checkbox(True, label=laid_out("adapters.private"))
                publish = gr.Checkbox(False, label=laid_out("adapters.publish"))
                overwrite = gr.Textbox(visible=False, elem_id="overwrite")
                push_button = gr.Button(laid_out("adapters.push"), elem_id="push")
            else:
                gr.Markdown(laid_out("adapters.push_is_off"))
    with gr.Accordion(laid_out("adapters.load_panel"), open=False, elem_id="load-panel"):
        with gr.Row():
            upload = gr.UploadButton(laid_out("adapters.upload"), file_types=[".zip"], elem_id="upload", min_width=160)
            repo_id = gr.Textbox(
                label=laid_out("adapters.from_hub"),
                placeholder=laid_out("adapters.hub_id"),
                submit_btn=True,
                elem_id="repo-id",
                min_width=260,
            )

    def show(current: Session) -> dict:
        kept, asked = list(current.adapters.values()), current.adapters.get(current.chosen or "")
        return {
            table: gr.update(
                value=table_of(
                    ("common.adapter", "common.passage", "common.details"),
                    [table_line(adapter, current.chosen) for adapter in kept],
                ),
                visible=bool(kept),
            ),
            actions: gr.update(visible=bool(kept)),
            chosen: gr.update(choices=[(adapter.name, adapter.id) for adapter in kept], value=current.chosen),
            download: gr.update(value=str(asked.file) if asked else None),
        }

    def on_show(session_id: str) -> dict:
        current = workbench.sessions.open(session_id)
        count = len(current.adapters)
        text = say("adapters.count", count=count) if count else say("adapters.empty")
        # Gradio does not translate this button.
        return {status: text, **show(current), repo_id: gr.update(submit_btn=say("adapters.load"))}

    def on_choose(session_id: str, adapter_id: str) -> dict:
        current = workbench.sessions.open(session_id)
        if adapter_id in current.adapters:
            current.chosen = adapter_id
        return show(current)

    def on_delete(session_id: str, adapter_id: str) -> dict:
        current = workbench.sessions.open(session_id)
        try:
            gone = current.delete(adapter_id)
        except ValueError as error:  # pressed twice
            return {status: warning(error), **show(current)}
        return {status: say("adapters.deleted", name=escape(gone.name)), **show(current)}

    def on_load(
        session_id: str, source: str | Path, headers: Mapping[str, str], visitors_token: str | None = None
    ) -> dict:
        current = workbench.sessions.open(session_id)
        try:
            token = sharing.load_token(on_space, may_push, visitors_token, headers)
            kept = sharing.load_adapter(workbench.lm, current, source, token)
        except (ValueError, OSError) as error:
            return {status: warning(explain(error))}
        return {status: say("adapters.loaded", name=escape(kept.name)), **show(current)}

    def on_upload(session_id: str, file: str) -> dict:
        return on_load(session_id, Path(file), {})

    def on_load_by_visitor(session_id: str, name: str, oauth: gr.OAuthToken | None, request: gr.Request) -> dict:
        return on_load(session_id, name, dict(request.headers), oauth and oauth.token)

    def on_load_locally(session_id: str, name: str, request: gr.Request) -> dict:
        return on_load(session_id, name, dict(request.headers))

    def push(session_id: str, values: tuple, headers: Mapping[str, str], visitors_token: str | None = None) -> dict:
        adapter_id, repo_name, is_private, show_passage, may_overwrite = values
        try:
            url = sharing.push(
                workbench.lm,
                workbench.sessions.open(session_id),
                adapter_id,
                repo_name,
                private=is_private,
                publish_passage=show_passage,
                token=sharing.push_token(on_space, visitors_token, headers),
                overwrite=may_overwrite,
            )
        except RepositoryExists as error:
            label = say("adapters.overwrite", name=error.repo_id)
            found = f"⚠️ {say('adapters.exists', name=escape(error.repo_id))}"
            return {status: found, overwrite: gr.update(label=label, placeholder=error.repo_id, visible=True)}
        except (ValueError, OSError) as error:
            return {status: warning(explain(error))}
        return {status: say("adapters.pushed", url=url), overwrite: gr.update(value="", visible=False)}

    # Gradio fills in the first arguments by their types.

    def on_push(request: gr.Request, session_id: str, *values: object) -> dict:
        return push(session_id, values, dict(request.headers))

    def on_push_by_visitor(request: gr.Request, oauth: gr.OAuthToken | None, session_id: str, *values: object) -> dict:
        return push(session_id, values, dict(request.headers), oauth and oauth.token)

    shared = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [status, table, actions, chosen, download]
    chosen.input(on_choose, [session, chosen], shown, queue=False, **shared)
    delete.click(on_delete, [session, chosen], shown, **shared)
    upload.upload(on_upload, [session, upload], shown, **shared)
    repo_id.submit(on_load_by_visitor if on_space else on_load_locally, [session, repo_id], shown, **shared)
    if may_push:
        push_button.click(
            on_push_by_visitor if on_space else on_push,
            [session, chosen, name, private, publish, overwrite],
            [status, overwrite],
            **shared,
        )

    def attach(event: gr.events.Dependency) -> None:
        event.then(on_show, session, [*shown, repo_id], **shared)

    return attach


def table_line(kept: KeptAdapter, chosen: str | None) -> list[str]:
    """A line of the table."""
    passage = kept.passage[:80].rstrip() + (" …" if len(kept.passage) > 80 else "")
    details = []
    if kept.reward is not None:
        which = "own" if kept.own_questions else "your"
        details.append(say(f"adapters.reward_{which}", reward=percent(kept.reward), count=kept.num_questions))
        if kept.best_of > 1:
            details.append(say("adapters.best_of", best_of=kept.best_of))
    if kept.seconds is not None:
        details.append(say("adapters.learned_in", time=duration(kept.seconds)))
    details += [f"{kept.num_bytes / 1e6:.0f} MB", datetime.fromtimestamp(kept.created).strftime("%H:%M")]
    return [f"{'● ' * (kept.id == chosen)}{kept.name}", passage or "–", ", ".join(details)]
