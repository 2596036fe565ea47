"""
Self-edits that somebody else wrote: another model, an earlier run, a person.

A row holds a passage, or all of an example of another domain, with what was written about it: `"completion"`, or several as
`"completions"`. In place of the example it may hold the `"prompt"` that shows it, as the rows of
[`seal_hf.hub.load_self_edits`] do. Prompts and completions may be chat messages.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .base import Domain


STORED_FORM = '{"title": ..., "context": ..., "completion": ...}'
# What is not of the example in a row that holds one.
_ADDED = ("prompt", "completion", "completions")


def stored_completions(
    domain: Domain,
    examples: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    num_generations: int,
) -> list[tuple[str, ...]]:
    """
    Find what rows hold about examples. They belong together by what is learned (see [`Domain.content`]), or by the prompt.

    Args:
        domain ([`Domain`]):
            The examples' domain.
        examples (`Sequence[Mapping[str, Any]]`):
            The examples.
        ids (`Sequence[str]`):
            What each of them is called in messages.
        rows (`Iterable[Mapping[str, Any]]`):
            Self-edits in the form above. Those about other examples are passed over.
        num_generations (`int`):
            How many completions are taken for each example, the first in the order of the rows.

    Returns:
        `list[tuple[str, ...]]`: for each example its completions.

    Raises:
        ValueError: A row of another form, or an example with fewer completions.
    """
    contents = [domain.content(example) for example in examples]
    prompts = {_text(domain.prompt(example)): own for example, own in zip(examples, contents, strict=True)}
    # A prompt may show two of them where one is a part of the other, which is then not what it is about.
    longest_first = sorted(set(contents), key=len, reverse=True)
    found: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        completions, prompt = _completions(row, number), _text(row.get("prompt"))
        content = _content(domain, row)
        if content is None and prompt is None:
            raise ValueError(f"self_edits: row {number} names no passage; write {STORED_FORM}.")
        if content not in contents:
            shown = (one for one in longest_first if content is None and one in prompt)
            content = prompts.get(prompt) or next(shown, None)
        if content is not None:
            found[content] += completions
    lacking = [place for place, content in enumerate(contents) if len(found[content]) < num_generations]
    if lacking:
        example, number = examples[lacking[0]], len(found[contents[lacking[0]]])
        title = f" ({example['title']!r})" if example.get("title") else ""
        more = f", and too few about {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(
            f"self_edits: {number or 'no'} completion{'s' * (number > 1)} about example {ids[lacking[0]]}{title}, where "
            f"num_generations={num_generations} {'are' if num_generations > 1 else 'is'} wanted{more}; add rows with the same "
            "passage, leave such examples out, or lower num_generations."
        )
    return [tuple(found[content][:num_generations]) for content in contents]


def _content(domain: Domain, row: Mapping[str, Any]) -> str | None:
    """What is learned from a row's example; `None` where it does not hold one."""
    try:
        return domain.content({key: value for key, value in row.items() if key not in _ADDED})
    except KeyError:
        return None


def _completions(row: Any, number: int) -> list[str]:
    if isinstance(row, Mapping):
        several = row.get("completions")
        several = [row.get("completion")] if several is None else several
        several = several if isinstance(several, list | tuple) else []
        # In a query run of the paper's code each is an object with its scores.
        completions = [_text(one.get("text") if isinstance(one, Mapping) else one) for one in several]
        if completions and None not in completions:
            return completions
    raise ValueError(f"self_edits: row {number} has no completion, as a text or chat messages; write {STORED_FORM}.")


def _text(value: Any) -> str | None:
    """A text, or that of all messages of a chat; `None` for anything else."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        texts = [one.get("content") for one in value]
        return "\n".join(texts) if all(isinstance(text, str) for text in texts) else None
    return value if isinstance(value, str) else None
