"""The page: its design, its tabs and the session that it shows."""

from functools import partial

import gradio as gr

from .api import build_api
from .languages import Message, laid_out
from .shelf_api import build_shelf_api
from .tabs.about_tab import build_about_tab
from .tabs.adapters_tab import build_adapters_tab
from .tabs.arc_grids import ARC_CSS
from .tabs.arc_tab import build_arc_tab
from .tabs.ask_tab import build_ask_tab
from .tabs.shared import opened
from .tabs.shelf_tab import build_shelf_tab
from .tabs.teach_tab import build_teach_tab
from .tabs.train_tab import build_train_tab
from .tabs.writer_lines import WriterLines
from .visitors import current_is_local, current_visitor
from .work.inputs import questions_from_table
from .work.training_runs import TrainingRuns
from .work.workbench import Workbench


TITLE = Message("page.title")
# Gradio does not translate the title of the browser's window.
_SHOW_TITLE = "() => {document.title = document.querySelector('#introduction h1').textContent}"

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    secondary_hue=gr.themes.colors.slate,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    # Fonts of the visitor's own machine, so that none are downloaded.
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    block_shadow="none",
    block_shadow_dark="none",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
)
CSS = (
    """
.gradio-container {max-width: 1280px !important; width: 100% !important; margin: 0 auto !important}
#introduction {max-width: 46rem; margin-bottom: .25rem}
#introduction h1 {font-size: 1.6rem; letter-spacing: -.01em}
.step h3 {margin: .25rem 0 0; font-size: 1.05rem}
.quiet, .quiet p {color: var(--body-text-color-subdued); font-size: .85rem}
.status {min-height: 1.5rem}
.examples {gap: .4rem}
.examples button {font-weight: 400}
.cards {gap: .75rem}
.card {border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); padding: .6rem .75rem;
  background: var(--block-background-fill); flex: 1 1 46% !important; gap: .35rem}
.card .block, .card .block > label {border: none !important; padding: 0 !important; background: none !important}
.card span[data-testid=block-info] {padding: 0 0 .2rem; font-weight: 600}
.card .form {border: none; background: none}
.card textarea {font-size: .86rem; line-height: 1.45}
.arc-code textarea {font-family: var(--font-mono); font-size: .8rem}
.table * {font-family: var(--font) !important}
.table td, .table th {font-size: .86rem}
#train-edits .cell-wrap span {white-space: pre-line}
#train-policies {align-items: flex-end}
.writer {align-items: center}
#empty, #arc-introduction {border: 1px dashed var(--border-color-primary); border-radius: var(--radius-lg); padding: 1.25rem 1.5rem;
  color: var(--body-text-color-subdued)}
@media (max-width: 640px) {
  .card {flex-basis: 100% !important}
  #introduction h1 {font-size: 1.3rem}
  .gradio-container {padding: .6rem !important}
  .table * {font-size: .72rem !important}
  .table th * {font-size: .62rem !important}
  .table .cell-wrap {padding: .35rem .2rem !important}
  .table .cell-menu-button {display: none}
}
"""
    + ARC_CSS
)


def build_page(workbench: Workbench, runs: TrainingRuns, *, may_push: bool, on_space: bool) -> gr.Blocks:
    """
    The whole page.

    Args:
        workbench ([`Workbench`]):
            The model and its visitors.
        runs ([`TrainingRuns`]):
            The outer loop.
        may_push (`bool`):
            Whether adapters may be pushed to the Hub from here.
        on_space (`bool`):
            Whether this is a Space, where visitors sign in.

    Returns:
        `gr.Blocks`: The page, to be launched with [`THEME`] and [`CSS`].
    """
    workbench.runs = runs
    workbench.sessions.key = runs.page_secret("session ids").encode()
    workbench.sessions.is_local = current_is_local
    if workbench.limits.is_shared:
        workbench.sessions.who = partial(current_visitor, on_space)
    with gr.Blocks(title=TITLE, fill_width=True, delete_cache=(600, 3600), analytics_enabled=False) as page:
        # The browser keeps the session's id, so that a page that is loaded again finds its work. The id comes with every
        # event, since the server forgets the state of a page after an hour, even while the page is in use.
        # Gradio sends this key to every browser.
        session = gr.BrowserState("", storage_key="seal-session", secret=runs.page_secret("browser"))
        introduction = laid_out("page.introduction", title=TITLE, model=workbench.lm.base_model_id)
        gr.Markdown(introduction, elem_id="introduction")
        writer = WriterLines(workbench.sessions, session)
        with gr.Tabs() as tabs:
            with gr.Tab(laid_out("tab.teach"), id="teach"):
                attach_teach, panel, learned = build_teach_tab(workbench, session, tabs, writer)
            with gr.Tab(laid_out("tab.ask"), id="ask") as ask_tab:
                attach_ask = build_ask_tab(workbench, session, panel.questions, questions_from_table)
            with gr.Tab(laid_out("tab.shelf"), id="shelf") as shelf_tab:
                attach_shelf, taken = build_shelf_tab(workbench, session, tabs)
            with gr.Tab(laid_out("tab.adapters"), id="adapters") as adapters_tab:
                attach_adapters = build_adapters_tab(workbench, session, may_push=may_push, on_space=on_space)
            with gr.Tab(laid_out("tab.arc"), id="arc"):
                attach_arc = build_arc_tab(workbench, session)
            with gr.Tab(laid_out("tab.train"), id="train"):
                attach_train = build_train_tab(runs, workbench.sessions, session, writer)
            with gr.Tab(laid_out("tab.about"), id="about") as about_tab:
                attach_about = build_about_tab(workbench)
        if on_space:
            gr.DuplicateButton()
        build_api(workbench, runs, may_push=may_push, on_space=on_space)
        build_shelf_api(workbench)

        async def on_load(session_id: str) -> str:
            return (await opened(workbench, session_id)).id

        loaded = page.load(
            on_load,
            session,
            session,
            api_visibility="private",
            show_progress="hidden",
        )
        loaded.then(None, js=_SHOW_TITLE, api_visibility="private")
        for attach in (
            attach_teach,
            attach_ask,
            attach_shelf,
            attach_adapters,
            attach_arc,
            attach_train,
            writer.finish(),
        ):
            attach(loaded)
        on_select = (
            (ask_tab, attach_ask),
            (shelf_tab, attach_shelf),
            (adapters_tab, attach_adapters),
            (about_tab, attach_about),
        )
        for tab, attach in on_select:
            attach(tab.select(lambda: None, api_visibility="private", queue=False))
        for event in learned:
            attach_ask(event)
            attach_shelf(event)
            attach_adapters(event)
        attach_ask(taken)
        attach_adapters(taken)
    return page.queue(max_size=64, default_concurrency_limit=16)
