"""How much all visitors may upload."""

import re
import time
from contextlib import suppress
from pathlib import Path

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


MAX_UPLOADS = 2 * 10**9  # bytes of all files that were uploaded and are not deleted yet
_STALE = 600  # seconds after which an upload goes if there is no room for another
_UPLOAD = re.compile(r"(/gradio_api)?/(upload|process_recording)/?")
_NO_LENGTH = "This upload does not say how many bytes it has: send a Content-Length."
_NO_ROOM = (
    "There is no room for this upload, since others have uploaded much: try again in ten minutes, or a smaller file."
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
    """

    def __init__(self, app: ASGIApp, folder: Path, sessions: Path):
        self._app, self._folder, self._sessions = app, folder, sessions
        self._under_way: list[int] = []  # their sizes in bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _UPLOAD.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return await PlainTextResponse(_NO_LENGTH, 411)(scope, receive, send)
        size = int(length)
        self._under_way.append(size)
        try:
            # Those under way count in full, although a part of them is on disk already.
            room = MAX_UPLOADS - sum(self._under_way)
            if room < 0 or await to_thread.run_sync(self._make_room, room) > room:
                return await PlainTextResponse(_NO_ROOM, 413)(scope, receive, send)
            await self._app(scope, receive, send)
        finally:
            self._under_way.remove(size)
            if not self._under_way:
                self._remove_broken()

    def _make_room(self, room: int) -> int:
        """The bytes of all uploads. Stale ones are removed if they have more than `room` bytes."""
        sizes = {path: path.stat() for path in self._uploads()}
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
