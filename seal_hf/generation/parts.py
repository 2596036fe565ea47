"""Completions that are written in several parts at once."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from .base import Generation


PART_SEPARATOR = "\n---\n"
_SEPARATOR_LINE = re.compile(r"^\s*-{3,}\s*$\n?", re.MULTILINE)


class JoinedParts:
    """
    Joins the parts of each completion by lines of `---`, and shows them while they are written.

    Parameters:
        sizes (`Sequence[int]`):
            Number of parts of each completion.
        on_text (`Callable[[list[str]], bool | None]`, *optional*):
            Called with the new text of each completion, as by [`~TextGenerator.generate`]. Of several parts these are whole
            lines, in the order in which they are finished.
    """

    def __init__(self, sizes: Sequence[int], on_text: Callable[[list[str]], bool | None] | None = None):
        self._sizes, self._on_text = sizes, on_text
        self._pending = [""] * sum(sizes)

    def on_text(self, new_texts: list[str]) -> bool | None:
        """Take the new text of every part."""
        shown = []
        for places in self._places():
            lines = ""
            for place in places:
                text = self._pending[place] + new_texts[place]
                end = text.rfind("\n") + 1 if len(places) > 1 else len(text)
                lines, self._pending[place] = lines + text[:end], text[end:]
            shown.append(lines)
        return self._on_text(shown)

    def join(self, generations: Sequence[Generation]) -> list[Generation]:
        """Join the parts, which were given in their order, and show what is left of them."""
        if any(self._pending):
            rest = [
                "".join(f"{self._pending[place]}\n" for place in places if self._pending[place])
                for places in self._places()
            ]
            self._on_text(rest)
        return [joined_parts([generations[place] for place in places]) for places in self._places()]

    def _places(self) -> Iterator[range]:
        first = 0
        for size in self._sizes:
            yield range(first, first + size)
            first += size


def split_parts(completion: str) -> list[str]:
    """
    Split a completion into its parts, of which each may be empty.

    Example:

    ```python
    >>> split_parts("Who keeps bees?\\n---\\n\\n---\\nWhere?")
    ['Who keeps bees?', '', 'Where?']

    ```
    """
    return completion.split(PART_SEPARATOR)


def joined_parts(parts: Sequence[Generation]) -> Generation:
    """Join completions by lines of `---`; one alone stays as it is."""
    if len(parts) == 1:
        return parts[0]
    # A part that has such lines itself must not become several.
    return _joined(parts, [_SEPARATOR_LINE.sub("", part.text).strip() for part in parts])


def joined_drafts(drafts: Sequence[Generation], num_parts: int = 1) -> Generation:
    """
    Join drafts, each of which may be joined of parts itself: all parts of the first, then those of the next; one alone stays as
    it is.

    Args:
        drafts (`Sequence[Generation]`):
            Completions.
        num_parts (`int`, *optional*, defaults to `1`):
            How many parts each was joined of.
    """
    if len(drafts) == 1:
        return drafts[0]
    # Several parts are stripped, and one of them may be empty.
    joined = _joined(drafts, [draft.text if num_parts > 1 else draft.text.strip() for draft in drafts])
    if num_parts == 1:
        return joined
    unfinished = (
        number * num_parts + place for number, draft in enumerate(drafts) for place in draft.unfinished_parts
    )
    return replace(joined, unfinished_parts=tuple(unfinished))


def _joined(completions: Sequence[Generation], texts: Sequence[str]) -> Generation:
    return Generation(
        PART_SEPARATOR.join(texts),
        sum(one.num_tokens for one in completions),
        all(one.finished for one in completions),
        tuple(token for one in completions for token in one.token_ids),
        tuple(place for place, one in enumerate(completions) if not one.finished),
    )
