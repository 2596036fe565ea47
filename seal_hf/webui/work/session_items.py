"""What a session holds: self-edits, an ARC task, a policy, adapters."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ..languages import Message


@dataclass
class Draft:
    """
    One self-edit on the page, which the visitor may have edited.

    Parameters:
        text (`str`):
            What is trained on; beside `pairs` what there is besides.
        use (`bool`, *optional*, defaults to `True`):
            Whether to use it.
        pairs (`list[list[str]]`, *optional*):
            Questions with the answers that the model has found; `None` where it has not looked for any.
        written (`str`, *optional*, defaults to `""`):
            What the model wrote, as it was.
    """

    text: str
    use: bool = True
    pairs: list[list[str]] | None = None
    written: str = ""


@dataclass
class Puzzle:
    """
    An ARC task of a session.

    Parameters:
        task (`dict`):
            The task that the self-edits are about.
        texts (`list[str]`):
            The self-edits, which the visitor may have edited.
        settings (`dict`):
            The settings with which they were written.
        previews (`list[str]`, *optional*):
            What the page shows of the tools of each. Defaults to nothing, until it is made.
        language (`str`, *optional*, defaults to `""`):
            The language of `previews`.
    """

    task: dict
    texts: list[str]
    settings: dict
    previews: list[str] = field(default_factory=list)
    language: str = ""


@dataclass(frozen=True)
class Policy:
    """
    A policy that a training run of a session has trained. It may write the session's self-edits in place of the base model.

    Parameters:
        run, round (`int`):
            Which run of the session, and after which of its rounds, both from 1.
        prompt_style (`str`):
            How it was asked for self-edits there.
        folder (`Path`):
            Its PEFT folder.
    """

    run: int
    round: int
    prompt_style: str
    folder: Path

    @property
    def name(self) -> Message:
        """What the page calls it."""
        return Message("policy.name", run=self.run, round=self.round)


@dataclass
class KeptAdapter:
    """
    One adapter of a session.

    Parameters:
        id (`str`):
            Its id in the session.
        name (`str`):
            Its name on the page.
        file (`Path`):
            Its only file: a zip file of a PEFT folder, alone in a folder.
        title (`str`, *optional*, defaults to `""`):
            Title of the passage, which the questions name.
        passage (`str`, *optional*, defaults to `""`):
            The passage; empty for an adapter that was loaded.
        reward (`float`, *optional*):
            The share of the questions that it answered right.
        base_reward (`float`, *optional*):
            The share that the base model answered right.
        best_of (`int`, *optional*, defaults to `1`):
            Of how many adapters its reward is the greatest. Where these are several, the questions that score it have chosen
            it, so that its reward tends to be too high by chance.
        recitation (`float`, *optional*):
            The share for which its answer to "Tell me about ..." would be right.
        recited, base_recited (`float`, *optional*):
            The share of its answers, and of the base model's, that recite (see [`Domain.recited`]).
        num_questions (`int`, *optional*, defaults to `0`):
            The number of these questions.
        own_questions (`bool`, *optional*, defaults to `False`):
            Whether the model wrote them.
        seconds (`float`, *optional*):
            How long its training took.
        created (`float`, *optional*):
            When it was made, as `time.time()`. Defaults to now.
        origin (`tuple[str, ...]`, *optional*):
            What tells the book on the shelf that it became or was taken from, and the passage in it.
    """

    id: str
    name: str
    file: Path
    title: str = ""
    passage: str = ""
    reward: float | None = None
    base_reward: float | None = None
    best_of: int = 1
    recitation: float | None = None
    recited: float | None = None
    base_recited: float | None = None
    num_questions: int = 0
    own_questions: bool = False
    seconds: float | None = None
    created: float = field(default_factory=time.time)
    origin: tuple[str, ...] | None = None

    @property
    def num_bytes(self) -> int:
        """Size of its file, in bytes."""
        return self.file.stat().st_size
