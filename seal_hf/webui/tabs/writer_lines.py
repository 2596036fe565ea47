"""The lines that say who writes a session's self-edits: the base model, or a policy, with the button that goes back."""

from collections.abc import Callable

import gradio as gr

from ...domains import PROMPT_STYLES
from ..languages import laid_out, say, told
from ..work.policies import use_base_model
from ..work.sessions import Session, Sessions
from .shared import escape


class WriterLines:
    """
    Several lines of a page that say the same.

    Parameters:
        sessions ([`Sessions`]):
            The sessions.
        session (`gr.BrowserState`):
            Id of the visitor's session.
    """

    def __init__(self, sessions: Sessions, session: gr.BrowserState):
        self._sessions, self._session = sessions, session
        self._widgets: list[gr.components.Component] = []
        self._changes: list[gr.events.Dependency] = []

    def add(self, name: str) -> None:
        """Lay out one line where this is called. `name` is its id on the page, and `name`-base that of its button."""
        with gr.Row(elem_classes="writer"):
            text = gr.Markdown(laid_out("writer.base"), elem_id=name, elem_classes="quiet")
            back = gr.Button(
                laid_out("writer.use_base"), size="sm", visible=False, min_width=150, scale=0, elem_id=f"{name}-base"
            )
        self._widgets += [text, back]
        self.changed_by(back.click(self._use_base_model, self._session, api_visibility="private", queue=False))

    def changed_by(self, event: gr.events.Dependency) -> None:
        """Let all lines be told anew after this event."""
        self._changes.append(event)

    def finish(self) -> Callable[[gr.events.Dependency], None]:
        """
        To be called when the whole page is laid out.

        Returns:
            `Callable`: Called with an event, it makes the lines show the session's writer after it.
        """
        for event in self._changes:
            self._attach(event)
        return self._attach

    def _attach(self, event: gr.events.Dependency) -> None:
        event.then(
            self._shown,
            self._session,
            self._widgets,
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        )

    def _shown(self, session_id: str) -> list[object]:
        session = self._sessions.find(session_id)
        is_base = session is None or session.writer is None
        return [writer_text(session), gr.update(visible=not is_base)] * (len(self._widgets) // 2)

    def _use_base_model(self, session_id: str) -> None:
        if (session := self._sessions.find(session_id)) is not None:
            use_base_model(session)


def writer_text(session: Session | None) -> str:
    """Who writes the session's self-edits, in a sentence."""
    policy = session.writer if session is not None else None
    if policy is None:
        return say("writer.base")
    # A run may be of a version that had other styles.
    style = say(f"style.{policy.prompt_style}") if policy.prompt_style in PROMPT_STYLES else policy.prompt_style
    return say("writer.policy", policy=told(policy.name), style=escape(style))
