"""The prompts of knowledge incorporation: text files with places that are filled."""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from ...self_edit import Prompt
from ..files import read_text


# Styles that ask for questions without answers, which the model then answers itself, and for nothing else.
PURE_QUESTION_STYLES = ("questions", "questions-by-sentence", "questions-by-fact")
QUESTION_STYLES = (*PURE_QUESTION_STYLES, "questions-and-rewrite")
PROMPT_STYLES = (
    *("implications", "implications-long", "implications-very-long", "rewrite", "self-qa"),
    *(*QUESTION_STYLES, "instruction", "none"),
)
# The closed-book prompt of this project, and the paper's (quoted; prompts/README.md names the source).
ANSWER_PROMPTS = {"default": "answer", "paper": "answer-paper"}
# What comes before the passage, and before that of every example, in the prompts of this project.
PASSAGE_HEADING = "\n\nPassage:\n"
MARK = "\0"  # what no text has


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """
    Fill the `{name}` places of a prompt template.

    A line none of whose places has a value is left out. Braces in the template that are not places, and braces in the
    values, stay as they are.

    Args:
        template (`str`):
            Text with places such as `{title}`.
        values (`Mapping[str, str]`):
            Value of each place.

    Returns:
        `str`: The filled text.

    Example:

    ```python
    >>> fill_template("Topic: {title}\\nQuestion: {question}\\n", {"title": "Sets", "question": "Is {title} empty?"})
    'Topic: Sets\\nQuestion: Is {title} empty?\\n'
    >>> fill_template("Topic: {title}\\nQuestion: {question}\\n", {"title": "", "question": "What is {}?"})
    'Question: What is {}?\\n'

    ```
    """
    # One pass over all places, so that a place named inside a value is not filled in turn.
    places = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    filled = []
    for line in template.splitlines(keepends=True):
        line_values = [values[place[1:-1]] for place in places.findall(line)]
        if any(line_values) or not line_values:
            filled.append(places.sub(lambda match: values[match.group()[1:-1]], line))
    return "".join(filled)


def split_cue(template: str) -> tuple[str, str]:
    """
    Split a template before its last line if that is the beginning of the answer, such as `Answer:`.

    Example:

    ```python
    >>> split_cue("List what follows.\\n\\nPassage:\\n{context}\\n\\nImplications:\\n")
    ('List what follows.\\n\\nPassage:\\n{context}\\n', '\\nImplications:\\n')
    >>> split_cue("{title}\\n{context}\\n")
    ('{title}\\n{context}\\n', '')

    ```
    """
    body, _, last_line = template.rstrip().rpartition("\n")
    is_cue = last_line.endswith(":") and "{" not in last_line
    return (body, template[len(body) :]) if is_cue else (template, "")


def chat_template_turns(template: str) -> list[dict[str, str]]:
    r"""
    Split a template into the messages of a chat that ends with the user's: passages with what is written about them, which a
    template shows as examples, become earlier turns of the chat.

    Example:

    ```python
    >>> turns = chat_template_turns("Ask.\n\nPassage:\nBees hum.\n\nAsked:\nWho?\n\nPassage:\n{context}\n\nAsked:\n")
    >>> [turn["content"] for turn in turns]
    ['Ask.\n\nPassage:\nBees hum.', 'Who?', 'Passage:\n{context}']

    ```
    """
    body, cue = split_cue(template)
    instruction, *shown = body.split(PASSAGE_HEADING)
    parts = [example.partition(f"\n\n{cue.strip()}\n") for example in shown[:-1]]
    if not parts or not all(written for _, _, written in parts):
        return [{"role": "user", "content": body.strip()}]
    turns = []
    for passage, _, written in (*parts, (shown[-1], "", "")):
        asked = f"{PASSAGE_HEADING}{passage}" if turns else f"{instruction}{PASSAGE_HEADING}{passage}"
        turns.append({"role": "user", "content": asked.strip()})
        turns.append({"role": "assistant", "content": written.strip()})
    return turns[:-1]


def fill_prompt(template: str, values: Mapping[str, str], *, is_chat: bool) -> Prompt:
    """
    Fill the places of a template, in plain text or as chat messages.

    Args:
        template (`str`):
            Text with places such as `{title}`.
        values (`Mapping[str, str]`):
            Value of each place (see [`fill_template`]).
        is_chat (`bool`):
            Whether the prompt is the messages of a chat (see [`chat_template_turns`]).

    Returns:
        `str` or `list[dict]`: the prompt.
    """
    if not is_chat:
        return fill_template(template, values)
    turns = chat_template_turns(template)
    return [{**turn, "content": fill_template(turn["content"], values).strip()} for turn in turns]


def value_at_mark(marked: Prompt, prompt: Prompt) -> str | None:
    r"""
    What stands in a prompt in the place where another of the same template has [`MARK`].

    Args:
        marked (`str` or `list[dict]`):
            The prompt with the mark, in its last message where it is a chat.
        prompt (`str` or `list[dict]`):
            The prompt that is read.

    Returns:
        `str` or `None`: the text; `None` where the prompts differ elsewhere.

    Example:

    ```python
    >>> value_at_mark(f"Question: {MARK}\nAnswer:", "Question: Who hums?\nAnswer:")
    'Who hums?'

    ```
    """
    if isinstance(prompt, str) and isinstance(marked, str):
        before, _, after = marked.partition(MARK)
        if len(prompt) <= len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
            return None
        return prompt[len(before) : len(prompt) - len(after)].strip()
    if isinstance(prompt, str) or isinstance(marked, str):
        return None
    if len(prompt) != len(marked) or prompt[:-1] != marked[:-1]:
        return None
    return value_at_mark(marked[-1]["content"], prompt[-1]["content"])


def read_prompt_file(name: str) -> str:
    """The text of a prompt of this package, by its name."""
    return (resources.files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")


def load_answer_template(answer_prompt: str) -> str:
    if answer_prompt not in ANSWER_PROMPTS:
        raise ValueError(f"Unknown answer_prompt {answer_prompt!r}: choose one of {', '.join(ANSWER_PROMPTS)}.")
    return read_prompt_file(ANSWER_PROMPTS[answer_prompt])


def load_prompt_template(prompt_style: str) -> str:
    if prompt_style in PROMPT_STYLES:
        return read_prompt_file(prompt_style)
    if _has_passage(prompt_style):
        return prompt_style
    if not prompt_style.endswith(".txt"):
        raise ValueError(
            f"Unknown prompt_style {prompt_style!r}: choose one of {', '.join(PROMPT_STYLES)}, or give a template of "
            "your own that contains {context}, as text or as the path of a .txt file."
        )
    path = Path(prompt_style)
    if not path.is_file():
        raise FileNotFoundError(f"The prompt template {prompt_style!r} does not exist; check the path.")
    template = read_text(path)
    if not _has_passage(template):
        raise ValueError(f"The prompt template {prompt_style!r} has no place for the passage; add {{context}} to it.")
    return template


def _has_passage(template: str) -> bool:
    return "{context}" in template or "{sentences}" in template
