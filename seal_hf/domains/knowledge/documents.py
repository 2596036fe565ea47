"""Long texts, cut into passages of a size that a model learns well."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...grading.statements import num_words
from .sentences import split_sentences


# Words. Passages of 80 to 400 were measured (docs/trials.md); the shorter ones are learned better.
SHORTEST_PASSAGE, USUAL_PASSAGE, LONGEST_PASSAGE = 80, 250, 400
_HEADING = re.compile(r"#{1,6}[ \t]+(?P<text>.*?)[ \t#]*")


class DocumentPart(NamedTuple):
    """
    A passage of a document.

    Parameters:
        heading (`str`):
            The heading that it stands under; empty before the first.
        text (`str`):
            The passage, without that heading.
    """

    heading: str
    text: str


def split_document(text: str) -> list[DocumentPart]:
    """
    Cut a text into passages at its headings (lines that begin with `#`) and paragraphs.

    A text of at most 400 words stays whole. A longer one is cut before each heading once a passage has 80 words, and between
    paragraphs before it has more than 250; a longer paragraph is cut between sentences. What is left at the end joins the
    passage before it where both together have at most 400 words.

    Args:
        text (`str`):
            The document.

    Returns:
        `list[DocumentPart]`: the passages in their order; none of a text without words.

    Example:

    ```python
    >>> [part.heading for part in split_document("# Bees\\n\\nAnn keeps bees.\\n\\n## Honey\\n\\nThey make it.")]
    ['Bees']
    >>> long = "The bees of Vell hum at night. " * 20
    >>> [part.heading for part in split_document(f"# Bees\\n{long}\\n# Honey\\n{long}\\n# Wax\\n{long}\\n# Vell\\n{long}")]
    ['Bees', 'Honey', 'Wax', 'Vell']

    ```
    """
    if num_words(text) <= LONGEST_PASSAGE:
        passages = [list(_blocks(text))]
    else:
        passages = _gathered(text)
    return [part for passage in passages if (part := _part(passage)).text]


def _gathered(text: str) -> list[list[tuple[str, bool]]]:
    """The blocks of each passage."""
    passages: list[list[tuple[str, bool]]] = [[]]
    size = 0.0
    for block, is_heading in _blocks(text):
        own = num_words(block)
        if (is_heading and size >= SHORTEST_PASSAGE) or (
            size + own > USUAL_PASSAGE and (size >= SHORTEST_PASSAGE or size + own > LONGEST_PASSAGE)
        ):
            # A heading stays with what follows it.
            carried = [passages[-1].pop()] if passages[-1] and passages[-1][-1][1] and not is_heading else []
            passages.append(carried)
            size = sum(num_words(one) for one, _ in carried)
        passages[-1].append((block, is_heading))
        size += own
    last, before = passages[-1], passages[-2] if len(passages) > 1 else []
    sizes = [sum(num_words(block) for block, _ in one) for one in (before, last)]
    if before and sizes[1] < SHORTEST_PASSAGE and sum(sizes) <= LONGEST_PASSAGE:
        passages[-2:] = [before + last]
    return passages


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Headings and paragraphs in their order, each with whether it is a heading; long paragraphs in parts."""
    lines: list[str] = []
    for line in (*text.splitlines(), ""):
        heading = _HEADING.fullmatch(line.strip())
        if line.strip() and heading is None:
            lines.append(line.rstrip())
            continue
        if lines:
            yield from ((part, False) for part in _short_enough("\n".join(lines)))
            lines = []
        if heading is not None and heading["text"]:
            yield heading["text"], True


def _short_enough(paragraph: str) -> Iterator[str]:
    if num_words(paragraph) <= USUAL_PASSAGE:
        yield paragraph
        return
    sentences: list[str] = []
    for sentence in split_sentences(paragraph):
        if sentences and num_words(" ".join([*sentences, sentence])) > USUAL_PASSAGE:
            yield " ".join(sentences)
            sentences = []
        sentences.append(sentence)
    yield " ".join(sentences)


def _part(blocks: list[tuple[str, bool]]) -> DocumentPart:
    heading = blocks[0][0] if blocks and blocks[0][1] else ""
    rest = blocks[1:] if heading else blocks
    # Headings alone have no words to learn.
    text = "\n\n".join(block for block, _ in rest) if any(not is_heading for _, is_heading in rest) else ""
    return DocumentPart(heading, text if re.search(r"\w", text) else "")
