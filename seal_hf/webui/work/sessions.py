"""
The sessions of visitors. Nobody else sees what a visitor has, and it is deleted when the visitor has not used the page for a
while.
"""

import base64
import hashlib
import hmac
import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..languages import Message
from .jobs import JobRefused
from .session_items import Draft, KeptAdapter, Policy, Puzzle


logger = logging.getLogger(__name__)

_LONGEST_ID = 80  # characters
MAX_ADAPTERS = 24  # per session; one of the model `embedded` with rank 32 takes 70 MB


@dataclass
class Session:
    """
    One visitor's work.

    Parameters:
        id (`str`):
            A secret that the visitor's browser keeps.
        folder (`Path`):
            Where the files of its adapters and jobs are.
        passage (`dict`, *optional*):
            The passage that the page shows, with the visitor's questions.
        example (`dict`, *optional*):
            The passage that the self-edits are about, with the visitor's questions.
        drafts (`list[Draft]`, *optional*):
            The self-edits.
        settings (`dict`, *optional*):
            The settings with which they were written.
        puzzle ([`Puzzle`], *optional*):
            The last ARC task with its self-edits.
        writer ([`Policy`], *optional*):
            The policy that writes its self-edits. Defaults to none: the base model writes them.
        written_by (`str`, *optional*, defaults to `""`):
            Name of the policy that wrote the self-edits; empty where the base model did.
        shown_round (`int`, *optional*, defaults to `0`):
            The round of its training run that the page shows; 0 for the newest.
        adapters (`dict[str, KeptAdapter]`, *optional*):
            The adapters by their ids, oldest first.
        chosen (`str`, *optional*):
            Id of the adapter that is asked.
        asked (`list[tuple[str, str, str]]`, *optional*):
            Questions with the answers of the base and of the adapted model, oldest first.
        shown (`dict[str, str]`, *optional*):
            For each kind of job, the id of the last one. A page that is loaded again shows it.
        used (`float`, *optional*):
            When it was last used, as `time.monotonic()`, by its visitor or by its work. Defaults to now.
        visitor (`str`, *optional*, defaults to `""`):
            Whose it is, where that is asked; several sessions may be one visitor's.
        is_local (`bool`, *optional*, defaults to `True`):
            Whether it was opened by the user of this machine, as far as a request tells it.
        seen (`float`, *optional*):
            When its visitor was last there, as `time.monotonic()`. Defaults to now.
    """

    id: str
    folder: Path
    passage: dict | None = None
    example: dict | None = None
    drafts: list[Draft] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    puzzle: Puzzle | None = None
    writer: Policy | None = None
    written_by: str = ""
    shown_round: int = 0
    adapters: dict[str, KeptAdapter] = field(default_factory=dict)
    chosen: str | None = None
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)
    visitor: str = ""
    is_local: bool = True
    used: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)

    @property
    def holds_work(self) -> bool:
        """Whether it keeps its place: only what has cost the device time, and cannot be written again, counts."""
        return bool(self.adapters)

    def require_room(self, num_adapters: int) -> None:
        """
        Raises:
            JobRefused: There would be too many adapters.
        """
        if len(self.adapters) + num_adapters > MAX_ADAPTERS:
            raise JobRefused(Message("session.many_adapters", count=len(self.adapters), most=MAX_ADAPTERS))

    def adapter(self, adapter_id: str | None = None) -> KeptAdapter:
        """
        An adapter by its id, or the chosen one.

        Raises:
            JobRefused: There is none, or none with this id.
        """
        kept = self.adapters.get(adapter_id or self.chosen or "")
        if kept is None:
            raise JobRefused(Message("session.other_adapters" if self.adapters else "session.no_adapter"))
        return kept

    def new_file(self, name: str) -> tuple[str, Path]:
        """An id and a zip file for a new adapter with a name on the page. Neither the file nor its folder exists yet."""
        adapter_id = secrets.token_hex(4)
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name.encode("ascii", "ignore").decode()).strip("-").lower()
        return adapter_id, self.folder / "adapters" / adapter_id / f"{plain[:60] or 'adapter'}.zip"

    def keep(self, adapter: KeptAdapter, choose: bool) -> None:
        """Add an adapter to the list, and choose it if asked to or if none is chosen."""
        self.adapters[adapter.id] = adapter
        if choose or self.chosen is None:
            self.chosen = adapter.id

    def delete(self, adapter_id: str) -> KeptAdapter:
        """
        Remove an adapter and its file: that with this id, or the chosen one where it is empty. If it was chosen, the newest other one
        becomes the chosen one.

        Raises:
            JobRefused: There is none, or none with this id.
        """
        kept = self.adapter(adapter_id)
        del self.adapters[kept.id]
        shutil.rmtree(kept.file.parent, ignore_errors=True)
        if self.chosen == kept.id:
            self.chosen = next(reversed(self.adapters), None)
        return kept


