"""Widgets that several tabs have."""

from collections.abc import Sequence

import gradio as gr


def read_only_table(
    headers: Sequence[str], widths: Sequence[int], *, elem_id: str | None = None, label: str | None = None, **options
) -> gr.Dataframe:
    """
    A table of texts, shown as they are, that is no wider than the page.

    Parameters:
        headers (`Sequence[str]`):
            The columns.
        widths (`Sequence[int]`):
            Of the columns, in percent.
        elem_id, label, options:
            As for `gr.Dataframe`.
    """
    return gr.Dataframe(
        headers=list(headers),
        datatype="str",
        column_widths=[f"{width}%" for width in widths],
        wrap=True,
        interactive=False,
        buttons=[],
        label=label,
        show_label=label is not None,
        elem_id=elem_id,
        elem_classes="table",
        **options,
    )
