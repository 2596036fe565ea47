"""How much all visitors, and each of them, may upload."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


MAX_UPLOADS = 2 * 10**9  # bytes of all files that were uploaded and are not deleted yet
MAX_OF_VISITOR = 10**9  # the same of one visitor
_STALE = 600  # seconds after which an upload goes if there is no room for another
_UPLOAD = re.compile(r"(/gradio_api)?/(upload|process_recording)/?")
_NO_LENGTH = "This upload does not say how many bytes it has: send a Content-Length."
_NO_ROOM = (
    "There is no room for this upload, since others have uploaded much: try again in ten minutes, or a smaller file."
)
_NO_OWN_ROOM = (
    f"There is no room for this upload: those from your address may have {MAX_OF_VISITOR / 1e6:,.0f} MB until they are read or "
    "ten minutes old. Try again then, or a smaller file."
)


class BoundedUploads:
    """
    ASGI middleware that refuses uploads for which there is no room, before they are read.

    Gradio limits the size of each file, but not how many there are, and leaves what it has of an upload that breaks off.

    Parameters:
        app (`ASGIApp`):
            The app inside.
        folder (`Path`):
            Where Gradio puts uploads, each in a folder of its own.
        sessions (`Path`):
            A folder in it that holds no uploads.
        visitor (`Callable[[Scope], str]`, *optional*):
            Names who makes a request. Without it, there is no limit for each visitor.
    """

    def __init__(self, app: ASGIApp, folder: Path, sessions: Path, visitor: Callable[[Scope], str] | None = None):
        self._app, self._folder, self._sessions, self._visitor = app, folder, sessions, visitor
        self._under_way: list[tuple[str, int]] = []  # visitors, and sizes in bytes
        self._owners: dict[Path, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _UPLOAD.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return await PlainTextResponse(_NO_LENGTH, 411)(scope, receive, send)
        visitor = self._visitor(scope) if self._visitor is not None else ""
        entry, said = (visitor, int(length)), bytearray()
        self._under_way.append(entry)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.body":
                said.extend(message.get("body", b""))
            await send(message)

        try:
            if refusal := await to_thread.run_sync(self._refusal, visitor):
                return await PlainTextResponse(refusal, 413)(scope, receive, send)
            await self._app(scope, receive, noting)
        finally:
            self._owners |= dict.fromkeys(_stored(said), visitor)
            self._under_way.remove(entry)
            if not self._under_way:
                self._remove_broken()

    def _refusal(self, visitor: str) -> str | None:
        """Why there is no room for what is under way; `None` where there is. Stale uploads are removed for it."""
        # Those under way count in full, although a part of them is on disk already.
        under_way = list(self._under_way)
        room = MAX_UPLOADS - sum(size for _, size in under_way)
        own_room = MAX_OF_VISITOR - sum(size for one, size in under_way if one == visitor)
        if self._visitor is not None and (own_room < 0 or self._make_room(own_room, visitor) > own_room):
            return _NO_OWN_ROOM
        return _NO_ROOM if room < 0 or self._make_room(room) > room else None

    def _make_room(self, room: int, visitor: str | None = None) -> int:
        """The bytes of all uploads, or of one visitor's. Stale ones are removed if they have more than `room` bytes."""
        sizes = {path: path.stat() for path in self._uploads()}
        for path in [path for path in list(self._owners) if not path.exists()]:
            self._owners.pop(path, None)
        if visitor is not None:
            sizes = {path: found for path, found in sizes.items() if self._owners.get(path) == visitor}
        if sum(found.st_size for found in sizes.values()) > room:
            for path, found in list(sizes.items()):
                if time.time() - found.st_ctime > _STALE:
                    path.unlink(missing_ok=True)
                    del sizes[path]
        return sum(found.st_size for found in sizes.values())

    def _uploads(self) -> list[Path]:
        own = [path for path in self._folder.iterdir() if path != self._sessions]
        files = [file for path in own for file in (path.iterdir() if path.is_dir() else [path])]
        return [file for file in files if file.is_file()]

    def _remove_broken(self) -> None:
        """Remove what uploads that broke off have left. A complete one lies in a folder of its own."""
        with suppress(FileNotFoundError):  # the app ends
            for path in self._folder.iterdir():
                if path.is_file():
                    path.unlink(missing_ok=True)


def _stored(said: bytes) -> list[Path]:
    """Where an upload's files are, as Gradio says it; none where it says something else, such as an error."""
    try:
        paths = json.loads(said)
    except ValueError:
        return []
    return [Path(path) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
