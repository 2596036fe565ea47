"""The cards of step 2: one self-edit each, as text or as questions with their answers, and what they leave out together."""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from ..languages import laid_out, say
from ..work import inputs
from ..work.session_items import Draft
from ..work.sessions import Session
from ..work.settings import MAX_SELF_EDITS
from .passage_panel import pairs_table
from .shared import escape


SHOWN_FACTS = 12


@dataclass(frozen=True)
class SelfEditCard:
    """The widgets of one self-edit. What they hold in `values` becomes a draft again with [`read_drafts`]."""

    column: gr.Column
    pairs: gr.Dataframe
    text: gr.Textbox
    use: gr.Checkbox
    preview: gr.Textbox

    @property
    def values(self) -> list[gr.components.Component]:
        """Text, whether to use it, and the questions with their answers."""
        return [self.text, self.use, self.pairs]

    @property
    def widgets(self) -> list:
        """All of them."""
        return [self.column, self.preview, *self.values]

    def writing(self, is_there: bool) -> dict:
        """The card before its self-edit is written."""
        return {
            self.column: gr.update(visible=is_there),
            self.pairs: gr.update(visible=False),
            self.text: gr.update(visible=True),
        }

    def show(self, draft: Draft | None, preview: str) -> dict:
        """The card of a self-edit; hidden where there is none."""
        if draft is None:
            return {self.column: gr.update(visible=False), self.text: "", self.use: True, self.preview: ""}
        has_pairs = draft.pairs is not None
        return {
            self.column: gr.update(visible=True),
            self.pairs: gr.update(value=pairs_table(draft.pairs or ()), visible=has_pairs),
            self.text: gr.update(value=draft.text, visible=bool(draft.text) or not has_pairs, interactive=True),
            self.use: draft.use,
            self.preview: preview,
        }


def build_cards() -> list[SelfEditCard]:
    """Lay out the cards, hidden, where this is called."""
    cards = []
    with gr.Row(elem_classes="cards"):
        for number in range(1, MAX_SELF_EDITS + 1):
            with gr.Column(visible=False, min_width=260, elem_classes="card") as column:
                pairs = gr.Dataframe(
                    headers=["", ""],
                    datatype="str",
                    type="array",
                    column_count=2,
                    column_widths=["62%", "38%"],
                    wrap=True,
                    interactive=True,
                    visible=False,
                    label=laid_out("teach.pairs_of", number=number),
                    max_height=280,
                    buttons=[],
                    elem_id=f"pairs-{number}",
                    elem_classes="table",
                )
                text = gr.Textbox(
                    label=laid_out("common.self_edit", number=number),
                    lines=7,
                    max_lines=7,
                    interactive=False,
                    elem_id=f"self-edit-{number}",
                    autoscroll=True,
                )
                use = gr.Checkbox(True, label=laid_out("teach.use"), container=False, elem_id=f"use-{number}")
                with gr.Accordion(laid_out("teach.training_texts"), open=False):
                    preview = gr.Textbox(show_label=False, lines=4, max_lines=12, interactive=False, container=False)
            cards.append(SelfEditCard(column, pairs, text, use, preview))
    return cards


def read_drafts(current: Session, values: Sequence[object]) -> list[Draft]:
    """The self-edits of a session as the cards hold them; `values` are those of all cards, one after another."""
    shown = zip(current.drafts, values[::3], values[1::3], values[2::3], strict=False)
    return [
        Draft(text, use=bool(use), pairs=None if draft.pairs is None else list(rows), written=draft.written)
        for draft, text, use, rows in shown
    ]


def build_coverage() -> tuple[gr.Markdown, gr.Dataset]:
    """Lay out, hidden, what the self-edits leave out: a line, and a button for each name and number."""
    line = gr.Markdown(elem_id="coverage", elem_classes="quiet")
    facts = gr.Dataset(
        components=["textbox"],
        samples=[],
        show_label=False,
        samples_per_page=SHOWN_FACTS,
        layout="gallery",
        visible=False,
        container=False,
        elem_id="left-out",
    )
    return line, facts


def show_coverage(line: gr.Markdown, facts: gr.Dataset, current: Session, told: str = "") -> dict:
    """What the self-edits of a session leave out now, after a sentence about something else."""
    missing = _left_out(current)[0][:SHOWN_FACTS]
    shown = gr.Dataset(samples=[[fact] for fact in missing], visible=bool(missing))
    return {line: " ".join(filter(None, (told, coverage_text(current)))), facts: shown}


def coverage_text(current: Session) -> str:
    """How many names and numbers of the passage the self-edits ask for; empty where they are not questions."""
    missing, count = _left_out(current)
    if not count:
        return ""
    held = say("teach.coverage", held=count - len(missing), all=count)
    if not missing:
        return held
    more = len(missing) - SHOWN_FACTS
    return f"{held} {say('teach.left_out_more', more=more) if more > 0 else say('teach.left_out')}"


def added_text(event: dict) -> str:
    """What came of asking for a question about a name or number, in a sentence."""
    fact, place = escape(event["fact"]), event["place"]
    if event["pair"] is None:
        return say("teach.no_question", fact=fact)
    if place is None:
        return say("teach.question_too_late", fact=fact)
    return say("teach.question_added", fact=fact, number=place + 1)


def _left_out(current: Session) -> tuple[list[str], int]:
    if current.example is None or all(draft.pairs is None for draft in current.drafts):
        return [], 0
    return inputs.missing_facts(current.example, current.drafts)