class Sessions:
    """
    All sessions.

    Parameters:
        folder (`Path`):
            Where their folders are made.
        keep_seconds (`float`, *optional*, defaults to `3600`):
            How long an unused session is kept.
        max_sessions (`int`, *optional*, defaults to `64`):
            The largest number of sessions. For one more, the session that was unused for the longest time is deleted, but none
            with adapters and none with work under way.
        max_of_visitor (`float`, *optional*):
            The same for those of one visitor. Defaults to no limit.
        unattended_seconds (`float`, *optional*):
            How long work goes on when its visitor is gone. Defaults to no limit.
        is_busy (`Callable[[str], bool]`, *optional*):
            Tells whether the session with an id has work under way. Such a session is in use.
        on_unattended (`Callable[[str], None]`, *optional*):
            Called with the id of a session whose work has gone on for `unattended_seconds` without its visitor. It ends the work.
        on_forget (`Callable[[str], None]`, *optional*):
            Called with the id of a session that is deleted.

    Attributes:
        key (`bytes`):
            Signs the ids. With the key of an earlier `Sessions` its ids are taken, too.
        who (`Callable[[], str]`):
            Names the visitor for whom a session is opened; `""` for nobody in particular, who has no limit.
        is_local (`Callable[[], bool]`):
            Tells whether a session is opened by the user of this machine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_seconds: float = 3600,
        max_sessions: int = 64,
        max_of_visitor: float = math.inf,
        unattended_seconds: float = math.inf,
        is_busy: Callable[[str], bool] = lambda session_id: False,
        on_unattended: Callable[[str], None] = lambda session_id: None,
        on_forget: Callable[[str], None] = lambda session_id: None,
    ):
        self.key = secrets.token_bytes(32)
        self.who: Callable[[], str] = lambda: ""
        self.is_local: Callable[[], bool] = lambda: True
        self._max_of_visitor = max_of_visitor
        self._folder, self._keep_seconds, self._max_sessions = folder, keep_seconds, max_sessions
        self._unattended_seconds = unattended_seconds
        self._is_busy, self._on_unattended, self._on_forget = is_busy, on_unattended, on_forget
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, session_id: str | None = None) -> Session:
        """
        The session with an id. It is empty if it was deleted, and has a new id if `session_id` was not given out here.

        Raises:
            JobRefused: There is no room for another session.
        """
        if not self._is_own(session_id):
            session_id = self._signed(secrets.token_urlsafe(18))
        gone: list[Session] = []
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                visitor = self.who()
                gone = self._make_room(visitor)
                # The folder's name is another secret, since the browser gets the paths of files.
                folder = self._folder / secrets.token_hex(8)
                session = Session(session_id, folder, visitor=visitor, is_local=self.is_local())
                session.folder.mkdir(parents=True)
                self._sessions[session_id] = session
            session.used = session.seen = time.monotonic()
        self._remove(gone)
        return session

    def visitor_of(self, session_id: str) -> str:
        """Who is charged for what a session does: its visitor, or the session itself where that is not known."""
        session = self._sessions.get(session_id)
        return session.visitor or session_id if session is not None else session_id

    def find(self, session_id: object) -> Session | None:
        """The session with an id, whose visitor is there; `None` if there is none."""
        with self._lock:
            session = self._sessions.get(session_id) if isinstance(session_id, str) else None
            if session is not None:
                session.used = session.seen = time.monotonic()
            return session

    def _signed(self, name: str) -> str:
        signature = hmac.digest(self.key, name.encode(), hashlib.sha256)
        return f"{name}.{base64.urlsafe_b64encode(signature[:18]).decode()}"

    def _is_own(self, session_id: object) -> bool:
        if not isinstance(session_id, str) or not session_id.isascii() or len(session_id) > _LONGEST_ID:
            return False
        return hmac.compare_digest(self._signed(session_id.rpartition(".")[0]), session_id)

    def sweep(self) -> None:
        """Delete the sessions that were unused for too long, and end the work of visitors who are gone."""
        now, busy = time.monotonic(), []
        with self._lock:
            for session in self._sessions.values():
                if self._is_busy(session.id):
                    session.used = now
                    busy.append(session)
            gone = [session for session in self._sessions.values() if now - session.used > self._keep_seconds]
            for session in gone:
                del self._sessions[session.id]
        for session in busy:
            if now - session.seen > self._unattended_seconds:
                with _logged("The work of a visitor who is gone could not be ended"):
                    self._on_unattended(session.id)
        self._remove(gone)

    def _make_room(self, visitor: str) -> list[Session]:
        """Take out what has to go for one more session of a visitor. Those without any self-edits go first."""
        own = [session for session in self._sessions.values() if visitor and session.visitor == visitor]
        gone = self._idle(
            own,
            len(own) - self._max_of_visitor + 1,
            Message("session.many_of_visitor", count=len(own), most=self._max_of_visitor),
        )
        others = [session for session in self._sessions.values() if session not in gone]
        gone += self._idle(
            others,
            len(others) - self._max_sessions + 1,
            Message("session.no_place", most=self._max_sessions),
        )
        for session in gone:
            del self._sessions[session.id]
        return gone

    def _idle(self, sessions: Sequence[Session], surplus: float, refusal: str) -> list[Session]:
        """So many of these sessions, of which none has adapters or work under way."""
        if surplus <= 0:
            return []
        idle = [one for one in sessions if not one.holds_work and not self._is_busy(one.id)]
        if len(idle) < surplus:
            raise JobRefused(refusal)
        return sorted(idle, key=lambda session: (bool(session.drafts), session.used))[: int(surplus)]

    def _remove(self, gone: Sequence[Session]) -> None:
        for session in gone:
            with _logged("The work of a session that is deleted could not be ended"):
                self._on_forget(session.id)
            shutil.rmtree(session.folder, ignore_errors=True)


@contextmanager
def _logged(failure: str) -> Iterator[None]:
    """An error inside the block, such as of a full disk, goes to the log, so that it concerns one session alone."""
    try:
        yield
    except Exception:
        logger.exception(failure)
