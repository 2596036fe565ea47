"""
What a visitor has: the passage, the self-edits, the adapters. Nobody else sees it, and it goes when it is no longer used.
"""

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .jobs import JobRefused


_ID = re.compile(r"[\w-]{32}", re.ASCII)
MOST_ADAPTERS = 24  # of one session; one of the embedded model with rank 32 has 39 MB


@dataclass
class Draft:
    """One self-edit as it stands on the page: written by the model, perhaps edited by hand, used unless dropped."""

    text: str
    use: bool = True


@dataclass
class KeptAdapter:
    """
    One adapter of a session.

    Parameters:
        id (`str`):
            Its name in the session.
        name (`str`):
            Its name on the page.
        folder (`Path`):
            Its files, a PEFT folder.
        title (`str`):
            Topic of the passage, which its questions name.
        context (`str`):
            The passage; empty for one that was loaded.
        reward (`float`, *optional*):
            Share of the questions that it answered right.
        base_reward (`float`, *optional*):
            The same of the base model.
        num_questions (`int`, *optional*, defaults to `0`):
            How many questions that was.
        own_questions (`bool`, *optional*, defaults to `False`):
            Whether the model had written them itself.
        seconds (`float`, *optional*):
            How long its training took.
        created (`float`):
            When, as `time.time()`.
    """

    id: str
    name: str
    folder: Path
    title: str = ""
    context: str = ""
    reward: float | None = None
    base_reward: float | None = None
    num_questions: int = 0
    own_questions: bool = False
    seconds: float | None = None
    created: float = field(default_factory=time.time)

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


@dataclass
class Session:
    """
    Parameters:
        id (`str`):
            A secret that the visitor's browser keeps.
        folder (`Path`):
            Its adapters and jobs.
        passage (`dict`, *optional*):
            The passage that the page shows, with the person's questions.
        example (`dict`, *optional*):
            The passage that the self-edits are about, with the person's questions.
        drafts (`list[Draft]`):
            The self-edits.
        settings (`dict`):
            With which they were written.
        adapters (`dict[str, KeptAdapter]`):
            Oldest first.
        chosen (`str`, *optional*):
            The adapter that is asked.
        asked (`list[tuple[str, str, str]]`):
            Questions with the answers of the base and of the adapted model, oldest first.
        shown (`dict[str, str]`):
            For every kind of job the last one, which a reloaded page shows again.
    """

    id: str
    folder: Path
    passage: dict | None = None
    example: dict | None = None
    drafts: list[Draft] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    adapters: dict[str, KeptAdapter] = field(default_factory=dict)
    chosen: str | None = None
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    @property
    def holds_work(self) -> bool:
        """Whether anything would be lost with it."""
        return bool(self.adapters or self.drafts)

    def require_room(self, num_adapters: int) -> None:
        """
        Raises:
            JobRefused: With so many more there would be too many adapters.
        """
        if len(self.adapters) + num_adapters > MOST_ADAPTERS:
            raise JobRefused(
                f"{len(self.adapters)} adapters are kept, and {MOST_ADAPTERS} is the limit: delete some under Adapters."
            )

    def adapter(self, adapter_id: str | None = None) -> KeptAdapter:
        """
        An adapter by its id, or the chosen one.

        Raises:
            JobRefused: There is none.
        """
        kept = self.adapters.get(adapter_id or self.chosen or "")
        if kept is None:
            raise JobRefused("There is no adapter yet: learn a passage first, or load one under Adapters.")
        return kept

    def new_folder(self) -> tuple[str, Path]:
        """An id and a folder for an adapter to come."""
        adapter_id = secrets.token_hex(4)
        return adapter_id, self.folder / "adapters" / adapter_id

    def keep(self, adapter: KeptAdapter, choose: bool) -> None:
        """Add an adapter to the list."""
        self.adapters[adapter.id] = adapter
        if choose or self.chosen is None:
            self.chosen = adapter.id

    def delete(self, adapter_id: str) -> KeptAdapter:
        """Remove an adapter and its files; the newest other one becomes the chosen one."""
        kept = self.adapter(adapter_id)
        del self.adapters[adapter_id]
        for files in (kept.folder, self.folder / "zips" / kept.id):
            shutil.rmtree(files, ignore_errors=True)
        if self.chosen == adapter_id:
            self.chosen = next(reversed(self.adapters), None)
        return kept


class Sessions:
    """
    All sessions.

    Parameters:
        folder (`Path`):
            Where their folders are made.
        keep_seconds (`float`, *optional*, defaults to `3600`):
            How long one that nobody uses is kept.
        most (`int`, *optional*, defaults to `64`):
            How many there are at most; the one that was not used for the longest time gives way.
        is_busy (`Callable[[str], bool]`, *optional*):
            Whether a session has work under way, so that it is in use.
        on_forget (`Callable[[str], None]`, *optional*):
            Called with the id of one that goes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_seconds: float = 3600,
        most: int = 64,
        is_busy: Callable[[str], bool] = lambda session_id: False,
        on_forget: Callable[[str], None] = lambda session_id: None,
    ):
        self._folder, self._keep_seconds, self._most = folder, keep_seconds, most
        self._is_busy, self._on_forget = is_busy, on_forget
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, session_id: str | None = None) -> Session:
        """The session with this id, empty where it has been forgotten; a new one where the id is none that was given out."""
        if not isinstance(session_id, str) or not _ID.fullmatch(session_id):
            session_id = secrets.token_urlsafe(24)
        self.sweep(0 if session_id in self._sessions else 1, session_id)
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                # The folder's name is another secret, since paths of files are told to the browser.
                session = Session(session_id, self._folder / secrets.token_hex(8))
                session.folder.mkdir(parents=True)
                self._sessions[session_id] = session
            session.used = time.monotonic()
            return session

    def sweep(self, num_new: int = 0, opened: str | None = None) -> None:
        """Forget the sessions that nobody has used for too long, and the oldest where so many more would be too many."""
        now = time.monotonic()
        with self._lock:
            for session in self._sessions.values():
                if session.id == opened or self._is_busy(session.id):
                    session.used = now
            # Those that hold nothing go first.
            idle = sorted(self._sessions.values(), key=lambda session: (session.holds_work, session.used))
            surplus = len(idle) - self._most + num_new
            gone = [
                session
                for place, session in enumerate(idle)
                if (place < surplus or now - session.used > self._keep_seconds)
                and session.id != opened
                and not self._is_busy(session.id)
            ]
            for session in gone:
                del self._sessions[session.id]
        for session in gone:
            self._on_forget(session.id)
            shutil.rmtree(session.folder, ignore_errors=True)
